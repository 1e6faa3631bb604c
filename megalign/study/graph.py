"""The steps of a study as a graph with done-markers."""

from __future__ import annotations

from dataclasses import dataclass, field

from megalign.config import StudyConfig
from megalign.config.layout import Layout
from megalign.study.expand import StudyFolder, methods_of, run_config


@dataclass(frozen=True)
class Step:
    """A step: what it waits for, what it starts, how many processes that takes.

    Attributes:
        name: unique; also the name of its marker and its log.
        arguments: for `python -m megalign.study.worker`.
        needs: names of the steps that must be done before.
        processes: processes it starts.
        run: (label, seed) where it is a run of a method.
        kind: steps of one kind do the same to different things: one array on Slurm.
    """

    name: str
    arguments: list[str]
    needs: list[str] = field(default_factory=list)
    processes: int = 1
    run: tuple[str, int] | None = None
    kind: str = ""


def _data_steps(study: StudyConfig, folder: StudyFolder, seed: int) -> list[Step]:
    """Facts and tokenizer; a store of each language; their union with the alignment table, last.

    Where there is a store, only the table is made.
    """
    place = [str(folder.path), str(seed)]
    if study.corpus.kind == "store":
        return [Step(f"data-seed{seed}", ["data", *place], kind="data")]
    tokenizer = Step(f"tokenizer-seed{seed}", ["tokenizer", *place], kind="tokenizer")
    stores = [
        Step(f"store-{language}-seed{seed}", ["store", *place, language], [tokenizer.name], kind=f"stores-seed{seed}")
        for language in (study.corpus.source_language, *study.corpus.all_target_languages)
    ]
    return [
        tokenizer,
        *stores,
        Step(f"data-seed{seed}", ["data", *place], [store.name for store in stores], kind="data"),
    ]


def steps_of(study: StudyConfig, folder: StudyFolder) -> list[Step]:
    """All steps in an order in which each stands after what it needs: data of a seed, its runs, then tests of these.

    Raises:
        ConfigError: a method does not fit the study, or the layout does not divide the model.
    """
    steps: list[Step] = []
    tests: list[Step] = []  # those of a seed come after its runs
    methods = methods_of(study)
    all_data = {seed: _data_steps(study, folder, seed) for seed in study.seeds}
    if study.ladder is not None:  # one array of all runs: it waits for the data of every seed
        steps += [step for data in all_data.values() for step in data]
    for seed, data in all_data.items():
        steps += [] if study.ladder is not None else data
        for method in methods:
            config = run_config(study, folder, method, seed)  # every run is checked before the first one starts
            layout = Layout(config.parallel)
            layout.check(config.model)
            steps.append(
                Step(
                    f"run-{method.label}-seed{seed}",
                    ["run", str(folder.path), method.label, str(seed)],
                    needs=[data[-1].name] if study.ladder is None else [one[-1].name for one in all_data.values()],
                    processes=layout.world_size,
                    run=(method.label, seed),
                    kind=f"runs-seed{seed}" if study.ladder is None else "runs",
                )
            )
            if study.nli is not None:
                tests.append(
                    Step(
                        f"nli-{method.label}-seed{seed}",
                        ["nli-run", str(folder.path), method.label, str(seed)],
                        needs=[f"run-{method.label}-seed{seed}"],
                        processes=layout.world_size,
                        kind=f"nli-seed{seed}" if study.ladder is None else "nli",
                    )
                )
        if study.ladder is None:
            steps, tests = [*steps, *tests], []
    return [*steps, *tests]


def marker_of(folder: StudyFolder, step: Step) -> str:
    """Where the marker of a finished step stands."""
    return str(folder.markers / f"{step.name}.json")
