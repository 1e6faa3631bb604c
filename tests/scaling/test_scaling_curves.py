"""Curves and variances against known truth, scipy's own solver, and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime, least_squares

from megalign.scaling.fits.bootstrap import FitSettings, Series
from megalign.scaling.fits.curves import POWER_LAW, Curve, fit_many, huber, logistic
from megalign.scaling.fits.noise import seed_noise
from megalign.scaling.fits.series import fit_logistic, fit_power_law

SIZES = np.array([1e5, 3e5, 1e6, 3e6, 1e7, 3e7])


def runs(values: np.ndarray, num_seeds: int, shared: float, own: float, number: int = 0) -> Series:
    """Runs of the curve `values` over SIZES, seeds' shifts and runs' deviations in log."""
    rng = np.random.default_rng(number)
    shifts = rng.normal(0, 1, num_seeds) * shared
    log = np.log(values)[:, None] + shifts[None] + rng.normal(0, 1, (len(values), num_seeds)) * own
    seeds = np.tile(np.arange(num_seeds, dtype=float), len(values))
    return Series(
        ("joint", "xx", "nll_per_token"), np.repeat(SIZES[: len(values)], num_seeds), seeds, np.exp(log).ravel()
    )


@pytest.mark.parametrize(("offset", "scale", "alpha"), [(1.69, 406.4, 0.34), (0.0, 30.0, 0.1), (3.0, 1e4, 0.9)])
def test_a_power_law_without_noise_is_recovered(offset: float, scale: float, alpha: float) -> None:
    """The first is Hoffmann et al.'s own fit in parameters."""
    fit = fit_power_law(runs(offset + scale * SIZES**-alpha, 1, 0, 0), FitSettings())
    assert fit is not None
    found = {name: estimate.value for name, estimate in fit.estimates.items()}
    assert found["alpha"] == pytest.approx(alpha, rel=2e-3)
    assert found["E"] == pytest.approx(offset, rel=2e-3, abs=2e-3)
    assert found["A"] == pytest.approx(scale, rel=2e-2)
    assert fit.curve.at(1e9).value == pytest.approx(offset + scale * 1e9**-alpha, rel=1e-3)


def test_a_logistic_without_noise_is_recovered() -> None:
    shares = 0.25 + 0.75 / (1 + np.exp(-0.8 * np.log(SIZES / 2e6)))
    fit = fit_logistic(Series(("m", "xx", "clka"), SIZES, np.zeros(6), shares), 0.25, FitSettings())
    assert fit is not None
    assert fit.estimates["slope"].value == pytest.approx(0.8, rel=1e-4)
    assert fit.estimates["midpoint"].value == pytest.approx(2e6, rel=1e-3)


