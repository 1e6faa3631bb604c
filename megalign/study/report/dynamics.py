"""Learning dynamics of CLKA (the paper's Figure 4): accuracy by period, frequency, language that stated and language that asks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure as Canvas

from megalign.pages.figures import CURVES
from megalign.study.report.drawing import plain, png_bytes
from megalign.study.report.metrics import CLKA_CHANCE_PERCENT, CLKA_FROM, number
from megalign.study.report.read import Method, Run
from megalign.study.report.results import Report
from megalign.study.report.tables import Cell, Column, Table

_PANEL_INCHES = (1.72, 1.18)
# Numbers are written into cells where there is room.
_MOST_NUMBERED = 14


@dataclass(frozen=True)
class Cells:
    """Accuracies of a method and a pair of languages, in percent: [frequencies, periods], nan where nothing was asked."""

    method: Method
    stated_in: str
    asked_in: str
    frequencies: tuple[int, ...]
    steps: tuple[int, ...]
    percent: np.ndarray


def dynamics(report: Report) -> list[Cells]:
    """By method, in the order of the study, and by pair; means over the finished seeds that have a value."""
    runs = [run for run in report.runs if run.finished]
    measured = {
        (score.metric, score.language, score.level, score.step) for run in runs for score in run.scores
        if score.metric.startswith(CLKA_FROM) and score.level is not None
    }  # fmt: skip
    languages = [*report.study.languages]
    frequencies = tuple(sorted({level for _, _, level, _ in measured if level is not None}))
    steps = tuple(sorted({step for *_, step in measured}))
    stated = [name for name in languages if any(metric == CLKA_FROM + name for metric, *_ in measured)]
    found = []
    for method in report.methods_with_results:
        for stated_in in stated:
            for asked_in in languages:
                percent = _percent(report.finished(method.name), CLKA_FROM + stated_in, asked_in, frequencies, steps)
                if not np.isnan(percent).all():
                    found.append(Cells(method, stated_in, asked_in, frequencies, steps, percent))
    return found


def _percent(
    runs: Iterable[Run], metric: str, language: str, frequencies: tuple[int, ...], steps: tuple[int, ...]
) -> np.ndarray:
    values: dict[tuple[int, int], list[float]] = {}
    for run in runs:
        for score in run.scores:
            if (
                score.metric == metric
                and score.language == language
                and score.level is not None
                and score.value is not None
            ):
                values.setdefault((score.level, score.step), []).append(100 * score.value)
    rows = [[values.get((level, step), [math.nan]) for step in steps] for level in frequencies]
    return np.array([[sum(cell) / len(cell) for cell in row] for row in rows])


def dynamics_table(report: Report) -> Table | None:
    """Means over the second half of the periods; None where there are no periods."""
    cells = dynamics(report)
    if not cells:
        return None
    pairs = list(dict.fromkeys((one.stated_in, one.asked_in) for one in cells))
    frequencies = cells[0].frequencies
    columns = [Column("Method", text=True)]
    columns += [Column(f"{times} x", f"{a} → {b}") for a, b in pairs for times in frequencies]
    rows = []
    for method in report.methods_with_results:
        own = {(one.stated_in, one.asked_in): one for one in cells if one.method.name == method.name}
        if not own:
            continue
        row = [Cell(method.label)]
        for pair in pairs:
            late = own[pair].percent[:, len(own[pair].steps) // 2 :]
            row += [Cell(number(float(np.nanmean(line)), 1)) for line in late]
        rows.append(tuple(row))
    return Table(
        "Facts learned within a period, second half of the periods, % right",
        tuple(columns),
        tuple(rows),
        "Stated in the first language as often as the column says, asked in the second one right after the period; means over periods "
        f"and finished seeds. Chance is {CLKA_CHANCE_PERCENT:g} %.{_before(report)}",
    )


def _before(report: Report) -> str:
    """How facts do that are not stated yet."""
    values = [
        100 * score.value for run in report.runs if run.finished for score in run.scores
        if score.metric == "clka_before" and score.value is not None
    ]  # fmt: skip
    if not values:
        return ""
    return f" Facts of the period to come, not stated yet: {number(sum(values) / len(values), 1)} %."


def draw_dynamics(cells: list[Cells]) -> bytes:
    """A row of heat maps for each method, a column for each pair of languages."""
    methods = list(dict.fromkeys(one.method.label for one in cells))
    pairs = list(dict.fromkeys((one.stated_in, one.asked_in) for one in cells))
    steps, frequencies = cells[0].steps, cells[0].frequencies
    width, height = _PANEL_INCHES
    with matplotlib.rc_context({**CURVES, "axes.grid": False, "font.size": 8.0}):
        size = (1.35 + width * len(pairs), 0.95 + height * len(methods))
        canvas = Canvas(figsize=size, layout="constrained")
        axes = canvas.subplots(len(methods), len(pairs), squeeze=False)
        image = None
        for one in cells:
            row, column = methods.index(one.method.label), pairs.index((one.stated_in, one.asked_in))
            panel = axes[row, column]
            image = panel.imshow(
                one.percent, cmap="viridis", vmin=CLKA_CHANCE_PERCENT, vmax=100, aspect="auto", origin="lower"
            )
            if len(steps) <= _MOST_NUMBERED:
                for (y, x), value in np.ndenumerate(one.percent):
                    if not math.isnan(value):
                        colour = "black" if value > 70 else "white"
                        panel.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=5.2, color=colour)
            if row == 0:
                panel.set_title(plain(f"{one.stated_in} → {one.asked_in}", 30), fontsize=8.5, loc="center")
        every = max(1, math.ceil(len(steps) / 4))
        for row, label in enumerate(methods):
            for column in range(len(pairs)):
                panel = axes[row, column]
                shown = range(len(steps) - 1, -1, -every)
                panel.set_xticks(list(shown), [str(steps[at]) if row == len(methods) - 1 else "" for at in shown])
                names = [f"{times}×" if column == 0 else "" for times in frequencies]
                panel.set_yticks(range(len(frequencies)), names)
                panel.tick_params(length=2)
            axes[row, 0].set_ylabel(plain(label, 22), fontweight="bold")
        canvas.supxlabel("step at which the period ended", fontsize=8.5)
        if image is not None:
            bar = canvas.colorbar(image, ax=axes.ravel().tolist(), shrink=0.8, aspect=26, pad=0.012, extend="min")
            bar.set_label("% of facts right; 25 is chance")
        return png_bytes(canvas)
