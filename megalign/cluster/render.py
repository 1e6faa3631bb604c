"""Job scripts from a plan: jinja2 fills in the template, every value is quoted for the shell."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

import jinja2

from megalign import __version__
from megalign.cluster.plan import SlurmJob
from megalign.cluster.profile import Resources, SiteProfile

OnStop = Literal["requeue", "exit"]
SUPERVISOR = "supervise.sh"


@dataclass(frozen=True)
class Submission:
    """One submission of a folder's work.

    Attributes:
        folder: the study or the run; absolute.
        directory: where the jobs run: paths in the settings are relative to it; absolute.
        profile: the site.
        number: 1 for the first submission of this folder.
        on_stop: requeue the same job after a stop, or exit with 75.
        chain: jobs one after another that continue one run.
    """

    folder: Path
    directory: Path
    profile: SiteProfile
    number: int = 1
    on_stop: OnStop = "exit"
    chain: int = 1

    @property
    def scripts(self) -> Path:
        """Where the scripts go."""
        return self.folder / "slurm"


def resources_of(job: SlurmJob, profile: SiteProfile) -> Resources:
    """What the job asks for."""
    return profile.training if job.trains else profile.single


def sbatch_options(job: SlurmJob, submission: Submission) -> list[str]:
    """Options of sbatch, without those that need job ids (dependencies)."""
    profile, wants = submission.profile, resources_of(job, submission.profile)
    gpus = f"{wants.gres}:{job.tasks_per_node}" if wants.gres else None
    running = f"%{profile.max_array_running}" if profile.max_array_running else ""
    task = "%A_%a" if job.is_array else "%j"
    values = {
        "job-name": job.name,
        "nodes": job.nodes,
        "ntasks-per-node": job.tasks_per_node,
        "cpus-per-task": wants.cpus_per_task,
        "mem-per-cpu": wants.memory_per_cpu,
        "gres": gpus,
        "time": wants.time_limit,
        "account": profile.account,
        "reservation": profile.reservation,
        "partition": wants.partition,
        "qos": wants.qos,
        "constraint": wants.constraint,
        "array": f"0-{len(job.steps) - 1}{running}" if job.is_array else None,
        "signal": f"B:USR1@{profile.signal_margin_seconds}" if job.trains else None,
    }
    options = [f"--{name}={value}" for name, value in values.items() if value is not None]
    if wants.exclusive and job.tasks_per_node == profile.tasks_per_node:
        options.append("--exclusive")
    return [
        *options,
        "--requeue" if submission.on_stop == "requeue" else "--no-requeue",
        "--open-mode=append",
        f'--output="{submission.scripts}/output/{job.name}-{task}.out"',
        f'--chdir="{submission.directory}"',
        *profile.sbatch_options,
    ]


def launch_words(job: SlurmJob, profile: SiteProfile, folder: Path) -> list[str]:
    """srun and its options, one task a process; inside the container where the site has one."""
    words = [
        "srun",
        f"--nodes={job.nodes}",
        f"--ntasks={job.nodes * job.tasks_per_node}",
        f"--ntasks-per-node={job.tasks_per_node}",
        "--distribution=block",
        "--kill-on-bad-exit=0",  # those asked to stop leave one after the other
        f"--wait={profile.exit_grace_seconds}",
        *profile.srun_options,
    ]
    container = profile.container
    if container is None:
        return words
    mounts = [*container.mounts, f"{folder}:{folder}"]
    if container.kind == "pyxis":
        return [
            *words,
            f"--container-image={container.image}",
            f"--container-mounts={','.join(mounts)}",
            *container.options,
        ]
    if container.kind == "enroot":
        return [*words, "enroot", "start", *(f"--mount={m}" for m in mounts), *container.options, container.image]
    nv = ["--nv"] if profile.training.gres and job.trains else []
    return [*words, "apptainer", "exec", *nv, *(f"--bind={m}" for m in mounts), *container.options, container.image]


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    return environment


def render(job: SlurmJob, submission: Submission, link: int = 1) -> str:
    """The script of a job."""
    profile = submission.profile
    source = (resources.files("megalign.cluster") / "job.sbatch.j2").read_text(encoding="utf-8")
    preflight = ["--preflight", str(profile.preflight_seconds)] if job.nodes * job.tasks_per_node > 1 else []
    return (
        _environment()
        .from_string(source)
        .render(
            job=job,
            version=__version__,
            profile=profile,
            environment=profile.environment,
            options=sbatch_options(job, submission),
            folder=submission.folder,
            submission=submission.number,
            link=link,
            on_stop=submission.on_stop,
            launch=launch_words(job, profile, submission.folder),
            command=[profile.python, "-m", "megalign.cluster.task", *preflight],
        )
    )


def task_lines(job: SlurmJob) -> str:
    """The file of an array's tasks."""
    return "".join("\t".join(step.fields()) + "\n" for step in job.steps)


def supervisor() -> str:
    """The part that all scripts source."""
    return (resources.files("megalign.cluster") / SUPERVISOR).read_text(encoding="utf-8")
