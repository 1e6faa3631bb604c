"""Which figures a report has: small panels, one question each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.axes import Axes

from megalign.study.report.drawing import Dot, Line, draw_dots, draw_lines, log_axis
from megalign.study.report.dynamics import draw_dynamics, dynamics
from megalign.study.report.metrics import CLKA_CHANCE_PERCENT, NLI_CHANCE_PERCENT, display_scale, shown
from megalign.study.report.read import Run
from megalign.study.report.results import Report

NUM_LOSS_BINS = 120
COSINE_LABEL = "cosine (dotted: random pairs)"
STAGE_TITLES = {"inject": "Injection", "pretrain": "Pretraining"}

# A run's values by step.
Points = Callable[[Run], dict[float, float]]


@dataclass(frozen=True)
class Figure:
    """`name` is the file's name without .png; `alt` says in words what is drawn."""

    name: str
    section: str
    alt: str
    png: bytes


def draw_figures(report: Report) -> list[Figure]:
    """All figures for which there are numbers, in the order of the page."""
    languages, targets = report.study.languages, report.study.targets
    found = [_final_perplexity(report, language) for language in languages]
    found += [_final_clka(report, language) for language in languages]
    found += [_final_inference(report, language) for language in languages]
    found.append(_dynamics(report))
    for language in targets:
        found += _alignment(report, language)
    found += [_perplexity_curve(report, language) for language in languages]
    found += [_training_loss(report, stage) for stage in _stages(report.runs)]
    return [figure for figure in found if figure is not None]


def _final_perplexity(report: Report, language: str) -> Figure | None:
    title = f"Perplexity on {language}"
    dots = _dots(report, "perplexity", language)
    if not dots:
        return None
    png = draw_dots(title, "perplexity, logarithmic", dots, finish=partial(log_axis, which="x"))
    return Figure(f"perplexity_{language}", "perplexity", _dots_in_words(title, dots), png)


def _final_clka(report: Report, language: str) -> Figure | None:
    title = f"CLKA on {language}"
    dots = _dots(report, "clka", language)
    if not dots:
        return None
    controls = _dots(report, "clka_control", language, hollow=True)
    named = {dot.label for dot in dots}
    label = "% of facts; dashed: chance" + ("; hollow: control facts, never stated" if controls else "")

    def finish(axes: Axes) -> None:
        axes.set_xlim(0, 104)
        axes.set_xticks(range(0, 101, 25))
        axes.axvline(CLKA_CHANCE_PERCENT, color="#777777", linewidth=0.9, linestyle=(0, (4, 2)), zorder=1)

    png = draw_dots(title, label, [*dots, *(dot for dot in controls if dot.label in named)], finish=finish)
    return Figure(f"clka_{language}", "clka", _dots_in_words(title, dots), png)


def _final_inference(report: Report, language: str) -> Figure | None:
    title = f"ZS-CLT on {language}"
    dots = _dots(report, "nli_accuracy", language)
    if not dots:
        return None

    def finish(axes: Axes) -> None:
        axes.set_xlim(0, 104)
        axes.set_xticks(range(0, 101, 25))
        axes.axvline(NLI_CHANCE_PERCENT, color="#777777", linewidth=0.9, linestyle=(0, (4, 2)), zorder=1)

    png = draw_dots(title, "% of pairs right; dashed: chance", dots, finish=finish)
    return Figure(f"nli_{language}", "nli", _dots_in_words(title, dots), png)


def _dynamics(report: Report) -> Figure | None:
    cells = dynamics(report)
    if not cells:
        return None
    told = (
        f"{one.method.label}, {one.stated_in} to {one.asked_in}: {np.nanmean(one.percent[:, -1]):.0f} %"
        for one in cells
    )
    alt = f"Facts learned in each period, by frequency and pair of languages. In the last period: {'; '.join(told)}."
    return Figure("clka_dynamics", "dynamics", alt, draw_dynamics(cells))


