"""Accuracy, consistency and AC3 against every subset visited in plain Python, and against what SeaEval released."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crossin_samples import LANGUAGES, brute_force_scores, cell, prediction_rows, write_json_rows

from megalign.crossin.scoring import Answers, Bootstrap, compare, expected_released, interval_rows, read_file, score
from megalign.crossin.scoring.scores import ac3, accuracy_deviation
from megalign.errors import ConfigError, DataError


def read(tmp_path: Path, rows: list[dict[str, Any]], name: str = "model.json") -> Answers:
    (answers,) = read_file(write_json_rows(tmp_path / name, rows))
    return answers


@pytest.mark.parametrize("languages", [LANGUAGES, [f"L{number}" for number in range(7)]])
def test_scores_equal_brute_force(languages: list[str], tmp_path: Path) -> None:
    answers = read(tmp_path, prediction_rows(61, seed=3, languages=languages))
    options = [[None if one < 0 else int(one) for one in row] for row in answers.options]
    assert any(None in row for row in options)
    expected = brute_force_scores(options, answers.gold.tolist())
    scores = score(answers)
    assert scores.accuracy == pytest.approx(expected["accuracy"], abs=1e-12)
    assert list(scores.accuracy_by_language.values()) == pytest.approx(expected["by_language"], abs=1e-12)
    assert set(scores.consistency) == set(range(2, len(languages) + 1))
    for s in scores.consistency:
        assert scores.consistency[s] == pytest.approx(expected["consistency"][s], abs=1e-12)
        assert scores.ac3[s] == pytest.approx(expected["ac3"][s], abs=1e-12)


def test_an_invalid_answer_is_wrong_and_agrees_with_nothing(tmp_path: Path) -> None:
    answers = read(tmp_path, [{"id": "1", "English": cell(""), "Chinese": cell(""), "Spanish": cell("(A)")}])
    scores = score(answers)
    assert scores.accuracy == pytest.approx(1 / 3)
    assert scores.consistency == {2: 0.0, 3: 0.0}
    assert answers.invalid_rate == pytest.approx(2 / 3)


def test_expected_scores_are_the_mean_over_all_draws(tmp_path: Path) -> None:
    """Every outcome of the draws is visited with its probability."""
    rows = [
        {"id": "1", "English": cell(""), "Chinese": cell("(A). (B)."), "Spanish": cell("(B)", 1)},
        {"id": "2", "English": cell("(C)", 2), "Chinese": cell("(C). (A)", 2), "Spanish": cell("(A)", 2)},
    ]
    answers = read(tmp_path, rows)
    assert answers.undecided == {(0, 0): (0, 1, 2, 3), (0, 1): (0, 1), (1, 1): (2, 0)}
    outcomes = [answers.undecided.get(place, (int(answers.options[place]),)) for place in np.ndindex(2, 3)]
    drawn = [
        brute_force_scores([list(one[:3]), list(one[3:])], answers.gold.tolist())
        for one in itertools.product(*outcomes)
    ]
    expected = expected_released(answers)
    accuracies = [one["accuracy"] for one in drawn]
    assert expected.accuracy == pytest.approx(np.mean(accuracies), abs=1e-12)
    assert accuracy_deviation(answers) == pytest.approx(np.std(accuracies), abs=1e-12)
    for s in (2, 3):
        assert expected.consistency[s] == pytest.approx(np.mean([one["consistency"][s] for one in drawn]), abs=1e-12)


def test_expected_scores_are_the_scores_where_nothing_is_drawn(tmp_path: Path) -> None:
    answers = read(tmp_path, prediction_rows(20, seed=1, invalid=0.0))
    assert not answers.undecided
    assert expected_released(answers) == score(answers)


def test_ac3_of_nothing_is_nothing() -> None:
    assert ac3(0.0, 0.0) == 0.0
    assert ac3([0.5, 1.0], [0.5, 0.0]).tolist() == [0.5, 0.0]


@pytest.mark.reference_data
def test_released_scores_are_met(reference_data: Path) -> None:
    files = [path for path in sorted((reference_data / "seaeval").rglob("*.json")) if not path.stem.endswith("_score")]
    assert len(files) >= 3
    for path in files:
        released = json.loads(path.with_name(f"{path.stem}_score.json").read_text(encoding="utf-8"))
        (answers,) = read_file(path)
        scores = score(answers)
        assert answers.invalid_rate == 0
        assert scores.accuracy == pytest.approx(released["overall_acc"], abs=1e-9)
        assert scores.accuracy_by_language == pytest.approx(released["language_acc"], abs=1e-9)
        for s in range(2, len(answers.languages) + 1):
            assert scores.consistency[s] == pytest.approx(released[f"consistency_score_{s}"], abs=1e-9)
            assert scores.ac3[s] == pytest.approx(released[f"AC3_{s}"], abs=1e-9)


def test_intervals_equal_a_loop_over_the_same_resamples(tmp_path: Path) -> None:
    from megalign.crossin.scoring.bootstrap import Metric, _fingerprint, resampled_weights

    answers = read(tmp_path, prediction_rows(25, seed=5))
    bootstrap = Bootstrap(seed=7, num_resamples=40)
    draws = bootstrap.draws(answers)
    weights = resampled_weights(_fingerprint(answers), 25, 40, 7)
    order = np.argsort(np.array(answers.items))
    options = [[None if one < 0 else int(one) for one in row] for row in answers.options]
    for number, counts in enumerate(weights):
        places = [int(order[column]) for column, count in enumerate(counts) for _ in range(int(count))]
        assert len(places) == 25
        expected = brute_force_scores([options[at] for at in places], [answers.gold[at].tolist() for at in places])
        assert draws[Metric("accuracy")][number] == pytest.approx(expected["accuracy"], abs=1e-12)
        for s in (2, 3, 4):
            assert draws[Metric("consistency", s=s)][number] == pytest.approx(expected["consistency"][s], abs=1e-12)
            assert draws[Metric("ac3", s=s)][number] == pytest.approx(expected["ac3"][s], abs=1e-12)
    rows = list(interval_rows(bootstrap, answers))
    value = draws[Metric("ac3", s=3)]
    low, high = np.quantile(value[1:], [0.025, 0.975])
    row = next(row for row in rows if (row["metric"], row["s"]) == ("ac3", 3))
    assert [row["value"], row["low"], row["high"]] == pytest.approx([value[0], low, high], abs=1e-12)


def test_a_comparison_is_paired_whatever_the_order(tmp_path: Path) -> None:
    rows = prediction_rows(40, seed=2, invalid=0.0)
    same = read(tmp_path, list(reversed(rows)), "same.json")
    better = [dict(row) for row in rows]
    for row in better[:20]:
        for language in LANGUAGES:
            row[language] = {**row[language], "model_prediction": row[language]["answer"]}
    base, other = read(tmp_path, rows, "base.json"), read(tmp_path, better, "other.json")
    bootstrap = Bootstrap(num_resamples=200)
    assert {row["difference"] for row in compare(bootstrap, base, same)} == {0.0}
    assert {row["p_value"] for row in compare(bootstrap, base, same)} == {1.0}
    found = {(row["metric"], row["s"], row["language"]): row for row in compare(bootstrap, base, other)}
    gained = found["accuracy", None, None]
    assert gained["difference"] == pytest.approx(score(other).accuracy - score(base).accuracy, abs=1e-12)
    assert gained["low"] > 0
    assert gained["p_value"] == pytest.approx(2 / 201)


def test_comparisons_that_cannot_be_made(tmp_path: Path) -> None:
    rows = prediction_rows(5, seed=1)
    base = read(tmp_path, rows, "base.json")
    with pytest.raises(DataError, match="have other questions: q4 and so on"):
        compare(Bootstrap(), base, read(tmp_path, rows[:4], "other.json"))
    fewer = [{key: value for key, value in row.items() if key != "Spanish"} for row in rows]
    with pytest.raises(DataError, match="have other languages: Spanish"):
        compare(Bootstrap(), base, read(tmp_path, fewer, "fewer.json"))
    with pytest.raises(ConfigError, match="There cannot be 0 resamples"):
        Bootstrap(num_resamples=0)
    with pytest.raises(ConfigError, match=r"confidence 1\.5 is not between"):
        Bootstrap(confidence=1.5)
