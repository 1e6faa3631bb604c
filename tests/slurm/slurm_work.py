"""Submitting small steps as `megalign submit` does, and waiting for what becomes of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import small_study
import yaml
from mini_slurm import MiniSlurm

from megalign.cluster import submit
from megalign.cluster.plan import SlurmStep
from megalign.cluster.profile import SiteProfile
from megalign.cluster.records import records_of
from megalign.cluster.render import Submission
from megalign.cluster.submit import SubmittedJob
from megalign.config import validate

SITE: dict[str, Any] = {
    "name": "mini",
    "tasks_per_node": 2,
    "training": {"time_limit": "00:10:00"},
    "single": {"time_limit": "00:10:00"},
    "environment": {"PYTHONPATH": str(Path(__file__).resolve().parent)},
    "python": sys.executable,
    "signal_margin_seconds": 20,
    "exit_grace_seconds": 20,
    "preflight_seconds": 60,
    "max_array_size": 4,
}


def site(**changes: Any) -> SiteProfile:
    """The private cluster's profile."""
    return validate(SiteProfile, {**SITE, **changes}, "test")


def write_site(path: Path, **changes: Any) -> Path:
    """Its YAML file."""
    path.write_text(yaml.safe_dump({**SITE, **changes}), encoding="utf-8")
    return path


def probe(folder: Path, name: str, behaviour: str, **more: Any) -> SlurmStep:
    """A step that runs slurm_probe."""
    output = folder / name
    return SlurmStep(name, ["slurm_probe", behaviour, str(output)], output, **{"trains": True, "chained": True, **more})


def submit_steps(folder: Path, *steps: SlurmStep, profile: SiteProfile | None = None, **how: Any) -> list[SubmittedJob]:
    """Submit steps of a folder."""
    number = len(submit.submissions(folder)) + 1
    submission = Submission(folder, folder.parent, profile or site(), number, **how)
    return submit.submit(submit.plan(steps, submission), submission)


def events(folder: Path, step: str) -> list[str]:
    """The events of a step's records."""
    return [record.event for record in records_of(folder, step)]


def attempts(folder: Path, step: str) -> int:
    """How often a probe began."""
    path = folder / step / "attempts"
    return path.read_text().count("\n") if path.exists() else 0


def log(folder: Path, step: str) -> str:
    """What a step wrote."""
    path = folder / "logs" / f"{step}.log"
    return path.read_text(errors="replace") if path.exists() else ""


def requeued(slurm: MiniSlurm, job: str) -> None:
    """Wait until a job is in the queue again. It waits there until its old credential has expired, about 6 s."""
    slurm.until(lambda: slurm.job(job).get("JobState") == "PENDING", 30, f"job {job} is requeued")


def megalign(slurm: MiniSlurm, *arguments: str | Path, **environment: str) -> str:
    """Output of the installed command, which must end well."""
    done = small_study.megalign(*arguments, **slurm.environment, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
