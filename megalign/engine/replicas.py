"""Weights that several ranks hold must be equal on all of them, bit by bit: a check."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from megalign.engine.mcore import parallel_state
from megalign.engine.model import unwrapped
from megalign.errors import TrainingProblem


def check_replicas(chunks: list[Any], step: int) -> None:
    """Compare what ranks hold in common: whole models over data and context parallelism, uncut weights over tensor
    parallelism, tied embeddings over the first and the last pipeline stage. A collective: all ranks call it at the same step.

    Raises:
        TrainingProblem: on all ranks, naming the first weight that differs and the ranks.
    """
    own = [problem for named, group, what in _shared(chunks) if (problem := _compare(named, group, what))]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    problems = sorted({problem for part in found for problem in part})
    if problems:
        raise TrainingProblem(
            f"Step {step}: ranks that must hold equal weights differ: {'; '.join(problems[:4])}"
            + (f" and {len(problems) - 4} more." if len(problems) > 4 else "."),
            "A rank has lost or changed data (a faulty device, memory or network), or the code computes differently on "
            "ranks. What is trained from here on is wrong.",
            "Resume the last checkpoint without the ranks' hosts named above; checkpoints written since the last check "
            "may hold the fault.",
        )


def _shared(chunks: list[Any]) -> Iterator[tuple[list[tuple[str, torch.Tensor]], Any, str]]:
    """Weights, the group that holds them in common, and the kind of ranks."""
    named = [(name, parameter) for chunk in map(unwrapped, chunks) for name, parameter in chunk.named_parameters()]
    replicas = parallel_state.get_data_parallel_group(with_context_parallel=True)
    shared_text = parallel_state.get_context_parallel_world_size() > 1
    yield named, replicas, "data- and context-parallel" if shared_text else "data-parallel"
    uncut = [(name, p) for name, p in named if not getattr(p, "tensor_model_parallel", False)]
    yield uncut, parallel_state.get_tensor_model_parallel_group(), "tensor-parallel"
    tied = [
        chunk.shared_embedding_or_output_weight()
        for chunk in map(unwrapped, chunks)
        if chunk.share_embeddings_and_output_weights and (chunk.pre_process or chunk.post_process)
    ]
    if tied and parallel_state.is_rank_in_embedding_group():
        yield [("tied embeddings", tied[0])], parallel_state.get_embedding_group(), "pipeline"


def _compare(named: list[tuple[str, torch.Tensor]], group: Any, what: str) -> str | None:
    """What differs between the ranks of a group, or None."""
    if group is None or group.size() == 1 or not named:
        return None
    own = torch.stack([_checksum(parameter.detach()) for _, parameter in named])
    everyone = own.new_empty(group.size() * len(own), 2)
    dist.all_gather_into_tensor(everyone, own, group=group)
    everyone = everyone.view(group.size(), len(own), 2)
    different = (everyone != everyone[:1]).any(-1)
    if not bool(different.any()):
        return None
    places = different.any(0).nonzero().flatten().tolist()
    first, more = places[0], f" and {len(places) - 1} more weights" if len(places) > 1 else ""
    ranks = dist.get_process_group_ranks(group)
    _, kind, counts = torch.unique(everyone[:, first], dim=0, return_inverse=True, return_counts=True)
    odd = [rank for rank, row in zip(ranks, kind.tolist(), strict=True) if row != int(counts.argmax())]
    if int(counts.max()) * 2 <= group.size():
        odd = ranks  # no majority that could be right
    return f"{named[first][0]}{more} on rank {', '.join(map(str, odd))} among the {what} ranks {', '.join(map(str, ranks))}"


def _checksum(parameter: torch.Tensor) -> torch.Tensor:
    """Two int64 sums over the bits: plain, and weighted by position, so that exchanged values are seen too."""
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64, 1: torch.uint8}[parameter.element_size()]
    bits = parameter.contiguous().view(-1).view(width).to(torch.int64)
    weights = torch.arange(bits.numel(), device=bits.device) % 65_521 + 1
    return torch.stack([bits.sum(), (bits * weights).sum()])
