"""Slurm's commands: submit, ask, cancel."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megalign.errors import EnvironmentProblem

_TIMEOUT_SECONDS = 60.0
_TRIES = 3
_PENDING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT", "SUSPENDED"}
_ENDED = {
    "COMPLETED",
    "CANCELLED",
    "FAILED",
    "TIMEOUT",
    "NODE_FAIL",
    "PREEMPTED",
    "BOOT_FAIL",
    "DEADLINE",
    "OUT_OF_MEMORY",
}


@dataclass(frozen=True)
class QueuedJob:
    """A job, or a task of an array, as the queue has it.

    Attributes:
        number: "12", or "12_3" for a task of an array.
        state: PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, ...
        reason: why it waits or ended; "None" where there is none.
        nodes: where it runs.
        time_left: D-HH:MM:SS until the time limit.
    """

    number: str
    state: str
    reason: str
    nodes: str
    time_left: str

    @property
    def is_pending(self) -> bool:
        """Whether it waits."""
        return self.state in _PENDING

    @property
    def is_running(self) -> bool:
        """Whether it runs, begins or ends; a state that is not known here is one of these, so that nothing runs twice."""
        return self.state not in _PENDING | _ENDED

    @property
    def is_live(self) -> bool:
        """Whether it waits or runs."""
        return self.is_pending or self.is_running


def _call(*command: str, tries: int = _TRIES) -> str:
    """Standard output.

    Raises:
        EnvironmentProblem: the command is not there, refuses, or slurmctld does not answer.
    """
    for number in range(1, tries + 1):
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_SECONDS, check=False
            )
        except FileNotFoundError:
            raise EnvironmentProblem(
                f"There is no {command[0]} on this machine.", "Slurm's commands are needed here.", "Use a login node."
            ) from None
        except OSError as error:
            raise EnvironmentProblem(
                f"{command[0]} cannot be started: {error.strerror}.", "Slurm's commands are needed here."
            ) from None
        except subprocess.TimeoutExpired:
            told = f"{command[0]} did not answer within {_TIMEOUT_SECONDS:g} s"
        else:
            if done.returncode == 0:
                return done.stdout
            told = (done.stderr.strip() or done.stdout.strip()).replace("\n", "; ")
            told = told or f"it ended with {done.returncode} and said nothing"
        away = re.search(r"Unable to contact slurm controller|Socket timed out|did not answer|Connection refused", told)
        if not away or number == tries:
            break
        time.sleep(2.0 * number)
    raise EnvironmentProblem(f"{' '.join(command[:1])}: {told}")


def submit(script: Path, options: Sequence[str]) -> str:
    """The id of the job that sbatch makes of a script.

    Raises:
        EnvironmentProblem: it refuses, or names no job.
    """
    # Once only: after a lost answer the job may be there.
    told = _call("sbatch", "--parsable", *options, str(script), tries=1).strip()
    found = re.search(r"^(\d+)(?:;\S*)?\Z", told, re.MULTILINE)
    if found is None:
        raise EnvironmentProblem(f"sbatch: it said {told!r}, which names no job; look with squeue whether there is one")
    return found[1]


def queue(numbers: Sequence[str], tries: int = _TRIES) -> dict[str, QueuedJob]:
    """What the queue knows of these jobs, each task of an array by itself; jobs it has forgotten are left out.

    Args:
        numbers: job ids.
        tries: how often slurmctld is asked where it does not answer.

    Raises:
        EnvironmentProblem: it does not, there is no squeue, or it says something else.
    """
    if not numbers:
        return {}
    options = ("--noheader", "--array", "--states=all", "--format=%i|%T|%r|%N|%L", f"--jobs={','.join(numbers)}")
    try:
        text = _call("squeue", *options, tries=tries)
    except EnvironmentProblem as error:
        if "Invalid job id" in str(error):
            return {}
        raise
    jobs = [_queued(line) for line in text.splitlines() if line.strip()]
    return {job.number: job for job in jobs}


def _queued(line: str) -> QueuedJob:
    match = re.fullmatch(r"\s*(\d[^|]*)\|([^|]+)\|(.*)\|([^|]*)\|([^|]*)", line)
    if match is None:
        raise EnvironmentProblem(f"squeue: it said {line!r}, which is no line of the form that was asked for")
    number, state, reason, nodes, time_left = (part.strip() for part in match.groups())
    return QueuedJob(number, state, reason, nodes, time_left)


def cancel(numbers: Sequence[str]) -> None:
    """Cancel jobs; those that have ended are left alone. Running ones get SIGTERM first."""
    if numbers:
        _call("scancel", "--quiet", *numbers)
