"""metrics.jsonl: every logged step once, whatever was stopped, resumed or cut."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from megalign.training import metrics
from megalign.training.metrics import MetricsLog, drop_lines, format_seconds


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(metrics, "time", clock)
    return clock


def lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    assert not text or text.endswith("\n")
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def log(path: Path, stage: str = "pretrain", step: int = 0) -> MetricsLog:
    return MetricsLog(path, stage, step=step, total_steps=100, tokens=50 * step)


def test_a_line_has_the_values_and_the_speed(tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = log(path)
    clock.now += 1.0
    writer.waited_for_data(0.25)
    clock.now += 3.0
    writer.pause(2.0)
    writer.write(4, {"tokens": 200, "loss": 2.5, "lr": 1e-3, "note": [1]})
    clock.now += 2.0
    writer.write(5, {"tokens": 250, "loss": 2.0})
    writer.close()
    assert lines(path) == [
        {
            "stage": "pretrain",
            "step": 4,
            "total_steps": 100,
            "tokens": 200,
            "loss": 2.5,
            "lr": 1e-3,
            "note": [1],
            "tokens_per_second": 100.0,  # 4 steps of 50 tokens in 4 s, 2 of which were no training
            "step_seconds": 0.5,
            "data_wait_share": 0.125,
        },
        {
            "stage": "pretrain",
            "step": 5,
            "total_steps": 100,
            "tokens": 250,
            "loss": 2.0,
            "tokens_per_second": 25.0,
            "step_seconds": 2.0,
            "data_wait_share": 0.0,
        },
    ]
    assert writer.compute_seconds == 4.0
    assert capsys.readouterr().out == (
        "pretrain 4/100  loss 2.5  lr 0.001  100 tok/s  ETA 48s\npretrain 5/100  loss 2  25 tok/s  ETA 3m10s\n"
    )


def test_a_resumed_log_measures_its_own_steps_only(tmp_path: Path, clock: Clock) -> None:
    writer = log(tmp_path / "m", step=90)
    clock.now += 2.0
    writer.write(92, {"tokens": 4600})
    writer.close()
    assert lines(tmp_path / "m")[0]["step_seconds"] == 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_are_null(tmp_path: Path, value: float) -> None:
    writer = log(tmp_path / "m")
    writer.write(1, {"tokens": 50, "loss": value, "contrastive_by_level": [1.0, value], "inner": {"x": value}})
    writer.close()
    line = lines(tmp_path / "m")[0]
    assert (line["loss"], line["contrastive_by_level"], line["inner"]) == (None, [1.0, None], {"x": None})


def write_steps(path: Path, stage: str, after: int, until: int) -> None:
    writer = log(path, stage, after)
    for step in range(after + 1, until + 1):
        writer.write(step, {"tokens": 50 * step, "from": after})
    writer.close()


def test_resuming_drops_what_is_taken_again_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "m"
    write_steps(path, "inject", 0, 4)
    write_steps(path, "pretrain", 0, 6)
    write_steps(path, "pretrain", 3, 5)
    found = [(line["stage"], line["step"], line["from"]) for line in lines(path)]
    assert found == [
        *[("inject", step, 0) for step in range(1, 5)],
        *[("pretrain", step, 0) for step in range(1, 4)],
        *[("pretrain", step, 3) for step in range(4, 6)],
    ]


@pytest.mark.parametrize(
    "tail", ['{"stage": "pretrain", "st', '{"stage": "pretrain", "step": 3}', "{", "\x00\x00", "{\n"]
)
def test_a_half_written_last_line_is_dropped(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "m"
    write_steps(path, "pretrain", 0, 2)
    with path.open("a") as stream:
        stream.write(tail)
    write_steps(path, "pretrain", 2, 4)
    assert [line["step"] for line in lines(path)] == [1, 2, 3, 4]


def test_nothing_is_rewritten_when_nothing_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "m"
    drop_lines(path, lambda line: True)
    assert not path.exists()
    path.write_text('{"step": 1}\n')
    before = path.stat().st_ino
    drop_lines(path, lambda line: line["step"] > 1)
    assert path.stat().st_ino == before
    drop_lines(path, lambda line: line["step"] == 1)
    assert path.read_text() == ""


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (12.4, "12s"), (59.6, "1m00s"), (185, "3m05s"), (3599.7, "1h00m"), (3725, "1h02m"), (90_000, "25h00m")],
)
def test_durations_are_short(seconds: float, shown: str) -> None:
    assert format_seconds(seconds) == shown
