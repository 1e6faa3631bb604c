"""Loading: only what holds by its checksums, from any layout, with moments that arrived whole."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from megalign.console import tell
from megalign.engine.checkpoint import folder as names
from megalign.engine.checkpoint import pickles  # noqa: F401 - Megatron reads through its restricted reader
from megalign.engine.checkpoint.content import sharded_state, verify_moments
from megalign.engine.checkpoint.shards import together
from megalign.engine.engine import Engine
from megalign.engine.mcore import dist_checkpointing
from megalign.engine.model import unwrapped
from megalign.engine.optimizer import allocate_state, separate_steps
from megalign.errors import DataError


def warn(text: str) -> None:
    """A line on rank 0's error stream."""
    if dist.get_rank() == 0:
        tell(f"warning: {text}")


def damaged_files(path: Path, files: names.Files | None = None, *, from_storage: bool = False) -> list[str]:
    """What is wrong with a checkpoint's files, on every rank. All ranks call this; each reads a share.

    Args:
        path: the checkpoint.
        files: sizes and checksums; None: those of its marker, which is checked too.
        from_storage: see `folder.crc_of`.
    """
    problems: list[str] = []
    if files is None:
        try:
            files = names.read_marker(path)[1]["files"]
        except DataError as error:
            files, problems = {}, [error.what]
    rank, world = dist.get_rank(), dist.get_world_size()
    problems += names.damage(path, files, sorted(files)[rank::world], from_storage=from_storage)
    everyone: list[Any] = [None] * world
    dist.all_gather_object(everyone, problems)
    return list(dict.fromkeys(problem for found in everyone for problem in found))


def settle(folder: Path) -> Path | None:
    """The checkpoint to go on from, its files checked; the pointer names it afterwards. All ranks call this.

    A damaged one is set aside under another name, loudly, and the one before it taken.

    Returns:
        the checkpoint, or None where there is none yet.

    Raises:
        DataError: there are checkpoints, and none holds.
    """

    def listed() -> tuple[list[Path], str]:
        names.clean(folder)
        return names.candidates(folder), names.pointed_name(folder)

    found, pointed = together().broadcast("candidates", listed)
    damaged: list[tuple[Path, str]] = []
    for path in found:
        problems = damaged_files(path)
        if not problems:
            break
        damaged.append((path, "; ".join(problems[:4])))
    else:
        if not pointed and not found:
            return None
        told = " | ".join(f"{path.name}: {text}" for path, text in damaged) or "there is none with a marker"
        raise DataError(
            f"No checkpoint in {folder} is whole: {told}.",
            "Training on from a damaged one would be another run.",
            f"Restore one from a copy, or remove {folder} to start over.",
        )
    for bad, text in damaged:
        warn(f"the checkpoint {bad} is damaged ({text}). It is set aside as damaged-{bad.name}.")
    if path.name != pointed:
        warn(f"going on from {path}, where {folder / names.POINTER} says {pointed!r}")

    def settled() -> None:
        for bad, _ in damaged:
            names.set_aside(bad)
        if names.pointed_name(folder) != path.name:
            names.point_at(path)

    together().broadcast("settle", settled)
    return path


def load(engine: Engine, path: Path, *, with_optimizer: bool = True, checked: bool = False) -> dict[str, Any]:
    """Load a checkpoint, written under any layout, into `engine`. All ranks call this.

    Args:
        engine: what is filled: weights, and the optimizer where asked.
        path: a folder that `save` wrote.
        with_optimizer: also load the optimizer's moments and steps.
        checked: the files were held against their checksums before (`settle`).

    Returns:
        the values given to `save`, and `step`.

    Raises:
        DataError: the checkpoint is missing, incomplete, damaged, of another model, or its moments did not arrive.
    """
    state, facts = names.read_marker(path)
    if not checked and (problems := damaged_files(path)):
        raise DataError(
            f"The checkpoint {path} is damaged: {'; '.join(problems[:4])}.",
            "What it holds is not what was saved.",
            "Restore it from a copy, or use an older one.",
        )
    if with_optimizer:
        _check_optimizer(engine, path, facts)
        with_optimizer = facts["adam_step"] > 0  # or there is nothing to load: a fresh one is the same
    if with_optimizer:
        allocate_state(engine.optimizer)
    wanted = sharded_state(engine, loading=True, with_optimizer=with_optimizer)
    try:
        loaded = dist_checkpointing.load(wanted, str(path / "shards"))
        if len(engine.chunks) == 1:
            unwrapped(engine.chunks[0]).load_state_dict(loaded["model"])
        else:
            for number, chunk in enumerate(engine.chunks):
                unwrapped(chunk).load_state_dict(loaded[f"model{number}"])
        if with_optimizer:
            engine.optimizer.load_state_dict(loaded["optimizer"])
    except (Exception, CheckpointException) as error:
        raise DataError(
            f"The checkpoint {path} does not fit this model or is damaged: {_reason(error)}",
            "Its tensors must have the names and shapes of the configured model.",
            "Use the configuration the run was started with.",
        ) from error
    if with_optimizer:
        separate_steps(engine.optimizer)
        verify_moments(engine, path, facts["adam_step"])
    elif engine.optimizer is not None:
        engine.optimizer.reload_model_params()
    return state


def _check_optimizer(engine: Engine, path: Path, facts: dict[str, Any]) -> None:
    if facts["adam_step"] is None:
        raise DataError(
            f"The checkpoint {path} has no optimizer.",
            "It was written to be read, not to go on training from.",
            "Use the checkpoint it was made of.",
        )
    before, now = facts["parallel"]["distributed_optimizer"], engine.layout.parallel.distributed_optimizer
    if before != now:
        raise DataError(
            f"The checkpoint {path} was written with parallel.distributed_optimizer {before}, this run has {now}.",
            "Megatron keeps the state of the two optimizers in different forms.",
            f"Set parallel.distributed_optimizer to {str(before).lower()}; every other degree may change.",
        )


def _reason(error: BaseException) -> str:
    """One line: the kind and the message of what went wrong, on the first rank where it did."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    if named := re.search(r"\bGLOBAL ([\w.]+)", str(error)):  # of our restricted unpickler, or torch's
        return f"it names {named[1]}, which is not allowed in a checkpoint. Nothing of it was run."
    return " ".join([type(error).__name__, *str(error).splitlines()[:1]])
