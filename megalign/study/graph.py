"""The steps of a study as a graph with done-markers."""

from __future__ import annotations

from dataclasses import dataclass, field

from megalign.config import StudyConfig
from megalign.config.layout import Layout
from megalign.study.expand import StudyFolder, run_config


@dataclass(frozen=True)
class Step:
    """A step: what it waits for, what it starts, how many processes that takes.

    Attributes:
        name: unique; also the name of its marker and its log.
        arguments: for `python -m megalign.study.worker`.
        needs: names of the steps that must be done before.
        processes: processes it starts.
        run: (label, seed) where it is a run of a method.
    """

    name: str
    arguments: list[str]
    needs: list[str] = field(default_factory=list)
    processes: int = 1
    run: tuple[str, int] | None = None


def steps_of(study: StudyConfig, folder: StudyFolder) -> list[Step]:
    """All steps in an order in which each stands after what it needs: data of a seed, then its runs.

    Raises:
        ConfigError: a method does not fit the study, or the layout does not divide the model.
    """
    steps = []
    for seed in study.seeds:
        data = Step(f"data-seed{seed}", ["data", str(folder.path), str(seed)])
        steps.append(data)
        for method in study.methods:
            config = run_config(study, folder, method, seed)  # every run is checked before the first one starts
            layout = Layout(config.parallel)
            layout.check(config.model)
            steps.append(
                Step(
                    f"run-{method.label}-seed{seed}",
                    ["run", str(folder.path), method.label, str(seed)],
                    needs=[data.name],
                    processes=layout.world_size,
                    run=(method.label, seed),
                )
            )
    return steps


def marker_of(folder: StudyFolder, step: Step) -> str:
    """Where the marker of a finished step stands."""
    return str(folder.markers / f"{step.name}.json")
