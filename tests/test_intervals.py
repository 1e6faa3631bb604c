"""Intervals against scipy, against brute force, and by their coverage in simulated experiments."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from megalign import intervals
from megalign.errors import DataError
from megalign.intervals import bootstrap_mean, bootstrap_ratio, t_interval, wilson_interval


@given(n=st.integers(1, 3000), share=st.floats(0, 1), confidence=st.floats(0.5, 0.999))
def test_wilson_equals_scipy(n: int, share: float, confidence: float) -> None:
    hits = round(share * n)
    expected = stats.binomtest(hits, n).proportion_ci(confidence, method="wilson")
    assert wilson_interval(hits, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_stays_within_the_possible_and_is_never_of_zero_width() -> None:
    assert wilson_interval(0, 60)[0] == 0.0
    assert wilson_interval(60, 60)[1] == 1.0
    assert 0.05 < wilson_interval(0, 60)[1] < 0.07
    assert 0.93 < wilson_interval(60, 60)[0] < 0.95


def test_wilson_covers_the_true_share() -> None:
    generator = np.random.default_rng(1)
    for true_share in (0.25, 0.5, 0.9):
        # Exact coverage: the binomial probability of every count whose interval holds the true share.
        counts = np.arange(61)
        inside = [low <= true_share <= high for low, high in (wilson_interval(int(count), 60) for count in counts)]
        assert 0.92 < stats.binom.pmf(counts, 60, true_share)[inside].sum() < 0.98
        hits = generator.binomial(60, true_share, size=400)
        simulated = np.mean([low <= true_share <= high for low, high in (wilson_interval(int(h), 60) for h in hits)])
        assert 0.90 < simulated < 0.99


def test_bootstrap_mean_equals_scipy_up_to_the_noise_of_resampling() -> None:
    values = np.random.default_rng(2).gamma(2.0, size=80)
    expected = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=20000,
        method="percentile",
        vectorized=True,
        random_state=np.random.default_rng(3),
    ).confidence_interval
    low, high = bootstrap_mean(values, seed=4, num_resamples=20000)
    width = expected.high - expected.low
    assert low == pytest.approx(expected.low, abs=0.04 * width)
    assert high == pytest.approx(expected.high, abs=0.04 * width)


def test_bootstrap_ratio_equals_scipy_with_pairs() -> None:
    generator = np.random.default_rng(5)
    tokens = generator.integers(20, 400, size=60)
    nll = tokens * generator.normal(3.0, 0.4, size=60)

    def ratio(numerators: np.ndarray, denominators: np.ndarray, axis: int) -> np.ndarray:
        return numerators.sum(axis=axis) / denominators.sum(axis=axis)

    expected = stats.bootstrap(
        (nll, tokens.astype(float)),
        ratio,
        paired=True,
        n_resamples=20000,
        method="percentile",
        vectorized=True,
        random_state=np.random.default_rng(6),
    ).confidence_interval
    low, high = bootstrap_ratio(nll, tokens, seed=7, num_resamples=20000)
    width = expected.high - expected.low
    assert low == pytest.approx(expected.low, abs=0.04 * width)
    assert high == pytest.approx(expected.high, abs=0.04 * width)


def test_bootstrap_ratio_weighs_units_by_their_denominators() -> None:
    # A one-token document of 9 nats beside documents of a hundred tokens of 1 nat each: the mean per token is near 1, not near 5.
    low, high = bootstrap_ratio([9.0] + [100.0] * 19, [1] + [100] * 19, seed=0)
    assert 1.0 <= low < high < 1.2


def test_bootstrap_covers_the_true_mean() -> None:
    generator = np.random.default_rng(8)
    inside = 0
    for trial in range(300):
        low, high = bootstrap_mean(generator.normal(1.0, 2.0, size=50), seed=trial, num_resamples=500)
        inside += low <= 1.0 <= high
    assert 0.90 < inside / 300 < 0.985


def test_bootstrap_is_the_same_in_chunks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(9).normal(size=37)
    whole = bootstrap_mean(values, seed=11, num_resamples=501)
    for limit in (1, 37, 100, 5000):
        monkeypatch.setattr(intervals, "MAX_INDICES_AT_ONCE", limit)
        assert bootstrap_mean(values, seed=11, num_resamples=501) == whole
    assert bootstrap_mean(values, seed=12, num_resamples=501) != whole


def test_t_interval_equals_scipy_and_covers() -> None:
    values = [53.3, 55.0, 33.3]
    expected = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert t_interval(values) == pytest.approx(expected, rel=1e-12)
    generator = np.random.default_rng(10)
    runs = generator.normal(5.0, 1.0, size=(600, 3))
    inside = np.mean([low <= 5.0 <= high for low, high in map(t_interval, runs)])
    assert 0.92 < inside < 0.98


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson_interval(0, 0), "0 trials has no interval"),
        (lambda: wilson_interval(5, 4), "5 successes of 4 trials"),
        (lambda: wilson_interval(-1, 4), "-1 successes"),
        (lambda: wilson_interval(1, 4, confidence=95), "confidence 95 is not between 0 and 1"),
        (lambda: bootstrap_mean([1.0], seed=0), r"over 1 unit\(s\) has no interval.*at least two"),
        (lambda: bootstrap_mean([], seed=0), r"over 0 unit\(s\)"),
        (lambda: bootstrap_mean([1.0, math.nan], seed=0), r"numerators\[1\] is not finite"),
        (lambda: bootstrap_mean(np.ones((2, 2)), seed=0), r"shape \(2, 2\)"),
        (lambda: bootstrap_mean([1.0, 2.0], seed=0, num_resamples=0), "num_resamples is 0"),
        (lambda: bootstrap_ratio([1.0, 2.0], [1.0], seed=0), "2 numerators against 1 denominators"),
        (lambda: bootstrap_ratio([1.0, 2.0], [1.0, 0.0], seed=0), "A denominator is 0.0"),
        (lambda: t_interval([1.0]), r"1 run\(s\) have no interval"),
        (lambda: t_interval([1.0, math.inf]), r"values\[1\] is not finite"),
    ],
)
def test_wrong_input_is_refused(call, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()
