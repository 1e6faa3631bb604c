"""The order in which a pipeline stage computes: Megatron-Core's 1F1B and interleaved 1F1B schedules, without computing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from megalign.config.layout import Layout


@dataclass(frozen=True)
class Work:
    """One forward or backward pass of a micro-batch through a model chunk of the stage.

    Attributes:
        kind: forward or backward.
        chunk: number of the chunk on this stage, from 0.
        micro_batch: number of the micro-batch in the step, from 0.
    """

    kind: Literal["forward", "backward"]
    chunk: int
    micro_batch: int


def num_warmup_passes(layout: Layout, stage: int, num_micro_batches: int) -> int:
    """Forward passes before a stage's first backward pass, but for the one that this follows at once.

    Narayanan et al. 2021 (arXiv 2104.04473), section 2.2, as Megatron-Core counts them.
    """
    stages, chunks = layout.parallel.pipeline, layout.num_chunks
    total = num_micro_batches * chunks
    if stages == 1:
        return 0
    behind = stages - stage - 1
    return min(total, behind if chunks == 1 else 2 * behind + (chunks - 1) * stages)


def stage_order(layout: Layout, stage: int, num_micro_batches: int) -> list[Work]:
    """All passes of a step on pipeline stage `stage`, in the order in which they are computed.

    Interleaved stages take micro-batches in groups of `pipeline`: a group through the first chunk, the same through the
    next, and so on; backward passes take the chunks the other way round.
    """
    stages, chunks = layout.parallel.pipeline, layout.num_chunks
    total = num_micro_batches * chunks

    def work(kind: Literal["forward", "backward"], number: int) -> Work:
        if chunks == 1:
            return Work(kind, 0, number)
        group, place = divmod(number, stages * chunks)
        chunk, micro_batch = divmod(place, stages)
        return Work(kind, chunk if kind == "forward" else chunks - 1 - chunk, group * stages + micro_batch)

    warmup = num_warmup_passes(layout, stage, num_micro_batches)
    order = [work("forward", number) for number in range(warmup)]
    for number in range(total - warmup):
        order += [work("forward", warmup + number), work("backward", number)]
    return order + [work("backward", number) for number in range(total - warmup, total)]


def bubble_share(layout: Layout, num_micro_batches: int) -> float:
    """Time a stage waits for others, as a share of the time it computes: (p - 1) / (m v), all passes equally long.

    Narayanan et al. 2021, section 2.2.
    """
    return (layout.parallel.pipeline - 1) / (num_micro_batches * layout.num_chunks)


def pipeline_seconds(
    stage_seconds: Sequence[float], num_micro_batches: int, num_chunks: int = 1
) -> tuple[float, float]:
    """Time of all passes of a step, and how much of it the slowest stage waits.

    The slowest stage computes all micro-batches; the first and the last micro-batch pass through a chunk of every other
    stage besides. With equal stages it is Narayanan et al.'s (m + (p - 1) / v) (f + b).

    Args:
        stage_seconds: of every stage, forward and backward passes of one micro-batch through all its chunks.
        num_micro_batches: of a step on a data-parallel rank.
        num_chunks: model chunks a stage holds.
    """
    slowest = max(stage_seconds)
    waiting = (sum(stage_seconds) - slowest) / num_chunks
    return num_micro_batches * slowest + waiting, waiting
