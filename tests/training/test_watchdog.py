"""Who is late, told from the heartbeats of the ranks."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from megalign.training.watchdog import Heartbeat, Watchdog, describe_hang, late_ranks, read_heartbeats


def beat(rank: int, *, step: int = 7, phase: str = "compute", waits: bool = True, **other: Any) -> Heartbeat:
    values = {
        "host": f"node{rank}",
        "stage": "pretrain",
        "stage_number": 1,
        "since_seconds": 30.0,
        "line": "run.py:1 in f",
    }
    return Heartbeat(rank=rank, step=step, phase=phase, waits=waits, written=time.time(), **{**values, **other})


def beats(*all_beats: Heartbeat | None) -> dict[int, Heartbeat | None]:
    return dict(enumerate(all_beats))


@pytest.mark.parametrize(
    ("found", "alive", "late"),
    [
        # One computes while the others wait for it in a collective.
        (beats(beat(0), beat(1, waits=False), beat(2)), [0, 1, 2], [1]),
        # One is a phase behind, one a step, one a stage.
        (beats(beat(0), beat(1), beat(2, phase="data", waits=False)), [0, 1, 2], [2]),
        (beats(beat(0, step=6), beat(1, phase="data")), [0, 1], [0]),
        (beats(beat(0, step=1), beat(1, step=90, stage="inject", stage_number=0)), [0, 1], [1]),
        (beats(beat(0, step=1, stage="inject", stage_number=2), beat(1, step=90)), [0, 1], [1]),
        # A silent one is late wherever it was.
        (beats(beat(0), beat(1, step=8, phase="save")), [0], [1]),
        (beats(beat(0), None), [0], [1]),
        # All of them wait: a deadlock names all.
        (beats(beat(0), beat(1)), [0, 1], [0, 1]),
        # Behind and in a collective the others are not in.
        (beats(beat(0, phase="measure"), beat(1)), [0, 1], [1]),
    ],
)
def test_the_late_rank_is_found(found: dict[int, Heartbeat | None], alive: list[int], late: list[int]) -> None:
    assert late_ranks(found, alive) == late


def test_the_message_says_where_the_late_rank_stands(tmp_path: Path) -> None:
    found = beats(beat(0), beat(1, phase="data", waits=False, since_seconds=901.4, line="loader.py:12 in read"))
    told = describe_hang(found, [0, 1], tmp_path)
    assert told.what == (
        "The run hangs: rank 1 on node1 is in data of pretrain step 7 for 901 s, at loader.py:12 in read. 1 others wait for it."
    )
    assert str(tmp_path) in told.why
    assert "guards.hang_seconds" in told.fix
    assert "rank 1 wrote no sign of life" in describe_hang(beats(beat(0), None), [0], tmp_path).what
    silent = describe_hang(beats(beat(0), beat(1)), [0], tmp_path).what
    assert "rank 1 on node1 does not answer, last seen in compute of pretrain step 7" in silent


def test_many_late_ranks_are_counted(tmp_path: Path) -> None:
    told = describe_hang(beats(*[None] * 9), [], tmp_path)
    assert told.what.count("wrote no sign of life") == 4
    assert told.what.endswith("and 5 more.")


def test_broken_heartbeats_are_none(tmp_path: Path) -> None:
    (tmp_path / "heartbeat0.json").write_text("{", encoding="utf-8")
    (tmp_path / "heartbeat1.json").write_text('{"rank": 1}', encoding="utf-8")
    assert read_heartbeats(tmp_path, 3) == {0: None, 1: None, 2: None}


def test_heartbeats_come_while_it_watches_and_go_at_the_end(tmp_path: Path) -> None:
    with Watchdog(tmp_path / "hang", 0, 1, 4.0, ("inject", "pretrain")) as watchdog:
        watchdog.at("pretrain", 3, "data")
        deadline = time.monotonic() + 60
        while True:
            content = json.loads((tmp_path / "hang" / "heartbeat0.json").read_text())
            if content["step"] == 3:
                break
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert (content["stage"], content["stage_number"]) == ("pretrain", 1)
        assert (content["phase"], content["waits"]) == ("data", False)
        assert "test_watchdog.py" in content["line"]
    assert list((tmp_path / "hang").iterdir()) == []
    assert not any(thread.name == "watchdog" for thread in threading.enumerate())


def test_unset_it_watches_nothing(tmp_path: Path) -> None:
    with Watchdog(tmp_path / "hang", 0, 1, None, ("pretrain",)):
        assert not any(thread.name == "watchdog" for thread in threading.enumerate())
    assert not (tmp_path / "hang").exists()
