"""Write the job scripts of a folder's work, submit them, note the job ids in slurm.json."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megalign.cluster import commands
from megalign.cluster.plan import SlurmJob, SlurmStep, jobs_of
from megalign.cluster.render import SUPERVISOR, Submission, render, supervisor, task_lines
from megalign.errors import ConfigError, DataError, EnvironmentProblem
from megalign.files import lock, make_folder, read_json_object, write_json, write_text

STATE = "slurm.json"


@dataclass(frozen=True)
class SubmittedJob:
    """A job of the last submission.

    Attributes:
        name: of the script.
        number: job id.
        link: which of a chain.
        is_array: whether `steps` are tasks of an array.
        steps: names of the steps.
    """

    name: str
    number: str
    link: int
    is_array: bool
    steps: list[str]

    def number_of(self, step: str) -> str:
        """The id of the job, or of the array's task, that does the step."""
        return f"{self.number}_{self.steps.index(step)}" if self.is_array else self.number


def submissions(folder: Path) -> list[dict[str, Any]]:
    """All submissions of a folder, oldest first; none where it was never submitted.

    Raises:
        DataError: the file that names them is damaged.
    """
    path = folder / STATE
    if not path.exists():
        return []
    try:
        known = list(read_json_object(path)["submissions"])
        for one in known:
            _jobs(one)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path} does not say what was submitted: {type(error).__name__} {error}.",
            "It was changed by hand or damaged.",
            "Look with squeue whether jobs of it run, cancel them, and remove it.",
        ) from None
    return known


def _jobs(submission: dict[str, Any]) -> list[SubmittedJob]:
    """The jobs of a submission, as slurm.json has them."""
    int(submission["number"])
    return [SubmittedJob(**job) for job in submission["jobs"]]


def last_jobs(folder: Path) -> list[SubmittedJob]:
    """The jobs of the last submission."""
    known = submissions(folder)
    return _jobs(known[-1]) if known else []


def cancelled_marker(folder: Path, number: int) -> Path:
    """The file that says that a submission was cancelled: its jobs do not requeue themselves."""
    return folder / "slurm" / f"cancelled-{number}"


def check_folder(folder: Path) -> None:
    """Refuse a folder whose name Slurm or the scripts would take apart.

    Raises:
        ConfigError: it holds quotes, control characters, '%', '$', '`' or '\\'.
    """
    found = re.search(r"[\x00-\x1f\x7f\"'%$`\\:,]", str(folder))
    if found:
        raise ConfigError(
            f"The folder {folder} has {found[0]!r} in its name.",
            "Slurm replaces or ends names there.",
            "Choose another folder.",
        )


def plan(steps: Sequence[SlurmStep], submission: Submission) -> list[tuple[SlurmJob, int]]:
    """(job, link) in the order of submission; steps that are done are left out.

    Raises:
        ConfigError: a step does not fit the site, or the folder's name is not one Slurm takes.
    """
    check_folder(submission.folder)
    check_folder(submission.directory)
    waiting = [step for step in steps if not step.is_done]
    jobs = jobs_of(waiting, submission.profile)
    return [(job, link) for job in jobs for link in range(1, (submission.chain if job.chained else 1) + 1)]


def script_name(job: SlurmJob, link: int) -> str:
    """File name of a job's script."""
    return f"{job.name}.sbatch" if link == 1 else f"{job.name}.link{link}.sbatch"


def write_scripts(planned: Iterable[tuple[SlurmJob, int]], submission: Submission) -> None:
    """Write all scripts and what they read into FOLDER/slurm."""
    for name in ("output", "records"):
        make_folder(submission.scripts / name)
    make_folder(submission.folder / "logs")
    write_text(submission.scripts / SUPERVISOR, supervisor())
    for job, link in planned:
        write_text(submission.scripts / script_name(job, link), render(job, submission, link))
        if job.is_array:
            write_text(submission.scripts / f"{job.name}.tasks", task_lines(job))


def check_idle(folder: Path) -> None:
    """Refuse a second submission while jobs of the last one are in the queue.

    Raises:
        ConfigError: they are.
    """
    jobs = last_jobs(folder)
    live = sorted(
        {job.number.split("_")[0] for job in commands.queue([j.number for j in jobs]).values() if job.is_live}
    )
    if live:
        raise ConfigError(
            f"{folder} has jobs in the queue: {', '.join(live)}.",
            "Two submissions would do one work.",
            f"Wait, or run: megalign cancel {shlex.quote(str(folder))}",
        )


