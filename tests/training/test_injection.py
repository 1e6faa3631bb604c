"""Injection that is measured while it runs and may end before its last step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_data import broken_off_after, run_config

from megalign.cluster.ranks import Rank
from megalign.config import RunConfig
from megalign.config.layout import Layout
from megalign.engine import checkpoint
from megalign.errors import ConfigError
from megalign.prealign.words import WordBatches
from megalign.training.run import RunFolder, RunInputs, train

pytestmark = pytest.mark.usefixtures("world_of_one")

ALONE = Rank(0, 1, 0, "", "single")
NAMES = ("aligned_cosine", "random_cosine", "retrieval_at_1", "uniformity")


def lines_of(folder: Path, stage: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["stage"] == stage]


def losses_of(folder: Path) -> list[Any]:
    return [(line["loss"], line["grad_norm"]) for stage in ("inject", "pretrain") for line in lines_of(folder, stage)]


def by_brute_force(vectors: np.ndarray, entry: np.ndarray, surface: np.ndarray) -> dict[str, float]:
    """Pair by pair, in float64: cosines of positives and of negatives, retrieval@1, and Wang & Isola's uniformity."""
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    aligned, others, hits, kernel = [], [], [], []
    for i in range(len(unit)):
        best = {True: -2.0, False: -2.0}
        for j in range(len(unit)):
            if i == j:
                continue
            cosine, same = float(unit[i] @ unit[j]), bool(entry[i] == entry[j])
            kernel.append(np.exp(-2.0 * float(((unit[i] - unit[j]) ** 2).sum())))
            if not same and surface[i] == surface[j]:
                continue
            (aligned if same else others).append(cosine)
            best[same] = max(best[same], cosine)
        if best[True] > -2.0:
            hits.append(best[True] > best[False])
    values = (np.mean(aligned), np.mean(others), np.mean(hits), np.log(np.mean(kernel)))
    return dict(zip(NAMES, map(float, values), strict=True))


@pytest.fixture(scope="module")
def plain(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    train(run_config(files, folder), ALONE)
    return folder


def test_measuring_changes_nothing_and_is_right(files: Path, tmp_path: Path, plain: Path) -> None:
    config = run_config(files, tmp_path, inject__measure_interval=3, inject__measure_entries=20)
    train(config, ALONE)
    assert losses_of(tmp_path) == losses_of(plain)
    lines = lines_of(tmp_path, "inject")
    assert [line["step"] for line in lines if "uniformity_by_level" in line] == [3, 6]
    assert all(len(lines[5][f"{name}_by_level"]) == 4 for name in NAMES)
    assert not any(f"{name}_by_level" in line for name in NAMES for line in lines_of(tmp_path, "pretrain"))
    inputs = RunInputs.open(config)
    engine = inputs.engine(Layout(config.parallel), None)
    path = checkpoint.latest(RunFolder(tmp_path).checkpoints("inject"))
    assert path is not None
    checkpoint.load(engine, path, with_optimizer=False)
    entries = inputs.encoded.batch_entries[:20]
    words = WordBatches(inputs.encoded, entries_per_batch=20, seed=1).all_of(entries)
    (vectors,) = engine.represent([words])
    for level in range(4):
        expected = by_brute_force(vectors[level], words.entry, words.surface)
        for name in NAMES:
            assert lines[5][f"{name}_by_level"][level] == pytest.approx(expected[name], abs=2e-5)


def stopping(files: Path, folder: Path, **changes: Any) -> RunConfig:
    """Retrieval@1 of one entry's two words is 1 at every level: the injection may end at the second measurement."""
    settings = {
        "inject__measure_interval": 2, "inject__stop_at_retrieval": 1.0, "inject__measure_entries": 1,
        "inject__steps": 20, "train__checkpoint_interval": 1,
    }  # fmt: skip
    return run_config(files, folder, **settings | changes)


def test_an_injection_ends_when_retrieval_is_high_enough(files: Path, tmp_path: Path) -> None:
    config = stopping(files, tmp_path)
    train(config, ALONE)
    inject = lines_of(tmp_path, "inject")
    assert [line["step"] for line in inject] == [1, 2, 3, 4]
    assert inject[3]["retrieval_at_1_by_level"] == [1.0] * 4
    assert len(lines_of(tmp_path, "pretrain")) == 12
    summary = json.loads((tmp_path / "run.json").read_text())
    assert summary["steps"] == {"inject": 4, "pretrain": 12}
    assert summary["tokens_seen"]["injection"] == 4 * 2 * 32
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(event["event"], event["stage"], event["step"]) for event in events] == [("ended_early", "inject", 4)]
    before = (tmp_path / "metrics.jsonl").read_bytes()
    train(config, ALONE)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("num_steps", [2, 3, 4])
def test_the_end_is_the_same_after_an_interruption(files: Path, tmp_path: Path, num_steps: int) -> None:
    """Stopped right after the first measurement, between the two, and after the last step."""
    train(stopping(files, tmp_path / "whole"), ALONE)
    config = stopping(files, tmp_path / "resumed")
    with broken_off_after(num_steps), pytest.raises(KeyboardInterrupt):
        train(config, ALONE)
    train(config, ALONE)
    assert losses_of(tmp_path / "resumed") == losses_of(tmp_path / "whole")
    assert json.loads((tmp_path / "resumed" / "run.json").read_text())["steps"]["inject"] == 4


def test_a_level_without_retrieval_keeps_the_injection_going(files: Path, tmp_path: Path) -> None:
    train(stopping(files, tmp_path, inject__measure_entries=200, inject__steps=4), ALONE)
    inject = lines_of(tmp_path, "inject")
    assert [line["step"] for line in inject] == [1, 2, 3, 4]
    assert min(inject[3]["retrieval_at_1_by_level"]) < 1.0


def test_settings_that_do_not_fit_are_refused(files: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="stop_at_retrieval needs measure_interval, which is not set"):
        run_config(files, tmp_path, inject__stop_at_retrieval=0.9)
    with pytest.raises(ConfigError, match=r"inject.level_reduction has 2 weights \[1.0, 2.0\]; the model has 4 levels"):
        run_config(files, tmp_path, inject__level_reduction=[1.0, 2.0])
    with pytest.raises(ConfigError, match="one of them must count"):
        run_config(files, tmp_path, inject__level_reduction=[0.0] * 4)


def test_words_switched_are_counted_over_resumes(files: Path, tmp_path: Path, plain: Path) -> None:
    """The rate of every line is that of all windows since the first step, whoever read them."""
    config = run_config(files, tmp_path, train__checkpoint_interval=1)
    with broken_off_after(6 + 5), pytest.raises(KeyboardInterrupt):
        train(config, ALONE)
    train(config, ALONE)
    resumed, whole = lines_of(tmp_path, "pretrain"), lines_of(plain, "pretrain")
    names = ("step", "codeswitch_rate", "codeswitch_rate_by_language")
    assert [[line[name] for name in names] for line in resumed] == [[line[name] for name in names] for line in whole]
    samples = RunInputs.open(config).samples
    for number in range(4 * 12):
        samples.sample(number)
        if number % 4 == 3:
            line = whole[number // 4]
            assert line["codeswitch_rate"] == samples.counts.rate
            rates = {name: counts.rate for name, counts in samples.counts_by_language.items() if counts.words}
            assert line["codeswitch_rate_by_language"] == rates
