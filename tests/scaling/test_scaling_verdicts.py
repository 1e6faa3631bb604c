"""What is said of measurements: verdicts by rule, gains, effective data, sentences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from megalign.errors import DataError
from megalign.intervals import t_interval
from megalign.scaling.fits.analysis import Analysis, Question, analyse, to_json
from megalign.scaling.fits.bootstrap import Estimate, FitSettings, Series
from megalign.scaling.fits.findings import findings, size_name
from megalign.scaling.fits.gain import gain_of, multipliers, tokens_for
from megalign.scaling.fits.measurements import Measurement
from megalign.scaling.fits.series import SeriesFit, fit_logistic, fit_power_law

SIZES = [1e5, 3e5, 1e6, 3e6, 1e7, 3e7]
FAST = FitSettings(num_resamples=100)


def rows(
    method: str,
    loss: Callable[[float, float], float],
    *,
    sizes: Sequence[float] = SIZES,
    seeds: int = 3,
    ratios: Sequence[float] = (20.0,),
    language: str = "xx",
    metric: str = "nll_per_token",
    noise: float = 0.002,
) -> list[Measurement]:
    """Runs whose loss is a function of size and target tokens (1e6 / ratio), with noise paired over methods by seed."""
    found = []
    for seed in range(seeds):
        rng = np.random.default_rng([seed, *method.encode()])
        shift = np.random.default_rng(seed).normal(0, noise)
        for ratio in ratios:
            for size in sizes:
                value = loss(size, 1e6 / ratio) * math.exp(shift + rng.normal(0, noise))
                found.append(
                    Measurement(method, size_name(size), size, language, metric, value, seed, ratio, 1e6 / ratio)
                )
    return found


def joint(size: float, tokens: float) -> float:
    return 2.2 + 30 * size**-0.25 * (tokens / 5e4) ** -0.1


def prealign(size: float, tokens: float) -> float:
    return 2.0 + 30 * size**-0.25 * (tokens / 5e4) ** -0.1


def series_of(measurements: Sequence[Measurement]) -> Series:
    columns = [
        np.array([getattr(one, key) for one in measurements], dtype=float) for key in ("parameters", "seed", "value")
    ]
    return Series(("joint", "xx", "nll_per_token"), *columns)


def power(measurements: Sequence[Measurement]) -> SeriesFit:
    fit = fit_power_law(series_of(measurements), FAST)
    assert fit is not None
    return fit


def test_a_true_power_law_is_supported() -> None:
    fit = power(rows("joint", joint))
    assert fit.supported, fit.reasons
    assert fit.held_out is not None
    assert (fit.held_out.parameters, fit.held_out.predicted.contains(fit.held_out.measured)) == (3e7, True)
    assert fit.lack_of_fit is not None
    assert fit.lack_of_fit > 0.05


@pytest.mark.parametrize(
    ("measurements", "reason"),
    [
        (rows("joint", joint, sizes=SIZES[:3]), "3 sizes support 3 parameters exactly: nothing tests the form"),
        (rows("joint", joint, seeds=1), "no size was run with two seeds: there are no intervals"),
        (rows("joint", lambda n, _: 3.0, noise=0.01), "the exponent's interval reaches"),
        (rows("joint", lambda n, _: 4 + 0.5 * math.sin(3 * math.log(n))), "further from the curve than seeds differ"),
        (rows("joint", lambda n, _: 2 + 30 * n**-0.25 + (0.5 if n > 2e7 else 0)), "the largest size, held out, is"),
    ],
    ids=["three sizes", "one seed", "flat", "waves", "breaks at the end"],
)  # fmt: skip
def test_what_is_not_a_power_law_is_not_supported(measurements: list[Measurement], reason: str) -> None:
    fit = power(measurements)
    assert not fit.supported
    assert any(reason in one for one in fit.reasons), fit.reasons


def test_three_sizes_and_three_parameters_meet_exactly() -> None:
    values = [4.1, 3.7, 3.5]
    one_run = [
        Measurement("joint", "s", size, "xx", "nll_per_token", v) for size, v in zip(SIZES, values, strict=False)
    ]
    fit = power(one_run)
    assert [fit.curve.at(size).value for size in SIZES[:3]] == pytest.approx(values, rel=1e-5)
    assert fit.held_out is None
    assert fit_power_law(series_of(one_run[:2]), FAST) is None


def test_an_offset_that_cannot_be_told_from_zero_is_a_caution() -> None:
    fit = power(rows("joint", lambda n, _: 30 * n**-0.15, noise=0.01))
    assert any("E cannot be told from 0" in text for text in fit.cautions)


def test_a_logistic_needs_a_slope() -> None:
    def shares(of: Callable[[float], float]) -> Series:
        rng = np.random.default_rng(0)
        values = np.array([of(size) + rng.normal(0, 0.03) for size in SIZES for _ in range(3)])
        return Series(("m", "xx", "clka"), np.repeat(SIZES, 3), np.tile(np.arange(3.0), 6), values)

    flat = fit_logistic(shares(lambda n: 0.26), 0.25, FAST)
    grows = fit_logistic(shares(lambda n: 0.25 + 0.75 / (1 + (2e6 / n) ** 0.8)), 0.25, FAST)
    assert flat is not None
    assert grows is not None
    assert not flat.supported
    assert grows.supported, grows.reasons
    assert grows.estimates["midpoint"].contains(2e6)


def test_gains_are_paired_over_seeds() -> None:
    baseline, method = rows("joint", joint, noise=0.05), rows("prealign", prealign, noise=0.05)
    gain = gain_of("xx", baseline, method, 0.9)
    assert gain is not None
    assert [size.parameters for size in gain.sizes] == SIZES
    value = {(row.method, row.parameters, row.seed): row.value for row in baseline + method}
    for size in gain.sizes:
        differences = [value["joint", size.parameters, s] - value["prealign", size.parameters, s] for s in range(3)]
        low, high = t_interval(differences, 0.9)
        assert size.estimate == Estimate(pytest.approx(np.mean(differences)), pytest.approx(low), pytest.approx(high))
    ends = [gain.sizes[0].by_seed[s] for s in range(3)], [gain.sizes[-1].by_seed[s] for s in range(3)]
    assert gain.overall is not None
    assert gain.overall.estimate.value == pytest.approx(np.mean(ends[1]) - np.mean(ends[0]))
    assert gain.last is not None
    assert (gain.last.smaller, gain.last.larger) == (1e7, 3e7)
    assert gain_of("xx", baseline, [row for row in method if row.seed == 9], 0.9) is None


def test_tokens_for_a_loss_lie_on_the_baselines_line() -> None:
    curve = [(1e4, 4.0), (2e4, 3.5), (4e4, 3.3)]
    assert tokens_for(3.5, curve) == (pytest.approx(2e4), False)
    assert tokens_for(3.75, curve) == (pytest.approx(1e4 * 2**0.5), False)
    assert tokens_for(3.2, curve) == (4e4, True)
    assert tokens_for(4.5, curve) == (pytest.approx(1e4), False)
    assert tokens_for(3.4, [(1e4, 4.0), (2e4, 3.4), (4e4, 3.6)]) == (pytest.approx(2e4), False)


def test_the_multiplier_is_what_the_baseline_would_need() -> None:
    """Loss of joint falls with the logarithm of target tokens, so that the lookup is exact: three times the text."""

    def falls(size: float, tokens: float) -> float:
        return 4.0 - 0.3 * math.log(tokens / 5e4)

    baseline = rows("joint", falls, ratios=(20, 10, 4), noise=0.0)
    method = rows("prealign", lambda n, t: falls(n, 3 * t), noise=0.0)
    found = multipliers(baseline, method, 0.9)
    assert len(found) == len(SIZES)
    for one in found:
        assert one.estimate is not None
        assert one.estimate.value == pytest.approx(3.0)
        assert (one.at_least, one.below_one, one.num_points) == (None, False, 3)
    beyond = multipliers(baseline, rows("prealign", lambda n, t: falls(n, 9 * t), noise=0.0), 0.9)[0]
    assert (beyond.estimate, beyond.at_least) == (None, pytest.approx(5.0))
    worse = multipliers(baseline, rows("prealign", lambda n, t: 5.0, noise=0.0), 0.9)[0]
    assert worse.below_one
    assert multipliers([row for row in baseline if row.target_ratio == 20], method, 0.9) == ()


def analysed(baseline: list[Measurement], method: list[Measurement]) -> Analysis:
    return analyse([*baseline, *method], Question(source_language="en", fit=FAST))


def test_two_supported_curves_predict_the_gain() -> None:
    found = analysed(rows("joint", joint, ratios=(20, 10)), rows("prealign", prealign))
    assert found.target_ratio == 20
    assert [one.parameters for one in found.predictions] == [3e8]
    assert found.predictions[0].gain.contains(0.2)
    said = findings(found)
    assert said.supported.startswith("On xx prealign is better than joint at 30 M parameters by 0.")
    assert "both curves are supported, and at 300 M they put the gain at" in said.supported
    assert "does not change measurably" in said.supported
    assert any("tests the curves 3 times beyond" in text and "lie 10 times beyond" in text for text in said.cautions)
    content = to_json(found)
    assert [one["supported"] for one in content["curves"]] == [True, True]
    assert content["gains"][0]["nats"]["value"] == found.gains["xx"].sizes[0].estimate.value


def test_one_unsupported_curve_forbids_the_prediction() -> None:
    found = analysed(rows("joint", joint), rows("prealign", lambda n, _: 3 + 0.3 * math.sin(3 * math.log(n))))
    assert found.predictions == ()
    assert (
        "beyond 30 M the data support no statement, because the curve of prealign is not supported"
        in findings(found).supported
    )


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        (lambda n, t: joint(n, t), "On xx prealign and joint cannot be told apart at 30 M parameters"),
        (lambda n, t: joint(n, t) + 0.2, "On xx prealign is worse than joint at 30 M parameters by 0."),
        (lambda n, t: joint(n, t) - 0.02 * math.log(n / 5e4), "to 30 M the gain grows by 0.1"),
        (lambda n, t: joint(n, t) - 0.02 * math.log(5e7 / n), "to 30 M the gain shrinks by -0.1"),
    ],
    ids=["equal", "worse", "grows", "shrinks"],
)
def test_directions_follow_the_intervals(method: Callable[[float, float], float], sentence: str) -> None:
    assert sentence in findings(analysed(rows("joint", joint), rows("prealign", method, noise=0.0005))).supported


def test_a_loss_paid_in_the_source_language_is_said() -> None:
    baseline = rows("joint", joint) + rows("joint", joint, language="en", noise=0.0005)
    method = rows("prealign", prealign) + rows("prealign", lambda n, t: joint(n, t) + 0.1, language="en", noise=0.0005)
    said = findings(analysed(baseline, method))
    assert any("part of what the targets gain, en pays" in text for text in said.cautions)


def test_what_cannot_be_compared_is_refused() -> None:
    both = [*rows("joint", joint), *rows("prealign", prealign)]
    with pytest.raises(DataError, match="No measurement is of the method 'golden'; there are: joint, prealign"):
        analyse(both, Question(method="golden"))
    with pytest.raises(DataError, match=r"nll_per_token of joint at 100 k, xx, seed 0 stands twice"):
        analyse([*both, both[0]], Question())
    with pytest.raises(DataError, match="never run at the same target ratio"):
        analyse([*rows("joint", joint, ratios=(5,)), *rows("prealign", prealign)], Question())
    with pytest.raises(DataError, match="No measurement has the target ratio 7"):
        analyse(both, Question(target_ratio=7))
    with pytest.raises(DataError, match="has no total_parameters"):
        analyse(both, Question(total_parameters=True))
    with pytest.raises(DataError, match="A confidence of 2 with 500 resamples gives no interval"):
        FitSettings(confidence=2)
