"""A checkpoint's weights without its optimizer: read whole in one process, and loaded into a model that starts from them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
import torch.distributed as dist

from megalign.engine.checkpoint import folder as names
from megalign.engine.checkpoint.describe import describe, read_tensors
from megalign.engine.checkpoint.loading import load
from megalign.engine.engine import Engine
from megalign.engine.model import unwrapped
from megalign.engine.weights import sharded_parameters
from megalign.errors import DataError


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Name -> whole tensor in its stored dtype, whatever layout wrote it; those of layers are stacked, [layers, ...].

    Needs no process group and no model.

    Raises:
        DataError: the checkpoint is incomplete or damaged.
    """
    _, facts = names.read_marker(path)
    if problems := names.damage(path, facts["files"], sorted(facts["files"])):
        raise DataError(
            f"The checkpoint {path} is damaged: {'; '.join(problems[:4])}.",
            "What it holds is not what was saved.",
            "Restore it from a copy, or use an older one.",
        )
    return read_tensors(path, list(_shapes(path)))


def weights_identity(path: Path) -> str:
    """16 hex digits of the checksums of a checkpoint's files.

    Raises:
        DataError: there is no complete checkpoint.
    """
    _, facts = names.read_marker(path)
    return hashlib.sha256(json.dumps(facts["files"], sort_keys=True).encode()).hexdigest()[:16]


def load_weights(engine: Engine, path: Path) -> None:
    """Load a checkpoint's weights into a fresh model of the same shape, and leave its optimizer fresh. All ranks call this.

    Raises:
        DataError: tensors are missing, left over or of other shapes; on all ranks, with their names.
    """
    own = {t.key: tuple(t.global_shape) for chunk in engine.chunks for t in sharded_parameters(unwrapped(chunk))}
    everyone: list[dict[str, tuple[int, ...]]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, own)
    wanted = {name: shape for rank in everyone for name, shape in rank.items()}
    found = _shapes(path)
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"{name} is not in the model" for name in sorted(found.keys() - wanted.keys())]
    problems += [
        f"{name} is {_shape(found[name])}, the model's is {_shape(shape)}"
        for name, shape in sorted(wanted.items())
        if name in found and found[name] != shape
    ]
    if problems:
        more = f"; and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise DataError(
            f"The weights {path} are not those of this model: {'; '.join(problems[:6])}{more}.",
            "A model can start from weights of its own shape only.",
            "Take the model section that stands beside the weights, model.vocab_size_multiple included.",
        )
    load(engine, path, with_optimizer=False)


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> global shape of the model's tensors, without what TransformerEngine keeps of FP8."""
    tensors = describe(path).tensors
    return {t.name: t.shape for t in tensors if not t.of_optimizer and "_extra_state" not in t.name}


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
