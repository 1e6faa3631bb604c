"""What a method gains over a baseline: in loss, size by size, and in target-language text that it saves."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megalign.intervals import t_interval
from megalign.scaling.fits.bootstrap import Estimate
from megalign.scaling.fits.measurements import Measurement


@dataclass(frozen=True)
class SizeGain:
    """Loss of the baseline minus loss of the method at one size, nats a token; positive: the method is better.

    Attributes:
        by_seed: seed -> difference; runs of one seed read the same text.
        estimate: mean over seeds with Student's interval.
    """

    parameters: float
    by_seed: dict[int, float]
    estimate: Estimate


@dataclass(frozen=True)
class Change:
    """How the gain changes from one size to a larger one, paired over seeds; nats a token."""

    smaller: float
    larger: float
    estimate: Estimate


@dataclass(frozen=True)
class Gain:
    """The gain in one language.

    Attributes:
        sizes: where both methods were run, smallest first.
        overall: change from the smallest size to the largest; None: one size.
        last: change from the second largest to the largest; None: fewer than three sizes.
    """

    language: str
    sizes: tuple[SizeGain, ...]
    overall: Change | None
    last: Change | None


@dataclass(frozen=True)
class Multiplier:
    """How many times the target text the baseline needs for the method's loss, at one size.

    Attributes:
        estimate: geometric mean over seeds with Student's interval of its logarithm; None: a seed lies beyond the
            baseline's runs.
        at_least: where it does, the least that the runs say; None otherwise.
        below_one: the method is worse than the baseline with the same text.
        num_points: amounts of target text at which the baseline was run.
    """

    parameters: float
    estimate: Estimate | None
    at_least: float | None
    below_one: bool
    num_points: int


def over_seeds(values: Sequence[float], confidence: float) -> Estimate:
    """The mean with Student's interval; without one where there is one seed."""
    mean = float(np.mean(values))
    return Estimate(mean, *t_interval(values, confidence)) if len(values) > 1 else Estimate(mean)


def _by_size(rows: Sequence[Measurement]) -> dict[float, dict[int, float]]:
    found: dict[float, dict[int, float]] = defaultdict(dict)
    for row in rows:
        found[row.parameters][row.seed] = row.value
    return dict(sorted(found.items()))


def gain_of(
    language: str, baseline: Sequence[Measurement], method: Sequence[Measurement], confidence: float
) -> Gain | None:
    """The gain over sizes that both have.

    Args:
        language: of the test text.
        baseline, method: losses of one target ratio, a row a size and seed.
        confidence: of the intervals.
    """
    ours, theirs = _by_size(method), _by_size(baseline)
    sizes = []
    for size in sorted(set(ours) & set(theirs)):
        seeds = sorted(set(ours[size]) & set(theirs[size]))
        if seeds:
            by_seed = {seed: theirs[size][seed] - ours[size][seed] for seed in seeds}
            sizes.append(SizeGain(size, by_seed, over_seeds(list(by_seed.values()), confidence)))
    if not sizes:
        return None
    overall = _change(sizes[0], sizes[-1], confidence) if len(sizes) > 1 else None
    last = _change(sizes[-2], sizes[-1], confidence) if len(sizes) > 2 else None
    return Gain(language, tuple(sizes), overall, last)


def _change(smaller: SizeGain, larger: SizeGain, confidence: float) -> Change | None:
    seeds = sorted(set(smaller.by_seed) & set(larger.by_seed))
    if not seeds:
        return None
    changes = [larger.by_seed[seed] - smaller.by_seed[seed] for seed in seeds]
    return Change(smaller.parameters, larger.parameters, over_seeds(changes, confidence))


def multipliers(
    baseline: Sequence[Measurement], method: Sequence[Measurement], confidence: float
) -> tuple[Multiplier, ...]:
    """The effective-data multiplier of every size.

    The method's loss is looked up on the baseline's losses over its own amounts of target text, seed by seed: linear
    between them in the logarithm of the amount, never beyond them.

    Args:
        baseline: losses at several amounts of target text, each with target_tokens.
        method: losses at one amount.
        confidence: of the intervals.
    """
    curves: dict[float, dict[int, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in baseline:
        if row.target_tokens:
            curves[row.parameters][row.seed].append((row.target_tokens, row.value))
    logs: dict[float, list[tuple[float, bool]]] = defaultdict(list)
    points: dict[float, int] = {}
    for row in method:
        curve = sorted(curves.get(row.parameters, {}).get(row.seed, []))
        if len(curve) > 1 and row.target_tokens:
            tokens, beyond = tokens_for(row.value, curve)
            logs[row.parameters].append((math.log(tokens / row.target_tokens), beyond))
            points[row.parameters] = len(curve)
    return tuple(_multiplier(size, found, points[size], confidence) for size, found in sorted(logs.items()))


def tokens_for(loss: float, curve: Sequence[tuple[float, float]]) -> tuple[float, bool]:
    """Target tokens at which the curve reaches the loss, and whether that lies beyond its most tokens.

    Args:
        loss: nats a token.
        curve: (tokens, loss), fewest tokens first. Where it rises for once, the lowest loss so far counts.
    """
    falling: list[tuple[float, float]] = []
    for point in curve:
        if not falling or point[1] < falling[-1][1]:
            falling.append(point)
    if loss < falling[-1][1]:
        return curve[-1][0], True
    amounts, losses = np.log([tokens for tokens, _ in falling]), np.array([value for _, value in falling])
    return float(np.exp(np.interp(-loss, -losses, amounts))), False


def _multiplier(size: float, found: Sequence[tuple[float, bool]], num_points: int, confidence: float) -> Multiplier:
    logs = [value for value, _ in found]
    below = max(logs) < 1e-9
    if any(beyond for _, beyond in found):
        return Multiplier(size, None, math.exp(min(logs)), below, num_points)
    one = over_seeds(logs, confidence)
    low = None if one.low is None else math.exp(one.low)
    high = None if one.high is None else math.exp(one.high)
    return Multiplier(size, Estimate(math.exp(one.value), low, high), None, below, num_points)
