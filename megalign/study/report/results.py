"""A study's results: its runs, and their aggregates over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from megalign.intervals import t_interval
from megalign.study.report.metrics import METRICS, bounds
from megalign.study.report.read import Method, Run, Score, Study, read_study

Key = tuple[str, str, str | None, int | None]
METRIC_ORDER = {name: place for place, name in enumerate(METRICS)}


@dataclass(frozen=True, slots=True)
class Aggregate:
    """A metric of a method over the seeds that finished.

    `low` and `high` are the 95 % interval of the mean over seeds (`seeds_interval`; `interval_over` "seeds"), cut at the values that
    the metric can take; with one seed the run's own interval over its test items ("items"); None where there is neither ("").
    """

    method: str
    metric: str
    language: str | None
    level: int | None
    unit: str
    mean: float | None
    low: float | None
    high: float | None
    num_seeds: int
    interval_over: str
    num_items: int | None

    @property
    def key(self) -> Key:
        """What is aggregated."""
        return self.method, self.metric, self.language, self.level


@dataclass(frozen=True)
class Report:
    """What the report was made of, and where it stands.

    Attributes:
        folder: the folder with index.html, summary.csv, aggregate.csv, curves.csv and the figures.
        notes: what a reader should know of the files, such as lines left out.
    """

    study: Study
    runs: tuple[Run, ...]
    notes: tuple[str, ...]
    folder: Path
    aggregates: dict[Key, Aggregate]

    @property
    def page(self) -> Path:
        """The page to open."""
        return self.folder / "index.html"

    def get(self, method: str, metric: str, language: str | None = None, level: int | None = None) -> Aggregate | None:
        """The aggregate, or None where no finished run has the metric."""
        return self.aggregates.get((method, metric, language, level))

    def finished(self, method: str) -> list[Run]:
        """The method's finished runs, in the order of the seeds."""
        return [run for run in self.runs if run.method == method and run.finished]

    @property
    def methods_with_results(self) -> list[Method]:
        """The methods with at least one finished run, in display order."""
        return [method for method in self.study.methods if self.finished(method.name)]

    def by_seed(self, method: str, metric: str, language: str | None = None) -> dict[int, Score]:
        """Final scores with a finite value, by seed."""
        return {
            run.seed: score
            for run in self.finished(method)
            for score in run.final_scores
            if score.key == (metric, language, None) and score.value is not None and math.isfinite(score.value)
        }

    def levels(self, metric: str, language: str | None) -> list[int]:
        """The levels at which a finished run has the metric."""
        found = {key[3] for key in self.aggregates if key[1] == metric and key[2] == language}
        return sorted(level for level in found if level is not None)

    def has(self, metric: str, language: str | None = None) -> bool:
        """Whether a finished run has the metric for the language."""
        return any(key[1] == metric and key[2] == language for key in self.aggregates)

    def unit(self, metric: str) -> str:
        """The metric's unit, "" where it was not measured."""
        return next((score.unit for run in self.runs for score in run.scores if score.metric == metric), "")

    @property
    def baseline(self) -> Method | None:
        """The method that others are compared with: joint, else the first with results."""
        methods = self.methods_with_results
        return next((method for method in methods if method.name == "joint"), methods[0] if methods else None)


def load(study_folder: Path) -> Report:
    """Read a study folder and aggregate its finished runs.

    Raises:
        DataError: a file is missing or broken; see `read_study`.
    """
    study, runs, notes = read_study(study_folder)
    return Report(study, runs, notes, study_folder / "report", _aggregate(study, runs))


def sort_key(metric: str, language: str | None, level: int | None) -> tuple[int, str, str, int]:
    """The order of metrics in tables and files: the known ones first, then by name."""
    return METRIC_ORDER.get(metric, len(METRIC_ORDER)), metric, language or "", -1 if level is None else level


def _aggregate(study: Study, runs: Iterable[Run]) -> dict[Key, Aggregate]:
    by_key: dict[Key, list[Score]] = {}
    for run in runs:
        for score in run.final_scores if run.finished else ():
            by_key.setdefault((run.method, *score.key), []).append(score)
    place = {method.name: index for index, method in enumerate(study.methods)}
    ordered = sorted(by_key, key=lambda key: (place[key[0]], *sort_key(*key[1:])))
    return {key: _over_seeds(key, by_key[key]) for key in ordered}


def _over_seeds(key: Key, scores: list[Score]) -> Aggregate:
    defined = [score for score in scores if score.value is not None]
    values = [score.value for score in defined if score.value is not None]
    mean = sum(values) / len(values) if values else None
    low: float | None = None
    high: float | None = None
    interval_over = ""
    if len(values) > 1 and all(math.isfinite(value) for value in values):
        low, high = seeds_interval(values, [item_errors(score) for score in defined])
        lowest, highest = bounds(key[1], scores[0].unit)
        low, high, interval_over = max(low, lowest), min(high, highest), "seeds"
    elif len(values) == 1 and defined[0].low is not None and defined[0].high is not None:
        low, high, interval_over = defined[0].low, defined[0].high, "items"
    items = [score.n for score in defined if score.n is not None]
    return Aggregate(*key, scores[0].unit, mean, low, high, len(values), interval_over, sum(items) if items else None)


def item_errors(score: Score) -> tuple[float, float]:
    """How far a run's own interval reaches below and above its value; zero where there is none."""
    if score.value is None or score.low is None or score.high is None:
        return 0.0, 0.0
    return max(0.0, score.value - score.low), max(0.0, score.high - score.value)


def seeds_interval(values: list[float], errors: list[tuple[float, float]]) -> tuple[float, float]:
    """Student's interval of the mean over seeds, at least as wide as the test items alone make it.

    Scores that are counts of few facts are easily equal for two seeds, and Student's interval would then have no width. The floor is
    the error of the mean that follows from the runs' own intervals, taken as independent: sqrt(sum of squares) / number of runs.
    """
    low, high = t_interval(values)
    mean = sum(values) / len(values)
    below, above = (math.hypot(*side) / len(values) for side in zip(*errors, strict=True))
    return min(low, mean - below), max(high, mean + above)
