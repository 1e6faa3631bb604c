"""Intervals and comparisons against a resampling written out item by item."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_responses import damage, read_rows

from megalign.clika import Protocol, compare_models, interval_rows, load_protocol, read_answers
from megalign.clika.bootstrap import Bootstrap, Group, resampled_weights
from megalign.clika.panel import panels
from megalign.errors import ConfigError

METRICS = ("accuracy", "ra", "en_co", "both_over_en", "jaccard", "same_answer", "parse_rate")


def bootstrap(source: Path, protocol: Protocol, **settings: Any) -> Bootstrap:
    answers, _ = read_answers(source, protocol)
    return Bootstrap(panels(answers), protocol, **{"num_resamples": 200, "seed": 3, **settings})


def drawn_scores(responses: Path, dataset: str, model: str, folder: str, drawn: list[int]) -> dict[str, float]:
    """Scores of items drawn with repetition, from lists and loops."""
    here = [read_rows(responses / dataset / folder / f"{model}_res_bf16.jsonl")[at] for at in drawn]
    english = [read_rows(responses / dataset / "en" / f"{model}_res_bf16.jsonl")[at] for at in drawn]
    right = [row["res"][0] == row["label"] for row in here]
    right_en = [row["res"][0] == row["label"] for row in english]
    both = sum(a and b for a, b in zip(right, right_en, strict=True))
    either = sum(a or b for a, b in zip(right, right_en, strict=True))
    accuracy = 100 * sum(right) / len(right)
    return {
        "accuracy": accuracy,
        "ra": max(0.0, (accuracy - 25) / (97 - 25)),
        "en_co": both / sum(right),
        "both_over_en": both / sum(right_en),
        "jaccard": both / either,
        "same_answer": sum(a["res"][0] == b["res"][0] for a, b in zip(here, english, strict=True)) / len(here),
        "parse_rate": 1.0,
    }


def test_resamples_are_scored_item_by_item(responses: Path, protocol: Protocol) -> None:
    ours = bootstrap(responses, protocol, num_resamples=30).scored("large")[Group("dataset", "x_geo")]
    weights = resampled_weights("x_geo", 24, 30, 3)
    for draw, row in enumerate(weights):
        drawn = [item for item, count in enumerate(row) for _ in range(int(count))]
        for folder, language in (("DE_trans", "de"), ("RU", "ru")):
            expected = drawn_scores(responses, "x_geo", "large", folder, drawn)
            for metric, value in expected.items():
                assert ours.of(language, metric)[draw] == pytest.approx(value, abs=1e-12), (draw, language, metric)


def test_weights_are_resamples_of_their_own(responses: Path) -> None:
    weights = resampled_weights("x_geo", 50, 400, 0)
    assert (weights[0] == 1).all()
    assert (weights.sum(axis=1) == 50).all()
    # A count is binomial(n, 1/n): mean 1 and variance 1 - 1/n, 20,000 of them.
    assert weights[1:].var() == pytest.approx(0.98, abs=0.05)
    assert (resampled_weights("x_geo", 50, 400, 0) == weights).all()
    assert (resampled_weights("x_geo", 50, 400, 1) != weights).any()
    assert (resampled_weights("x_name", 50, 400, 0) != weights).any()


def test_intervals_are_quantiles_of_defined_resamples(responses: Path, protocol: Protocol) -> None:
    generator = np.random.default_rng(0)
    draws = generator.normal(size=(201, 5))
    draws[7:12, 1] = np.nan
    draws[1:30, 2] = np.nan
    draws[0, 3] = np.nan
    low, high = bootstrap(responses, protocol, confidence=0.9).interval(draws)
    for column in (0, 1, 4):
        expected = np.nanquantile(draws[1:, column], [0.05, 0.95])
        np.testing.assert_allclose([low[column], high[column]], expected, atol=1e-14)
    assert np.isnan([low[2], high[2], low[3], high[3]]).all()


def test_rows_of_intervals_hold_the_score(responses: Path, protocol: Protocol) -> None:
    rows = list(interval_rows(bootstrap(responses, protocol)))
    cells = [row for row in rows if row["level"] == "dataset"]
    assert len(cells) == 2 * 2 * 3 * len(METRICS)
    for row in cells:
        if row["language"] == "en" and row["metric"] in ("en_co", "both_over_en", "jaccard", "same_answer"):
            assert row["value"] is row["low"] is row["high"] is None
        else:
            assert row["low"] <= row["value"] <= row["high"]
    accuracies = [row for row in cells if row["metric"] == "accuracy"]
    assert all(row["high"] - row["low"] > 15 for row in accuracies), "24 items leave wide intervals"
    assert rows == list(interval_rows(bootstrap(responses, protocol)))


def test_a_type_of_knowledge_is_the_mean_of_its_data_sets(responses: Path, tmp_path: Path) -> None:
    path = tmp_path / "one.yml"
    path.write_text("datasets:\n  x_copa: {knowledge: factual, num_options: 2, top_percent: 96.4}\n", encoding="utf-8")
    scored = bootstrap(responses, load_protocol(path)).scored("small")
    mean = scored[Group("knowledge", "factual")]
    assert mean.datasets == ("x_copa", "x_geo")
    assert mean.num_items == (48, 48, 48)
    parts = [scored[Group("dataset", name)].of("ru", "ra") for name in mean.datasets]
    np.testing.assert_allclose(mean.of("ru", "ra"), (parts[0] + parts[1]) / 2)
    assert Group("knowledge", "basic") not in scored


def test_comparisons_are_paired(responses: Path, protocol: Protocol) -> None:
    """A model that differs in three answers only: the interval of the difference is far narrower than those of the two."""
    source = responses / "x_geo" / "DE_trans" / "large_res_bf16.jsonl"
    twin = source.with_name("twin_res.jsonl")
    twin.write_bytes(source.read_bytes())
    wrong = [at for at, row in enumerate(read_rows(source)) if row["res"][0] != row["label"]][:3]

    def mend(rows: list[dict[str, Any]]) -> None:
        for at in wrong:
            rows[at]["res"] = rows[at]["label"]

    damage(twin, mend)
    both = bootstrap(responses, protocol, num_resamples=2000)
    rows = compare_models(both, "large", "twin")
    row = next(one for one in rows if (one["level"], one["metric"]) == ("dataset", "accuracy"))
    assert row["difference"] == pytest.approx(100 * 3 / 24)
    # The number of mended items in a resample is binomial(24, 3/24); its 2.5 % and 97.5 % points are 0 and 6 or 7.
    assert row["low"] == 0
    assert 100 * 6 / 24 <= row["high"] <= 100 * 7 / 24
    exact = 2 * (1 - 3 / 24) ** 24
    assert row["p_value"] == pytest.approx(exact, abs=0.03)


def test_a_model_does_not_differ_from_itself(responses: Path, protocol: Protocol) -> None:
    rows = compare_models(bootstrap(responses, protocol), "large", "large", "same")
    defined = [row for row in rows if row["difference"] is not None]
    assert defined
    assert {(row["difference"], row["low"], row["high"], row["p_value"]) for row in defined} == {(0.0, 0.0, 0.0, 1.0)}


def test_impossible_settings_are_told(responses: Path, protocol: Protocol) -> None:
    with pytest.raises(ConfigError, match="There cannot be 0 resamples"):
        bootstrap(responses, protocol, num_resamples=0)
    with pytest.raises(ConfigError, match=r"The confidence 1.0 is not between 0 and 1"):
        bootstrap(responses, protocol, confidence=1.0)
    with pytest.raises(ConfigError, match=r"huge is to be compared and has no responses. Models are large, small"):
        compare_models(bootstrap(responses, protocol), "small", "huge")
