"""Initial weights by parameter name: every layout, and every process of it, starts with the same model.

Megatron's own initialisation depends on the pipeline layout, because every stage starts its generator anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from megalign.config.sections import ModelConfig
from megalign.engine.mcore import ShardedTensor, apply_factories, nested_values, parallel_state

EMBEDDING_KEYS = ("embedding.word_embeddings.weight", "output_layer.weight")
# Projections back into the residual stream start smaller, by the square root of their number (GPT-2).
_RESIDUAL_KEYS = ("linear_proj.weight", "linear_fc2.weight")


def sharding_metadata() -> dict[str, object]:
    """What Megatron's sharded state dicts must be told: without the type they take one that 0.16 refuses to reshard."""
    return {
        "distrib_optim_sharding_type": "fully_reshardable",
        "chained_optim_avoid_prefix": True,
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }


def sharded_parameters(chunk: Any) -> list[ShardedTensor]:
    """The parameters of a model chunk as Megatron's sharded tensors, factories (SwiGLU halves) taken apart."""
    state = chunk.sharded_state_dict(metadata=sharding_metadata())
    apply_factories(state)
    return [t for t in nested_values(state) if isinstance(t, ShardedTensor) and "_extra_state" not in t.key]


def generator_for(seed: int, *names: object) -> torch.Generator:
    """A generator that depends on the seed and the names alone."""
    digest = hashlib.sha256("/".join(str(part) for part in (seed, *names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@torch.no_grad()
def initialise(
    chunks: Sequence[torch.nn.Module], model: ModelConfig, seed: int, row_sources: np.ndarray | None = None
) -> None:
    """Fill every shard with its part of the global tensor that (seed, name, layer) determines.

    Args:
        chunks: this rank's model chunks, below DDP.
        model: standard deviations and depth.
        seed: seed of the weights.
        row_sources: int64 [ids]; embedding row i starts as a copy of row row_sources[i] (golden alignment).
    """
    for chunk in chunks:
        for tensor in sharded_parameters(chunk):
            if "norm" in tensor.key:
                continue  # ones and zeros already
            axes = tensor.prepend_axis_num
            shape = tensor.global_shape[axes:]
            layer = tensor.global_offset[0] if axes else 0
            full = _initial_value(tensor.key, layer, shape, model, seed)
            if row_sources is not None and tensor.key in EMBEDDING_KEYS:
                full[: len(row_sources)] = full[torch.from_numpy(row_sources)]
            tensor.data.copy_(full[_own_part(tensor)].view(tensor.data.shape))


def _own_part(tensor: ShardedTensor) -> tuple[slice, ...]:
    """Where this rank's shard stands in the global tensor of one layer."""
    axes = tensor.prepend_axis_num
    sizes = tensor.local_shape[-len(tensor.global_shape[axes:]) :]
    return tuple(slice(at, at + size) for at, size in zip(tensor.global_offset[axes:], sizes, strict=True))


@torch.no_grad()
def set_weights(chunks: Sequence[torch.nn.Module], weights: Mapping[str, torch.Tensor]) -> None:
    """Fill every shard with its part of given global tensors.

    Args:
        chunks: this rank's model chunks, below DDP and Float16Module.
        weights: a tensor for each name that checkpoints have; those of layers are stacked, [layers, ...].

    Raises:
        KeyError: a name is missing.
    """
    for chunk in chunks:
        for tensor in sharded_parameters(chunk):
            full = weights[tensor.key]
            if tensor.prepend_axis_num:
                full = full[tensor.global_offset[0]]
            tensor.data.copy_(full[_own_part(tensor)].view(tensor.data.shape))


def _initial_value(key: str, layer: int, shape: Sequence[int], model: ModelConfig, seed: int) -> torch.Tensor:
    if key.endswith("bias"):
        return torch.zeros(*shape)
    std = model.init_std
    if "embedding" in key or key == "output_layer.weight":
        std = model.embedding_init_std or std
    elif key.endswith(_RESIDUAL_KEYS):
        std /= (2 * model.num_layers) ** 0.5
    return torch.randn(*shape, generator=generator_for(seed, key, layer)) * std
