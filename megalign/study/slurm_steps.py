"""A study's graph, or a run, as the steps of Slurm jobs."""

from __future__ import annotations

from pathlib import Path

from megalign.cluster.plan import SlurmStep
from megalign.config import RunConfig, StudyConfig
from megalign.config.layout import Layout
from megalign.study.expand import StudyFolder
from megalign.study.graph import Step, marker_of, steps_of

_WORKER = "megalign.study.worker"


def study_steps(study: StudyConfig, folder: StudyFolder) -> list[SlurmStep]:
    """The study's graph, and the report of whatever has scores at its end.

    A run is two steps: training, which may be chained, and after it the scores. Here both are one step of the study's: the
    second finds the training done.

    Raises:
        ConfigError: a method does not fit the study, or the layout does not divide the model.
    """
    steps: list[SlurmStep] = []
    for step in steps_of(study, folder):
        steps += _run(step, folder) if step.run else [_data(step, folder)]
    report = ["megalign.cli", "study", "report", str(folder.path)]
    last = [step.name for step in steps if not step.chained]
    return [*steps, SlurmStep("report", report, folder.path, follows=last)]


def _data(step: Step, folder: StudyFolder) -> SlurmStep:
    marker = Path(marker_of(folder, step))
    return SlurmStep(
        step.name, [_WORKER, *step.arguments], folder.path, needs=step.needs, marker=marker, kind=step.kind
    )


def _run(step: Step, folder: StudyFolder) -> list[SlurmStep]:
    assert step.run is not None
    marker = Path(marker_of(folder, step))
    train = SlurmStep(
        step.name.replace("run-", "train-", 1),
        [_WORKER, "train-run", *step.arguments[1:]],
        folder.run(*step.run),
        processes=step.processes,
        needs=step.needs,
        marker=marker.with_name(marker.name.replace("run-", "train-", 1)),
        implied_by=marker,
        trains=True,
        chained=True,
        kind=step.kind.replace("runs", "train", 1),
    )
    score = SlurmStep(
        step.name,
        [_WORKER, *step.arguments],
        folder.run(*step.run),
        processes=step.processes,
        continues=train.name,
        marker=marker,
        trains=True,
        kind=step.kind.replace("runs", "evaluate", 1),
    )
    return [train, score]


def run_steps(run: RunConfig, folder: Path) -> list[SlurmStep]:
    """One step: training. Its settings stand in FOLDER/slurm/run.yaml.

    Raises:
        ConfigError: the layout does not divide the model.
    """
    layout = Layout(run.parallel)
    layout.check(run.model)
    arguments = [_WORKER, "train", str(folder / "slurm" / "run.yaml")]
    return [SlurmStep("train", arguments, folder, processes=layout.world_size, trains=True, chained=True)]
