"""What a checkpoint on disk holds, and whether it is whole: one process, no model, no process group."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from megalign.engine.checkpoint import folder as names
from megalign.engine.checkpoint.content import MOMENTS
from megalign.engine.checkpoint.pickles import read_index
from megalign.errors import DataError, first_line

STAGES = ("inject", "pretrain")
# With the distributed optimizer, and without it in bfloat16.
_COPY_KEYS = ("optimizer.state.param.", "optimizer.state.fp32_param.")
_MOMENT_KEYS = tuple(f"optimizer.state.{moment}." for moment in MOMENTS)


@dataclass(frozen=True)
class TensorFacts:
    """A tensor of a checkpoint: its name, global shape, dtype and in how many parts it was written."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    num_parts: int
    num_bytes: int

    @property
    def of_optimizer(self) -> bool:
        """Whether it belongs to the optimizer and not to the model."""
        return self.name.startswith("optimizer.")


@dataclass(frozen=True)
class Description:
    """A checkpoint: the caller's values (stage, samples, fingerprints), its own facts, its tensors."""

    path: Path
    state: dict[str, Any]
    facts: dict[str, Any]
    tensors: list[TensorFacts]

    def num_bytes(self, *, of_optimizer: bool) -> int:
        """Bytes of the model's or of the optimizer's tensors."""
        return sum(t.num_bytes for t in self.tensors if t.of_optimizer is of_optimizer)

    @property
    def num_file_bytes(self) -> int:
        """Bytes of all files but the marker."""
        return sum(int(file["bytes"]) for file in self.facts["files"].values())


def find(path: Path) -> Path:
    """The checkpoint that a path means: itself, the latest of a stage's folder, or that of a run's last stage.

    Raises:
        DataError: there is none.
    """
    if (path / names.MARKER).exists():
        return path
    found = names.latest(path) or names.newest([path / "checkpoints" / stage for stage in STAGES])
    if found is not None:
        return found
    raise DataError(
        f"{path} is neither a complete checkpoint, nor a folder of checkpoints, nor the folder of a run that has any.",
        fix=f"Name a folder with {names.MARKER} or {names.POINTER} in it, or a run's folder.",
    )


def describe(path: Path) -> Description:
    """Read the marker and the index of a checkpoint; tensors are not read.

    Raises:
        DataError: the marker or the index is missing or damaged.
    """
    state, facts = names.read_marker(path)
    index = _index(path)
    tensors = [
        TensorFacts(name, tuple(entry.size), _dtype_name(entry), len(entry.chunks), _num_bytes(entry))
        for name, entry in sorted(index.state_dict_metadata.items())
        if isinstance(entry, TensorStorageMetadata)
    ]
    return Description(path, state, facts, tensors)


def find_problems(path: Path) -> list[str]:
    """Everything that is wrong with a checkpoint, a sentence for each; empty where it is whole.

    Looks at the marker, sizes and checksums of all files, whether every tensor is there from edge to edge, finite, of the
    shape and dtype the index says, whether every weight has its moments, the second not negative, and whether the
    optimizer's own float32 weights are those of the model.
    """
    try:
        _, facts = names.read_marker(path)
    except DataError as error:
        return [str(error)]
    problems = names.damage(path, facts["files"], sorted(facts["files"]))
    extra = set(names.describe_files(path, dict.fromkeys(facts["files"], "-"))) - set(facts["files"])
    problems += [f"{name} is not in the list of files" for name in sorted(extra)]
    if problems:
        return problems  # what is in damaged files need not be told
    try:
        index = _index(path)
    except DataError as error:
        return [str(error)]
    problems += _lacking_moments(index, facts["adam_step"])
    shards = path / "shards"
    for name, entry in index.state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            problems += [f"{name}: {text}" for text in (*_gaps(entry), *_content(shards, name, entry, index))]
        elif isinstance(entry, BytesStorageMetadata):
            try:
                torch.load(io.BytesIO(_bytes(shards, MetadataIndex(name), index)), weights_only=True)
            except Exception as error:
                problems.append(f"{name}: cannot be read: {first_line(error)}")
    return problems or list(_other_copies(shards, index))


