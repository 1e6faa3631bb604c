"""How often intervals of scaling fits contain the truth, over simulated ladders whose curve is known.

    python tests/benchmarks/scaling_intervals.py [--simulations 200] [--confidence 0.9]

Each ladder has runs of L = E + A N^-alpha with a shift for every seed and a deviation for every run, both normal in log loss,
and is fitted as `megalign scaling fit` does. Printed, one JSON line a setting: the share of ladders whose interval contains the
true exponent, the true offset, the true loss at ten times the largest size, and the measured mean of the held-out largest size.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator

import numpy as np

from megalign.scaling.fits.bootstrap import FitSettings, Series
from megalign.scaling.fits.series import fit_power_law

# name -> (E nats, A nats at the smallest size, alpha, sizes, seeds, seed's deviation, run's own deviation)
SETTINGS: dict[str, tuple[float, float, float, tuple[float, ...], int, float, float]] = {
    "ladder": (2.0, 1.5, 0.35, tuple(1e5 * 3.0**k for k in range(6)), 3, 0.004, 0.004),
    "quiet": (1.7, 2.0, 0.3, tuple(1e8 * 2.5**k for k in range(7)), 3, 0.001, 0.001),
    "five sizes": (2.0, 1.5, 0.5, tuple(1e5 * 4.0**k for k in range(5)), 3, 0.002, 0.005),
    "ten seeds": (2.0, 1.5, 0.35, tuple(1e5 * 3.0**k for k in range(6)), 10, 0.004, 0.008),
}


def simulated(setting: str, number: int) -> tuple[Series, dict[str, float]]:
    """Ladder `number` of a setting, and its truth."""
    offset, scale, alpha, sizes, num_seeds, shared, own = SETTINGS[setting]
    rng = np.random.default_rng([number, *setting.encode()])
    parameters = np.repeat(np.array(sizes), num_seeds)
    seeds = np.tile(np.arange(num_seeds, dtype=np.float64), len(sizes))
    shifts = rng.normal(0, shared, num_seeds)[seeds.astype(int)] if shared else np.zeros(len(seeds))
    far = 10 * sizes[-1]
    losses = (offset + scale * (parameters / sizes[0]) ** -alpha) * np.exp(shifts + rng.normal(0, own, len(seeds)))
    truth = {"alpha": alpha, "E": offset, "far": offset + scale * (far / sizes[0]) ** -alpha, "far_size": far}
    return Series((setting, str(number), "nll_per_token"), parameters, seeds, losses), truth


def covered(setting: str, simulations: int, settings: FitSettings) -> Iterator[dict[str, bool]]:
    for number in range(simulations):
        series, truth = simulated(setting, number)
        fit = fit_power_law(series, settings)
        assert fit is not None
        assert fit.held_out is not None
        found = {name: fit.estimates[name].contains(truth[name]) for name in ("alpha", "E")}
        found["far"] = fit.curve.at(truth["far_size"]).contains(truth["far"])
        found["held_out"] = fit.held_out.predicted.contains(fit.held_out.measured)
        yield {**{name: bool(value) for name, value in found.items()}, "supported": fit.supported}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=200)
    parser.add_argument("--confidence", type=float, default=0.9)
    parser.add_argument("--resamples", type=int, default=500)
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS))
    given = parser.parse_args()
    settings = FitSettings(given.confidence, given.resamples)
    for setting in given.settings:
        begun = time.perf_counter()
        rows = list(covered(setting, given.simulations, settings))
        shares = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
        error = math.sqrt(given.confidence * (1 - given.confidence) / given.simulations)
        print(
            json.dumps(
                {
                    "setting": setting,
                    "simulations": given.simulations,
                    "confidence": given.confidence,
                    **{name: round(share, 3) for name, share in shares.items()},
                    "standard_error": round(error, 3),
                    "seconds": round(time.perf_counter() - begun, 1),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
