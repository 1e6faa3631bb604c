"""Slurm's commands replaced by programs that fail, say nothing, or say rubbish."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from megalign.cluster import commands
from megalign.cluster.commands import QueuedJob
from megalign.errors import EnvironmentProblem

Fake = Callable[[str, str], None]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Put a bash program of a name before all others."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def make(name: str, body: str) -> None:
        (folder / name).write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
        (folder / name).chmod(0o755)

    return make


@pytest.mark.parametrize(
    ("body", "number"),
    [("echo 12", "12"), ("echo '12;cluster'", "12"), ("printf 'Welcome to the site\\n12\\n'", "12")],
)
def test_the_id_of_a_job(fake: Fake, body: str, number: str) -> None:
    fake("sbatch", body)
    assert commands.submit(Path("x.sbatch"), []) == number


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("true", r"sbatch: it said '', which names no job"),
        ("echo 'Submitted batch job 12'", r"said 'Submitted batch job 12', which names no job"),
        ("echo -5", r"said '-5', which names no job"),
        ("exit 3", r"sbatch: it ended with 3 and said nothing"),
        ("printf '\\xff' >&2; exit 1", "sbatch: \ufffd"),
    ],
)
def test_what_names_no_job_is_no_submission(fake: Fake, body: str, message: str) -> None:
    fake("sbatch", body)
    with pytest.raises(EnvironmentProblem, match=message):
        commands.submit(Path("x.sbatch"), [])


def test_a_command_that_cannot_be_started_is_told(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake("squeue", "")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin" / "squeue").write_text("no program\n", encoding="utf-8")
    with pytest.raises(EnvironmentProblem, match="squeue cannot be started: Exec format error"):
        commands.queue(["12"])


def test_the_queue_is_read_line_by_line(fake: Fake) -> None:
    fake("squeue", "echo; echo '12_3|PENDING|(Nodes|down)||1:00'; echo '13|RUNNING|None|n[1-2]|1-00:00:00'")
    assert commands.queue(["12", "13"]) == {
        "12_3": QueuedJob("12_3", "PENDING", "(Nodes|down)", "", "1:00"),
        "13": QueuedJob("13", "RUNNING", "None", "n[1-2]", "1-00:00:00"),
    }


@pytest.mark.parametrize("body", ["echo garbage", "printf '\\xff|\\n'", "echo 'JOBID|STATE'"])
def test_a_queue_that_says_rubbish_is_not_empty(fake: Fake, body: str) -> None:
    """Taken for empty, it would let a second submission do the work of one that runs."""
    fake("squeue", body)
    with pytest.raises(EnvironmentProblem, match="squeue: it said"):
        commands.queue(["12"])


@pytest.mark.parametrize(
    "state", ["RESIZING", "POWER_UP_NODE", "EXPEDITING", "SPECIAL_EXIT", "RESV_DEL_HOLD", "RUNNING"]
)
def test_a_state_that_is_no_end_is_live(state: str) -> None:
    assert QueuedJob("12", state, "None", "", "").is_live


@pytest.mark.parametrize("state", ["OUT_OF_MEMORY", "NODE_FAIL", "PREEMPTED", "TIMEOUT", "COMPLETED"])
def test_what_has_ended_is_not_live(state: str) -> None:
    assert not QueuedJob("12", state, "None", "", "").is_live
