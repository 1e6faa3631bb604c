"""Submitting, asking and cancelling with programs in place of Slurm's; what was noted, damaged."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_study import megalign

from megalign.cluster.plan import SlurmStep
from megalign.cluster.profile import SiteProfile
from megalign.cluster.render import Submission
from megalign.cluster.submit import plan, submissions, submit
from megalign.config import validate
from megalign.errors import ConfigError, DataError, EnvironmentProblem
from megalign.files import lock

SITE = {
    "name": "site",
    "tasks_per_node": 1,
    "training": {"time_limit": "01:00:00"},
    "single": {"time_limit": "01:00:00"},
}
# Numbers the jobs 1, 2, ..., and refuses the third.
REFUSES_THE_THIRD = (
    "n=$(($(cat {at}/n 2>/dev/null || echo 0) + 1)); echo $n >{at}/n; ((n < 3)) && echo $n || ! echo full >&2"
)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    for name in ("sbatch", "squeue", "scancel"):
        fake(folder, name, "true")
    return folder


def fake(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{body.replace('{at}', str(folder))}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


def submission(folder: Path) -> Submission:
    return Submission(folder, folder, validate(SiteProfile, SITE, "site.yaml"))


def submit_three(folder: Path) -> None:
    steps = [SlurmStep(name, ["module"], folder) for name in ("one", "two", "three")]
    submit(plan(steps, submission(folder)), submission(folder))


def test_jobs_before_one_that_is_refused_are_cancelled(programs: Path, tmp_path: Path) -> None:
    fake(programs, "sbatch", REFUSES_THE_THIRD)
    fake(programs, "scancel", "echo $* >{at}/cancelled")
    with pytest.raises(EnvironmentProblem, match=r"full \(job three; the 2 jobs submitted before it are cancelled\)"):
        submit_three(tmp_path / "run")
    assert (programs / "cancelled").read_text() == "--quiet 1 2\n"


def test_jobs_that_could_not_be_cancelled_are_named_beside_the_first_error(programs: Path, tmp_path: Path) -> None:
    fake(programs, "sbatch", REFUSES_THE_THIRD)
    fake(programs, "scancel", "echo not now >&2; exit 1")
    with pytest.raises(EnvironmentProblem) as told:
        submit_three(tmp_path / "run")
    assert "sbatch: full (job three; those before it could not be cancelled, scancel: not now" in str(told.value)
    assert "scancel 1 2)" in str(told.value)


def test_without_sbatch_the_profile_is_not_to_blame(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(programs))
    (programs / "sbatch").unlink()
    with pytest.raises(EnvironmentProblem) as told:
        submit_three(tmp_path / "run")
    assert "There is no sbatch on this machine" in str(told.value)
    assert told.value.fix == "Use a login node."


def test_two_submissions_at_once_are_refused(programs: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "slurm").mkdir(parents=True)
    with (tmp_path / "run" / "slurm" / "lock").open("w") as held:
        assert lock(held)
        with pytest.raises(ConfigError, match="Another process submits"):
            submit_three(tmp_path / "run")
    assert not (tmp_path / "run" / "slurm.json").exists()


@pytest.mark.parametrize(
    "content",
    [[], None, {}, {"submissions": 3}, {"submissions": [3]}, {"submissions": [{"number": 1}]},
     {"submissions": [{"number": 1, "jobs": [{"name": "x"}]}]}],
)  # fmt: skip
def test_a_damaged_note_of_submissions_is_told(content: Any, tmp_path: Path) -> None:
    (tmp_path / "slurm.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match=r"slurm\.json (holds no JSON object|does not say what was submitted)"):
        submissions(tmp_path)


def run_folder(folder: Path, error: str) -> Path:
    """A run's folder whose one job failed."""
    for name in ("slurm/records", "logs"):
        (folder / name).mkdir(parents=True)
    job = {"name": "train", "number": "7", "link": 1, "is_array": False, "steps": ["train"]}
    note = {"submissions": [{"number": 1, "jobs": [job]}]}
    (folder / "slurm.json").write_text(json.dumps(note), encoding="utf-8")
    (folder / "slurm/records/train.tsv").write_text("1\t1\t1\t7\t0\tn1\tfailed\tnone\texit code 3\n", encoding="utf-8")
    (folder / "logs/train.log").write_text(f"error: {error}\n", encoding="utf-8")
    return folder


def test_brackets_in_paths_and_errors_are_shown_as_they_are(programs: Path, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "r[bold]", "no [red] or [/x] :smile:")
    done = megalign("status", folder)
    assert done.returncode == 0, done.stderr
    assert "r[bold]" in done.stdout
    assert "exit code 3 on n1: no [red] or [/x] :smile:" in " ".join(done.stdout.split())


def test_a_pointer_that_is_no_text_is_shown_all_the_same(programs: Path, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", "x")
    (folder / "checkpoints/pretrain").mkdir(parents=True)
    (folder / "checkpoints/pretrain/latest").write_bytes(b"\xff\xfe")
    done = megalign("status", folder)
    assert (done.returncode, "failed" in done.stdout) == (0, True)


def test_commands_to_copy_are_quoted(programs: Path, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "a b", "x")
    fake(programs, "squeue", "echo '7|PENDING|None||1:00'")
    with pytest.raises(ConfigError) as told:
        submit_three(folder)
    assert told.value.fix == f"Wait, or run: megalign cancel '{folder}'"


def test_scripts_of_a_folder_with_spaces_and_signs_name_it_whole(programs: Path, tmp_path: Path) -> None:
    fake(programs, "sbatch", "echo 5")
    folder = tmp_path / "a b;c&d(e)ü"
    submit_three(folder)
    script = (folder / "slurm" / "one.sbatch").read_text(encoding="utf-8")
    (line,) = [line for line in script.splitlines() if line.startswith("FOLDER=")]
    told = subprocess.run(["bash", "-c", f'{line}\nprintf %s "$FOLDER"'], capture_output=True, text=True, check=True)
    assert told.stdout == str(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training.time_limit=4:00:00", r"time_limit: '14400' is not of the form .* put it in quotes"),
        ("training.gres=gpu:4", r"gres: 'gpu:4' has a count"),
        ("python=''", r"python: it is empty"),
    ],
)
def test_values_that_sbatch_or_the_job_would_stumble_over(text: str, message: str, tmp_path: Path) -> None:
    from megalign.cluster.profile import load_profile
    from megalign.config.load import parse_override

    (tmp_path / "site.yaml").write_text(yaml.safe_dump(SITE), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_profile(tmp_path / "site.yaml", [parse_override(text)])
