"""Accuracy against consistency, and accuracy by language, as PNG bytes that depend on the numbers alone."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from megalign.clika.figures import COLOURS, MARKERS, MAX_LEGEND_MODELS, STYLE, plain

AC3_LINES = (0.2, 0.4, 0.6, 0.8)
LABEL_POINTS = 7.0


@dataclass(frozen=True)
class Dot:
    """A file's accuracy and consistency with the ends of their intervals (None: none known)."""

    name: str
    accuracy: float
    consistency: float
    accuracy_interval: tuple[float, float] | None
    consistency_interval: tuple[float, float] | None


def plane(title: str, s: int, num_options: int, dots: Sequence[Dot]) -> bytes:
    """A dot per file, with its intervals as whiskers where the dots are few enough to be named, lines of equal AC3, and where random answers lie."""
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(7.2, 4.6), layout="constrained")
        axes: Axes = canvas.add_subplot()
        _ac3_lines(axes)
        axes.plot(1 / num_options, num_options ** (1.0 - s), "x", color="#888888", markersize=7)
        axes.annotate(
            "random answers",
            (1 / num_options, num_options ** (1.0 - s)),
            (6, -3),
            textcoords="offset points",
            fontsize=LABEL_POINTS,
            color="#666666",
        )
        named = len(dots) <= MAX_LEGEND_MODELS
        for place, dot in enumerate(dots):
            colour = COLOURS[place % len(COLOURS)]
            for interval, across in ((dot.accuracy_interval, True), (dot.consistency_interval, False)):
                if named and interval is not None:
                    x = interval if across else (dot.accuracy, dot.accuracy)
                    y = (dot.consistency, dot.consistency) if across else interval
                    axes.plot(x, y, color=colour, linewidth=0.9, alpha=0.5)
            axes.plot(
                dot.accuracy,
                dot.consistency,
                MARKERS[place // len(COLOURS) % len(MARKERS)],
                color=colour,
                markersize=5.5,
                linestyle="none",
                label=plain(dot.name, 44),
            )
        if named:
            canvas.legend(loc="outside right center", frameon=False, fontsize=7.5)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel("accuracy")
        axes.set_ylabel(f"consistency over {s} languages")
        axes.set_title(plain(title, 60))
        return _png(canvas)


def heat_map(
    title: str, rows: Mapping[str, Mapping[str, float]], languages: Sequence[str], *, column_inches: float = 0.85
) -> bytes:
    """A row per file, a column per language, 0 to 1 from pale to dark with its number."""
    grid = np.array([[values[language] for language in languages] for values in rows.values()])
    names = [plain(name, 44) for name in rows]
    left = 0.4 + 0.066 * max(map(len, names))
    with matplotlib.rc_context(STYLE):
        size = (max(5.0, left + column_inches * len(languages)), 1.0 + 0.27 * len(names))
        canvas = Canvas(figsize=size, layout="constrained")
        axes = canvas.add_subplot()
        axes.imshow(grid, cmap="YlGnBu", vmin=0, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(grid):
            ink = "white" if value > 0.6 else "#222222"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=LABEL_POINTS, color=ink)
        axes.set_xticks(range(len(languages)), [plain(language, 14) for language in languages])
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(length=0)
        axes.set_title(plain(title, 60))
        return _png(canvas)


def _ac3_lines(axes: Axes) -> None:
    """Curves on which the harmonic mean of both axes is constant: y = a x / (2 x - a)."""
    for value in AC3_LINES:
        x = np.linspace(value / (2 - value), 1, 200)
        y = value * x / (2 * x - value)
        axes.plot(x, y, color="#dddddd", linewidth=0.9, zorder=0)
        axes.annotate(
            f"AC3 {value:g}", (1, y[-1]), (-2, 2), textcoords="offset points", ha="right", fontsize=6.5, color="#999999"
        )


def _png(canvas: Canvas) -> bytes:
    stream = io.BytesIO()
    # Neither version nor date in the file: the same numbers give the same bytes.
    canvas.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
