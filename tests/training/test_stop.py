"""Requests to stop: a signal sets a flag, all ranks agree."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from megalign.cluster.local import LocalProcesses
from megalign.training.stop import SIGNALS, Decision, StopRequest


@pytest.fixture
def world_of_one(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("world_of_one")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_is_a_request(number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in SIGNALS}
    with StopRequest() as stop:
        assert stop.decide() == Decision(None, save=False, busy=False)
        os.kill(os.getpid(), number)
        assert stop.decide().stop == f"Rank 0 received {number.name}."
        assert stop.decide().stop == f"Rank 0 received {number.name}."
    assert {each: signal.getsignal(each) for each in SIGNALS} == before


@pytest.mark.usefixtures("world_of_one")
def test_handlers_come_back_after_an_error_and_a_new_request_starts_unasked() -> None:
    before = {each: signal.getsignal(each) for each in SIGNALS}

    def fail() -> None:
        with StopRequest():
            os.kill(os.getpid(), signal.SIGTERM)
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail()
    assert {each: signal.getsignal(each) for each in SIGNALS} == before
    with StopRequest() as stop:
        assert stop.decide() == Decision(None, save=False, busy=False)


MODULE = """
import os, pathlib, signal, sys
import torch.distributed as dist
from megalign.training.stop import StopRequest

folder, rank = pathlib.Path(sys.argv[1]), int(os.environ["RANK"])
dist.init_process_group("gloo")
with StopRequest() as stop:
    step = 0
    while not stop.decide().stop and step < 100:
        step += 1
        if rank == 1 and step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
(folder / f"stopped.{rank}").write_text(str(step))
dist.destroy_process_group()
"""


def test_a_signal_to_one_rank_stops_all_at_the_same_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "asked.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    processes = LocalProcesses(["asked", str(tmp_path)], world_size=2, log=tmp_path / "log")
    processes.stop(120)
    assert processes.poll() == 0, (tmp_path / "log").read_text()
    assert [(tmp_path / f"stopped.{rank}").read_text() for rank in range(2)] == ["7", "7"]
