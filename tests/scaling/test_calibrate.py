"""Calibration: what was measured is what the model says afterwards, and bad measurements are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megalign.config import RunConfig, model_preset
from megalign.config.layout import Layout
from megalign.errors import ConfigError, DataError
from megalign.scaling.activations import MicroBatch
from megalign.scaling.calibrate import calibrate, read_measured
from megalign.scaling.communication import Cluster
from megalign.scaling.devices import load_devices
from megalign.scaling.step_time import Assumptions, StepModel

DEVICES = load_devices()
RUN = RunConfig.model_validate(
    {
        "name": "short",
        "folder": "short",
        "model": model_preset("1.3b"),
        "data": {"store": "store", "sources": [{"language": "en", "weight": 1.0}]},
        "train": {"steps": 20, "global_batch_size": 64, "micro_batch_size": 4},
        "parallel": {"data": 4, "tensor": 2, "distributed_optimizer": True},
        "precision": {"dtype": "bfloat16"},
    }
)


def modelled(run: RunConfig = RUN, assumptions: Assumptions | None = None) -> float:
    layout = Layout(run.parallel)
    cluster = Cluster(DEVICES["h100"], 8, 8)
    batch = MicroBatch(4, 1024)
    step = StepModel(run.model, layout, run.precision, 50257, batch, 4, cluster, assumptions or Assumptions())
    return step.step().seconds


def metrics(folder: Path, seconds: list[float], peak: float | None = 989.4e12, **changes: Any) -> Path:
    """Lines as a run writes them: the first one is slow."""
    lines = []
    for number, value in enumerate([99.0, *seconds], 1):
        tflops = 500.0 / value
        line = {
            "stage": "pretrain",
            "step": 10 * number,
            "tokens": 10 * number * 65536,
            "step_seconds": value,
            "tflops_per_device": tflops,
            "mfu": None if peak is None else round(tflops * 1e12 / peak, 5),
            **changes,
        }
        lines.append(json.dumps(line))
    path = folder / "metrics.jsonl"
    path.write_text("\n".join([json.dumps({"stage": "inject", "step": 1}), *lines]) + "\n", encoding="utf-8")
    return path


def test_the_model_gives_the_measured_time_afterwards(tmp_path: Path) -> None:
    truth = modelled(assumptions=Assumptions(slowdown=1.7))
    measured = read_measured(metrics(tmp_path, [truth * 1.01, truth, truth * 0.98, truth, 9 * truth]), RUN)
    assert measured.step_seconds == truth
    assert measured.num_lines == 5
    assert measured.peak_flops == pytest.approx(989.4e12, rel=1e-2)
    calibration = calibrate(RUN, measured, DEVICES["h100"], 50257)
    assert calibration.assumptions.slowdown == pytest.approx(1.7, rel=1e-4)
    assert modelled(assumptions=calibration.assumptions) == pytest.approx(truth)
    assert calibration.modelled_seconds == pytest.approx(modelled())
    assert replace(calibration.assumptions, slowdown=1.1) == Assumptions()
    for part in (str(tmp_path), "median of 5 lines", "to last 1.7 times what its parts do", "communication as assumed"):
        assert part in calibration.told


def test_smaller_batches_of_a_ramp_are_left_out(tmp_path: Path) -> None:
    phase = {"until_tokens": 2 * 655360, "global_batch_size": 16}
    run = RUN.model_copy(
        update={"train": RUN.train.model_validate({**RUN.train.model_dump(), "batch_size_ramp": [phase]})}
    )
    measured = read_measured(metrics(tmp_path, [1.0, 50.0, 3.0, 4.0, 5.0]), run)
    assert (measured.step_seconds, measured.num_lines) == (
        4.0,
        3,
    )  # lines 1 and 2 are of the ramp, 3 is the first after it


def test_a_cpu_is_refused_with_what_is_needed(tmp_path: Path) -> None:
    measured = read_measured(metrics(tmp_path, [1.0, 1.0, 1.0], peak=None), RUN)
    with pytest.raises(
        ConfigError, match=r"a CPU perhaps.*If it ran on NVIDIA H100.*peak_flops, memory, links.*--devices"
    ):
        calibrate(RUN, measured, DEVICES["h100"], 50257)
    assert calibrate(RUN, measured, DEVICES["h100"], 50257, trust_device=True).assumptions.slowdown > 0


def test_another_device_is_refused(tmp_path: Path) -> None:
    measured = read_measured(metrics(tmp_path, [1.0, 1.0, 1.0], peak=312e12), RUN)
    with pytest.raises(ConfigError, match=r"a peak of 312.* TFLOP/s, and NVIDIA H100 SXM 80 GB has 989.4"):
        calibrate(RUN, measured, DEVICES["h100"], 50257, trust_device=True)


def test_a_time_that_no_slowdown_explains_is_refused(tmp_path: Path) -> None:
    measured = read_measured(metrics(tmp_path, [1e-3, 1e-3, 1e-3]), RUN)
    with pytest.raises(ConfigError, match=r"A step took 0.001 s.*links assumed are too slow"):
        calibrate(RUN, measured, DEVICES["h100"], 50257)


def test_missing_few_and_damaged_metrics_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There are no metrics"):
        read_measured(tmp_path / "none.jsonl", RUN)
    with pytest.raises(DataError, match="has 2 lines of pretraining after the first, fewer than 3"):
        read_measured(metrics(tmp_path, [1.0, 1.0]), RUN)
    for text in ("{", '{"stage": "pretrain"}', '["x"]', '{"stage": "pretrain", "tokens": "x"}'):
        damaged = tmp_path / "damaged.jsonl"
        damaged.write_text(text + "\n", encoding="utf-8")
        with pytest.raises(DataError, match="is damaged"):
            read_measured(damaged, RUN)
