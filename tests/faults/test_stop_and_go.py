"""Signals, files and the clock: all ranks save at the same step and leave with 75; measuring stops too."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import ranks
from fault_workers import Workers, checkpoints, last_step, read_latest, run_to_end, steps_kept, write_run

from megalign.config.layout import Layout
from megalign.engine.checkpoint.folder import read_marker
from megalign.training.stop import Decision, StopRequest

ENDLESS = 100_000


def logged_steps(folder: Path) -> list[int]:
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line)["step"] for line in lines]


def test_sigusr1_to_one_rank_of_four_saves_on_all_at_the_same_step(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    layout = {"parallel__pipeline": 2, "parallel__data": 2, "parallel__distributed_optimizer": True}
    config = write_run(data, folder, train__steps=ENDLESS, train__checkpoint_interval=None, **layout)
    with Workers(["train", str(config)], tmp_path / "log", world_size=4) as workers:
        assert workers.until(lambda: len(logged_steps(folder)) >= 3), workers.output
        workers.send(signal.SIGUSR1, rank=2)
        assert workers.wait() == [75] * 4, workers.output
    (step,) = steps_kept(folder)
    assert step == last_step(folder) == logged_steps(folder)[-1] >= 3
    assert (
        f"Asked to stop: pretrain is saved at step {step} of {ENDLESS}.\n  Rank 2 received SIGUSR1.\n"
        "  Run the same command again to continue."
    ) in workers.output
    # The stages stand in files of their own, written by the processes that hold them.
    _, facts = read_marker(checkpoints(folder) / f"step_{step:08d}")
    assert {name for name in facts["files"] if name.endswith(".distcp")} >= {
        "shards/__0_0.distcp",
        "shards/__2_0.distcp",
    }


def test_files_ask_for_a_checkpoint_and_for_the_end(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = write_run(data, folder, train__steps=ENDLESS, train__checkpoint_interval=None)
    with Workers(["train", str(config)], tmp_path / "log") as workers:
        assert workers.until(lambda: len(logged_steps(folder)) >= 3), workers.output
        assert steps_kept(folder) == []
        (folder / "save").touch()
        assert workers.until(lambda: steps_kept(folder)), workers.output
        assert not (folder / "save").exists()
        (saved,) = steps_kept(folder)
        assert workers.until(lambda: len(logged_steps(folder)) >= saved + 2), "it goes on"
        (folder / "exit").touch()
        assert workers.wait() == [75], workers.output
    assert not (folder / "exit").exists(), "or the next start would end at once"
    assert steps_kept(folder) == [saved, logged_steps(folder)[-1]]
    assert f"There was a file exit in {folder}." in workers.output


def test_the_wall_clock_limit_stops_with_its_margin(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    limits = {"train__max_seconds": 30.0, "train__stop_margin_seconds": 28.5}
    config = write_run(data, folder, train__steps=ENDLESS, train__checkpoint_interval=None, **limits)
    started = time.monotonic()
    with Workers(["train", str(config)], tmp_path / "log") as workers:
        assert workers.wait() == [75], workers.output
    assert time.monotonic() - started > 1.5
    assert "train.max_seconds 30 less train.stop_margin_seconds 28.5 is over." in workers.output
    assert last_step(folder) == logged_steps(folder)[-1] > 0


def slow_writes() -> None:
    """Writing takes a second."""
    from megalign.engine.checkpoint import shards

    write = shards.ShardWrite._run

    def slow(self: Any) -> None:
        time.sleep(1.0)
        write(self)

    shards.ShardWrite._run = slow


def test_a_request_waits_for_the_checkpoint_that_is_being_written(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = write_run(data, folder, train__steps=ENDLESS, train__checkpoint_interval=4, train__async_checkpoint=True)
    with Workers(["train", str(config)], tmp_path / "log", fault=slow_writes) as workers:
        assert workers.until(lambda: logged_steps(folder)[-1:] == [4]), workers.output
        workers.send(signal.SIGTERM)
        assert workers.wait() == [75], workers.output
    assert steps_kept(folder) == sorted({4, last_step(folder)}), "the one in the background too"
    assert last_step(folder) == logged_steps(folder)[-1]


def stop_at_call(number: int) -> None:
    """A request comes while the `number`-th batch of measuring is computed. A measurement has 6 batches."""
    from megalign.engine.engine import Engine

    score, calls = Engine.score, 0

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return score(self, *args, **kwargs)

    Engine.score = counted  # type: ignore[method-assign]


def stop_in_first_measurement() -> None:
    stop_at_call(2)


def stop_in_second_measurement() -> None:
    stop_at_call(6 + 2)


def test_measuring_while_training_stops_and_is_made_up_for(data: Path, tmp_path: Path) -> None:
    changes = {"train__evaluate_interval": 2, "train__steps": 5, "evaluate__batch_size": 8}
    whole = tmp_path / "whole"
    run_to_end(["train", str(write_run(data, whole, **changes))], tmp_path / "log")
    folder = tmp_path / "run"
    config = str(write_run(data, folder, **{**changes, "train__checkpoint_interval": None}))
    with Workers(["train", config], tmp_path / "log", fault=stop_in_first_measurement) as workers:
        assert workers.wait() == [75], workers.output
    assert not (folder / "scores.jsonl").exists(), "half a measurement is none"
    assert last_step(folder) == 0
    with Workers(["train", config], tmp_path / "log", fault=stop_in_second_measurement) as workers:
        assert workers.wait() == [75], workers.output
    assert measured_steps(folder) == {0}
    assert last_step(folder) == 2
    run_to_end(["train", config], tmp_path / "log")
    assert measured_steps(whole) == {0, 2, 4}
    assert (folder / "scores.jsonl").read_text() == (whole / "scores.jsonl").read_text()
    ours, theirs = read_latest(folder), read_latest(whole)
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def measured_steps(folder: Path) -> set[int]:
    return {json.loads(line)["step"] for line in (folder / "scores.jsonl").read_text().splitlines()}


def test_evaluation_stops_with_75_and_writes_nothing(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = str(write_run(data, folder, train__steps=2, evaluate__batch_size=8))
    run_to_end(["train", config], tmp_path / "log")
    with Workers(["eval", config], tmp_path / "log", fault=stop_in_first_measurement) as workers:
        assert workers.wait() == [75], workers.output
    assert "Asked to stop while measuring; what was measured so far is not kept." in workers.output
    assert not (folder / "scores.jsonl").exists()
    run_to_end(["eval", config], tmp_path / "log")
    assert (folder / "scores.jsonl").exists()


def asked_before_the_work() -> None:
    """A request while the data are opened, long before the first step."""
    from megalign.training.run import RunInputs

    opened = RunInputs.open.__func__  # type: ignore[attr-defined]

    def asked(cls: Any, config: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return opened(cls, config)

    RunInputs.open = classmethod(asked)  # type: ignore[assignment]


def test_a_request_before_the_work_begins_leaves_with_75(data: Path, tmp_path: Path) -> None:
    config = write_run(data, tmp_path / "run")
    with Workers(["train", str(config)], tmp_path / "log", fault=asked_before_the_work) as workers:
        assert workers.wait() == [75], workers.output
    assert "Asked to stop by SIGTERM." in workers.output
    assert "Traceback" not in workers.output


# --- deciding


def decide_on_ranks(layout: Layout, folder: Path) -> list[Decision]:
    """What four decisions say: nothing, a file, two signals on two ranks at once, and after those."""
    import torch.distributed as dist

    rank = dist.get_rank()
    decisions = []
    with StopRequest(folder) as stop:
        decisions.append(stop.decide(busy=rank == 1))
        if rank == 0:
            (folder / "save").touch()
        decisions.append(stop.decide())
        decisions.append(stop.decide())
        if rank > 0:
            os.kill(os.getpid(), signal.SIGUSR2 if rank == 1 else signal.SIGUSR1)
        if rank == 0:
            (folder / "exit").touch()
        decisions += [stop.decide(), stop.decide()]
    return decisions


def test_all_ranks_decide_alike_and_name_the_reason(tmp_path: Path) -> None:
    found = ranks.run(decide_on_ranks, ranks.layout_of(data=3), tmp_path)
    assert found[0] == found[1] == found[2]
    nothing, busy, save = Decision(None, False, False), Decision(None, False, True), Decision(None, True, False)
    # Of two signals the greater number, of two ranks the lower; a signal comes before a file.
    stop = Decision("Rank 1 received SIGUSR2.", False, False)
    assert found[0] == [busy, save, nothing, stop, stop]


def test_a_file_that_cannot_be_removed_is_not_heeded(tmp_path: Path) -> None:
    (tmp_path / "save").mkdir()
    (decisions,) = ranks.run(decide_twice, ranks.layout_of(), tmp_path)
    assert decisions == [Decision(None, False, False)] * 2


def decide_twice(layout: Layout, folder: Path) -> list[Decision]:
    with StopRequest(folder) as stop:
        return [stop.decide(), stop.decide()]
