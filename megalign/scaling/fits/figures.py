"""The pictures of a scaling report: losses with their curves, gains, multipliers, knowledge, cost."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from megalign.pages import Picture
from megalign.pages.figures import COLOURS, CURVES
from megalign.scaling.fits.analysis import CHANCE, KNOWLEDGE, LOSS, Analysis
from megalign.scaling.fits.findings import size_name
from megalign.scaling.fits.measurements import Measurement
from megalign.scaling.fits.series import SeriesFit

EXTRAPOLATED = (0, (3, 2))
STYLE = {**CURVES, "legend.frameon": False, "legend.fontsize": 8.0}


@dataclass(frozen=True)
class ReportFigure:
    """A picture with the section it belongs to and the name of its file."""

    section: str
    name: str
    picture: Picture


def draw_figures(found: Analysis) -> list[ReportFigure]:
    """All pictures that the measurements allow."""
    figures = []
    for language in found.languages:
        if any(found.select(method, language, LOSS) for method in found.methods):
            figures.append(_figure("loss", f"loss_{language}", f"Loss on {language}", _losses(found, language)))
    for language in found.targets:
        if any(found.select(method, language, KNOWLEDGE) for method in found.methods):
            figures.append(_figure("knowledge", f"clka_{language}", f"CLKA on {language}", _knowledge(found, language)))
    if found.gains:
        figures.append(_figure("gain", "gain", "Gain by size", _gains(found)))
    for language in found.multipliers:
        figures.append(
            _figure("gain", f"data_{language}", f"Loss over text of {language}", _data_curves(found, language))
        )
    for language in found.targets:
        if all(any(row.flops for row in found.select(m, language, LOSS)) for m in found.methods):
            figures.append(
                _figure("cost", f"cost_{language}", f"Loss on {language} over FLOPs", _cost(found, language))
            )
    return figures


def _figure(section: str, name: str, title: str, draw: Callable[[Axes], str]) -> ReportFigure:
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(5.4, 3.5), layout="constrained")
        axes = canvas.add_subplot()
        axes.set_title(title)
        text = draw(axes)
        stream = io.BytesIO()
        canvas.savefig(stream, format="png", metadata={"Software": None})
    return ReportFigure(section, name, Picture(stream.getvalue(), f"{title}. {text}"))


def _log_axis(axes: Axes, low: float, high: float, label: str) -> None:
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 300 * low else (1.0, 3.0), numticks=8))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size_name(value)))
    axes.set_xlabel(label)


def _parameters_label(found: Analysis) -> str:
    return "parameters" if found.question.total_parameters else "parameters without embeddings"


def _dots(axes: Axes, rows: Sequence[Measurement], colour: str, label: str, of: Callable[[Measurement], float]) -> None:
    """Runs as small dots, the means of each size as large ones."""
    axes.plot([of(row) for row in rows], [row.value for row in rows], "o", color=colour, markersize=3, alpha=0.45)
    by_size: dict[float, list[Measurement]] = {}
    for row in rows:
        by_size.setdefault(row.parameters, []).append(row)
    across = [np.mean([of(row) for row in some]) for some in by_size.values()]
    axes.plot(
        across, [np.mean([row.value for row in some]) for some in by_size.values()], "o", color=colour, label=label
    )


def _curve(axes: Axes, fit: SeriesFit | None, colour: str, low: float, high: float) -> None:
    """The curve over its sizes, dashed beyond them and, where the data do not support it, dotted throughout."""
    if fit is None:
        return
    smallest, largest = float(fit.series.sizes[0]), float(fit.series.sizes[-1])
    grid = np.unique([*np.geomspace(low, high, 60), smallest, largest])
    points = [fit.curve.at(float(size)) for size in grid]
    values = np.array([point.value for point in points])
    inside = (grid >= smallest) & (grid <= largest)
    axes.plot(
        grid[inside], values[inside], color=colour, linestyle="solid" if fit.supported else "dotted", linewidth=1.5
    )
    if not fit.supported:
        return
    for part in (grid <= smallest, grid >= largest):
        axes.plot(grid[part], values[part], color=colour, linestyle=EXTRAPOLATED, linewidth=1.0)
    axes.fill_between(
        grid,
        [point.low or 0 for point in points],
        [point.high or 0 for point in points],
        color=colour,
        alpha=0.13,
        linewidth=0,
    )


def _range(found: Analysis) -> tuple[float, float]:
    sizes = [size for _, size in found.sizes]
    farthest = max([*found.question.predict, 10 * sizes[-1]]) if found.predictions else sizes[-1] * 1.5
    return sizes[0] / 1.5, farthest * 1.1


def _losses(found: Analysis, language: str) -> Callable[[Axes], str]:
    def draw(axes: Axes) -> str:
        low, high = _range(found)
        for method, colour in zip(found.methods, COLOURS[:2], strict=True):
            rows = found.select(method, language, LOSS)
            fit = found.losses.get((method, language))
            _dots(axes, rows, colour, method, lambda row: row.parameters)
            _curve(axes, fit, colour, low, high)
            held = fit.held_out if fit else None
            if held is not None and held.predicted.low is not None and held.predicted.high is not None:
                place = held.parameters * (1.06 if method == found.methods[0] else 0.94)
                axes.plot([place] * 2, [held.predicted.low, held.predicted.high], color=colour, linewidth=3, alpha=0.4)
        _log_axis(axes, low, high, _parameters_label(found))
        axes.set_ylabel("nats a token")
        axes.legend()
        return "Dots are runs and their means, lines the power laws, bars what the other sizes predict for the largest."

    return draw


def _knowledge(found: Analysis, language: str) -> Callable[[Axes], str]:
    def draw(axes: Axes) -> str:
        low, high = _range(found)
        for method, colour in zip(found.methods, COLOURS[:2], strict=True):
            _dots(axes, found.select(method, language, KNOWLEDGE), colour, method, lambda row: row.parameters)
            _curve(axes, found.knowledge.get((method, language)), colour, low, high)
        axes.axhline(CHANCE, color="#888888", linewidth=0.8)
        axes.annotate(
            "chance",
            (1, CHANCE),
            (-2, 2),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            fontsize=7.5,
        )
        _log_axis(axes, low, high, _parameters_label(found))
        axes.set_ylim(0, 1.03)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        axes.legend(loc="upper left")
        return "Share of facts known in the language although stated in another one only."

    return draw


def _gains(found: Analysis) -> Callable[[Axes], str]:
    def draw(axes: Axes) -> str:
        names = [name for name in found.languages if name in found.gains]
        shades = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.8, len(names)))
        for number, language in enumerate(names):
            sizes = found.gains[language].sizes
            shift = 1.03 ** (number - (len(names) - 1) / 2)
            places = [size.parameters * shift for size in sizes]
            axes.plot(
                places,
                [s.estimate.value for s in sizes],
                "o-",
                color=shades[number],
                markersize=5,
                linewidth=1.1,
                label=language,
            )
            for place, size in zip(places, sizes, strict=True):
                if size.estimate.low is not None and size.estimate.high is not None:
                    axes.plot(
                        [place] * 2,
                        [size.estimate.low, size.estimate.high],
                        color=shades[number],
                        linewidth=2,
                        alpha=0.4,
                    )
        axes.axhline(0, color="#888888", linewidth=0.8)
        sizes_all = [size for _, size in found.sizes]
        _log_axis(axes, sizes_all[0] / 1.5, sizes_all[-1] * 1.5, _parameters_label(found))
        axes.set_ylabel(f"{found.methods[0]} minus {found.methods[1]}, nats a token")
        axes.legend()
        return "Above zero the method has the lower loss."

    return draw


def _data_curves(found: Analysis, language: str) -> Callable[[Axes], str]:
    def draw(axes: Axes) -> str:
        baseline, method = found.methods
        shades = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.85, len(found.sizes)))
        places: list[float] = []
        for (name, size), shade in zip(found.sizes, shades, strict=True):
            amounts: dict[float | None, list[Measurement]] = {}
            for row in found.select(baseline, language, LOSS, all_ratios=True):
                if row.parameters == size and row.target_tokens:
                    amounts.setdefault(row.target_ratio, []).append(row)
            means = sorted(
                (float(np.mean([row.target_tokens or 0 for row in rows])), float(np.mean([row.value for row in rows])))
                for rows in amounts.values()
            )
            tokens = [amount for amount, _ in means]
            places += tokens
            losses = [loss for _, loss in means]
            axes.plot(tokens, losses, "o-", color=shade, markersize=4, linewidth=1.2, label=name)
            ours = [row for row in found.select(method, language, LOSS) if row.parameters == size and row.target_tokens]
            if ours:
                at = float(np.mean([row.target_tokens or 0 for row in ours]))
                axes.plot([at], [np.mean([row.value for row in ours])], "D", color=shade, markersize=6)
        _log_axis(axes, min(places) / 1.2, max(places) * 1.2, f"tokens of {language}")
        axes.set_ylabel("nats a token")
        axes.legend(title=f"lines {baseline}, diamonds {method}", title_fontsize=7.5, ncols=2)
        return "Lines are the baseline's losses over the amount of text, diamonds the method's."

    return draw


def _cost(found: Analysis, language: str) -> Callable[[Axes], str]:
    def draw(axes: Axes) -> str:
        places: list[float] = []
        for method, colour in zip(found.methods, COLOURS[:2], strict=True):
            rows = [row for row in found.select(method, language, LOSS) if row.flops]
            _dots(axes, rows, colour, method, lambda row: row.flops or 0.0)
            places += [row.flops or 0 for row in rows]
        axes.set_xscale("log")
        axes.set_xlim(min(places) / 1.5, max(places) * 1.5)
        axes.set_xlabel("training FLOPs, injection included")
        axes.set_ylabel("nats a token")
        axes.legend()
        return "What each loss cost."

    return draw
