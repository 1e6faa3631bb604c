"""kill -9 at random moments, inside saves too, and started again: the end is that of the undisturbed run, to the bit."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fault_workers import Workers, checkpoints, last_step, read_latest, run_to_end, write_run

TWO: dict[str, Any] = {"parallel__data": 2, "parallel__distributed_optimizer": True}
BACKGROUND: dict[str, Any] = {**TWO, "train__async_checkpoint": True, "train__verify_checkpoints": True}


def losses_of(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def being_written(folder: Path) -> bool:
    """Whether a checkpoint was begun and is not published."""
    return any(checkpoints(folder).glob(".tmp-*")) if checkpoints(folder).exists() else False


def slow_background_writes() -> None:
    """Give kills time to come while the background writes and training goes on."""
    from megalign.engine.checkpoint import shards

    if (write := shards.ShardWrite._run).__name__ == "_run":

        def slow(self: Any) -> None:
            time.sleep(0.05)
            write(self)

        shards.ShardWrite._run = slow


def kill_at_random(config: Path, folder: Path, world_size: int, rng: random.Random, *, in_save: bool) -> bool | None:
    """Start, kill one rank at a random moment. Whether it was inside a save; None where the run had ended before."""
    fault = slow_background_writes if world_size > 1 else None
    with Workers(["train", str(config)], folder.with_suffix(".log"), world_size=world_size, fault=fault) as workers:
        begun = last_step(folder)
        if not workers.until(lambda: last_step(folder) > begun):
            return None
        time.sleep(rng.uniform(0.0, 0.25))
        if in_save and not workers.until(lambda: being_written(folder)):
            return None
        time.sleep(rng.uniform(0.0, 0.01))
        os.kill(workers.processes[rng.randrange(world_size)].pid, signal.SIGKILL)  # type: ignore[arg-type]
        # The other ranks wait for the dead one in a collective; the launcher ends them.
        time.sleep(rng.uniform(0.0, 0.05))
        workers.kill()
        return being_written(folder)


@pytest.mark.parametrize(
    ("changes", "world_size", "kills"),
    [
        pytest.param({}, 1, 3, id="one-process"),
        pytest.param(BACKGROUND, 2, 2, id="two-in-background"),
        pytest.param({}, 1, 20, id="one-process-20", marks=pytest.mark.slow),
        pytest.param(TWO, 2, 20, id="two-20", marks=pytest.mark.slow),
        pytest.param(BACKGROUND, 2, 20, id="two-in-background-20", marks=pytest.mark.slow),
    ],
)
def test_killed_at_random_moments_and_started_again(
    data: Path, tmp_path: Path, changes: dict[str, Any], world_size: int, kills: int
) -> None:
    steps = 8 * kills
    undisturbed = tmp_path / "undisturbed"
    # What the undisturbed run saves in between does not matter to its end.
    once = write_run(data, undisturbed, train__steps=steps, **{**changes, "train__checkpoint_interval": None})
    run_to_end(["train", str(once)], tmp_path / "undisturbed.log", world_size=world_size)
    folder = tmp_path / "run"
    config = write_run(data, folder, train__steps=steps, **changes)
    rng = random.Random(f"{world_size} {kills}")
    killed = [kill_at_random(config, folder, world_size, rng, in_save=number % 2 == 1) for number in range(kills)]
    assert None not in killed, "the run ended before all kills: give it more steps"
    assert sum(map(bool, killed)) >= max(1, kills // 4), "too few kills came inside a save"
    run_to_end(["train", str(config)], folder.with_suffix(".log"), world_size=world_size)
    ours, theirs = read_latest(folder), read_latest(undisturbed)
    assert last_step(folder) == steps
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if not np.array_equal(ours[name], theirs[name])] == []
    assert losses_of(folder) == losses_of(undisturbed)
    assert not being_written(folder), "leftovers of killed saves are cleaned"


def test_a_killed_save_leaves_no_process_behind(data: Path, tmp_path: Path) -> None:
    """Megatron's own writer leaves a manager process of 0.3 GB running when its rank is killed."""
    import psutil

    folder = tmp_path / "run"
    config = write_run(data, folder, train__steps=1000)
    with Workers(["train", str(config)], tmp_path / "log") as workers:
        assert workers.until(lambda: last_step(folder) >= 2)
        assert workers.until(lambda: being_written(folder))
        process = psutil.Process(workers.processes[0].pid)
        assert process.children(recursive=True) == []
        session = os.getsid(process.pid)
        before = {p.pid for p in psutil.process_iter() if _session(p.pid) == session} - {process.pid}
        workers.kill()
        after = {p.pid for p in psutil.process_iter() if _session(p.pid) == session}
    assert after <= before


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None
