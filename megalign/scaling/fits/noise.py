"""How much runs differ by their seed: a shift that all sizes of a seed share, and what is each run's own.

Runs of one seed read the same text, so their losses rise and fall together. The two variances are those of a two-way
layout without interaction (Searle, Casella and McCulloch 1992, Variance Components, section 4.4: Henderson's method 3),
also where cells are missing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megalign.scaling.fits.curves import Array


@dataclass(frozen=True)
class SeedNoise:
    """Variances between runs, and what they were estimated from.

    Attributes:
        own_variance: of a run around its size and its seed.
        own_freedom: degrees of freedom of that.
        seed_square: mean square between seeds.
        seed_freedom: degrees of freedom of that; 0: all runs are of one seed.
        runs_a_seed: how often a seed's shift enters its mean square.
    """

    own_variance: float
    own_freedom: int
    seed_square: float
    seed_freedom: int
    runs_a_seed: float

    @property
    def seed_variance(self) -> float:
        """Variance of the shift that all runs of a seed share."""
        return max(0.0, (self.seed_square - self.own_variance) / self.runs_a_seed) if self.seed_freedom else 0.0

    @property
    def deviation(self) -> float:
        """Standard deviation of a run."""
        return float(np.sqrt(self.own_variance + self.seed_variance))

    def draw(self, rng: np.random.Generator) -> float:
        """Standard deviation of what is a run's own as it might be: a chi-square draw, so that few runs widen intervals.

        The shared shift keeps its estimate: with three seeds its draws would have no mean, and intervals would be far too
        wide (measured by tests/benchmarks/scaling_intervals.py).
        """
        return float(np.sqrt(self.own_variance * self.own_freedom / rng.chisquare(self.own_freedom)))


def _residual_square(design: Array, y: Array) -> tuple[float, int]:
    solution, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    left = y - design @ solution
    return float(left @ left), int(rank)


def seed_noise(sizes: Array, seeds: Array, y: Array) -> SeedNoise | None:
    """The variances, from runs [runs] with the number of their size and of their seed; None: nothing was repeated."""
    size_columns = (sizes[:, None] == np.unique(sizes)[None]).astype(np.float64)
    seed_columns = (seeds[:, None] == np.unique(seeds)[None]).astype(np.float64)
    both, rank_both = _residual_square(np.hstack([size_columns, seed_columns]), y)
    only_sizes, rank_sizes = _residual_square(size_columns, y)
    own_freedom, seed_freedom = len(y) - rank_both, rank_both - rank_sizes
    if len(y) == rank_sizes:
        return None
    if not own_freedom:  # one size, or seeds that share no size: the two cannot be told apart
        return SeedNoise(only_sizes / (len(y) - rank_sizes), len(y) - rank_sizes, 0.0, 0, 1.0)
    own = both / own_freedom
    if not seed_freedom:
        return SeedNoise(own, own_freedom, 0.0, 0, 1.0)
    # How often a seed's shift enters its square: the trace of what is left of the seeds' columns beside the sizes'.
    beside = seed_columns - size_columns @ np.linalg.lstsq(size_columns, seed_columns, rcond=None)[0]
    runs = float(np.trace(beside.T @ beside)) / seed_freedom
    return SeedNoise(own, own_freedom, max(0.0, only_sizes - both) / seed_freedom, seed_freedom, runs)
