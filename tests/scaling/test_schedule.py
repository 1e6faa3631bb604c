"""The pipeline's order against the one that the engine computes in."""

from __future__ import annotations

from typing import Any

import pytest
from cases import MODELS
from ranks import layout_of, run
from schedules import passes

from megalign.config.sections import ModelConfig
from megalign.scaling.schedule import bubble_share, num_warmup_passes, stage_order

SIX_LAYERS: ModelConfig = MODELS["gpt"].model_copy(update={"num_layers": 6})


@pytest.mark.parametrize(
    ("parallel", "num_micro_batches"),
    [
        ({}, 3),
        ({"pipeline": 2}, 1),
        ({"pipeline": 2}, 5),
        ({"pipeline": 3}, 2),
        ({"pipeline": 3}, 6),
        ({"pipeline": 2, "virtual_pipeline": 3}, 2),
        ({"pipeline": 2, "virtual_pipeline": 3}, 6),
        ({"pipeline": 3, "virtual_pipeline": 2}, 6),
    ],
)
def test_stages_compute_in_the_order_that_is_told(parallel: dict[str, Any], num_micro_batches: int) -> None:
    layout = layout_of(**parallel)
    for rank, real in enumerate(run(passes, layout, SIX_LAYERS, num_micro_batches)):
        told = stage_order(layout, layout.coordinates(rank).pipeline, num_micro_batches)
        assert [(work.kind, work.chunk, work.micro_batch) for work in told] == real


def test_warm_up_and_bubble_follow_the_paper() -> None:
    plain, interleaved = layout_of(pipeline=4), layout_of(pipeline=4, virtual_pipeline=2)
    assert [num_warmup_passes(plain, stage, 8) for stage in range(4)] == [3, 2, 1, 0]
    assert [num_warmup_passes(interleaved, stage, 8) for stage in range(4)] == [10, 8, 6, 4]
    assert num_warmup_passes(plain, 0, 2) == 2
    assert bubble_share(plain, 8) == pytest.approx(3 / 8)
    assert bubble_share(interleaved, 8) == pytest.approx(3 / 16)
