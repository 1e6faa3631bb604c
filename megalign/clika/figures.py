"""Heat maps of models by languages and the scatter of performance against consistency, as PNG bytes that depend on the numbers alone."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from megalign.pages import figures
from megalign.pages.figures import COLOURS as COLOURS

# Markers tell the next seven models apart.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MAX_LABELLED_POINTS, MAX_LEGEND_MODELS, MAX_NAME = 90, 24, 28
STYLE = {**figures.STYLE, "savefig.dpi": 140}


@dataclass(frozen=True)
class Point:
    """A model in a language: re-scaled accuracy and consistency with English."""

    model: str
    language: str
    ra: float
    en_co: float


def heat_map(
    title: str, values: Mapping[tuple[str, str], float | None], models: Sequence[str], languages: Sequence[str]
) -> bytes:
    """A cell per model and language, 0 to 1 from pale to dark with its number; grey where the score is undefined or absent."""
    grid = np.full((len(models), len(languages)), np.nan)
    for row, model in enumerate(models):
        for column, language in enumerate(languages):
            value = values.get((model, language))
            grid[row, column] = np.nan if value is None else value
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(2.4 + 0.46 * len(languages), 0.8 + 0.27 * len(models)), layout="constrained")
        axes = canvas.add_subplot()
        colours = matplotlib.colormaps["YlGnBu"].with_extremes(bad="#e3e3e3")
        axes.imshow(np.ma.masked_invalid(grid), cmap=colours, vmin=0, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(grid):
            shown = "n/a" if np.isnan(value) else f"{value:.2f}"
            ink = "white" if value > 0.6 else "#222222"
            axes.text(column, row, shown, ha="center", va="center", fontsize=7.0, color=ink)
        axes.set_xticks(range(len(languages)), [plain(language) for language in languages])
        axes.set_yticks(range(len(models)), [plain(model) for model in models])
        axes.tick_params(length=0)
        axes.set_title(plain(title, 60))
        return _png(canvas)


def scatter(title: str, points: Sequence[Point]) -> bytes:
    """Re-scaled accuracy against consistency with English: a dot per model and language, named by language where there is room."""
    models = list(dict.fromkeys(point.model for point in points))
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(7.2, 4.4), layout="constrained")
        axes: Axes = canvas.add_subplot()
        axes.grid(True)
        for place, model in enumerate(models):
            own = [point for point in points if point.model == model]
            axes.scatter(
                [point.ra for point in own],
                [point.en_co for point in own],
                color=COLOURS[place % len(COLOURS)],
                marker=MARKERS[place // len(COLOURS) % len(MARKERS)],
                s=26,
                alpha=0.85,
                label=plain(model),
            )
        if len(points) <= MAX_LABELLED_POINTS:
            for point in points:
                axes.annotate(
                    plain(point.language), (point.ra, point.en_co), (3, 2.5), textcoords="offset points", fontsize=6.5
                )
        if len(models) <= MAX_LEGEND_MODELS:
            canvas.legend(loc="outside right upper", frameon=False, fontsize=7.5)
        axes.set_xlim(left=-0.03)
        axes.set_ylim(top=1.03)
        axes.set_xlabel("RA, re-scaled accuracy")
        axes.set_ylabel("en-CO, consistency with English")
        axes.set_title(plain(title, 60))
        return _png(canvas)


def plain(text: str, most: int = MAX_NAME) -> str:
    """Text that matplotlib draws as it stands: no mathematics, one line, cut where it is too long."""
    short = " ".join(text.split())
    short = short if len(short) <= most else short[: most - 1] + "…"
    return short.replace("$", r"\$")


def _png(canvas: Canvas) -> bytes:
    stream = io.BytesIO()
    # Neither version nor date in the file: the same numbers give the same bytes.
    canvas.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
