"""What the job scripts noted of every attempt (FOLDER/slurm/records/STEP.tsv)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Record:
    """An event of an attempt.

    Attributes:
        time: seconds since 1970.
        submission: of the folder.
        link: of a chain.
        job, restart: Slurm's job id, and how often it was requeued.
        host: where the script ran.
        event: "begin", "done", "stopped", "failed", "gave-up", "superseded".
        checkpoints: the newest of every stage; "none".
        detail: e.g. the exit code.
    """

    time: int
    submission: int
    link: int
    job: str
    restart: int
    host: str
    event: str
    checkpoints: str
    detail: str


def records_of(folder: Path, step: str) -> list[Record]:
    """The records of a step, oldest first; a line that is being written is left out."""
    path = folder / "slurm" / "records" / f"{step}.tsv"
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        parts = line.split("\t")
        if len(parts) == 9 and all(parts[n].isdecimal() for n in (0, 1, 2, 4)):
            time, submission, link, job, restart, host, event, checkpoints, detail = parts
            found.append(
                Record(
                    int(time), int(submission), int(link), job, int(restart), host, event, checkpoints.strip(), detail
                )
            )
    return found
