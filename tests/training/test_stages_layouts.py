"""Whole runs whose injection is during or after pretraining: every layout takes the steps of one process.

Tolerance: as in distributed/test_layouts.py, a sum over ranks adds the same float32 terms in another order. Adam's epsilon is
set so that no rounding error of a small gradient grows. The relative differences of losses, gradient norms and cosines are
measured and printed (4e-6 at most when this was written); 2e-5 is allowed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
from training_data import run_config

from megalign.cluster.ranks import Rank
from megalign.config.layout import Layout

TOLERANCE = 2e-5
METHODS: dict[str, dict[str, Any]] = {
    "during": {"inject__when": "during", "inject__contrastive_weight": 0.5, "codeswitch__ratio": 0.0},
    "after": {"inject__when": "after", "codeswitch__ratio": 0.0},
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "TP2": {"tensor": 2},
    "PP2": {"pipeline": 2},
    "DP2": {"data": 2},
}


def train_on_ranks(layout: Layout, files: Path, folder: Path, changes: dict[str, Any]) -> None:
    from megalign.engine import groups
    from megalign.training.run import train

    parallel = {f"parallel__{name}": value for name, value in layout.parallel.model_dump().items() if value != 1}
    config = run_config(files, folder, **changes, **parallel)
    train(config, Rank(groups.rank(), layout.world_size, groups.rank(), "", "test"))


@pytest.fixture(scope="module", params=METHODS)
def alone(request: pytest.FixtureRequest, files: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    ranks.run(train_on_ranks, ranks.layout_of(), files, folder, changes_of(request.param))
    return request.param, folder


def changes_of(when: str) -> dict[str, Any]:
    eps = {"train__optimizer__eps": 1e-4, "inject__optimizer__eps": 1e-4}
    return {**METHODS[when], **eps, "inject__measure_interval": 6}


def numbers_of(folder: Path) -> tuple[list[Any], np.ndarray]:
    """Stage, step and what is counted of every line; what is computed."""
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    counted = [[line.get(n) for n in ("stage", "step", "samples", "tokens_by_source", "lr")] for line in lines]
    computed = [
        [
            line["loss"],
            line["grad_norm"],
            *line.get("contrastive_by_level", []),
            *line.get("aligned_cosine_by_level", []),
        ]
        for line in lines
    ]
    return counted, np.concatenate(computed)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_take_the_same_steps(
    alone: tuple[str, Path], files: Path, tmp_path: Path, layout: str, measured: list[str]
) -> None:
    when, reference = alone
    ranks.run(train_on_ranks, ranks.layout_of(**LAYOUTS[layout]), files, tmp_path, changes_of(when))
    counted, computed = numbers_of(tmp_path)
    expected_counts, expected = numbers_of(reference)
    assert counted == expected_counts
    difference = np.abs(computed / expected - 1).max()
    measured.append(f"injection {when} pretraining, {layout}: {difference:.1e} over {len(counted)} steps")
    assert difference < TOLERANCE
    ours, theirs = (json.loads((folder / "run.json").read_text()) for folder in (tmp_path, reference))
    for name in ("tokens_seen", "words_seen", "training_flops", "steps"):
        assert ours[name] == theirs[name]


def test_interleaved_stages_are_asked_for_micro_batches_before_the_first_step(files: Path, tmp_path: Path) -> None:
    """2 micro-batches of text and 1 of words: the steps that have words could not be interleaved."""
    interleaved = ranks.layout_of(pipeline=2, virtual_pipeline=2)
    changes = {**METHODS["during"], "model__num_layers": 4}
    with pytest.raises(ranks.RanksFailed, match=r"ConfigError: .*micro-batches"):
        ranks.run(train_on_ranks, interleaved, files, tmp_path, changes)
    assert not (tmp_path / "checkpoints" / "pretrain" / "latest").exists()
    assert not (tmp_path / "metrics.jsonl").exists()
