"""Saving: write under a temporary name, publish whole, let older ones go."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException

from megalign import __version__
from megalign.engine.checkpoint import folder as names
from megalign.engine.checkpoint.content import refuse_unsound, sharded_state
from megalign.engine.checkpoint.loading import damaged_files, warn
from megalign.engine.checkpoint.shards import ShardStrategy, ShardWrite, give_up, together
from megalign.engine.engine import Engine
from megalign.engine.mcore import dist_checkpointing, megatron_core_version, save_preprocess
from megalign.engine.weights import sharding_metadata
from megalign.errors import EnvironmentProblem, MegalignError


@dataclass
class _Pending:
    step: int
    temporary: Path
    write: ShardWrite
    state: dict[str, Any]
    facts: dict[str, Any]


class Saver:
    """Writes the checkpoints of one folder. Every method is called by all ranks alike, unless it says otherwise.

    Args:
        folder: where checkpoints stand.
        keep: older ones beyond this many go, once a newer one is complete and at least one of those that stay holds by
            its checksums.
        permanent_interval: checkpoints of every so many steps stay for ever.
        background: write in a thread on a copy of the tensors while training goes on. Published by the next call of
            `finish` after all ranks have written; `busy` says when that does not wait.
        verify: read every file back and compare its checksum before publishing.
        fence: called on rank 0 right before publishing; raises where this process may not publish any more.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        permanent_interval: int | None = None,
        background: bool = False,
        verify: bool = False,
        fence: Callable[[], None] | None = None,
    ) -> None:
        self.folder, self.keep, self.permanent_interval = folder, keep, permanent_interval
        self.background, self.verify = background, verify
        self._fence = fence or (lambda: None)
        self._pending: _Pending | None = None
        self._known_good: set[str] = set()

    @property
    def pending(self) -> bool:
        """Whether a checkpoint was begun and is not published; equal on all ranks."""
        return self._pending is not None

    @property
    def busy(self) -> bool:
        """Whether this rank is still writing; ranks differ."""
        return self._pending is not None and self._pending.write.busy

    def save(self, engine: Engine, step: int, state: dict[str, Any]) -> Path:
        """Write the checkpoint of `step`, in the background where asked; an earlier one is finished first.

        Args:
            engine: what is saved: weights, and the optimizer where there is one.
            step: number of steps taken.
            state: JSON values kept beside the shards.

        Returns:
            where it stands, or will stand.

        Raises:
            MegalignError: a weight or moment is not finite; nothing is written.
            EnvironmentProblem: it could not be written; nothing is published.
        """
        self.finish()
        adam_step = refuse_unsound(engine, step)
        temporary = self._on_rank_zero(step, lambda: self._begin(step))
        metadata = {name: value for name, value in sharding_metadata().items() if name != "dp_cp_group"}
        # Before its first step an optimizer has no state (Megatron would assert), and a fresh one is the same.
        content = sharded_state(engine, loading=False, with_optimizer=bool(adam_step))
        facts = {
            "parallel": engine.layout.parallel.model_dump(),
            "parameters": engine.num_parameters,
            "adam_step": adam_step,
            "versions": {"megalign": __version__, "megatron-core": megatron_core_version, "torch": torch.__version__},
        }
        try:
            write = self._write(content, str(temporary / "shards"), metadata)
        except CheckpointException as error:
            raise self._failure(step, temporary, error) from error
        self._pending = _Pending(step, temporary, write, {**state, "step": step}, facts)
        if not self.background:
            self.finish()
        return names.path_of(self.folder, step)

    def _write(self, content: dict[str, Any], folder: str, metadata: dict[str, Any]) -> ShardWrite:
        """Begin to write; CheckpointException on all ranks if one cannot."""
        try:
            # Megatron's check that all is written once, apart from its writing: what fails there, on rank 0 alone, does so
            # before the only thing the other ranks then wait for, the plan.
            save_preprocess(content)
            write: ShardWrite = dist_checkpointing.save(
                content,
                folder,
                sharded_strategy=ShardStrategy(background=self.background),
                validate_access_integrity=False,
                async_sharded_save=True,
                content_metadata=metadata,
            )
        except CheckpointException:
            raise
        except Exception as error:
            give_up(error)
            raise
        return write

    def finish(self) -> None:
        """Wait until the checkpoint that was begun is written on all ranks, and publish it.

        Raises:
            EnvironmentProblem: it could not be written or read back; the one before stays the latest.
            SupersededError: another process owns the run.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        step, temporary = pending.step, pending.temporary
        try:
            checksums = pending.write.finish()
        except CheckpointException as error:
            raise self._failure(step, temporary, error) from error
        known = {f"shards/{name}": crc for name, crc in checksums.items()}
        files = self._on_rank_zero(step, lambda: names.describe_files(temporary, known))
        if self.verify:
            problems = damaged_files(temporary, files, from_storage=True)
            if problems:
                raise self._failure(step, temporary, f"read back, {'; '.join(problems[:4])}")
        self._on_rank_zero(step, lambda: self._publish(pending, files))
        if self.verify:
            self._known_good.add(names.path_of(self.folder, step).name)
        self._remove_old(step)

    def _begin(self, step: int) -> Path:
        """On rank 0: a fresh temporary folder. Its name is unique: a process that was superseded writes into its own."""
        self._fence()
        self.folder.mkdir(parents=True, exist_ok=True)
        names.clean(self.folder)
        temporary = self.folder / f".tmp-{names.path_of(self.folder, step).name}-{uuid.uuid4().hex[:8]}"
        (temporary / "shards").mkdir(parents=True)
        return temporary

    def _publish(self, pending: _Pending, files: names.Files) -> None:
        """On rank 0."""
        temporary = pending.temporary
        names.sync(temporary)
        names.write_marker(temporary, pending.state, {**pending.facts, "files": files})
        self._fence()
        names.publish(temporary, names.path_of(self.folder, pending.step))

    def _remove_old(self, step: int) -> None:
        def listed() -> tuple[list[Path], list[Path]]:
            return names.removable(self.folder, step, self.keep, self.permanent_interval)

        old, kept = self._on_rank_zero(step, listed)
        if not old:
            return
        # The last good one never goes: some checkpoint that stays must hold by its checksums.
        if not any(path.name in self._known_good for path in kept):
            for path in kept:
                problems = damaged_files(path)
                if not problems:
                    self._known_good.add(path.name)
                    break
                warn(f"the checkpoint {path} is damaged: {'; '.join(problems[:4])}")
            else:
                warn(f"no older checkpoint in {self.folder} is removed: none of the newer ones holds")
                return
        self._on_rank_zero(step, lambda: names.remove(old))

    def _on_rank_zero(self, step: int, act: Callable[[], Any]) -> Any:
        """What `act` returns on rank 0, on all ranks; what it raises, on all ranks."""
        try:
            return together().broadcast("publish", act)
        except CheckpointException as error:
            cause = next(iter(error.failures.values()))[0]
            if isinstance(cause, MegalignError):
                raise cause from error
            raise self._failure(step, None, error) from error

    def _failure(self, step: int, temporary: Path | None, error: object) -> MegalignError:
        """The error to raise on all ranks; rank 0 removes the temporary files, to give the space back."""

        def tidy() -> MegalignError | None:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            try:
                self._fence()  # a process that took the run over may have removed the files under our hands
            except MegalignError as superseded:
                return superseded
            return None

        superseded: MegalignError | None = together().broadcast("tidy", tidy)
        return superseded or EnvironmentProblem(
            f"The checkpoint of step {step} could not be written to {self.folder}: {_reason(error)}.",
            "Nothing was published; the checkpoint before is still the latest.",
            "Free space there, or mend the storage, and run the same command again to continue.",
        )


def _reason(error: object) -> str:
    """One line, with the rank where it is known."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, (cause, _) = next(iter(error.failures.items()))
        return f"rank {rank}: {_reason(cause)}"
    if isinstance(error, BaseException):
        return " ".join([f"{type(error).__name__}:", *str(error).splitlines()[:1]])
    return str(error)


def save(engine: Engine, folder: Path, step: int, state: dict[str, Any], *, keep: int) -> Path:
    """Write one checkpoint and wait for it; see `Saver`. All ranks call this."""
    return Saver(folder, keep=keep).save(engine, step, state)
