"""Data are made one step ahead, once each and in order; errors come with their own step."""

from __future__ import annotations

import threading

import pytest

from megalign.errors import DataError
from megalign.training.prefetch import Prefetch


def test_the_next_step_is_made_while_this_one_is_worked_on() -> None:
    made: list[int] = []
    begun = {step: threading.Event() for step in range(1, 6)}

    def make(step: int) -> str:
        made.append(step)
        begun[step].set()
        return f"data {step}"

    with Prefetch(make, last=4) as data:
        for step in range(1, 5):
            assert data.take(step) == f"data {step}"
            if step < 4:
                assert begun[step + 1].wait(60), "the next step's data are not being made"
    assert made == [1, 2, 3, 4]
    assert not begun[5].is_set()


def test_a_loop_may_begin_anywhere() -> None:
    with Prefetch(str, last=9) as data:
        assert [data.take(step) for step in (7, 8, 9)] == ["7", "8", "9"]


def test_an_error_comes_with_its_own_step() -> None:
    def make(step: int) -> int:
        if step == 2:
            raise DataError("The store is damaged.")
        return step

    with Prefetch(make, last=5) as data:
        assert data.take(1) == 1
        with pytest.raises(DataError, match="damaged"):
            data.take(2)


def test_leaving_does_not_wait_for_what_nobody_takes() -> None:
    made: list[int] = []
    with Prefetch(made.append, last=100) as data:
        data.take(1)
    assert set(made) <= {1, 2}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_after_an_error_nobody_waits_for_the_next_step() -> None:
    free = threading.Event()

    def fail_beside_it() -> None:
        with Prefetch(lambda step: free.wait(60) if step == 2 else step, last=9) as data:
            data.take(1)
            raise DataError("Something else.")

    with pytest.raises(DataError, match="Something else"):
        fail_beside_it()
    assert not free.is_set()
    free.set()
