"""The spike detector and the log of events; whole runs that go wrong are in tests/faults/test_guarded_runs.py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from megalign.config.sections import GuardConfig
from megalign.errors import TrainingProblem
from megalign.training.guards import EventLog, Guards, SpikeDetector, _ranges


def falling_losses(num_losses: int, seed: int = 0) -> np.ndarray:
    """A loss that falls from 8 to 3 with noise of one percent."""
    rng = np.random.default_rng(seed)
    steps = np.arange(num_losses)
    return (3 + 5 * np.exp(-steps / 200)) * (1 + 0.01 * rng.standard_normal(num_losses))


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_loss_has_no_spike(seed: int) -> None:
    detector = SpikeDetector(GuardConfig())
    assert [loss for loss in falling_losses(1000, seed) if detector.observe(float(loss)) is not None] == []


def test_a_constant_loss_that_varies_by_rounding_has_no_spike() -> None:
    detector = SpikeDetector(GuardConfig())
    assert all(detector.observe(2.0 + 1e-7 * (n % 3)) is None for n in range(200))


def test_a_spike_is_measured_in_deviations_and_left_out_of_the_window() -> None:
    detector = SpikeDetector(GuardConfig(spike_window_steps=16))
    window = [2.0 + 0.1 * np.sin(n) for n in range(16)]
    for loss in window:
        assert detector.observe(loss) is None
    spread = 1.4826 * np.median(np.abs(np.array(window) - np.median(window)))
    expected = (5.0 - np.median(window)) / spread
    assert detector.observe(5.0) == pytest.approx(expected)
    assert detector.observe(5.0) == pytest.approx(expected), "the first one did not move the median"
    assert detector.in_a_row == 2
    assert detector.observe(2.0) is None
    assert detector.in_a_row == 0


def test_nothing_is_judged_before_there_are_losses_to_compare_with() -> None:
    detector = SpikeDetector(GuardConfig())
    assert [detector.observe(loss) for loss in (2.0, 90.0, 2.0, 2.0, 2.0, 2.0, 2.0)] == [None] * 7


def test_unset_nothing_is_a_spike() -> None:
    detector = SpikeDetector(GuardConfig(spike_deviations=None))
    assert [detector.observe(loss) for loss in [2.0] * 20 + [1e9]] == [None] * 21


def test_the_state_is_kept_over_a_checkpoint() -> None:
    losses = [float(loss) for loss in falling_losses(40)] + [50.0, 60.0]
    whole, first = SpikeDetector(GuardConfig()), SpikeDetector(GuardConfig())
    for loss in losses:
        whole.observe(loss)
    for loss in losses[:41]:
        first.observe(loss)
    second = SpikeDetector(GuardConfig())
    second.restore(json.loads(json.dumps(first.state())))
    second.observe(losses[41])
    assert second.state() == whole.state()
    assert second.in_a_row == 2


def test_spikes_in_a_row_end_the_run_and_say_where_they_began(tmp_path: Path) -> None:
    events = EventLog(tmp_path / "events.jsonl", "pretrain", 0)
    guards = Guards(GuardConfig(spike_patience_steps=3), "pretrain", tmp_path, 0, events)
    for step in range(1, 31):
        guards.loss(step, 2.0 + 0.01 * (step % 5), [step])
    for step in (31, 32):
        guards.loss(step, 9.0, [2 * step, 2 * step + 1])
    with pytest.raises(TrainingProblem) as caught:
        guards.loss(33, 9.5, [66, 67])
    assert caught.value.what.startswith(
        "pretrain diverged: steps 31 to 33 all have losses more than 6 deviations above"
    )
    assert "data.skip_samples" in caught.value.fix
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(line["event"], line["step"], line["samples"]) for line in lines] == [
        ("loss_spike", 31, [[62, 63]]),
        ("loss_spike", 32, [[64, 65]]),
        ("loss_spike", 33, [[66, 67]]),
    ]


def test_events_of_steps_that_are_taken_again_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, "pretrain", 0)
    for step in (2, 5, 9):
        log.write("loss_spike", step, "told")
    EventLog(path, "inject", 0)
    EventLog(path, "pretrain", 5)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [2, 5]


def test_sample_numbers_are_told_as_ranges() -> None:
    assert _ranges([5, 3, 4, 9, 11, 10]) == [[3, 5], [9, 11]]
    assert _ranges([]) == []
