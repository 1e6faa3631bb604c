"""What became of the steps of a study or run: from its files, and from Slurm's queue where there is one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megalign.cluster import commands
from megalign.cluster.commands import QueuedJob
from megalign.cluster.plan import SlurmStep
from megalign.cluster.records import Record, records_of
from megalign.cluster.submit import STATE, SubmittedJob, cancelled_marker, last_jobs, submissions
from megalign.config import load_study
from megalign.errors import ConfigError, EnvironmentProblem
from megalign.files import read_json_object
from megalign.study.expand import StudyFolder
from megalign.study.graph import marker_of, steps_of
from megalign.study.progress import last_metrics
from megalign.study.slurm_steps import study_steps

_REASON_LINES = 6


@dataclass(frozen=True)
class StepStatus:
    """A step, as it stands.

    Attributes:
        step: its name.
        state: "done", "running", "waiting", "stopped", "failed", "cancelled", "lost" (gone from the queue without a word),
            "begun" (outside Slurm), "not begun".
        job: Slurm's id; empty outside Slurm.
        restarts: attempts after the first, of the last submission.
        why: why it waits, stopped or failed.
        checkpoints: the newest of every stage.
        metrics: the last line of the run's metrics; None where it is no run or has none.
        eta_seconds: of the training stage that runs.
        log: its output.
    """

    step: str
    state: str
    job: str = ""
    restarts: int = 0
    why: str = ""
    checkpoints: str = ""
    metrics: dict[str, Any] | None = None
    eta_seconds: float | None = None
    log: str = ""


@dataclass(frozen=True)
class WorkStatus:
    """A study or run.

    Attributes:
        folder: where it is.
        kind: "study" or "run".
        steps: all of them, in order.
        queue: what kept Slurm's queue from being asked; empty where nothing did.
    """

    folder: Path
    kind: str
    steps: list[StepStatus]
    queue: str

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "folder": str(self.folder),
            "kind": self.kind,
            "queue": self.queue,
            "steps": [asdict(s) for s in self.steps],
        }


@dataclass(frozen=True)
class _Place:
    """Where a step's files are."""

    name: str
    output: Path | None
    marker: Path | None


def _places(folder: Path) -> tuple[str, list[_Place]]:
    """("study" or "run", the steps)."""
    if (folder / "study.yaml").exists():
        files = StudyFolder(folder)
        study = load_study(files.config)
        if (folder / STATE).exists():
            return "study", [_submitted(step) for step in study_steps(study, files)]
        places = [
            _Place(step.name, files.run(*step.run) if step.run else None, Path(marker_of(files, step)))
            for step in steps_of(study, files)
        ]
        return "study", [*places, _Place("report", None, None)]
    if (folder / "config.yaml").exists() or (folder / STATE).exists():
        return "run", [_Place("train", folder, None)]
    raise ConfigError(
        f"{folder} is neither a study's nor a run's folder.",
        f"It has no study.yaml, config.yaml or {STATE}.",
        "Give the folder that `megalign submit`, `train` or `study run` named.",
    )


def _submitted(step: SlurmStep) -> _Place:
    marker = step.implied_by if step.implied_by and step.implied_by.exists() else step.marker
    return _Place(step.name, step.output if step.chained else None, marker)


def status_of(folder: Path) -> WorkStatus:
    """What became of every step.

    Raises:
        ConfigError: no such study or run.
    """
    folder = folder.resolve()
    kind, places = _places(folder)
    jobs = last_jobs(folder)
    queued: dict[str, QueuedJob] = {}
    trouble = ""
    try:
        queued = commands.queue(sorted({job.number for job in jobs}), tries=1)
    except EnvironmentProblem as error:
        trouble = error.what
    return WorkStatus(folder, kind, [_status(folder, place, jobs, queued, trouble) for place in places], trouble)


