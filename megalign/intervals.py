"""Intervals for scores: shares of right answers, means over documents, ratios of sums, means over seeds.

All intervals are two-sided. A bootstrap resamples units that are independent of each other (documents, facts), never tokens of one
document: tokens of one text vary together, and an interval over them would be too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri, stdtrit

from megalign.errors import ConfigError, DataError

Values = npt.NDArray[np.floating] | npt.NDArray[np.integer] | Sequence[float]

# Scorers hold them all in memory, with a number for each item.
MAX_RESAMPLES = 100_000
# Drawn indices held at once: 32 MiB of int64, whatever the number of units and of resamples.
MAX_INDICES_AT_ONCE = 1 << 22


def check_resampling(num_resamples: int, confidence: float) -> None:
    """Refuse what a user asks for and no bootstrap can give.

    Raises:
        ConfigError: no resamples or too many, or a confidence that is not between 0 and 1.
    """
    if not 1 <= num_resamples <= MAX_RESAMPLES:
        raise ConfigError(
            f"There cannot be {num_resamples} resamples.", fix=f"Set 1 to {MAX_RESAMPLES}; 1000 is usual."
        )
    if not 0 < confidence < 1:
        raise ConfigError(f"The confidence {confidence} is not between 0 and 1.", fix="Set a share such as 0.95.")


def wilson_interval(hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of a share (Wilson 1927, Journal of the American Statistical Association 22, p. 209).

    Args:
        hits: number of successes, 0 <= hits <= n.
        n: number of independent trials, at least 1.
        confidence: coverage aimed at, between 0 and 1.

    Returns:
        (low, high), both within [0, 1]. Not centred on hits / n, and of positive width at hits = 0 and at hits = n.

    Raises:
        DataError: no trials, or hits outside 0..n.
    """
    _check_confidence(confidence)
    if n < 1:
        raise DataError(f"A share of {n} trials has no interval.", "Nothing was scored.", "Look at what was left out.")
    if not 0 <= hits <= n:
        raise DataError(f"{hits} successes of {n} trials are impossible.", "The counts do not belong together.")
    z = float(ndtri(0.5 + confidence / 2))
    share = hits / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)))
    # At the ends the formula is exactly 0 or 1; rounding must not leave 1e-17 there.
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    high = 1.0 if hits == n else min(1.0, centre + half)
    return low, high


def bootstrap_mean(
    values: Values, *, seed: int, num_resamples: int = 2000, confidence: float = 0.95
) -> tuple[float, float]:
    """The percentile bootstrap interval of a mean (Efron and Tibshirani 1993, chapter 13).

    Args:
        values: [n] one number per independent unit, n at least 2.
        seed: of the resampling; the same seed and values give the same interval.
        num_resamples: number of bootstrap samples.
        confidence: coverage aimed at, between 0 and 1.

    Raises:
        DataError: fewer than two units, or a number that is not finite.
    """
    return bootstrap_ratio(
        values, np.ones(np.shape(values)), seed=seed, num_resamples=num_resamples, confidence=confidence
    )


def bootstrap_ratio(
    numerators: Values,
    denominators: Values,
    *,
    seed: int,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """The percentile bootstrap interval of sum(numerators) / sum(denominators), units resampled as pairs.

    With the summed negative log-likelihood and the number of tokens of each document this is the interval of the mean negative
    log-likelihood per token; the interval of the perplexity is the exponential of both ends.

    Args:
        numerators: [n] one number per independent unit, n at least 2.
        denominators: [n] the same units' weights, all above 0.
        seed: of the resampling; the same seed and values give the same interval.
        num_resamples: number of bootstrap samples.
        confidence: coverage aimed at, between 0 and 1.

    Raises:
        DataError: fewer than two units, different lengths, a number that is not finite, a weight that is not above 0.
    """
    _check_confidence(confidence)
    if num_resamples < 1:
        raise DataError(f"num_resamples is {num_resamples}.", fix="Draw at least one bootstrap sample; 2000 is usual.")
    tops = _finite_vector(numerators, "numerators")
    bottoms = _finite_vector(denominators, "denominators")
    if len(tops) != len(bottoms):
        raise DataError(
            f"{len(tops)} numerators against {len(bottoms)} denominators.", "They must be of the same units."
        )
    if len(tops) < 2:
        raise DataError(
            f"A bootstrap over {len(tops)} unit(s) has no interval.",
            "Resampling a single unit always gives the same number, which would look like certainty.",
            "Score at least two documents or facts.",
        )
    if bottoms.min() <= 0:
        raise DataError(
            f"A denominator is {bottoms.min()}.", "Every unit must have a weight above 0.", "Drop empty units."
        )
    generator = np.random.default_rng(seed)
    ratios = np.empty(num_resamples, dtype=np.float64)
    rows_at_once = max(1, MAX_INDICES_AT_ONCE // len(tops))
    for start in range(0, num_resamples, rows_at_once):
        rows = min(rows_at_once, num_resamples - start)
        drawn = generator.integers(0, len(tops), size=(rows, len(tops)))
        ratios[start : start + rows] = tops[drawn].sum(axis=1) / bottoms[drawn].sum(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return float(low), float(high)


def t_interval(values: Values, confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval of a mean over few runs, such as seeds: mean -+ t(n - 1) * standard deviation / sqrt(n).

    Args:
        values: [n] one number per run, n at least 2. With two or three runs the interval is wide, as it has to be.
        confidence: coverage aimed at, between 0 and 1.

    Raises:
        DataError: fewer than two runs, or a number that is not finite.
    """
    _check_confidence(confidence)
    numbers = _finite_vector(values, "values")
    if len(numbers) < 2:
        raise DataError(
            f"{len(numbers)} run(s) have no interval over runs.",
            "How much runs differ cannot be seen from one.",
            "Run at least two seeds.",
        )
    quantile = float(stdtrit(len(numbers) - 1, 0.5 + confidence / 2))
    half = quantile * float(numbers.std(ddof=1)) / float(np.sqrt(len(numbers)))
    mean = float(numbers.mean())
    return mean - half, mean + half


def _finite_vector(values: Values, name: str) -> npt.NDArray[np.float64]:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1:
        raise DataError(f"{name} has the shape {numbers.shape}.", "One number per unit is needed.")
    if not np.isfinite(numbers).all():
        raise DataError(
            f"{name}[{int(np.flatnonzero(~np.isfinite(numbers))[0])}] is not finite.",
            "An interval over it would mean nothing.",
        )
    return numbers


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise DataError(f"The confidence {confidence} is not between 0 and 1.", fix="Set a share such as 0.95.")
