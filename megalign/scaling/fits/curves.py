"""Curves over the size of a model, fitted many at a time: a power law with an offset, and a logistic above chance.

A fit minimises the sum of Huber's loss over residuals (Huber 1964) from many starts, as Hoffmann et al. 2022 (arXiv
2203.15556, appendix D.3, "approach 3") do. Resamples of a bootstrap and starts are fitted side by side: Levenberg-Marquardt
with Huber's weights on arrays [problems, points], so that a thousand fits take as long as a few.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
MAX_EXPONENT = 3.0
_ITERATIONS = 200
_TOLERANCE = 1e-12


@dataclass(frozen=True)
class Curve:
    """A form with its parameters' names, bounds and starts.

    Attributes:
        names: of the parameters.
        low, high: [parameters] bounds in which they are searched.
        predict: (parameters [problems, parameters], x [points]) -> values [problems, points] in the space of residuals.
        jacobian: the same arguments -> [problems, points, parameters].
        starts: (x [points], y [problems, points]) -> [starts, problems, parameters].
        residual_space: values as measured -> the space of residuals.
        value_space: the way back.
    """

    names: tuple[str, ...]
    low: Array
    high: Array
    predict: Callable[[Array, Array], Array]
    jacobian: Callable[[Array, Array], Array]
    starts: Callable[[Array, Array], Array]
    residual_space: Callable[[Array], Array]
    value_space: Callable[[Array], Array]


def _power_terms(parameters: Array, x: Array) -> tuple[Array, Array, Array]:
    offset, scale, exponent = (parameters[:, place, None] for place in range(3))
    power = np.exp(scale - exponent * x[None])
    return offset, power, offset + power


def _power_predict(parameters: Array, x: Array) -> Array:
    return np.log(np.maximum(_power_terms(parameters, x)[2], 1e-300))


def _power_jacobian(parameters: Array, x: Array) -> Array:
    _, power, total = _power_terms(parameters, x)
    share = power / total
    return np.stack([1 / total, share, -share * x[None]], axis=2)


def _power_starts(x: Array, y: Array) -> Array:
    """Offsets below the lowest loss and exponents over their range; the scale such that the mean residual is zero."""
    lowest = np.exp(y.min(axis=1))
    found = []
    for share in (0.0, 0.5, 0.9, 0.99):
        for exponent in (0.03, 0.1, 0.3, 0.7, 1.5):
            offset = share * lowest
            left = np.log(np.maximum(np.exp(y) - offset[:, None], 1e-6 * lowest[:, None]))
            scale = (left + exponent * x[None]).mean(axis=1)
            found.append(np.stack([offset, scale, np.full_like(offset, exponent)], axis=1))
    return np.stack(found)


#: log(E + exp(a - alpha x)) against the logarithm of the loss, x = ln(N / reference): L = E + A (N / reference)^-alpha.
POWER_LAW = Curve(
    names=("offset", "log_scale", "exponent"),
    low=np.array([0.0, -20.0, 0.0]),
    high=np.array([50.0, 10.0, MAX_EXPONENT]),
    predict=_power_predict,
    jacobian=_power_jacobian,
    starts=_power_starts,
    residual_space=np.log,
    value_space=np.exp,
)


def _sigmoid(value: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * value)), dtype=np.float64)


def logistic(chance: float) -> Curve:
    """chance + (1 - chance) sigmoid(slope (x - midpoint)): between chance and 1 in the natural logarithm of the size."""

    def parts(parameters: Array, x: Array) -> tuple[Array, Array, Array]:
        midpoint, slope = parameters[:, :1], parameters[:, 1:2]
        return midpoint, slope, _sigmoid(slope * (x[None] - midpoint))

    def predict(parameters: Array, x: Array) -> Array:
        return chance + (1 - chance) * parts(parameters, x)[2]

    def jacobian(parameters: Array, x: Array) -> Array:
        midpoint, slope, share = parts(parameters, x)
        steep = (1 - chance) * share * (1 - share)
        return np.stack([-steep * slope, steep * (x[None] - midpoint)], axis=2)

    def starts(x: Array, y: Array) -> Array:
        places = np.linspace(x.min() - 1, x.max() + 1, 5)
        grid = [(place, slope) for place in places for slope in (-1.0, 0.3, 1.0, 3.0)]
        return np.repeat(np.array(grid)[:, None], len(y), axis=1)

    return Curve(
        names=("midpoint", "slope"),
        low=np.array([-50.0, -20.0]),
        high=np.array([50.0, 20.0]),
        predict=predict,
        jacobian=jacobian,
        starts=starts,
        residual_space=lambda values: values,
        value_space=lambda values: values,
    )


def huber(residuals: Array, delta: float) -> Array:
    """Huber's loss: r^2 / 2 up to delta, then delta (|r| - delta / 2)."""
    size = np.abs(residuals)
    return np.where(size <= delta, 0.5 * residuals**2, delta * (size - 0.5 * delta))


