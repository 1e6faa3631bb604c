"""Checkpoints: Megatron's torch_dist shards and a state.json, published whole or not at all.

`FOLDER/step_00000100/{shards/, state.json}`; `FOLDER/latest` names the newest complete one. Everything is written under
a temporary name, then state.json (the marker), then the folder is renamed, then the pointer is replaced. Readers take
what the pointer names.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from megalign.engine.engine import Engine
from megalign.engine.mcore import ShardedTensor, dist_checkpointing, nested_values
from megalign.engine.model import unwrapped
from megalign.engine.optimizer import adam_steps, allocate_state, separate_steps
from megalign.engine.weights import sharding_metadata
from megalign.errors import DataError, MegalignError
from megalign.files import fsync_directory, read_json, write_json, write_text

_STEP = re.compile(r"step_(\d{8})\Z")
MARKER = "state.json"


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` stands."""
    return folder / f"step_{step:08d}"


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint, or None where there is none yet.

    Raises:
        DataError: the pointer names a checkpoint that is not there or not complete.
    """
    pointer = folder / "latest"
    if not pointer.exists():
        return None
    name = pointer.read_text(encoding="utf-8").strip()
    path = folder / name
    if not _STEP.match(name) or not (path / MARKER).exists():
        raise DataError(
            f"{pointer} names {name!r}, which is not a complete checkpoint.",
            "The folder was changed by hand or damaged.",
            f"Write the name of a complete checkpoint (one with a {MARKER}) into {pointer}, or remove {folder} to start over.",
        )
    return path


def _sharded_state(engine: Engine, *, loading: bool, with_optimizer: bool) -> dict[str, Any]:
    models = [unwrapped(chunk).sharded_state_dict(metadata=sharding_metadata()) for chunk in engine.chunks]
    for tensor in nested_values(models):
        if isinstance(tensor, ShardedTensor):
            # Megatron would cut or fill up the rows of another vocabulary, silently: its padding depends on the layout.
            tensor.allow_shape_mismatch = False
    state: dict[str, Any] = (
        {"model": models[0]} if len(models) == 1 else {f"model{number}": model for number, model in enumerate(models)}
    )
    if with_optimizer:
        reference = models[0] if len(models) == 1 else state.copy()
        state["optimizer"] = engine.optimizer.sharded_state_dict(
            reference, is_loading=loading, metadata=sharding_metadata()
        )
    return state


def save(engine: Engine, folder: Path, step: int, state: dict[str, Any], *, keep: int) -> Path:
    """Write the checkpoint of `step` and point `latest` at it. All ranks call this.

    Args:
        engine: what is saved: weights, and the optimizer where there is one.
        folder: the run's checkpoint folder.
        step: number of steps taken.
        state: JSON values kept beside the shards.
        keep: older checkpoints beyond this many are removed, once the new one is complete.

    Raises:
        MegalignError: a weight is not finite; nothing is written.
    """
    _refuse_non_finite(engine, step)
    final = path_of(folder, step)
    temporary = folder / f".tmp-{final.name}"
    shards = temporary / "shards"
    if dist.get_rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        shards.mkdir(parents=True)
    dist.barrier()
    metadata = {name: value for name, value in sharding_metadata().items() if name != "dp_cp_group"}
    content = _sharded_state(engine, loading=False, with_optimizer=engine.optimizer is not None)
    dist_checkpointing.save(content, str(shards), content_metadata=metadata)
    if dist.get_rank() == 0:
        _sync_files(shards)
        write_json(temporary / MARKER, {**state, "step": step})
        old = folder / f".old-{final.name}"
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
            final.replace(old)  # not removed before the new one stands
        temporary.replace(final)
        shutil.rmtree(old, ignore_errors=True)
        fsync_directory(folder)
        write_text(folder / "latest", final.name + "\n")
        _remove_old(folder, step, keep)
    dist.barrier()
    return final


def _sync_files(folder: Path) -> None:
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    fsync_directory(folder)


def _remove_old(folder: Path, step: int, keep: int) -> None:
    """Remove what is older than the newest `keep` up to `step`. Later ones, left by going back by hand, do not count."""
    complete = sorted(path for path in folder.iterdir() if _STEP.match(path.name) and (path / MARKER).exists())
    for path in [path for path in complete if path.name <= path_of(folder, step).name][:-keep]:
        shutil.rmtree(path)


def _refuse_non_finite(engine: Engine, step: int) -> None:
    bad = sum(float(not torch.isfinite(p).all()) for chunk in engine.chunks for p in chunk.parameters())
    total = torch.tensor([bad])
    dist.all_reduce(total)
    if total.item():
        raise MegalignError(
            f"Step {step}: {int(total.item())} weights hold values that are not finite; no checkpoint was written.",
            "It would replace a good one.",
            "Resume from the last checkpoint with a lower learning rate.",
        )


def load(engine: Engine, path: Path, *, with_optimizer: bool = True) -> dict[str, Any]:
    """Load a checkpoint, written under any layout, into `engine`. All ranks call this.

    Args:
        engine: what is filled: weights, and the optimizer where asked.
        path: a folder that `save` wrote.
        with_optimizer: also load the optimizer's moments and steps.

    Returns:
        the values of state.json.

    Raises:
        DataError: the checkpoint is missing, incomplete, of another model, or its moments did not arrive.
    """
    if not (path / MARKER).exists():
        raise DataError(f"{path} is not a complete checkpoint: it has no {MARKER}.")
    state: dict[str, Any] = read_json(path / MARKER)
    if with_optimizer:
        allocate_state(engine.optimizer)
    wanted = _sharded_state(engine, loading=True, with_optimizer=with_optimizer)
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
        _verify_moments(engine, path, int(state["step"]))
    elif engine.optimizer is not None:
        engine.optimizer.reload_model_params()
    return state


def _reason(error: BaseException) -> str:
    """One line: the kind and the message of what went wrong, on the first rank where it did."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return " ".join([type(error).__name__, *str(error).splitlines()[:1]])


def _verify_moments(engine: Engine, path: Path, step: int) -> None:
    """Adam's counters must say the checkpoint's step: moments that were dropped silently start at 0."""
    steps = adam_steps(engine.optimizer)
    if step and steps - {float(step)}:
        raise DataError(
            f"The optimizer loaded from {path} counts steps {sorted(steps)}, the checkpoint says {step}.",
            "Its moments did not arrive whole; training on would be another run.",
            "Resume from another checkpoint.",
        )
