"""Batch sizes that grow: a pure function of the step, equal to adding them up one by one."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megalign.config import validate
from megalign.config.sections import BatchPhase, TrainConfig
from megalign.errors import ConfigError
from megalign.training.batch_schedule import BatchSchedule, WordSchedule

LENGTH = 32


def train_config(ramp: list[tuple[int, int]], size: int) -> TrainConfig:
    phases = [BatchPhase(until_tokens=tokens, global_batch_size=batch) for tokens, batch in ramp]
    return TrainConfig(steps=10, global_batch_size=size, micro_batch_size=1, batch_size_ramp=phases)


def brute_force(train: TrainConfig, steps: int) -> list[tuple[int, int]]:
    """(first position, size) of every step, by counting."""
    result, position = [], 0
    for _ in range(steps):
        left = [phase for phase in train.batch_size_ramp if position * LENGTH < phase.until_tokens]
        size = left[0].global_batch_size if left else train.global_batch_size
        result.append((position, size))
        position += size
    return result


ramps = st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 9)), max_size=4).map(
    lambda pairs: sorted(dict(pairs).items())
)


@given(ramps, st.integers(1, 12))
def test_the_schedule_equals_counting(ramp: list[tuple[int, int]], size: int) -> None:
    train = train_config(ramp, size)
    schedule = BatchSchedule.of(train, LENGTH)
    expected = brute_force(train, 150)
    assert [(schedule.first(step), schedule.size(step)) for step in range(1, 151)] == expected
    taken = [schedule.taken(steps) for steps in range(151)]
    assert taken == [0, *(first + size for first, size in expected)]
    for samples in islice(range(taken[-1]), 300):
        assert schedule.steps_within(samples) == max(n for n in range(151) if taken[n] <= samples)


def test_without_a_ramp_every_step_is_equal() -> None:
    schedule = BatchSchedule.of(train_config([], 4), LENGTH)
    assert [schedule.size(step) for step in (1, 2, 1000)] == [4, 4, 4]
    assert (schedule.first(1), schedule.first(1000), schedule.taken(0), schedule.taken(1000)) == (0, 3996, 0, 4000)


def test_a_phase_shorter_than_a_step_of_the_one_before_is_left_out() -> None:
    schedule = BatchSchedule.of(train_config([(LENGTH * 5, 8), (LENGTH * 7, 2)], 16), LENGTH)
    assert [schedule.size(step) for step in (1, 2, 3)] == [8, 16, 16]


def test_phases_out_of_order_are_refused() -> None:
    content = {
        "steps": 1,
        "global_batch_size": 4,
        "micro_batch_size": 1,
        "batch_size_ramp": [{"until_tokens": n, "global_batch_size": 1} for n in (200, 100)],
    }
    with pytest.raises(ConfigError, match=r"batch_size_ramp must have growing until_tokens, not \[200, 100\]"):
        validate(TrainConfig, content, "t")


@pytest.mark.parametrize(("num_steps", "num_batches"), [(12, 5), (12, 12), (7, 1), (820, 300), (10, 0)])
def test_batches_of_words_are_spread_evenly(num_steps: int, num_batches: int) -> None:
    """Brute force: numbered without a gap, at distances that differ by at most one step, up to the last step."""
    schedule = WordSchedule(num_steps, num_batches)
    found = [(step, number) for step in range(1, num_steps + 1) if (number := schedule.batch_of(step)) is not None]
    assert [number for _, number in found] == list(range(num_batches))
    distances = np.diff([0, *(step for step, _ in found)])
    assert not found or (found[-1][0] == num_steps and distances.max() - distances.min() <= 1)
    assert [schedule.taken(n) for n in range(num_steps + 1)] == [
        sum(step <= n for step, _ in found) for n in range(num_steps + 1)
    ]


def test_more_batches_of_words_than_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^The 4 steps of pretraining have no room for 5 batches of words"):
        WordSchedule(4, 5)
