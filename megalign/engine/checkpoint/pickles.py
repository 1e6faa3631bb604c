"""Reading what torch pickles into a checkpoint, without running what a pickle may ask for.

torch.distributed.checkpoint keeps its index (`.metadata`) as a pickle and reads it with `pickle.load`, and objects inside
the shards with `torch.load(weights_only=False)`. Both would run any code that a doctored checkpoint holds. Here the index
may name the classes below and nothing else, and objects pass torch's own restricted loader. `common.pt` is read by
Megatron with torch's default, which is restricted since 2.6.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner
from torch.futures import Future

from megalign.engine.mcore import checkpoint_serialization, torch_strategy

_PLAN = "torch.distributed.checkpoint"
ALLOWED = {
    *(
        (f"{_PLAN}.metadata", name)
        for name in (
            *("Metadata", "MetadataIndex", "StorageMeta", "BytesStorageMetadata", "TensorStorageMetadata"),
            *("ChunkStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING"),
        )
    ),
    *((f"{_PLAN}.filesystem", name) for name in ("_StorageInfo", "_StoragePrefix")),
    *((f"{_PLAN}.planner", name) for name in ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData")),
    ("torch", "Size"),
    ("torch", "strided"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib", "Path"),
    # Empty classes by which Megatron-Core 0.15 marked its checkpoints.
    ("megatron.core.dist_checkpointing.strategies.torch", "MCoreMetadata"),
    ("megatron.core.dist_checkpointing.strategies.torch", "MCoreSavePlan"),
}


class RefusedPickle(pickle.UnpicklingError):
    """A pickle names something that has no business in a checkpoint's index."""


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if (module, name) not in ALLOWED:
            raise RefusedPickle(f"the index names GLOBAL {module}.{name}, which is not allowed in a checkpoint")
        return super().find_class(module, name)


def read_index(shards: Path) -> Metadata:
    """The `.metadata` of a folder of shards.

    Raises:
        RefusedPickle: it names what is not allowed. Nothing of it was run.
    """
    index = _IndexUnpickler(io.BytesIO((shards / ".metadata").read_bytes())).load()
    if not isinstance(index, Metadata):
        raise RefusedPickle(f"the index is a {type(index).__name__}")
    return index


class RestrictedReader(FileSystemReader):
    """torch's reader of shards; it refuses pickles that name what is not allowed."""

    _index: Metadata | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index, read once."""
        if self._index is None:
            self._index = read_index(Path(self.path))
        return self._index

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read tensors and objects of a plan; an object that torch's restricted loader refuses is not loaded."""
        if any(item.type == LoadItemType.BYTE_IO for item in plan.items):
            load_bytes = planner.load_bytes

            def checked(item: Any, value: io.BytesIO) -> None:
                torch.load(value, map_location="cpu", weights_only=True)
                value.seek(0)
                load_bytes(item, value)

            planner.load_bytes = checked  # type: ignore[method-assign, assignment]
        return super().read_data(plan, planner)


def _reader(checkpoint_dir: Any, *args: Any, **kwargs: Any) -> RestrictedReader:
    return RestrictedReader(checkpoint_dir)


def _install() -> None:
    """Let Megatron read through `RestrictedReader` everywhere."""
    torch_strategy._get_filesystem_reader = _reader
    if hasattr(checkpoint_serialization, "_get_filesystem_reader"):  # from 0.19
        checkpoint_serialization._get_filesystem_reader = _reader


_install()