def submit(planned: Sequence[tuple[SlurmJob, int]], submission: Submission) -> list[SubmittedJob]:
    """Write and submit the planned jobs with their dependencies.

    Raises:
        ConfigError: jobs of an earlier submission are in the queue, or another process submits the folder.
        EnvironmentProblem: sbatch refused a job; those submitted before it are cancelled.
    """
    make_folder(submission.scripts)
    with (submission.scripts / "lock").open("ab") as stream:
        if not lock(stream):
            raise ConfigError(
                f"Another process submits {submission.folder} right now.", "Two submissions would do one work."
            )
        return _submit(planned, submission)


def _submit(planned: Sequence[tuple[SlurmJob, int]], submission: Submission) -> list[SubmittedJob]:
    folder = submission.folder
    check_idle(folder)
    write_scripts(planned, submission)
    done: list[SubmittedJob] = []
    try:
        for job, link in planned:
            options = dependency_options(job, link, done)
            number = commands.submit(submission.scripts / script_name(job, link), options)
            done.append(SubmittedJob(job.name, number, link, job.is_array, [step.name for step in job.steps]))
            _note(submission, done)
    except EnvironmentProblem as error:
        cancelled_marker(folder, submission.number).touch()
        raise EnvironmentProblem(
            f"{error.what} (job {planned[len(done)][0].name}{_cancelled([job.number for job in done])})",
            error.why,
            error.fix
            or f"Look at {submission.scripts / script_name(*planned[len(done)])}, correct the profile, submit again.",
        ) from None
    return done


def _cancelled(numbers: list[str]) -> str:
    """Cancel jobs whose submission failed; what became of them."""
    if not numbers:
        return ""
    try:
        commands.cancel(numbers)
    except EnvironmentProblem as error:
        return f"; those before it could not be cancelled, {error.what}; do it yourself: scancel {' '.join(numbers)}"
    return f"; the {len(numbers)} jobs submitted before it are cancelled"


def _note(submission: Submission, jobs: list[SubmittedJob]) -> None:
    content = {
        "number": submission.number,
        "time": round(time.time(), 3),
        "site": submission.profile.name,
        "on_stop": submission.on_stop,
        "chain": submission.chain,
        "jobs": [vars(job) for job in jobs],
    }
    before = [known for known in submissions(submission.folder) if known["number"] != submission.number]
    write_json(submission.folder / STATE, {"submissions": [*before, content]})


def dependency_options(job: SlurmJob, link: int, submitted: Sequence[SubmittedJob]) -> list[str]:
    """What the job waits for, among the jobs submitted before it; a step that is in none of them was done before."""
    conditions: list[str] = []
    if link > 1:
        before = next(known for known in submitted if known.name == job.name and known.link == link - 1)
        conditions.append(f"afterany:{before.number}")
    for names, condition in ((job.steps[0].needs, "afterok"), (job.steps[0].follows, "afterany")):
        numbers = _last(names, submitted)
        conditions += [f"{condition}:{':'.join(numbers)}"] if numbers else []
    continued = [step.continues for step in job.steps]
    arrays = [known for known in submitted if known.is_array and known.steps == continued]
    if arrays and job.is_array:
        conditions.append(f"aftercorr:{arrays[-1].number}")
    elif numbers := _last([name for name in continued if name], submitted):
        conditions.append(f"afterok:{':'.join(numbers)}")
    return [f"--dependency={','.join(conditions)}", "--kill-on-invalid-dep=yes"] if conditions else []


def _last(steps: Sequence[str], submitted: Sequence[SubmittedJob]) -> list[str]:
    """Ids of the last jobs that do these steps, an array's own id where all its tasks do; none for steps done before."""
    wanted = set(steps)
    numbers = []
    last = {step: known for known in submitted for step in known.steps}
    for job in dict.fromkeys(last[step].number for step in steps if step in last):
        known = next(one for one in submitted if one.number == job)
        own = [step for step in known.steps if step in wanted and last[step] is known]
        numbers += [job] if len(own) == len(known.steps) else [known.number_of(step) for step in own]
    return numbers