@pytest.mark.parametrize("curve", [POWER_LAW, logistic(0.25)], ids=["power law", "logistic"])
def test_jacobians_are_the_derivatives(curve: Curve) -> None:
    x = np.linspace(-2, 2, 5)
    at = np.array([1.5, 0.3, 0.4])[: len(curve.names)]
    numeric = np.stack([approx_fprime(at, lambda p, i=i: curve.predict(p[None], x)[0, i], 1e-7) for i in range(len(x))])
    np.testing.assert_allclose(curve.jacobian(at[None], x)[0], numeric, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("delta", [1e-3, 0.02, 10.0])
def test_no_start_of_scipy_finds_a_lower_loss(delta: float) -> None:
    """Many noisy problems at once, each against scipy's bounded robust least squares from a grid of starts."""
    rng = np.random.default_rng(4)
    x = np.log(SIZES / 1e6)
    y = np.log(2 + np.exp(-0.3 * x))[None] + rng.normal(0, 0.01, (6, len(x)))
    y[3, 2] += 0.3  # an outlier
    _, losses = fit_many(POWER_LAW, x, y, delta)
    for number in range(len(y)):

        def residuals(p: np.ndarray, number: int = number) -> np.ndarray:
            return POWER_LAW.predict(p[None], x)[0] - y[number]

        best = min(
            float(huber(residuals(found.x), delta).sum())
            for offset in (0.1, 1.0, 2.5)
            for alpha in (0.1, 0.5, 1.5)
            for found in [
                least_squares(
                    residuals, [offset, 0.0, alpha], bounds=(POWER_LAW.low, POWER_LAW.high), loss="huber", f_scale=delta,
                    xtol=1e-12, ftol=1e-12, gtol=1e-12, max_nfev=2000,
                )
            ]
        )  # fmt: skip
        assert losses[number] <= best * (1 + 1e-4) + 1e-12


def test_an_outlier_hardly_moves_the_curve() -> None:
    series = runs(2 + 40 * SIZES**-0.3, 5, 0, 0.002, number=2)
    clean = fit_power_law(series, FitSettings())
    values = series.values.copy()
    values[12] *= 1.5
    hit = fit_power_law(Series(series.name, series.parameters, series.seeds, values), FitSettings())
    assert clean is not None
    assert hit is not None
    assert hit.curve.at(1e6).value == pytest.approx(clean.curve.at(1e6).value, rel=0.03)


def test_variances_of_a_balanced_layout_are_the_textbooks() -> None:
    """Mean squares of the two-way layout, written out."""
    rng = np.random.default_rng(0)
    table = rng.normal(0, 1, (5, 4)) + rng.normal(0, 2, (1, 4)) + np.arange(5)[:, None]
    num_sizes, num_seeds = table.shape
    left = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
    own = (left**2).sum() / ((num_sizes - 1) * (num_seeds - 1))
    square = num_sizes * ((table.mean(0) - table.mean()) ** 2).sum() / (num_seeds - 1)
    sizes, seeds = (part.ravel().astype(float) for part in np.indices(table.shape))
    noise = seed_noise(sizes, seeds, table.ravel())
    assert noise is not None
    assert (noise.own_variance, noise.own_freedom) == (pytest.approx(own), 12)
    assert (noise.seed_square, noise.seed_freedom, noise.runs_a_seed) == (pytest.approx(square), 3, pytest.approx(5.0))
    assert noise.seed_variance == pytest.approx((square - own) / num_sizes)


def test_variances_with_missing_runs_are_right_on_average() -> None:
    rng = np.random.default_rng(1)
    sizes, seeds = (part.ravel().astype(float) for part in np.indices((5, 4)))
    kept = rng.random(20) > 0.25
    found = []
    for _ in range(600):
        y = (rng.normal(0, 1.0, (5, 4)) + rng.normal(0, 1.5, (1, 4))).ravel()[kept]
        noise = seed_noise(sizes[kept], seeds[kept], y)
        assert noise is not None
        found.append((noise.own_variance, (noise.seed_square - noise.own_variance) / noise.runs_a_seed))
    own, shared = np.mean(found, axis=0)
    assert own == pytest.approx(1.0, rel=0.08)
    assert shared == pytest.approx(2.25, rel=0.15)


def test_nothing_repeated_has_no_variance() -> None:
    assert seed_noise(np.arange(5.0), np.zeros(5), np.arange(5.0)) is None
    one_size = seed_noise(np.zeros(3), np.arange(3.0), np.array([1.0, 2.0, 3.0]))
    assert one_size is not None
    assert (one_size.own_variance, one_size.seed_variance) == (1.0, 0.0)


def test_intervals_cover_the_truth_most_of_the_time() -> None:
    """Twenty-five ladders; the benchmark scaling_intervals.py has two hundred of each kind."""
    truth = 2.0 + 45.0 * SIZES**-0.3
    settings = FitSettings(num_resamples=200)
    inside = {"alpha": 0, "E": 0, "far": 0}
    for number in range(25):
        fit = fit_power_law(runs(truth, 3, 0.003, 0.003, number), settings)
        assert fit is not None
        inside["alpha"] += bool(fit.estimates["alpha"].contains(0.3))
        inside["E"] += bool(fit.estimates["E"].contains(2.0))
        inside["far"] += bool(fit.curve.at(3e8).contains(2.0 + 45.0 * 3e8**-0.3))
    # Binomial with 0.9: fewer than 18 of 25 has a probability of 0.2 %. Bands are the benchmark's matter.
    assert all(count >= 18 for count in inside.values()), inside
    assert any(count < 25 for count in inside.values()), inside


def test_the_same_seed_gives_the_same_intervals() -> None:
    series = runs(2 + 45 * SIZES**-0.3, 3, 0.003, 0.003)
    first, second = (fit_power_law(series, FitSettings(num_resamples=60)) for _ in range(2))
    other = fit_power_law(series, FitSettings(num_resamples=60, seed=1))
    assert first is not None
    assert second is not None
    assert other is not None
    assert first.estimates == second.estimates
    assert first.estimates["alpha"].value == other.estimates["alpha"].value
    assert first.estimates["alpha"].low != other.estimates["alpha"].low
