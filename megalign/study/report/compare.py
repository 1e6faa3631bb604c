"""Methods compared with the baseline seed by seed: runs of one seed share data, facts and initial weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

from megalign.intervals import t_interval
from megalign.study.report.metrics import display_scale
from megalign.study.report.read import Score
from megalign.study.report.results import Report, item_errors, seeds_interval


@dataclass(frozen=True, slots=True)
class Comparison:
    """A method against the baseline over the seeds that both finished.

    Attributes:
        value: geometric mean of the ratios, or mean of the differences (in display units).
        low, high: the 95 % interval over seeds, Student's for ratios and `seeds_interval` for differences; None with one seed.
        neutral: the value that means no difference: 1 or 0.
    """

    method: str
    value: float
    low: float | None
    high: float | None
    num_seeds: int
    neutral: float

    @property
    def direction(self) -> int:
        """-1 or 1 where the whole interval lies below or above no difference, 0 where it does not or there is none."""
        if self.low is None or self.high is None:
            return 0
        return -1 if self.high < self.neutral else 1 if self.low > self.neutral else 0


def ratio(report: Report, method: str, metric: str, language: str) -> Comparison | None:
    """The metric (positive numbers) divided by the baseline's; None without a common seed."""
    logs = [
        math.log(mine.value / other.value)
        for mine, other in _pairs(report, method, metric, language)
        if mine.value and other.value and mine.value > 0 and other.value > 0
    ]
    if not logs:
        return None
    low, high = (math.exp(end) for end in t_interval(logs)) if len(logs) > 1 else (None, None)
    return Comparison(method, math.exp(sum(logs) / len(logs)), low, high, len(logs), 1.0)


def difference(report: Report, method: str, metric: str, language: str) -> Comparison | None:
    """The metric minus the baseline's, in display units (percentage points for shares); None without a common seed."""
    pairs = _pairs(report, method, metric, language)
    if not pairs:
        return None
    scale = display_scale(report.unit(metric))
    differences = [scale * ((mine.value or 0.0) - (other.value or 0.0)) for mine, other in pairs]
    low, high = None, None
    if len(pairs) > 1:
        errors = [_difference_errors(mine, other, scale) for mine, other in pairs]
        low, high = seeds_interval(differences, errors)
    return Comparison(method, sum(differences) / len(differences), low, high, len(differences), 0.0)


def _difference_errors(mine: Score, other: Score, scale: float) -> tuple[float, float]:
    (mine_below, mine_above), (other_below, other_above) = item_errors(mine), item_errors(other)
    return scale * math.hypot(mine_below, other_above), scale * math.hypot(mine_above, other_below)


def _pairs(report: Report, method: str, metric: str, language: str) -> list[tuple[Score, Score]]:
    if report.baseline is None:
        return []
    mine = report.by_seed(method, metric, language)
    baseline = report.by_seed(report.baseline.name, metric, language)
    return [(score, baseline[seed]) for seed, score in mine.items() if seed in baseline]
