"""Writing shards: Megatron's torch_dist format, written by torch's own writer in this process.

Megatron's writer forks a process for every file and first spawns a manager process (0.3 GB of imports, seconds before the
first file), which lives on when a rank is killed. Here a rank writes one file, by itself or in a thread on a copy of the
tensors; a thread ends with its process, so nothing is left to write into a checkpoint of a run that is gone. All
collectives are on the main thread.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import torch
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.checkpoint.utils import _DistWrapper

from megalign.engine.mcore import CheckpointingConfig, ShardedTensor, save_config, torch_strategy

_BACKEND, _VERSION = "torch_dist", 1


def together() -> _DistWrapper:
    """Collectives over all ranks that raise on all of them what one of them raised (as CheckpointException)."""
    return _DistWrapper(None, True, 0)


class _SummedStream(io.RawIOBase):
    """Passes on what is written, and keeps its crc32c. Sequential: it cannot seek."""

    def __init__(self, raw: Any) -> None:
        self._raw, self.crc = raw, 0
        self.error: OSError | None = None

    def write(self, block: Any) -> int:
        self.crc = google_crc32c.extend(self.crc, bytes(block))
        try:
            written: int = self._raw.write(block)
        except OSError as error:
            self.error = self.error or error
            raise
        return written

    def tell(self) -> int:
        return int(self._raw.tell())

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        self._raw.flush()  # asked for by fsync: what is buffered here must be in the file before
        return int(self._raw.fileno())

    def flush(self) -> None:
        if not self._raw.closed:
            self._raw.flush()

    def close(self) -> None:
        self._raw.close()
        super().close()


class _SummingFileSystem(FileSystem):
    """Takes the checksum of every file while it is written: what is meant to be in it, not what arrived."""

    def __init__(self) -> None:
        self.checksums: dict[str, str] = {}

    @contextlib.contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        with super().create_stream(path, mode) as raw, _SummedStream(raw) as stream:
            try:
                yield stream
            except Exception:
                if stream.error is not None:  # torch tells it as a position that it did not expect
                    raise stream.error from None
                raise
            self.checksums[Path(path).name] = f"{stream.crc:08x}"


class ShardWrite:
    """A checkpoint's shards being written.

    Attributes:
        finalize_fns: filled by Megatron, and not called: they write a file on rank 0 and wait at a barrier, where the
            other ranks would wait for ever if that failed. `finish` writes that file.
    """

    def __init__(
        self,
        writer: FileSystemWriter,
        files: _SummingFileSystem,
        index: Metadata | None,
        write: Callable[[], list[WriteResult]],
        *,
        background: bool,
    ) -> None:
        self.finalize_fns: list[Callable[[], None]] = []
        self._writer, self._files, self._index, self._write = writer, files, index, write
        self._results: list[WriteResult] | None = None
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        if background:
            self._thread = threading.Thread(target=self._run, name="checkpoint writer", daemon=True)
            self._thread.start()
        else:
            self._run()

    def _run(self) -> None:
        try:
            self._results = self._write()
        except BaseException as error:
            self._error = error
        finally:
            del self._write  # and with it the copy of the tensors

    @property
    def busy(self) -> bool:
        """Whether this rank is still writing."""
        return self._thread is not None and self._thread.is_alive()

    def finish(self) -> dict[str, str]:
        """Wait for all ranks, write the index. All ranks call this.

        Returns:
            name -> crc32c of the files of all ranks, on every rank.

        Raises:
            CheckpointException: a rank could not write; on all ranks.
        """

        def own() -> tuple[list[WriteResult], dict[str, str]]:
            if self._thread is not None:
                self._thread.join()
            if self._error is not None:
                raise self._error
            assert self._results is not None
            return self._results, self._files.checksums

        def write_index(everyone: list[tuple[list[WriteResult], dict[str, str]]]) -> dict[str, str]:
            assert self._index is not None
            self._writer.finish(self._index, [results for results, _ in everyone])
            save_config(CheckpointingConfig(_BACKEND, _VERSION), str(self._writer.path))
            return {name: crc for _, checksums in everyone for name, crc in checksums.items()}

        checksums: dict[str, str] = together().all_reduce("write", own, write_index)
        return checksums


class ShardStrategy(torch_strategy.TorchDistSaveShardedStrategy):
    """Megatron's strategy with its plan carried out by torch's writer: one file a rank, no other processes.

    Args:
        background: write in a thread, from a copy.
    """

    def __init__(self, *, background: bool) -> None:
        super().__init__(_BACKEND, _VERSION, thread_count=1)
        self.background = background

    def async_save(self, sharded_state_dict: Any, checkpoint_dir: Any, *args: Any, **kwargs: Any) -> ShardWrite:
        """Plan, and begin to write. All ranks call this."""
        by_key, _, _ = torch_strategy._replace_state_dict_keys_with_sharded_keys(
            sharded_state_dict, self.keep_only_main_replica
        )
        if self.background:
            _copy_tensors(by_key)
        planner = torch_strategy.MCoreSavePlanner(
            dedup_replicated_tensors=not self.keep_only_main_replica, flatten_state_dict=False
        )
        # Nothing is to be copied ahead where the tensors are in host memory already.
        ahead_bytes = 0 if self.background else 10_000_000
        writer = FileSystemWriter(checkpoint_dir, thread_count=1, sync_files=True, per_thread_copy_ahead=ahead_bytes)
        files = _SummingFileSystem()
        writer.fs = files
        content = torch_strategy.mcore_to_pyt_state_dict(by_key, False)
        plan, index = _plan(planner, writer, content)

        def write() -> list[WriteResult]:
            return writer.write_data(plan, planner).value()

        return ShardWrite(writer, files, index, write, background=self.background)


def give_up(error: BaseException) -> None:
    """Called by a rank that failed before the plan, which the others are waiting in: they get the error too.

    Raises:
        CheckpointException: on all ranks.
    """

    def local() -> SavePlan:
        raise error

    together().reduce_scatter("plan", local, lambda plans: plans)


def _plan(planner: Any, writer: FileSystemWriter, content: dict[str, Any]) -> tuple[SavePlan, Metadata | None]:
    """This rank's part of the plan, and on rank 0 the index."""
    ranks = together()
    index: Metadata | None = None

    def local() -> SavePlan:
        planner.set_up_planner(content, is_coordinator=ranks.is_coordinator)
        writer.set_up_storage_writer(ranks.is_coordinator)
        return writer.prepare_local_plan(planner.create_local_plan())

    def whole(plans: list[SavePlan]) -> list[SavePlan]:
        nonlocal index
        plans, index = planner.create_global_plan(plans)
        return writer.prepare_global_plan(plans)

    return planner.finish_plan(ranks.reduce_scatter("plan", local, whole)), index


def _copy_tensors(by_key: dict[str, Any]) -> None:
    """Replace the tensors by copies in host memory: the next step overwrites the originals."""
    for shards in by_key.values():
        for shard in shards:
            if isinstance(shard, ShardedTensor) and shard.data is not None:
                shard.data = shard.data.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