def read_tensors(path: Path, wanted: list[str]) -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint by name, each put together from its parts.

    Raises:
        DataError: the index or a part cannot be read.
    """
    index = _index(path)
    entries = {k: v for k, v in index.state_dict_metadata.items() if isinstance(v, TensorStorageMetadata)}
    try:
        return {name: _whole(path / "shards", name, entries[name], index) for name in wanted}
    except (OSError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
        raise DataError(
            f"The tensors of {path} cannot be read: {type(error).__name__} {error}.",
            "The checkpoint is damaged.",
            "Run `megalign checkpoint verify`.",
        ) from error


def _index(path: Path) -> Metadata:
    try:
        return read_index(path / "shards")
    except Exception as error:
        raise DataError(
            f"The index {path / 'shards' / '.metadata'} cannot be read: {type(error).__name__} {error}.",
            "Without it nothing in the checkpoint can be found.",
        ) from error


def _dtype_name(entry: TensorStorageMetadata) -> str:
    return str(entry.properties.dtype).removeprefix("torch.")


def _num_bytes(entry: TensorStorageMetadata) -> int:
    return int(math.prod(entry.size) * entry.properties.dtype.itemsize)


def _lacking_moments(index: Metadata, adam_step: int | None) -> Iterator[str]:
    tensors = {k: v for k, v in index.state_dict_metadata.items() if isinstance(v, TensorStorageMetadata)}
    if not adam_step:
        if any(name.startswith("optimizer.") for name in tensors):
            yield f"there is an optimizer, but {names.MARKER} says adam_step {adam_step}"
        return
    for name, entry in tensors.items():
        if name.startswith("optimizer."):
            continue
        for prefix in _MOMENT_KEYS:
            moment = tensors.get(prefix + name)
            if moment is None:
                yield f"{prefix + name} is missing"
            elif moment.size != entry.size:
                yield f"{prefix + name} has the shape {tuple(moment.size)}, its weight {tuple(entry.size)}"


def _other_copies(shards: Path, index: Metadata) -> Iterator[str]:
    """Weights whose float32 copy in the optimizer, rounded to their dtype, is another: the next step would change them."""
    tensors = {k: v for k, v in index.state_dict_metadata.items() if isinstance(v, TensorStorageMetadata)}
    for name, entry in tensors.items():
        for copy in (prefix + name for prefix in _COPY_KEYS if prefix + name in tensors):
            weight, other = _whole(shards, name, entry, index), _whole(shards, copy, tensors[copy], index)
            differ = int((other.to(weight.dtype) != weight).sum())
            if differ:
                yield f"{copy} is not {name}: {differ} of {weight.numel()} numbers differ"


def _whole(shards: Path, name: str, entry: TensorStorageMetadata, index: Metadata) -> torch.Tensor:
    whole = torch.empty(entry.size, dtype=entry.properties.dtype)
    for chunk in entry.chunks:
        place = tuple(slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True))
        part = torch.load(io.BytesIO(_bytes(shards, MetadataIndex(name, chunk.offsets), index)), weights_only=True)
        whole[place] = part
    return whole


def _gaps(entry: TensorStorageMetadata) -> Iterator[str]:
    """Parts that do not fill the tensor, or cover each other."""
    covered = sum(math.prod(chunk.sizes) for chunk in entry.chunks)
    if covered != math.prod(entry.size):
        yield f"its parts hold {covered} of {math.prod(entry.size)} numbers"
    elif any(_overlap(one, two) for one, two in combinations(entry.chunks, 2)):
        yield "its parts cover each other"


def _overlap(one: ChunkStorageMetadata, two: ChunkStorageMetadata) -> bool:
    return all(
        max(a, b) < min(a + m, b + n) for a, m, b, n in zip(one.offsets, one.sizes, two.offsets, two.sizes, strict=True)
    )


def _bytes(shards: Path, at: MetadataIndex, index: Metadata) -> bytes:
    where = index.storage_data[at]
    if Path(where.relative_path).name != where.relative_path:
        raise DataError(f"the index points outside of the checkpoint, at {where.relative_path}")
    with (shards / where.relative_path).open("rb") as stream:
        stream.seek(where.offset)
        return stream.read(where.length)


def _content(shards: Path, name: str, entry: TensorStorageMetadata, index: Metadata) -> Iterator[str]:
    for chunk in entry.chunks:
        place = f"the part at {tuple(chunk.offsets)}"
        try:
            part = torch.load(io.BytesIO(_bytes(shards, MetadataIndex(name, chunk.offsets), index)), weights_only=True)
        except Exception as error:
            yield f"{place} cannot be read: {type(error).__name__} {error}"
            continue
        if part.shape != chunk.sizes or part.dtype != entry.properties.dtype:
            yield (
                f"{place} is {tuple(part.shape)} {part.dtype}, the index says {tuple(chunk.sizes)} "
                f"{entry.properties.dtype}"
            )
        if part.is_floating_point() and not bool(torch.isfinite(part).all()):
            yield f"{place} holds values that are not finite"
        if name.startswith(_MOMENT_KEYS[1]) and bool((part < 0).any()):
            yield f"{place} holds negative second moments"
