"""Who may publish into a run folder: the process that took it over last.

After a node failure the worker on the "dead" node keeps running until its daemon is back, while the requeued job has
begun again elsewhere. Both would write checkpoints, metrics and scores. A process therefore claims the folder when it
begins, and looks again right before it publishes: whoever finds a newer owner stops.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megalign.errors import DataError, SupersededError
from megalign.files import read_json, write_json


@dataclass(frozen=True)
class Owner:
    """A process that claimed a folder.

    Attributes:
        number: 1 for the first owner of the folder, 2 for the next.
        job, restart: Slurm's job id and how often it was requeued; empty and 0 elsewhere.
        cluster: Slurm's cluster, as job ids of two clusters cannot be compared.
        host, process, started: which process, and when (seconds since 1970).
        released: it ended by itself, so that any other may follow.
    """

    number: int
    job: str
    restart: int
    cluster: str
    host: str
    process: int
    started: float
    released: bool = False

    def __str__(self) -> str:
        job = f"job {self.job}, restart {self.restart}, " if self.job else ""
        begun = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.started))
        return f"{job}process {self.process} on {self.host}, begun {begun}"

    def is_older_job_than(self, other: Owner) -> bool:
        """Whether Slurm says that the other came later. A job that has ended is no reason to wait for."""
        if not (self.job.isdigit() and other.job.isdigit()) or self.cluster != other.cluster or other.released:
            return False
        return (int(self.job), self.restart) < (int(other.job), other.restart)


class Ownership:
    """A claim on a run folder for one kind of work ("train", "eval").

    Args:
        path: the file that names the owner.
        owner: this process.
    """

    def __init__(self, path: Path, owner: Owner) -> None:
        self._path, self._owner = path, owner

    @classmethod
    def claim(cls, folder: Path, work: str, environment: Mapping[str, str] | None = None) -> Ownership:
        """Take the folder over: whoever had it may not publish any more.

        Raises:
            SupersededError: a later job, or a later restart of this job, has it and has not ended.
        """
        env = os.environ if environment is None else environment
        path = folder / f"owner-{work}.json"
        before = _read(path)
        owner = Owner(
            number=before.number + 1 if before else 1,
            job=env.get("SLURM_JOB_ID", ""),
            restart=int(env.get("SLURM_RESTART_COUNT") or 0),
            cluster=env.get("SLURM_CLUSTER_NAME", ""),
            host=socket.gethostname(),
            process=os.getpid(),
            started=round(time.time(), 3),
        )
        if before and owner.is_older_job_than(before):
            raise SupersededError(
                f"{folder} belongs to a later job ({before}); this is {owner}.",
                "Two jobs would write one run.",
                f"Let that one run. If it has ended without saying so, remove {path}.",
            )
        write_json(path, asdict(owner))
        return cls(path, owner)

    def check(self) -> None:
        """Call right before publishing.

        Raises:
            SupersededError: another process has taken the folder over.
        """
        found = _read(self._path)
        if found != self._owner:
            raise SupersededError(
                f"{self._path.parent} was taken over by {found or 'nobody, its owner file is gone'}; this is {self._owner}.",
                "Nothing more is published from here: it would overwrite the other's work.",
                "Let the other one run.",
            )

    def release(self) -> None:
        """Say that this process has ended by itself."""
        if _read(self._path) == self._owner:
            write_json(self._path, {**asdict(self._owner), "released": True})


def _read(path: Path) -> Owner | None:
    if not path.exists():
        return None
    content: Any = read_json(path)
    try:
        return Owner(**content)
    except TypeError as error:
        raise DataError(
            f"{path} does not name an owner: {error}.", "It was changed by hand or damaged.", f"Remove {path}."
        ) from None
