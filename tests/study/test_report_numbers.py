"""The report's numbers: CSV files, aggregates, comparisons and the sentences computed from them."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_study import STEPS, score_lines, study_json, write_lines, write_run, write_study
from scipy import stats

from megalign.study.report import compare
from megalign.study.report.exports import aggregate_csv, curves_csv, summary_csv
from megalign.study.report.findings import findings
from megalign.study.report.metrics import number, shown, shown_interval
from megalign.study.report.results import Report, load


def rows_of(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(content.decode().splitlines()))


def study_of(folder: Path, values: dict[str, dict[str, list[tuple[float, float, float]]]], **changes: Any) -> Report:
    """A study with given (value, low, high) by method, "metric language" and seed; shares for CLKA."""
    seeds = max(len(items) for by_metric in values.values() for items in by_metric.values())
    methods = [{"name": name, "title": name.title()} for name in values]
    (folder / "study.json").write_text(json.dumps(study_json(methods, list(range(seeds)), **changes)))
    for name, by_metric in values.items():
        for seed in range(seeds):
            lines = [
                {
                    "metric": key.split()[0],
                    "language": key.split()[1],
                    "level": None,
                    "step": 10,
                    "value": items[seed][0],
                    "low": items[seed][1],
                    "high": items[seed][2],
                    "n": 60,
                    "unit": "perplexity" if key.startswith("perplexity") else "share",
                }
                for key, items in by_metric.items()
                if seed < len(items)
            ]
            if lines:
                write_lines(write_run(folder, name, seed) / "scores.jsonl", lines)
    return load(folder)


def around(*values: float, error: float = 0.12) -> list[tuple[float, float, float]]:
    return [(value, value - error, value + error) for value in values]


def test_summary_has_the_final_rows_of_the_finished_runs_and_nothing_else(tmp_path: Path) -> None:
    write_study(tmp_path)
    (tmp_path / "runs/joint/seed1/run.json").unlink()
    content = summary_csv(load(tmp_path))
    assert content.splitlines()[0] == b"method,seed,metric,language,level,value,low,high,n,unit"
    rows = rows_of(content)
    finished = [("joint", 0), ("prealign", 0), ("prealign", 1), ("only_target", 0)]
    expected = {
        (
            method,
            str(seed),
            line["metric"],
            line["language"] or "",
            "" if line["level"] is None else str(line["level"]),
        ): line
        for method, seed in finished
        for line in score_lines(method, seed)
        if line["step"] == STEPS[-1]
    }
    assert {(r["method"], r["seed"], r["metric"], r["language"], r["level"]) for r in rows} == set(expected)
    assert len(rows) == len(expected)
    for row in rows:
        line = expected[row["method"], row["seed"], row["metric"], row["language"], row["level"]]
        assert float(row["value"]) == line["value"]  # exactly: no digit is lost
        assert (row["low"] == "") == (line["low"] is None)
        assert row["n"] == ("" if line["n"] is None else str(line["n"]))
        assert row["unit"] == line["unit"]


def test_the_order_of_the_lines_in_the_files_does_not_change_the_csv_files(tmp_path: Path) -> None:
    write_study(tmp_path)
    report = load(tmp_path)
    before = [make(report) for make in (summary_csv, aggregate_csv, curves_csv)]
    for path in tmp_path.glob("runs/*/*/scores.jsonl"):
        path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    report = load(tmp_path)
    assert [make(report) for make in (summary_csv, aggregate_csv, curves_csv)] == before


def test_curves_have_every_step_of_every_run_and_tell_unfinished_ones(tmp_path: Path) -> None:
    write_study(tmp_path)
    (tmp_path / "runs/joint/seed1/run.json").unlink()
    rows = rows_of(curves_csv(load(tmp_path)))
    assert len(rows) == 5 * len(score_lines("joint", 0))
    assert {row["status"] for row in rows if (row["method"], row["seed"]) == ("joint", "1")} == {"no run.json yet"}
    steps = [
        int(row["step"])
        for row in rows
        if row["method"] == "joint" and row["seed"] == "0" and row["metric"] == "perplexity"
    ]
    assert steps == [*STEPS, *STEPS]


def test_aggregates_are_students_interval_over_seeds(tmp_path: Path) -> None:
    ppl = [38.1, 36.9, 40.2]
    report = study_of(tmp_path, {"joint": {"perplexity en": around(*ppl, error=0.001)}})
    item = report.get("joint", "perplexity", "en")
    assert item is not None
    low, high = stats.t.interval(0.95, 2, loc=np.mean(ppl), scale=stats.sem(ppl))
    assert (item.mean, item.low, item.high) == pytest.approx((np.mean(ppl), low, high))
    assert (item.num_seeds, item.interval_over, item.num_items) == (3, "seeds", 180)
    row = rows_of(aggregate_csv(report))[0]
    assert list(row) == [
        "method",
        "metric",
        "language",
        "level",
        "mean",
        "low",
        "high",
        "num_seeds",
        "interval_over",
        "num_items",
        "unit",
    ]
    assert (row["mean"], row["low"], row["num_seeds"]) == (repr(item.mean), repr(item.low), "3")


def test_equal_seeds_do_not_make_an_interval_of_no_width(tmp_path: Path) -> None:
    report = study_of(tmp_path, {"joint": {"clka en-clone": [(0.30, 0.20, 0.43), (0.30, 0.20, 0.43)]}})
    item = report.get("joint", "clka", "en-clone")
    assert item is not None
    assert (item.low, item.high) == pytest.approx((0.30 - 0.10 / math.sqrt(2), 0.30 + 0.13 / math.sqrt(2)))
    assert "not told apart from chance: Joint 30.0" in " ".join(f.text for f in findings(report))


def test_intervals_are_cut_at_what_the_metric_can_be(tmp_path: Path) -> None:
    values = {"clka en": around(0.99, 0.90), "perplexity en": around(10.0, 90.0)}
    report = study_of(tmp_path, {"joint": values})
    assert report.aggregates["joint", "clka", "en", None].high == 1.0
    assert report.aggregates["joint", "perplexity", "en", None].low == 1.0


def test_one_seed_keeps_its_own_interval_and_undefined_values_do_not_count(tmp_path: Path) -> None:
    report = study_of(tmp_path, {"joint": {"clka en": around(0.5), "perplexity en": around(9.0, 9.5, 9.1)}})
    item = report.get("joint", "clka", "en")
    assert item is not None
    assert (item.low, item.high, item.num_seeds, item.interval_over) == (0.38, 0.62, 1, "items")
    path = tmp_path / "runs/joint/seed0/scores.jsonl"
    path.write_text(path.read_text().replace('"value": 0.5', '"value": null'))
    item = load(tmp_path).get("joint", "clka", "en")
    assert item is not None
    assert (item.mean, item.low, item.num_seeds, item.interval_over) == (None, None, 0, "")
    assert [row["value"] for row in rows_of(summary_csv(load(tmp_path))) if row["metric"] == "clka"] == [""]


def test_comparisons_are_paired_by_seed(tmp_path: Path) -> None:
    joint, mine = [80.0, 90.0, 70.0], [40.0, 43.0, 36.0, 99.0]
    report = study_of(
        tmp_path,
        {
            "prealign": {"perplexity en-clone": around(*mine), "clka en-clone": around(0.5, 0.6, 0.4, error=0.0)},
            "joint": {"perplexity en-clone": around(*joint), "clka en-clone": around(0.2, 0.25, 0.3, error=0.0)},
        },
    )
    found = compare.ratio(report, "prealign", "perplexity", "en-clone")
    assert found is not None
    logs = np.log(np.array(mine[:3]) / np.array(joint))
    low, high = np.exp(stats.t.interval(0.95, 2, loc=logs.mean(), scale=stats.sem(logs)))
    assert (found.value, found.low, found.high) == pytest.approx((np.exp(logs.mean()), low, high))
    assert (found.num_seeds, found.direction) == (3, -1)
    points = compare.difference(report, "prealign", "clka", "en-clone")
    assert points is not None
    gaps = np.array([30.0, 35.0, 10.0])
    low, high = stats.t.interval(0.95, 2, loc=gaps.mean(), scale=stats.sem(gaps))
    assert (points.value, points.low, points.high) == pytest.approx((25.0, low, high))
    assert points.direction == 0


def test_the_error_of_a_difference_joins_the_errors_of_both_runs(tmp_path: Path) -> None:
    share = {"clka en-clone": [(0.30, 0.20, 0.43)] * 2}
    report = study_of(tmp_path, {"joint": share, "prealign": {"clka en-clone": [(0.50, 0.44, 0.58)] * 2}})
    found = compare.difference(report, "prealign", "clka", "en-clone")
    assert found is not None
    assert found.low == pytest.approx(20 - 100 * math.hypot(0.06, 0.13) / math.sqrt(2))
    assert found.high == pytest.approx(20 + 100 * math.hypot(0.08, 0.10) / math.sqrt(2))


def said(report: Report, *, caution: bool) -> str:
    return " ".join(finding.text for finding in findings(report) if finding.caution == caution)


def test_findings_say_what_the_intervals_carry_and_no_more(tmp_path: Path) -> None:
    report = study_of(
        tmp_path,
        {
            "joint": {
                "perplexity en": around(13.0, 13.4, 13.2),
                "perplexity en-clone": around(80.0, 84.0, 88.0),
                "clka en-clone": around(0.27, 0.22, 0.26),
                "clka_control en-clone": around(0.25, 0.22, 0.27),
            },
            "prealign": {
                "perplexity en": around(13.3, 13.5, 13.4),
                "perplexity en-clone": around(37.0, 39.5, 38.7),
                "clka en-clone": around(0.53, 0.55, 0.50),
                "clka_control en-clone": around(0.45, 0.47, 0.46, error=0.02),
            },
            "noisy": {"perplexity en": around(13.3, 13.5, 13.4), "perplexity en-clone": around(60.0, 95.0, 70.0)},
            "once": {"perplexity en": around(20.0), "perplexity en-clone": around(21.0), "clka en-clone": around(0.9)},
        },
    )
    results, cautions = said(report, caution=False), said(report, caution=True)
    assert "Perplexity on en-clone, lowest first: Once (21.0), Prealign (38.4), Noisy (75.0), Joint (84.0)." in results
    assert "lower for Prealign 0.46 [" in results
    assert "not told apart by these seeds: Noisy 0.8" in results
    assert "on one seed only, so without an interval over seeds: Once 0.26." in results
    assert "higher for" not in results
    assert "above chance: Prealign 52.7 [45.7, 59.6], Once 90.0 [78.0, 102.0]" in results
    assert "not told apart from chance: Joint 25.0" in results
    assert "Control facts on en-clone are not at chance for Prealign 46.0 [" in cautions
    assert "The methods are not equal on en: as a ratio to Joint's, the perplexity there is Once 1.54" in cautions
    assert "One seed only, which tells nothing about other seeds: Once." in cautions
    assert "10 of 12 runs have finished" in cautions


def test_findings_tell_equal_english_and_unequal_passes(tmp_path: Path) -> None:
    write_study(tmp_path)
    text = said(load(tmp_path), caution=True)
    assert "Passes over the en-clone text differ between methods: Joint 1.0, PreAlign 1.0, Only target 5.0." in text
    assert "Only target 1" in text.split("Passes")[0]
    for file in ("run.json", "scores.jsonl"):
        (tmp_path / "runs/only_target/seed0" / file).unlink()
    assert "en perplexities are all within 10 % of Joint's." in said(load(tmp_path), caution=False)
    assert "Passes" not in said(load(tmp_path), caution=True)


def test_nothing_finished_shows_nothing(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(json.dumps(study_json()))
    report = load(tmp_path)
    assert [finding.text for finding in findings(report)] == ["No run has finished: there is nothing to show yet."]
    assert rows_of(summary_csv(report)) == []
    assert report.baseline is None


def test_the_baseline_is_joint_or_the_first_with_results(tmp_path: Path) -> None:
    report = study_of(tmp_path, {"b": {}, "c": {"perplexity en": around(2.0)}, "d": {"perplexity en": around(2.0)}})
    assert report.baseline is not None
    assert report.baseline.name == "c"
    (tmp_path / "other").mkdir()
    values = {"c": {"perplexity en": around(2.0)}, "joint": {"perplexity en": around(2.0)}}
    report = study_of(tmp_path / "other", values)
    assert report.baseline is not None
    assert report.baseline.name == "joint"


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (234270.31, 1, "234,270.3"),
        (-0.001, 2, "0.00"),
        (-0.006, 2, "-0.01"),
        (None, 1, "n/a"),
        (math.nan, 1, "n/a"),
        (math.inf, 1, "inf"),
        (0.000123456, None, "0.0001235"),
    ],
)
def test_numbers_as_a_reader_sees_them(value: float | None, decimals: int | None, text: str) -> None:
    assert number(value, decimals) == text


def test_shares_are_shown_as_percentages() -> None:
    assert shown("clka", 0.4722, "share") == "47.2"
    assert shown("clka", 47.22, "%") == "47.2"
    assert shown_interval("clka", 0.331, 0.614, "share") == "[33.1, 61.4]"
    assert shown_interval("perplexity", 999.4, 268316.2, "perplexity") == "[999.4, 268,316]"
