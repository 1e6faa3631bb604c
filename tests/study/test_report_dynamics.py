"""The report of learning dynamics, inference, and words in and out of the table: each number where it belongs."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from report_study import METHODS, write_run, write_study

from megalign.study.report import build_report
from megalign.study.report.dynamics import draw_dynamics, dynamics, dynamics_table
from megalign.study.report.figures import draw_figures
from megalign.study.report.results import Report, load
from megalign.study.report.tables import likelihood_table, main_table, other_table, pairs_table, seen_table

PAIRS = [(a, b) for a in ("en", "en-clone") for b in ("en", "en-clone")]


def value(method: str, seed: int, pair: tuple[str, str], times: int, step: int) -> float:
    """A share that tells where it was measured; all are different."""
    return (["joint", "prealign"].index(method) * 2 + seed) / 100 + PAIRS.index(pair) / 10 + times / 40 + step / 10000


def line(metric: str, language: str, level: int | None, step: int, share: float, unit: str = "share") -> dict[str, Any]:
    common = {"metric": metric, "language": language, "level": level, "step": step, "n": 12, "unit": unit}
    return {**common, "value": share, "low": share - 0.01, "high": share + 0.01}


@pytest.fixture
def report(tmp_path: Path) -> Report:
    folder = write_study(tmp_path / "study", methods=METHODS[:2], seeds=[0, 1])
    for method in ("joint", "prealign"):
        for seed in (0, 1):
            own = [
                line(f"clka_from_{stated}", asked, times, step, value(method, seed, (stated, asked), times, step))
                for stated, asked in PAIRS
                for times in (1, 4)
                for step in (300, 500, 831)
            ]
            own += [line("clka_before", "en", None, 500, 0.24), line("clka_from_en", "en-clone", None, 831, 0.4)]
            own += [line("nli_accuracy", name, None, 831, 0.5 + 0.1 * seed) for name in ("en", "en-clone")]
            own += [line("perplexity_seen", "en-clone", None, 831, 30.0, "perplexity")]
            own += [line("perplexity_unseen", "en-clone", None, 831, 70.0, "perplexity")]
            own += [line("clka_per_token", "en-clone", None, 831, 0.3)]
            with (folder / "runs" / method / f"seed{seed}" / "scores.jsonl").open("a") as stream:
                stream.writelines(json.dumps(one) + "\n" for one in own)
    return load(folder)


def test_cells_are_means_over_seeds(report: Report) -> None:
    cells = dynamics(report)
    assert [(one.method.name, one.stated_in, one.asked_in) for one in cells] == [
        (method, *pair) for method in ("joint", "prealign") for pair in PAIRS
    ]
    for one in cells:
        assert (one.frequencies, one.steps) == ((1, 4), (300, 500, 831))
        for (row, column), percent in np.ndenumerate(one.percent):
            place = ((one.stated_in, one.asked_in), one.frequencies[row], one.steps[column])
            assert percent == pytest.approx(50 * sum(value(one.method.name, seed, *place) for seed in (0, 1)))


def test_the_table_is_of_the_later_periods(report: Report) -> None:
    table = dynamics_table(report)
    assert table is not None
    assert [(column.group, column.title) for column in table.columns[1:]] == [
        (f"{a} → {b}", f"{times} x") for a, b in PAIRS for times in (1, 4)
    ]
    row = next(row for row in table.rows if row[0].text == "PreAlign")
    expected = [
        100 * np.mean([value("prealign", seed, pair, times, step) for seed in (0, 1) for step in (500, 831)])
        for pair in PAIRS
        for times in (1, 4)
    ]
    assert [cell.text for cell in row[1:]] == [f"{one:.1f}" for one in expected]
    assert "not stated yet: 24.0 %" in table.footnote


def test_the_heat_map_shows_every_cell(report: Report) -> None:
    """Each cell's colour is that of its value: of two maps that differ in one value, that cell alone differs."""
    cells = dynamics(report)
    first = matplotlib.image.imread(io.BytesIO(draw_dynamics(cells)))
    assert draw_dynamics(cells) == draw_dynamics(dynamics(report)), "the same numbers give the same bytes"
    cells[5].percent[1, 0] = 100.0
    changed = np.abs(matplotlib.image.imread(io.BytesIO(draw_dynamics(cells))) - first).max(axis=-1) > 0.1
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    # Eight panels of six cells: the cell is in the second row of panels and the second column.
    assert first.shape[0] * 0.45 < rows[0] < rows[-1] < first.shape[0] * 0.75
    assert np.ptp(columns) < first.shape[1] / 10
    assert first.shape[1] * 0.25 < columns[0] < columns[-1] < first.shape[1] * 0.5


def test_new_scores_have_tables_of_their_own(report: Report) -> None:
    seen, likelihood, pairs, main = (
        seen_table(report),
        likelihood_table(report),
        pairs_table(report),
        main_table(report),
    )
    assert seen is not None
    assert [cell.text for cell in seen.rows[0]] == ["Joint", "30.0", "70.0"]
    assert likelihood is not None
    assert "CLKA per token, %" in [column.group for column in likelihood.columns]
    assert pairs is not None
    assert [(c.title, c.group) for c in pairs.columns[1:]] == [("en-clone", "CLKA, stated in en, %")]
    assert pairs.rows[0][1].text == "40.0"
    places = [place for place, column in enumerate(main.columns) if column.group == "ZS-CLT, %"]
    assert [main.rows[0][place].text for place in places] == ["55.0", "55.0"]
    other = other_table(report)
    assert other is not None
    assert not [row[0].text for row in other.rows if "CLKA" in row[0].text or "ZS-CLT" in row[0].text]


def test_the_page_has_the_figure_and_its_words(report: Report) -> None:
    names = [figure.name for figure in draw_figures(report)]
    assert {"clka_dynamics", "nli_en", "nli_en-clone"} <= set(names)
    built = build_report(report.folder.parent)
    page = built.page.read_text(encoding="utf-8")
    assert "Learning dynamics" in page
    assert "In the last period: Joint, en to en" in page
    assert (built.folder / "clka_dynamics.png").is_file()
    assert "Zero-shot cross-lingual transfer" in page


def test_a_study_without_them_says_nothing_of_them(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "plain", methods=METHODS[:1], seeds=[0])
    write_run(tmp_path / "other", "joint", 0)
    report = load(folder)
    assert dynamics(report) == []
    assert dynamics_table(report) is None
    assert seen_table(report) is None
    assert pairs_table(report) is None
    assert "Learning dynamics" not in build_report(folder).page.read_text(encoding="utf-8")
