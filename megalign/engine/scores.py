"""Per-token scores from logits whose vocabulary is cut over tensor-parallel ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from megalign.engine.mcore import parallel_state


@dataclass(frozen=True)
class TokenScores:
    """float32 [windows, sequence] arrays: negative log-likelihood (nats), and probability mass by range of ids.

    `is_best`, bool, says where no other id was likelier than the label; only where the padding was left out.
    """

    nll: np.ndarray
    mass: dict[str, np.ndarray]
    is_best: np.ndarray | None = None


def score_tokens(
    logits: torch.Tensor, labels: torch.Tensor, ranges: Sequence[tuple[int, int]], num_ids: int | None = None
) -> torch.Tensor:
    """Negative log-likelihoods and masses.

    Args:
        logits: [windows, sequence, ids of this rank].
        labels: int64 [windows, sequence].
        ranges: ids [first, last + 1) whose probability is summed.
        num_ids: only ids below it have a probability; None: the vocabulary's padding has one, as in training.

    Returns:
        float32 [1 + len(ranges), windows, sequence], complete on every tensor-parallel rank; with `num_ids` one row more:
        1 where no id has a larger logit than the label.
    """
    logits = logits.float()
    first = parallel_state.get_tensor_model_parallel_rank() * logits.size(-1)
    if num_ids is not None:
        ids = torch.arange(first, first + logits.size(-1), device=logits.device)
        logits = logits.masked_fill(ids >= num_ids, float("-inf"))
    largest = logits.amax(-1)
    _reduce(largest, dist.ReduceOp.MAX)
    probability = (logits - largest[..., None]).exp()
    here = (labels >= first) & (labels < first + logits.size(-1))
    own = (labels - first).clamp(0, logits.size(-1) - 1)
    target = torch.where(here, logits.gather(-1, own[..., None])[..., 0] - largest, 0.0)
    sums = [probability.sum(-1), target]
    for start, end in ranges:
        inside = slice(max(start - first, 0), max(end - first, 0))
        sums.append(probability[..., inside].sum(-1))
    parts = torch.stack(sums)
    _reduce(parts, dist.ReduceOp.SUM)
    total, target, *masses = parts
    # The difference from the largest logit is exactly 0 for it alone.
    best = [] if num_ids is None else [(target == 0).float()]
    return torch.stack([total.log() - target, *(mass / total for mass in masses), *best])


def best_ids(logits: torch.Tensor, num_ids: int, noise: torch.Tensor | None = None) -> torch.Tensor:
    """The id with the largest logit in every row, the lowest of equals.

    Args:
        logits: [rows, ids of this rank].
        num_ids: only ids below it.
        noise: float32 [rows, num_ids], added to the logits.

    Returns:
        int64 [rows], complete on every tensor-parallel rank.
    """
    first = parallel_state.get_tensor_model_parallel_rank() * logits.size(-1)
    ids = torch.arange(first, first + logits.size(-1), device=logits.device)
    logits = logits.float()
    if noise is not None:
        logits = logits + torch.nn.functional.pad(noise, (0, 1))[:, ids.clamp(max=num_ids)]
    logits = logits.masked_fill(ids >= num_ids, float("-inf"))
    largest = logits.amax(-1)
    _reduce(largest, dist.ReduceOp.MAX)
    here = (logits == largest[..., None]) & (ids < num_ids)
    best = torch.where(here, ids, torch.iinfo(torch.int64).max).amin(-1)
    _reduce(best, dist.ReduceOp.MIN)
    return best


def all_ids(logits: torch.Tensor) -> torch.Tensor:
    """float32 logits of all ids on every tensor-parallel rank: [..., ids of this rank] -> [..., ids]."""
    group = parallel_state.get_tensor_model_parallel_group()
    own = logits.float().contiguous()
    if group.size() == 1:
        return own
    parts = [torch.empty_like(own) for _ in range(group.size())]
    dist.all_gather(parts, own, group=group)
    return torch.cat(parts, dim=-1)


def _reduce(tensor: torch.Tensor, operation: dist.ReduceOp.RedOpType) -> None:
    group = parallel_state.get_tensor_model_parallel_group()
    if group.size() > 1:
        dist.all_reduce(tensor, operation, group=group)
