"""A curve fitted to runs, and fitted again to runs as other seeds might have given them.

The bootstrap is parametric: the fitted curve plus a shift for every seed and a deviation for every run, with variances
estimated from the runs (noise.py) and drawn anew each time. Resampling whole seeds instead, with the three seeds that are
usual, has ten different outcomes and makes intervals that cover far less than they claim.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from megalign.errors import DataError
from megalign.scaling.fits.curves import Array, Curve, fit_many
from megalign.scaling.fits.noise import SeedNoise, seed_noise

# Hoffmann et al. 2022 use 1e-3 on log losses; where runs were repeated, Huber's own constant in units of their spread.
HOFFMANN_DELTA = 1e-3
HUBER_CONSTANT = 1.345
MIN_RESAMPLES, MAX_RESAMPLES = 50, 100_000
_EVERY_START = 5


@dataclass(frozen=True)
class FitSettings:
    """How curves are fitted.

    Attributes:
        confidence: coverage aimed at.
        num_resamples: of the bootstrap.
        seed: of the bootstrap; each curve draws from a stream of its own.
    """

    confidence: float = 0.9
    num_resamples: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1 or not MIN_RESAMPLES <= self.num_resamples <= MAX_RESAMPLES:
            raise DataError(
                f"A confidence of {self.confidence:g} with {self.num_resamples} resamples gives no interval.",
                fix=f"Set a confidence between 0 and 1, e.g. 0.9, and {MIN_RESAMPLES} to {MAX_RESAMPLES} resamples; 500 is usual.",
            )

    def stream(self, *names: str) -> np.random.Generator:
        """Random numbers that depend on the seed and the names alone."""
        digest = hashlib.blake2b("/".join((str(self.seed), *names)).encode(), digest_size=16).digest()
        return np.random.default_rng(int.from_bytes(digest, "little"))

    def estimate(self, value: float, draws: Array | None) -> Estimate:
        """The value with the percentile interval of draws."""
        if draws is None:
            return Estimate(value)
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(draws, [tail, 1 - tail])
        return Estimate(value, float(low), float(high))


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; None where nothing was repeated."""

    value: float
    low: float | None = None
    high: float | None = None

    def contains(self, number: float) -> bool | None:
        """Whether the interval does; None: there is none."""
        return None if self.low is None or self.high is None else self.low <= number <= self.high


@dataclass(frozen=True)
class Series:
    """Runs of one method, language and metric.

    Attributes:
        name: e.g. ("joint", "en-clone", "nll_per_token").
        parameters, seeds, values: [runs], float64.
    """

    name: tuple[str, str, str]
    parameters: Array
    seeds: Array
    values: Array

    @cached_property
    def sizes(self) -> Array:
        """The sizes, smallest first."""
        return np.unique(self.parameters)

    def mean(self, size: float) -> float:
        """Mean value of a size over its seeds."""
        return float(self.values[self.parameters == size].mean())

    def part(self, keep: npt.NDArray[np.bool_]) -> Series:
        """The runs that are kept."""
        return Series(self.name, self.parameters[keep], self.seeds[keep], self.values[keep])


class FittedCurve:
    """A curve through runs and through their resamples.

    Attributes:
        noise: between runs, in the space of residuals; None: nothing was repeated, so there are no intervals.
        parameters: [parameters] of the curve, over ln(size / reference).
        resampled: [resamples, parameters], or None.
    """

    def __init__(self, series: Series, curve: Curve, settings: FitSettings, purpose: str) -> None:
        self.series, self.curve, self.settings = series, curve, settings
        self.reference = float(np.exp(np.log(series.sizes).mean()))
        self.x = np.log(series.parameters / self.reference)
        self.y = curve.residual_space(series.values)
        self.noise = seed_noise(series.parameters, series.seeds, self.y)
        self.delta = max(HOFFMANN_DELTA, HUBER_CONSTANT * (self.noise.deviation if self.noise else 0.0))
        self.parameters = fit_many(curve, self.x, self.y[None], self.delta)[0][0]
        self.resampled: Array | None = None
        self._rng = settings.stream(*series.name, purpose)
        if self.noise is not None:
            self._resample(self.noise)

    def _resample(self, noise: SeedNoise) -> None:
        count = self.settings.num_resamples
        self._seeds, places = np.unique(self.series.seeds, return_inverse=True)
        self._own = np.array([noise.draw(self._rng) for _ in range(count)])
        self._shared = float(np.sqrt(noise.seed_variance))
        self._shifts = self._rng.standard_normal((count, len(self._seeds))) * self._shared
        own = self._rng.standard_normal((count, len(self.x))) * self._own[:, None]
        drawn = self.curve.predict(self.parameters[None], self.x) + self._shifts[:, places] + own
        self.resampled, _ = fit_many(self.curve, self.x, drawn, self.delta, first=self.parameters, every=_EVERY_START)

    def estimate(self, of: Callable[[Array], Array]) -> Estimate:
        """A number that follows from the parameters: `of` maps [fits, parameters] to [fits]."""
        value = float(of(self.parameters[None])[0])
        return self.settings.estimate(value, None if self.resampled is None else of(self.resampled))

    def _at(self, parameters: Array, size: float) -> Array:
        return self.curve.predict(parameters, np.array([np.log(size / self.reference)]))[:, 0]

    def at(self, size: float) -> Estimate:
        """The curve at a size, with the interval of the curve (runs scatter around it)."""
        return self.estimate(lambda parameters: self.curve.value_space(self._at(parameters, size)))

    def draws(self, size: float) -> Array | None:
        """[resamples] the curve at a size in every resample; None: there are none."""
        return None if self.resampled is None else self.curve.value_space(self._at(self.resampled, size))

    def mean_of_runs(self, size: float, seeds: Array) -> Estimate:
        """What the mean of runs of these seeds will be at a size that was not fitted.

        What a seed shifts it shifts in the fitted runs too, so that such shifts do not widen the interval.
        """
        value = float(self.curve.value_space(self._at(self.parameters[None], size))[0])
        if self.resampled is None:
            return Estimate(value)
        at = self._at(self.resampled, size)
        at = at + self._rng.standard_normal(len(at)) * self._own / np.sqrt(len(seeds))
        for seed in seeds:
            known = self._seeds == seed
            fresh = self._rng.standard_normal(len(at)) * self._shared
            at = at - (self._shifts[:, known][:, 0] if known.any() else fresh) / len(seeds)
        return self.settings.estimate(value, self.curve.value_space(at))
