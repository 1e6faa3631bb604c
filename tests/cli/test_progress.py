"""What a log shows of something that takes long: a line now and then, the last one, and the time left where it can be told."""

from __future__ import annotations

import pytest

from megalign.cli import progress


def test_a_log_gets_lines_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.late_bar("rows") as update:
        for done in range(1, 6):
            clock[0] += 20.0
            update(done, 5)
    # The clock starts with the first call: 3 rows after 40 s make 20 s a row.
    assert capsys.readouterr().err.splitlines() == ["3 of 5 rows, 40 s left", "5 of 5 rows"]


def test_what_is_done_at_once_is_one_line_without_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.late_bar("rows") as update:
        update(8, 8)
    assert capsys.readouterr().err == "8 of 8 rows\n"


def test_nothing_done_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.late_bar("rows"):
        pass
    assert capsys.readouterr().err == ""
