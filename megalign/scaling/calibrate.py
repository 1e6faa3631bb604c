"""How much slower computing is than assumed, from a run that was measured."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from scipy.optimize import brentq

from megalign.config.layout import Layout
from megalign.config.run import RunConfig
from megalign.errors import ConfigError, DataError
from megalign.scaling.activations import MicroBatch
from megalign.scaling.communication import Cluster
from megalign.scaling.devices import Device
from megalign.scaling.step_time import Assumptions, StepModel

_LEAST_LINES = 3
_SAME_PEAK = 0.01  # what rounding in the metrics can make of equal peaks
_SLOWDOWNS = (1e-3, 1e4)


@dataclass(frozen=True)
class Measured:
    """What the metrics of a run say of its pretraining steps.

    Attributes:
        path: the metrics.
        num_lines: that were used.
        step_seconds: median.
        quartiles: of the lines' step_seconds.
        peak_flops: of a device, as the run's utilisation was computed with; None: it knew none.
    """

    path: Path
    num_lines: int
    step_seconds: float
    quartiles: tuple[float, float]
    peak_flops: float | None


@dataclass(frozen=True)
class Calibration:
    """The assumptions with which the model gives the measured time.

    Attributes:
        measured: what was measured.
        modelled_seconds: of its step, before.
        assumptions: with their new `slowdown`; communication is left as it was assumed.
    """

    measured: Measured
    modelled_seconds: float
    assumptions: Assumptions

    @property
    def told(self) -> str:
        """What was done, in a sentence."""
        low, high = self.measured.quartiles
        return (
            f"calibrated from {self.measured.path}: a step took {self.measured.step_seconds:.4g} s (median of "
            f"{self.measured.num_lines} lines, half of them within {low:.4g} to {high:.4g}), the model said "
            f"{self.modelled_seconds:.4g} s; computing is taken to last {self.assumptions.slowdown:.3g} times what its "
            "parts do by themselves, communication as assumed"
        )


def read_measured(metrics: Path, run: RunConfig) -> Measured:
    """Steps of pretraining at the full batch size; the first line of a start, which warms up, is left out.

    Raises:
        DataError: the file is missing or damaged, or has too few lines.
    """
    try:
        lines = [json.loads(text) for text in metrics.read_text(encoding="utf-8").splitlines()]
        full = max((phase.until_tokens for phase in run.train.batch_size_ramp), default=0)
        used = [line for line in lines if line["stage"] == "pretrain" and line["tokens"] > full][1:]
        seconds = [float(line["step_seconds"]) for line in used]
        peaks = [line["tflops_per_device"] * 1e12 / line["mfu"] for line in used if line.get("mfu")]
    except FileNotFoundError:
        raise DataError(
            f"There are no metrics {metrics}.", "They are what the model is calibrated with.", "Give the run's folder."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{metrics} is damaged: {type(error).__name__} {error}.") from None
    if len(seconds) < _LEAST_LINES:
        raise DataError(
            f"{metrics} has {len(seconds)} lines of pretraining after the first, fewer than {_LEAST_LINES}.",
            "The first steps are slower than the others.",
            "Let the run go on, or lower train.log_interval.",
        )
    low, _, high = quantiles(seconds, n=4, method="inclusive")
    return Measured(metrics, len(seconds), median(seconds), (low, high), median(peaks) if peaks else None)


def calibrate(
    run: RunConfig,
    measured: Measured,
    device: Device,
    vocab_size: int,
    assumptions: Assumptions | None = None,
    *,
    trust_device: bool = False,
) -> Calibration:
    """Find the slowdown of computing with which the model gives the measured time of the run's step.

    Args:
        run: the settings it was measured with.
        measured: from `read_measured`.
        device: what it ran on.
        vocab_size: ids of its vocabulary, before padding.
        assumptions: the others; None: the defaults.
        trust_device: the user says what it ran on; otherwise the metrics must.

    Raises:
        ConfigError: the run was measured on another device or one that nothing is known of, or communication alone is
            modelled to take longer than a step did.
    """
    peak = device.peak(run.precision)
    if measured.peak_flops is None and not trust_device:
        raise ConfigError(
            f"{measured.path} does not say what the run was measured on: its device, a CPU perhaps, is not in the table.",
            "A slowdown is against a device's peak, bandwidths and links.",
            f"If it ran on {device.title}, say so with --measured-on. Otherwise describe its device (peak_flops, memory, "
            "links) in a file given by --devices, and name it with --measured-on.",
        )
    if measured.peak_flops and peak and abs(measured.peak_flops / peak - 1) > _SAME_PEAK:
        raise ConfigError(
            f"{measured.path} was measured on a device with a peak of {measured.peak_flops / 1e12:.4g} TFLOP/s, and "
            f"{device.title} has {peak / 1e12:.4g}.",
            "A slowdown is against a device's peak.",
            "Name the device it ran on with --measured-on.",
        )
    layout = Layout(run.parallel)
    num = layout.num_micro_batches(run.train.global_batch_size, run.micro_batch_size)
    cluster = Cluster(device, layout.world_size, device.devices_per_node or layout.world_size)
    batch = MicroBatch(run.micro_batch_size, run.model.sequence_length)

    def seconds(given: Assumptions) -> float:
        rest: tuple[Any, ...] = (vocab_size, batch, num, cluster, given)
        return StepModel(run.model, layout, run.precision, *rest).step().seconds

    before = assumptions or Assumptions()

    def excess(slowdown: float) -> float:
        return seconds(replace(before, slowdown=slowdown)) - measured.step_seconds

    least, most = _SLOWDOWNS
    if excess(least) > 0 or excess(most) < 0:
        raise ConfigError(
            f"A step took {measured.step_seconds:.4g} s; with computing {least:g} to {most:g} times as slow as assumed, the "
            f"model gives {seconds(replace(before, slowdown=least)):.4g} to "
            f"{seconds(replace(before, slowdown=most)):.4g} s.",
            "No slowdown of computing explains it: the links assumed are too slow, or the device is another.",
            f"Check link_bytes_per_second and network_bytes_per_second of {device.title}, or --measured-on.",
        )
    slowdown = brentq(excess, least, most, xtol=1e-9)
    return Calibration(measured, seconds(before), replace(before, slowdown=float(slowdown)))