def _alignment(report: Report, language: str) -> list[Figure | None]:
    """Cosine over steps at the embedding, in the middle and at the output, and by level at the end."""
    keys = {score.key for run in report.runs for score in run.scores}
    levels = sorted(key[2] for key in keys if key[:2] == ("aligned_cosine", language) and key[2] is not None)
    if not levels:
        return []
    pair = f"{report.study.reference_language} and {language}"
    middle = levels[len(levels) // 2]
    titles = {levels[0]: "Embedding", middle: f"Level {middle}, the middle", levels[-1]: "Output"}
    names = {levels[0]: "embedding", middle: "middle", levels[-1]: "output"}
    figures = []
    for level, title in titles.items():
        aligned = _lines(report, _score_points("aligned_cosine", language, level))
        random = _lines(report, _score_points("random_cosine", language, level))
        name = f"alignment_{language}_{names[level]}"
        figures.append(_curve(name, "alignment", f"{title}: {pair}", COSINE_LABEL, aligned, random, _cosine_axis))
    return [*figures, _profile(report, language, f"By level, after training: {pair}")]


def _profile(report: Report, language: str, title: str) -> Figure | None:
    levels = report.levels("aligned_cosine", language)

    def lines(metric: str) -> list[Line]:
        found = []
        for place, method in enumerate(report.study.methods):
            items = [(float(level), report.get(method.name, metric, language, level)) for level in levels]
            means = {level: item.mean for level, item in items if item is not None and item.mean is not None}
            if means:
                values = tuple(means.values())
                found.append(Line(method.label, place, tuple(means), values, values, values))
        return found

    def finish(axes: Axes) -> None:
        _cosine_axis(axes)
        names = {levels[0]: "embedding", levels[-1]: "output"}
        # Every level has a tick; of many only some are named.
        every = math.ceil(len(levels) / 8)
        shown_levels = {
            level for place, level in enumerate(levels) if place % every == 0 and level < levels[-1] - every / 2
        }
        axes.set_xticks(levels, [names.get(level, str(level) if level in shown_levels else "") for level in levels])
        axes.set_xlabel("level")

    name = f"alignment_{language}_by_level"
    return _curve(name, "alignment", title, COSINE_LABEL, lines("aligned_cosine"), lines("random_cosine"), finish)


def _perplexity_curve(report: Report, language: str) -> Figure | None:
    lines = _lines(report, _score_points("perplexity", language, None))
    name, title = f"perplexity_steps_{language}", f"Perplexity on {language} over training"
    return _curve(name, "perplexity_steps", title, "perplexity, logarithmic", lines, [], partial(log_axis, which="y"))


def _training_loss(report: Report, stage: str) -> Figure | None:
    def points(run: Run) -> dict[float, float]:
        own = (point for point in run.training if point.stage == stage)
        return _binned(
            {point.step: point.loss for point in own if point.loss is not None and math.isfinite(point.loss)}
        )

    name = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in stage)
    title = f"{STAGE_TITLES.get(stage, stage)}: training loss"
    return _curve(
        f"training_loss_{name}", "training_loss", title, "loss", _lines(report, points), [], lambda axes: None
    )


def _curve(
    name: str,
    section: str,
    title: str,
    y_label: str,
    lines: list[Line],
    dotted: list[Line],
    finish: Callable[[Axes], None],
) -> Figure | None:
    """A panel of curves, None where there is at most a point of each."""
    if not any(len(line.steps) > 1 for line in lines):
        return None
    words = "; ".join(f"{line.label} from {line.mean[0]:.3g} to {line.mean[-1]:.3g}" for line in lines)
    return Figure(name, section, f"{title}: {words}.", draw_lines(title, y_label, lines, dotted, finish=finish))


def _cosine_axis(axes: Axes) -> None:
    axes.set_ylim(min(-0.1, axes.get_ylim()[0]), 1.02)


def _dots(report: Report, metric: str, language: str, *, hollow: bool = False) -> list[Dot]:
    found = []
    for place, method in enumerate(report.study.methods):
        item = report.get(method.name, metric, language)
        if item is None or item.mean is None or not math.isfinite(item.mean):
            continue
        scale = display_scale(item.unit)
        low, high = (None if end is None or not math.isfinite(end) else end * scale for end in (item.low, item.high))
        text = shown(metric, item.mean, item.unit)
        found.append(Dot(method.label, place, item.mean * scale, low, high, text, hollow))
    return found


def _dots_in_words(title: str, dots: Iterable[Dot]) -> str:
    return f"{title}: {', '.join(f'{dot.label} {dot.text}' for dot in dots)}."


def _lines(report: Report, points: Points) -> list[Line]:
    """Means over the finished runs of each method; where none has finished, over the others."""
    lines = []
    for place, method in enumerate(report.study.methods):
        finished = report.finished(method.name)
        runs = finished or [run for run in report.runs if run.method == method.name]
        series = [found for run in runs if (found := points(run))]
        # The mean must be over the same runs at every step, or it jumps where one of them ends.
        steps = sorted(set.intersection(*(set(found) for found in series))) if series else []
        if not steps:
            continue
        columns = [[found[step] for found in series] for step in steps]
        means = tuple(sum(column) / len(column) for column in columns)
        band = tuple(map(min, columns)), tuple(map(max, columns))
        label = method.label if finished else f"{method.label} (unfinished)"
        lines.append(Line(label, place, tuple(steps), means, *band, faint=not finished))
    return lines


def _score_points(metric: str, language: str, level: int | None) -> Points:
    def points(run: Run) -> dict[float, float]:
        return {
            float(score.step): score.value * display_scale(score.unit)
            for score in run.scores
            if score.key == (metric, language, level) and score.value is not None and math.isfinite(score.value)
        }

    return points


def _binned(values: dict[int, float]) -> dict[float, float]:
    """Means over equal stretches of steps, by the stretch's last step."""
    if not values:
        return {}
    width = max(1, math.ceil((max(values) + 1) / NUM_LOSS_BINS))
    bins: dict[int, list[float]] = {}
    for step, value in values.items():
        bins.setdefault(step // width, []).append(value)
    return {float((place + 1) * width - 1): sum(some) / len(some) for place, some in sorted(bins.items())}


def _stages(runs: Iterable[Run]) -> list[str]:
    found = dict.fromkeys(point.stage for run in runs for point in run.training)
    return sorted(
        found, key=lambda stage: list(STAGE_TITLES).index(stage) if stage in STAGE_TITLES else len(STAGE_TITLES)
    )