def _status(
    folder: Path, place: _Place, jobs: list[SubmittedJob], queued: Mapping[str, QueuedJob], trouble: str
) -> StepStatus:
    links = [job for job in jobs if place.name in job.steps]
    known = [queued[n] for job in links if (n := job.number_of(place.name)) in queued]
    number = submissions(folder)[-1]["number"] if jobs else 0
    records = [record for record in records_of(folder, place.name) if record.submission == number]
    # Processes on a node that lost touch write theirs after those of the restart.
    records.sort(key=lambda record: (record.link, record.restart))
    log = folder / "logs" / f"{place.name}.log"
    state, why = _state(folder, place, links, known, records, trouble, number)
    live = [job for job in known if job.is_live]
    shown = (live or known)[-1:] if not any(job.is_running for job in known) else [j for j in known if j.is_running]
    job = shown[0].number if shown else links[-1].number_of(place.name) if links else ""
    if state == "failed" and (told := _last_error(log)):
        why = f"{why}: {told}"
    line = last_metrics(place.output / "metrics.jsonl") if place.output else None
    eta = None
    if line is not None and state in ("running", "begun"):
        eta = (float(line["total_steps"]) - float(line["step"])) * float(line["step_seconds"])
    return StepStatus(
        step=place.name,
        state=state,
        job=job,
        restarts=max(sum(record.event == "begin" for record in records) - 1, 0),
        why=why,
        checkpoints=_checkpoints(place.output) if place.output else "",
        metrics=dict(line) if line else None,
        eta_seconds=eta,
        log=str(log) if log.exists() else "",
    )


def _state(
    folder: Path,
    place: _Place,
    links: list[SubmittedJob],
    known: list[QueuedJob],
    records: list[Record],
    trouble: str,
    number: int,
) -> tuple[str, str]:
    """(state, why)."""
    last = records[-1] if records else None
    if _is_done(folder, place, last):
        return "done", ""
    running = [job for job in known if job.is_running]
    pending = [job for job in known if job.is_pending]
    if running:
        return "running", f"on {running[0].nodes}, {running[0].time_left} left"
    ended = last.event in ("failed", "gave-up", "superseded") if last else False
    if last and ended:
        return "failed", f"{last.detail} on {last.host}"
    if pending:
        again = f"; before: {last.event} {last.detail}".rstrip() if last else ""
        return "waiting", pending[0].reason + again
    if not links:
        return _outside_slurm(folder, place)
    if trouble and (last is None or last.event == "begin"):
        return ("running" if last else "waiting"), "by its records; the queue cannot be asked"
    if cancelled_marker(folder, number).exists() or any(job.state == "CANCELLED" for job in known):
        reasons = {job.reason for job in known if job.reason not in ("None", "")}
        return "cancelled", ", ".join(sorted(reasons))
    if last and last.event == "stopped":
        return "stopped", f"{last.detail}; submit again to continue"
    states = ", ".join(f"{job.state} {job.reason}".removesuffix(" None") for job in known) or "no longer in the queue"
    return "lost", f"{states}; submit again to continue"


def _is_done(folder: Path, place: _Place, last: Record | None) -> bool:
    if place.marker is not None:
        return place.marker.exists()
    if place.output is None:  # the report
        return last.event == "done" if last else (folder / "report" / "index.html").exists()
    if last is not None:
        return last.event == "done"
    summary = place.output / "run.json"
    return summary.exists() and read_json_object(summary).get("status") in ("trained", "done")


def _outside_slurm(folder: Path, place: _Place) -> tuple[str, str]:
    if place.output is not None and (place.output / "metrics.jsonl").exists():
        minutes = (time.time() - (place.output / "metrics.jsonl").stat().st_mtime) / 60
        return "begun", f"not by Slurm; last metrics {minutes:.0f} min ago"
    log = folder / "logs" / f"{place.name}.log"
    return ("begun", "not by Slurm") if log.exists() else ("not begun", "")


def _checkpoints(output: Path) -> str:
    pointers = sorted(output.glob("checkpoints/*/latest"))
    return ", ".join(
        f"{path.parent.name} {path.read_text(encoding='utf-8', errors='replace').strip()}" for path in pointers
    )


def _last_error(log: Path) -> str:
    """The last error a log tells, in one line."""
    if not log.exists():
        return ""
    lines = tail(log, 2000)
    starts = [n for n, line in enumerate(lines) if line.startswith("error: ")]
    if not starts:
        return ""
    told = [lines[starts[-1]].removeprefix("error: ")]
    for line in lines[starts[-1] + 1 : starts[-1] + _REASON_LINES]:
        if not line.startswith("  "):
            break
        told.append(line.strip())
    return " ".join(told)


def tail(path: Path, num_lines: int) -> list[str]:
    """The last lines of a file; at most its last 256 KiB are read."""
    with path.open("rb") as stream:
        stream.seek(0, 2)
        stream.seek(max(0, stream.tell() - (256 << 10)))
        return stream.read().decode("utf-8", errors="replace").splitlines()[-num_lines:]
