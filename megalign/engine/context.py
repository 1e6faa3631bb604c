"""Context parallelism: ranks share the positions of every window of text, and the rows of every batch of words.

A window is cut into 2 x context chunks, and rank r holds the chunks r and 2 x context - 1 - r: the early chunks, which see
few keys under causal attention, are paired with the late ones, so that all ranks compute the same amount (Dubey et al.
2024, The Llama 3 Herd of Models, arXiv 2407.21783, section 3.3.2; Megatron's rotary embedding expects this order too).
Attention gathers the keys and values of the whole window, as in that paper; everything else works on single positions.

Words are short rows that attend to nothing outside themselves. They are not cut; the ranks deal the rows out, and the
words' vectors are summed over the ranks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from megalign.engine.batch import LanguageBatch
from megalign.engine.mcore import (
    gather_from_sequence_parallel_region,
    parallel_state,
    reduce_from_tensor_model_parallel_region,
)
from megalign.errors import ConfigError
from megalign.prealign.words import WordBatch


def size() -> int:
    """Number of context-parallel ranks."""
    return int(parallel_state.get_context_parallel_world_size())


def rank() -> int:
    """This process's number among them."""
    return int(parallel_state.get_context_parallel_rank())


def own_chunks() -> tuple[int, int]:
    """The two chunks of a window, of 2 x context, that this rank holds, in ascending order."""
    return rank(), 2 * size() - 1 - rank()


def own_positions(sequence_length: int) -> np.ndarray:
    """This rank's positions of a window, in ascending order: int64 [sequence length / context].

    Raises:
        ConfigError: the window cannot be cut.
    """
    parts = 2 * size()
    if size() == 1:
        return np.arange(sequence_length)
    if sequence_length % parts:
        raise ConfigError(
            f"A window of {sequence_length} positions cannot be cut into 2 x parallel.context = {parts} equal chunks.",
            "Context-parallel ranks hold two equal chunks each.",
            f"Use windows of a multiple of {parts}, or set parallel.context to 1.",
        )
    chunks = np.arange(sequence_length).reshape(parts, -1)
    return chunks[list(own_chunks())].reshape(-1)


def own_part(batch: LanguageBatch) -> LanguageBatch:
    """This rank's positions of every window.

    Raises:
        ConfigError: the windows cannot be cut.
    """
    if size() == 1:
        return batch
    own = own_positions(batch.tokens.shape[1])
    cut = {name: getattr(batch, name)[:, own] for name in ("tokens", "labels", "loss_mask")}
    return replace(batch, **cut)


def own_rows(words: WordBatch) -> WordBatch:
    """The batch with this rank's rows only; a rank that none is left for gets a row without words."""
    if size() == 1:
        return words
    rows = np.arange(rank(), len(words.tokens), size())
    if len(rows):
        return replace(
            words,
            tokens=words.tokens[rows],
            position_ids=words.position_ids[rows],
            word_of_token=words.word_of_token[rows],
        )
    return replace(
        words,
        tokens=words.tokens[:1],
        position_ids=words.position_ids[:1],
        word_of_token=np.full_like(words.word_of_token[:1], -1),
    )


def sum_over_ranks(parts: torch.Tensor) -> torch.Tensor:
    """The sum over context-parallel ranks; each rank's part gets the sum's gradient. May overwrite `parts`."""
    if size() == 1:
        return parts
    total: torch.Tensor = reduce_from_tensor_model_parallel_region(
        parts, group=parallel_state.get_context_parallel_group()
    )
    return total


def gather_keys_and_values(key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of all positions from those of every rank's own; gradients are summed over the ranks.

    Args:
        key, value: [sequence / context, batch, heads, head size].

    Returns:
        [sequence, batch, heads, head size] each, in the window's order.
    """
    own = torch.stack([key, value], dim=1)
    everyone = gather_from_sequence_parallel_region(own, group=parallel_state.get_context_parallel_group())
    whole_key, whole_value = _in_order(everyone).unbind(1)
    return whole_key, whole_value


def gather_positions(own: torch.Tensor) -> torch.Tensor:
    """Values at all positions of windows, on every context-parallel rank, without gradient.

    Args:
        own: [..., sequence / context].

    Returns:
        [..., sequence], in the window's order.
    """
    if size() == 1:
        return own
    own = own.movedim(-1, 0).contiguous()
    everyone = own.new_empty(size() * len(own), *own.shape[1:])
    dist.all_gather_into_tensor(everyone, own, group=parallel_state.get_context_parallel_group())
    return _in_order(everyone).movedim(0, -1)


def from_owners(values: torch.Tensor, places: np.ndarray, own_places: np.ndarray) -> torch.Tensor:
    """Values that stand at one position each, from the rank that holds the position; overwrites `values`.

    Args:
        values: int64 [windows], not negative; what this rank has where a position is not its own does not count.
        places: position in the window, int64 [windows].
        own_places: from `own_positions`.
    """
    if size() > 1:
        values[torch.from_numpy(~np.isin(places, own_places)).to(values.device)] = -1
        dist.all_reduce(values, dist.ReduceOp.MAX, group=parallel_state.get_context_parallel_group())
    return values


def whole_rotary_rows(rotary: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A forward pre-hook of Megatron's RotaryEmbedding, for rows that are not cut.

    Megatron takes every row for a rank's part of a window: it asks for `context` times the angles and cuts this rank's out,
    unless told that the sequence is packed.
    """
    return (args[0] // size(), *args[1:]), {**kwargs, "packed_seq": True}


def _in_order(everyone: torch.Tensor) -> torch.Tensor:
    """From the order of ranks (chunks 0, 2c-1, 1, 2c-2, ...) to that of the window, along the first axis."""
    pairs = everyone.unflatten(0, (size(), 2, -1))
    return torch.cat([pairs[:, 0], pairs[:, 1].flip(0)]).flatten(0, 1)
