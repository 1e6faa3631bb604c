"""One method's runs in one language as a curve over size: estimates, the largest size held out, and a verdict by rules.

The rules, each a sentence where it is broken:
1. four sizes or more: three support the power law's three parameters exactly and test nothing (two, the logistic's two);
2. some size was run with several seeds: otherwise there are no intervals;
3. the exponent's interval touches neither 0 nor the bound of the search (the logistic's slope: not 0);
4. the means of the sizes are no further from the curve than seeds differ (F test for lack of fit at 5 %);
5. the largest size, held out, lies in the interval that the others predict.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.special import fdtrc

from megalign.scaling.fits.bootstrap import Estimate, FitSettings, FittedCurve, Series
from megalign.scaling.fits.curves import MAX_EXPONENT, POWER_LAW, logistic

# An exponent below this halves nothing within any range of sizes: 1000 times the size changes A N^-alpha by 7 %.
SMALLEST_EXPONENT = 0.01
LACK_OF_FIT_LEVEL = 0.05


@dataclass(frozen=True)
class HeldOut:
    """The largest size predicted from the others."""

    parameters: float
    measured: float
    predicted: Estimate


@dataclass(frozen=True)
class SeriesFit:
    """A fitted curve and what the data say of it.

    Attributes:
        kind: power_law or logistic.
        estimates: power_law: E and A (nats) and alpha of L = E + A N^-alpha, N in parameters; logistic: midpoint
            (parameters) and slope (in units of 1 / ln N).
        lack_of_fit: probability of means as far from the curve if it is true; None: not tested.
        held_out: None: too few sizes.
        reasons: why the data do not support the curve; none: they do.
        cautions: what limits its use.
    """

    kind: str
    estimates: dict[str, Estimate]
    lack_of_fit: float | None
    held_out: HeldOut | None
    reasons: tuple[str, ...]
    cautions: tuple[str, ...]
    curve: FittedCurve = field(repr=False)

    @property
    def series(self) -> Series:
        """The runs."""
        return self.curve.series

    @property
    def supported(self) -> bool:
        """Whether the data support the curve."""
        return not self.reasons


def fit_power_law(series: Series, settings: FitSettings) -> SeriesFit | None:
    """L(N) = E + A N^-alpha with Huber's loss on log residuals; None: fewer than three sizes."""
    if len(series.sizes) < len(POWER_LAW.names):
        return None
    fitted = FittedCurve(series, POWER_LAW, settings, "all")
    logarithm = np.log(fitted.reference)
    estimates = {
        "E": fitted.estimate(lambda p: p[:, 0]),
        "A": fitted.estimate(lambda p: np.exp(p[:, 1] + p[:, 2] * logarithm)),
        "alpha": fitted.estimate(lambda p: p[:, 2]),
    }
    reasons = []
    alpha = estimates["alpha"]
    if alpha.low is not None and alpha.high is not None:
        if alpha.low < SMALLEST_EXPONENT:
            reasons.append(f"the exponent's interval reaches 0 ({alpha.low:.2g} to {alpha.high:.2g})")
        if alpha.high > 0.99 * MAX_EXPONENT:
            reasons.append(
                f"the exponent's interval reaches the bound of the search ({alpha.low:.2g} to {MAX_EXPONENT:g})"
            )
    cautions = []
    offset = estimates["E"]
    if offset.low is not None and offset.low < 0.01 * series.values.min():
        cautions.append("the offset E cannot be told from 0, so the loss of very large models is open")
    return _judged("power_law", fitted, estimates, reasons, cautions)


def fit_logistic(series: Series, chance: float, settings: FitSettings) -> SeriesFit | None:
    """share(N) = chance + (1 - chance) sigmoid(slope ln(N / midpoint)), Huber's loss; None: fewer than two sizes."""
    curve = logistic(chance)
    if len(series.sizes) < len(curve.names):
        return None
    fitted = FittedCurve(series, curve, settings, "all")
    estimates = {
        "midpoint": fitted.estimate(lambda p: np.exp(p[:, 0]) * fitted.reference),
        "slope": fitted.estimate(lambda p: p[:, 1]),
    }
    slope = estimates["slope"]
    reasons = []
    if slope.contains(0.0):
        reasons.append(f"the slope's interval includes 0 ({slope.low:.2g} to {slope.high:.2g})")
    return _judged("logistic", fitted, estimates, reasons, [])


def _judged(
    kind: str, fitted: FittedCurve, estimates: dict[str, Estimate], reasons: list[str], cautions: list[str]
) -> SeriesFit:
    """The verdict by the rules of this module."""
    series, free = fitted.series, len(fitted.curve.names)
    count = len(series.sizes)
    if count <= free:
        reasons.insert(0, f"{count} sizes support {free} parameters exactly: nothing tests the form of the curve")
    if fitted.noise is None:
        reasons.append("no size was run with two seeds: there are no intervals")
    chance_of_misfit = lack_of_fit(fitted)
    if chance_of_misfit is not None and chance_of_misfit < LACK_OF_FIT_LEVEL:
        reasons.append(
            f"the sizes' means lie further from the curve than seeds differ (lack of fit, p = {chance_of_misfit:.2g})"
        )
    held = _held_out(fitted)
    if held is not None and held.predicted.contains(held.measured) is False:
        reasons.append(
            f"the largest size, held out, is {held.measured:.3f}; the others predict {held.predicted.low:.3f} to "
            f"{held.predicted.high:.3f}"
        )
    return SeriesFit(kind, estimates, chance_of_misfit, held, tuple(reasons), tuple(cautions), fitted)


def lack_of_fit(fitted: FittedCurve) -> float | None:
    """The F test of the means' distances from the curve against the runs' own variance; None: nothing to test with."""
    series, noise = fitted.series, fitted.noise
    freedom = len(series.sizes) - len(fitted.curve.names)
    if noise is None or freedom < 1 or noise.own_variance == 0:
        return None
    left = fitted.y - fitted.curve.predict(fitted.parameters[None], fitted.x)[0]
    means = [(left[series.parameters == size].mean(), (series.parameters == size).sum()) for size in series.sizes]
    level = sum(mean * count for mean, count in means) / len(left)  # the seeds' common shift
    square = sum(count * (mean - level) ** 2 for mean, count in means) / freedom
    return float(fdtrc(freedom, noise.own_freedom, square / noise.own_variance))


def _held_out(fitted: FittedCurve) -> HeldOut | None:
    series = fitted.series
    largest = float(series.sizes[-1])
    if len(series.sizes) - 1 < len(fitted.curve.names):
        return None
    rest = FittedCurve(series.part(series.parameters < largest), fitted.curve, fitted.settings, "held out")
    seeds = series.seeds[series.parameters == largest]
    return HeldOut(largest, series.mean(largest), rest.mean_of_runs(largest, seeds))
