"""Steps as Slurm jobs: how many nodes each takes, which become arrays, what waits for what."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megalign.cluster.profile import SiteProfile
from megalign.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


@dataclass(frozen=True)
class SlurmStep:
    """A piece of work that one job, or one task of an array, does.

    Attributes:
        name: unique; letters, digits, '.', '_', '-'.
        arguments: module and arguments for `python -m`.
        output: folder whose checkpoints/ show progress.
        processes: tasks of srun.
        needs: names of the steps that must have ended well before.
        follows: names of the steps that must have ended, well or not.
        continues: the one step that must have ended well before, where each step of an array has its own.
        marker: file whose presence says that the step is done; None: always done anew.
        implied_by: another such file, of a step that does more.
        trains: whether it takes the resources of training.
        chained: whether several jobs one after another may continue it.
        kind: steps of one kind with the same needs and processes become one array.
    """

    name: str
    arguments: Sequence[str]
    output: Path
    processes: int = 1
    needs: Sequence[str] = ()
    follows: Sequence[str] = ()
    continues: str | None = None
    marker: Path | None = None
    implied_by: Path | None = None
    trains: bool = False
    chained: bool = False
    kind: str = ""

    def __post_init__(self) -> None:
        if not _NAME.match(self.name):
            raise ConfigError(f"{self.name!r} cannot name a job.", fix="Use letters, digits, '.', '_' and '-'.")
        for text in (*self.arguments, str(self.output), str(self.marker)):
            if re.search(r"[\x00-\x1f\x7f]", text):
                raise ConfigError(f"{text!r} holds a control character.", "Job scripts cannot carry it.")

    @property
    def is_done(self) -> bool:
        """Whether a marker says so."""
        return any(path is not None and path.exists() for path in (self.marker, self.implied_by))

    def fields(self) -> list[str]:
        """What the job script is told: name, folder, marker or '-', module and arguments."""
        return [self.name, str(self.output), str(self.marker or "-"), *self.arguments]


@dataclass(frozen=True)
class SlurmJob:
    """One sbatch: a step, or an array of steps.

    Attributes:
        name: of the script and of the job.
        steps: one, or those of the array in the order of their indices.
        nodes, tasks_per_node: its shape.
    """

    name: str
    steps: list[SlurmStep] = field(repr=False)
    nodes: int
    tasks_per_node: int

    @property
    def is_array(self) -> bool:
        """Whether it is an array."""
        return len(self.steps) > 1

    @property
    def trains(self) -> bool:
        """Whether it takes the resources of training."""
        return self.steps[0].trains

    @property
    def chained(self) -> bool:
        """Whether several jobs one after another may continue it."""
        return self.steps[0].chained

    @property
    def waits_for(self) -> list[str]:
        """Names of the steps before it."""
        own = [step.continues for step in self.steps if step.continues]
        return [*self.steps[0].needs, *self.steps[0].follows, *own]


def shape(processes: int, tasks_per_node: int) -> tuple[int, int]:
    """(nodes, tasks on each) for so many processes.

    Raises:
        ConfigError: they do not fill whole nodes.
    """
    if processes <= tasks_per_node:
        return 1, processes
    if processes % tasks_per_node:
        raise ConfigError(
            f"{processes} processes do not fill nodes of tasks_per_node {tasks_per_node}.",
            "Every node must run equally many.",
            f"Change the layout (parallel.*) to a multiple of {tasks_per_node}, or tasks_per_node of the profile.",
        )
    return processes // tasks_per_node, tasks_per_node


def jobs_of(steps: Sequence[SlurmStep], profile: SiteProfile) -> list[SlurmJob]:
    """Jobs in an order in which each stands after what it waits for.

    Steps of one kind, with the same needs and processes, become an array; one longer than the site allows becomes several.

    Args:
        steps: each after those it needs.
        profile: the site.

    Raises:
        ConfigError: a step's processes do not fit the site's nodes.
    """
    groups: dict[tuple[object, ...], list[SlurmStep]] = {}
    names = {step.name for step in steps}
    for step in steps:
        # What each continues is either among these steps, or done: an array's tasks correspond to those of another array.
        same = (
            step.kind or step.name, tuple(step.needs), tuple(step.follows), step.processes, step.trains,
            step.continues in names,
        )  # fmt: skip
        groups.setdefault(same, []).append(step)
    jobs = []
    used: set[str] = set()
    for members in groups.values():
        size = profile.max_array_size
        parts = [members[first : first + size] for first in range(0, len(members), size)]
        nodes, tasks = shape(members[0].processes, profile.tasks_per_node if members[0].trains else 1)
        for number, part in enumerate(parts, 1):
            base = part[0].name if len(members) == 1 else members[0].kind
            name = base if len(parts) == 1 else f"{base}.{number}"
            while name in used:  # arrays of one kind that need different steps
                name += "+"
            used.add(name)
            jobs.append(SlurmJob(name, part, nodes, tasks))
    return jobs