def fit_many(
    curve: Curve, x: Array, y: Array, delta: float, *, first: Array | None = None, every: int = 1
) -> tuple[Array, Array]:
    """The best parameters for each problem.

    Args:
        curve: the form.
        x: [points].
        y: [problems, points] in the space of residuals (the logarithm of losses; shares as they are).
        delta: where Huber's loss turns from square to absolute.
        first: [parameters] one more start for every problem.
        every: use only every so-many-th of the form's own starts.

    Returns:
        parameters [problems, parameters], and the loss of each [problems].
    """
    starts = curve.starts(x, y)[::every]
    if first is not None:
        starts = np.concatenate([starts, np.broadcast_to(first, (1, *starts.shape[1:]))])
    num_starts, problems, size = starts.shape
    flat = np.clip(starts.reshape(-1, size), curve.low, curve.high)
    parameters, losses = _levenberg_marquardt(curve, x, np.tile(y, (num_starts, 1)), delta, flat)
    losses = losses.reshape(num_starts, problems)
    best = losses.argmin(axis=0)
    chosen = parameters.reshape(num_starts, problems, size)[best, np.arange(problems)]
    return chosen, losses.min(axis=0)


def _levenberg_marquardt(curve: Curve, x: Array, y: Array, delta: float, start: Array) -> tuple[Array, Array]:
    """Every problem from its start, steps projected on the bounds."""
    parameters = start.copy()
    residuals = y - curve.predict(parameters, x)
    losses = huber(residuals, delta).sum(axis=1)
    damping = np.full(len(y), 1e-2)
    active = np.ones(len(y), dtype=bool)
    identity = np.eye(len(curve.names))
    for _ in range(_ITERATIONS):
        at = np.flatnonzero(active)
        if not len(at):
            break
        now, left = parameters[at], residuals[at]
        slopes = curve.jacobian(now, x)
        weights = np.minimum(1.0, delta / np.maximum(np.abs(left), 1e-300))[:, :, None]
        gradient = (slopes * weights * left[:, :, None]).sum(axis=1)
        normal = np.einsum("bpi,bpj->bij", slopes * weights, slopes)
        # A parameter that stands at a bound and is pushed outwards does not move.
        held = ((now <= curve.low) & (gradient < 0)) | ((now >= curve.high) & (gradient > 0))
        gradient[held] = 0.0
        normal[held[:, :, None] | held[:, None, :]] = 0.0
        diagonal = np.einsum("bii->bi", normal)
        scaled = normal + identity * (damping[at, None] * diagonal + 1e-15 + held)[:, :, None]
        step = np.linalg.solve(scaled, gradient[:, :, None])[:, :, 0]
        trial = np.clip(now + step, curve.low, curve.high)
        trial_left = y[at] - curve.predict(trial, x)
        trial_losses = huber(trial_left, delta).sum(axis=1)
        better = trial_losses < losses[at]
        gained = losses[at] - trial_losses
        small = better & (gained <= _TOLERANCE * np.maximum(losses[at], 1e-30))
        moved = at[better]
        parameters[moved], residuals[moved], losses[moved] = trial[better], trial_left[better], trial_losses[better]
        damping[at] = np.where(better, damping[at] * 0.3, damping[at] * 4)
        active[at[small | (damping[at] > 1e12)]] = False
    return parameters, losses
