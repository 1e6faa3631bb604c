"""Checkpoints as a person finds them: markers and pointers that are damaged, folders that hold other things."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from megalign.cli.app import app
from megalign.engine.checkpoint.describe import find
from megalign.engine.checkpoint.folder import MARKER, POINTER, read_marker
from megalign.engine.checkpoint.reshard import check_target
from megalign.errors import ConfigError, DataError


@pytest.mark.parametrize("content", [[], None, 3, {"checkpoint": []}, {"checkpoint": None}, {"checkpoint": {}}])
def test_a_marker_of_another_form_is_told(content: Any, tmp_path: Path) -> None:
    (tmp_path / MARKER).write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"state\.json is of format None"):
        read_marker(tmp_path)


def test_a_pointer_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / POINTER).write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="which is not a complete checkpoint"):
        find(tmp_path)


def test_a_checkpoint_is_not_written_between_other_files(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    (tmp_path / "file").write_text("")
    for target in ("run", "file"):
        with pytest.raises(ConfigError, match=f"{target} exists already"):
            check_target(tmp_path / target)


def test_what_a_stopped_resharding_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "copy" / ".tmp-step_00000003").mkdir(parents=True)
    check_target(tmp_path / "copy")
    check_target(tmp_path / "new")


@pytest.mark.parametrize(
    "command",
    [("train", "x"), ("eval", "x"), ("nli", "x"), ("lm-eval", "x"), ("checkpoint", "reshard", "x", "y")],
    ids=lambda command: command[-2],
)
@pytest.mark.parametrize("threads", ["0", "-3"])
def test_processes_compute_with_a_thread_at_least(command: tuple[str, ...], threads: str) -> None:
    done = CliRunner().invoke(app, [*command, "--threads", threads])
    assert done.exit_code == 2
    assert "Invalid value for '--threads'" in done.output


def test_doctor_tells_of_what_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 0, done.output
    assert "cannot start" in done.output
