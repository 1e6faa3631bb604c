"""`megalign submit`: a run, or a study's graph, as Slurm jobs."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

if TYPE_CHECKING:
    from megalign.cluster.plan import SlurmStep


def submit(
    config: Annotated[Path, typer.Argument(help="A study's or a run's YAML file.")],
    profile: Annotated[
        Path,
        typer.Option(
            help="The site's YAML file, e.g. slurm/profiles/gpu_cluster.yaml; keys: `megalign settings site`."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Settings that replace those of the file, as section.key=value; profile.key=value: the site's."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder in which a study gets a folder of its own.")] = Path("runs"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the job scripts and what waits for what; write and submit nothing.")
    ] = False,
    chain: Annotated[
        int,
        typer.Option(
            min=1, max=1000, help="So many jobs one after another continue each run, where requeueing is not allowed."
        ),
    ] = 1,
    requeue: Annotated[
        bool, typer.Option("--requeue", help="A job that was stopped, or lost a node, is queued again and continues.")
    ] = False,
) -> None:
    """Submit a run as one job, or a study as its graph: data, training, scores (arrays all), and the report.

    The scripts stand in FOLDER/slurm, the job ids in FOLDER/slurm.json. Before the time limit, and on SIGTERM, a job saves
    and is continued with --requeue or --chain. It is given up after profile.max_stalls restarts without a new checkpoint.
    Submit again to continue what is not done; `megalign status`, `logs` and `cancel` take the folder.

    Example: `megalign submit examples/enclone/demo.yaml --profile slurm/profiles/cpu_cluster.yaml --requeue train.steps=50`
    """
    from megalign.cluster import submit as jobs
    from megalign.cluster.profile import load_profile
    from megalign.cluster.render import Submission, render, task_lines
    from megalign.config.load import parse_override
    from megalign.errors import ConfigError

    if requeue and chain > 1:
        raise ConfigError(
            "--requeue and --chain are two ways to continue a run.", fix="Use --chain where the site does not requeue."
        )
    given = overrides or []
    site = load_profile(
        profile, [parse_override(text.removeprefix("profile.")) for text in given if text.startswith("profile.")]
    )
    given = [text for text in given if not text.startswith("profile.")]
    work = _work(config, given, out)
    number = len(jobs.submissions(work.folder)) + 1
    submission = Submission(work.folder, Path.cwd(), site, number, "requeue" if requeue else "exit", chain)
    planned = jobs.plan(work.steps, submission)
    if dry_run:
        for job, link in planned:
            waits = job.waits_for
            print(f"# ===== {jobs.script_name(job, link)}" + (f", after {', '.join(waits)}" if waits else ""))
            print(render(job, submission, link))
            if job.is_array:
                print(f"# ===== {job.name}.tasks\n{task_lines(job)}")
        return
    jobs.check_idle(work.folder)
    work.prepare()
    for done in jobs.submit(planned, submission):
        size = f" ({len(done.steps)} tasks)" if done.is_array else ""
        print(f"job {done.number}: {done.name}{size}" + (f", link {done.link}" if done.link > 1 else ""))
    print(f"folder: {work.folder}\nlook: megalign status {shlex.quote(str(work.folder))}")


@dataclass(frozen=True)
class _Work:
    """What is submitted: steps in a folder, and what must be written there before."""

    steps: list[SlurmStep]
    folder: Path
    prepare: Callable[[], object]


def _work(config: Path, overrides: list[str], out: Path) -> _Work:
    """The work of a YAML file: a study's where it compares methods, else a run's."""
    from megalign.config import load_run, load_study
    from megalign.config.load import read_yaml
    from megalign.files import write_text
    from megalign.study.expand import StudyFolder, folder_for
    from megalign.study.runner import begin
    from megalign.study.slurm_steps import run_steps, study_steps

    if "methods" in read_yaml(config):
        study = load_study(config, overrides)
        folder = StudyFolder(folder_for(study, overrides, out).path.resolve())
        return _Work(study_steps(study, folder), folder.path, lambda: begin(study, folder))
    run = load_run(config, overrides)
    path = Path(run.folder).resolve()
    settings = yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return _Work(run_steps(run, path), path, lambda: write_text(path / "slurm" / "run.yaml", settings))
