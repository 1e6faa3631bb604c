"""How a panel is drawn: style, colours, labels at the lines' ends, round ticks, PNG bytes that depend on the numbers alone."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.textpath import TextPath
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from megalign.pages.figures import COLOURS, CURVES

# Dashes tell the second seven colours from the first.
DASHES: tuple[object, ...] = ("solid", (0, (5, 1.5)), (0, (3, 1, 1, 1)))
DOTTED = (0, (1, 1.6))
WIDTH_INCHES, HEIGHT_INCHES = 5.4, 3.3
# Shares of the panel's width: for the ticks' labels, and between a line's end and its name.
LEFT_MARGIN, NAME_MARGIN = 0.115, 0.04
NAME_POINTS, MAX_NAME = 8.0, 32
# Between names, as a share of the axes' height.
LABEL_GAP = 0.062


@dataclass(frozen=True)
class Line:
    """A curve with its name; `lowest` and `highest` bound its band; `place` chooses colour and dashes."""

    label: str
    place: int
    steps: tuple[float, ...]
    mean: tuple[float, ...]
    lowest: tuple[float, ...]
    highest: tuple[float, ...]
    faint: bool = False


@dataclass(frozen=True)
class Dot:
    """A value with its interval (None: none known) in the row of its label; hollow dots stand a little below."""

    label: str
    place: int
    value: float
    low: float | None
    high: float | None
    text: str
    hollow: bool = False


def draw_lines(
    title: str,
    y_label: str,
    lines: Sequence[Line],
    dotted: Sequence[Line] = (),
    *,
    finish: Callable[[Axes], None] = lambda axes: None,
) -> bytes:
    """Curves named at their right ends; dotted lines belong to the line of their colour and have no name.

    `finish` sets what is special of the panel's axes before the names are placed.
    """
    with matplotlib.rc_context(CURVES):
        canvas = Canvas(figsize=(WIDTH_INCHES, HEIGHT_INCHES))
        names = max(
            TextPath((0, 0), plain(line.label, MAX_NAME), size=NAME_POINTS).get_extents().width for line in lines
        )
        width = 1 - LEFT_MARGIN - NAME_MARGIN - names / (72 * WIDTH_INCHES)
        axes = canvas.add_axes((LEFT_MARGIN, 0.145, width, 0.75))
        for line in lines:
            colour = colour_of(line.place)
            axes.plot(
                line.steps,
                line.mean,
                color=colour,
                linestyle=DASHES[line.place // len(COLOURS) % len(DASHES)],
                linewidth=0.9 if line.faint else 1.7,
            )
            if (line.lowest, line.highest) != (line.mean, line.mean):
                axes.fill_between(line.steps, line.lowest, line.highest, color=colour, alpha=0.15, linewidth=0)
        for line in dotted:
            axes.plot(line.steps, line.mean, color=colour_of(line.place), linewidth=1.0, linestyle=DOTTED)
        axes.set_xlabel("step")
        axes.set_ylabel(y_label)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_title(plain(title, 64), x=-0.1 / width)
        left, right = min(line.steps[0] for line in lines), max(line.steps[-1] for line in lines)
        axes.set_xlim(left, right if right > left else left + 1)
        finish(axes)
        _name_ends(axes, lines)
        return png_bytes(canvas)


def draw_dots(title: str, x_label: str, dots: Sequence[Dot], *, finish: Callable[[Axes], None]) -> bytes:
    """A row for every label: the value as a dot with its number, the interval as a bar."""
    labels = list(dict.fromkeys(dot.label for dot in dots))
    with matplotlib.rc_context(CURVES):
        canvas = Canvas(figsize=(WIDTH_INCHES, 1.15 + 0.38 * len(labels)), layout="constrained")
        axes = canvas.add_subplot()
        for dot in dots:
            row, colour = labels.index(dot.label), colour_of(dot.place)
            if dot.hollow:
                axes.plot(dot.value, row + 0.24, "o", color=colour, markersize=4, markerfacecolor="white")
                continue
            if dot.low is not None and dot.high is not None:
                axes.plot(
                    [dot.low, dot.high], [row, row], color=colour, linewidth=2.0, alpha=0.45, solid_capstyle="butt"
                )
            axes.plot(dot.value, row, "o", color=colour, markersize=6.5)
            axes.annotate(dot.text, (dot.value, row), (0, 6), textcoords="offset points", ha="center", fontsize=7.5)
        axes.set_yticks(range(len(labels)), [plain(label, 24) for label in labels])
        axes.set_ylim(len(labels) - 0.4, -0.75)
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(x_label)
        axes.set_title(plain(title, 64))
        finish(axes)
        return png_bytes(canvas)


def log_axis(axes: Axes, which: str) -> None:
    """A logarithmic axis with round ticks written out, with room for the numbers over the outermost dots on x."""
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    if which == "x":
        low, high = low / (high / low) ** 0.06, high * (high / low) ** 0.06
        axes.set_xlim(low, high)
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_minor_locator(NullLocator())
    axis.set_major_locator(FixedLocator(log_ticks(low, high)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))


def log_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """At most `most` round numbers within low..high for a logarithmic axis: equal steps in a narrow range, else 1-2-5 and the like."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    if high < 4 * low:
        finest = 10.0 ** (math.floor(math.log10(high - low)) - 1)
        step = next(
            finest * factor for factor in (1, 2, 5, 10, 20, 50, 100) if (high - low) / (finest * factor) <= most - 1
        )
        first = math.ceil(low / step)
        return [round(place * step, 9) for place in range(first, math.floor(high / step) + 1)]
    ticks: list[float] = []
    for digits in ((1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [digit * 10.0**decade for decade in decades for digit in digits if low <= digit * 10.0**decade <= high]
        if len(ticks) <= most:
            return ticks
    return ticks[:: math.ceil(len(ticks) / most)]


def short_number(value: float) -> str:
    """A tick's number in few letters: 1.5, 200, 5,000, 20k, 1M."""
    for start, divisor, sign in ((1e9, 1e9, "B"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= start:
            return f"{value / divisor:g}{sign}"
    return f"{value:,.0f}" if value >= 1e3 else f"{value:g}"


def spread(wanted: Sequence[float], gap: float, low: float = 0.0, high: float = 1.0) -> list[float]:
    """Heights near the wanted ones, in their order, at least `gap` apart; within low..high where they fit."""
    order = sorted(range(len(wanted)), key=lambda index: (wanted[index], index))
    placed = [0.0] * len(wanted)
    floor = low
    for index in order:
        placed[index] = max(min(wanted[index], high), floor)
        floor = placed[index] + gap
    ceiling = max(high, low + gap * (len(wanted) - 1))
    for index in reversed(order):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    return placed


def plain(text: str, most: int) -> str:
    """Text that matplotlib draws as it stands: no mathematics, one line, cut where it is too long."""
    short = " ".join(text.split())
    short = short if len(short) <= most else short[: most - 1] + "…"
    return short.replace("$", r"\$")


def colour_of(place: int) -> str:
    """The colour of the method at this place in the study."""
    return COLOURS[place % len(COLOURS)]


def _name_ends(axes: Axes, lines: Sequence[Line]) -> None:
    """The lines' names right of the panel, pushed apart where they would overlap."""
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = [to_axes.transform((line.steps[-1], line.mean[-1])) for line in lines]
    for line, (across, up), height in zip(lines, ends, spread([end[1] for end in ends], LABEL_GAP), strict=True):
        colour = colour_of(line.place)
        name = plain(line.label, MAX_NAME)
        place = 1 + 0.8 * NAME_MARGIN / axes.get_position().width
        axes.text(place, height, name, transform=axes.transAxes, color=colour, fontsize=NAME_POINTS, va="center")
        axes.plot(
            [across, place - 0.01], [up, height], transform=axes.transAxes, color=colour, linewidth=0.6, clip_on=False
        )


def png_bytes(canvas: Canvas) -> bytes:
    """The drawing as a PNG file."""
    stream = io.BytesIO()
    # Neither version nor date in the file: the same numbers give the same bytes.
    canvas.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
