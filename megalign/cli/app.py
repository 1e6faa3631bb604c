"""`megalign`: studies, single runs, stores, and what this machine can do."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from megalign import __version__
from megalign.cli.checkpoint import app as checkpoint_app
from megalign.cli.clika import clika_app
from megalign.cli.crossin import app as crossin_app
from megalign.cli.harness import lm_eval
from megalign.cli.huggingface import export, import_
from megalign.cli.inference import nli
from megalign.cli.jobs import cancel, logs, status
from megalign.cli.plan import plan
from megalign.cli.scaling import scaling_app
from megalign.cli.settings import settings
from megalign.cli.submit import submit
from megalign.console import outlive_reader
from megalign.errors import MegalignError, report_error

app = typer.Typer(
    name="megalign",
    help="Pretrain multilingual language models whose words are aligned before they are learned.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
study_app = typer.Typer(no_args_is_help=True, help="Compare methods: data, runs and report from one YAML file.")
store_app = typer.Typer(no_args_is_help=True, help="Token stores.")
app.add_typer(study_app, name="study")
app.add_typer(store_app, name="store")
app.add_typer(crossin_app, name="crossin")
app.add_typer(clika_app, name="clika")
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(scaling_app, name="scaling")
for _command in (submit, status, logs, cancel):
    app.command()(_command)
app.command()(export)
app.command("import")(import_)
app.command("lm-eval")(lm_eval)
app.command("nli")(nli)
app.command()(plan)
app.command()(settings)

Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings that replace those of the file, as section.key=value.")
]
_LOG_COLUMNS = 120
Threads = Annotated[int, typer.Option(min=1, help="CPU threads each process computes with.")]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@study_app.command("run")
def study_run(
    config: Annotated[
        Path, typer.Argument(help="The study, e.g. examples/enclone/demo.yaml; keys: `megalign settings study`.")
    ],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Folder in which the study gets a folder of its own.")] = Path("runs"),
) -> None:
    """Build the data, train and measure every method and seed, write the report. Rerun to continue.

    Example: `megalign study run examples/enclone/demo.yaml train.steps=50 parallel.tensor=2`

    The folder is OUT/NAME, with the overrides in its name where there are any. What is done is not done again.
    """
    from megalign.config import load_study
    from megalign.study.expand import folder_for
    from megalign.study.runner import begin, default_processes, run_steps

    study = load_study(config, overrides or [])
    folder = folder_for(study, overrides or [], out)
    console = _console()
    steps = begin(study, folder)
    console.print(f"study {study.name}: {len(steps)} steps in {folder.path}", highlight=False, soft_wrap=True)
    try:
        run_steps(steps, folder, max_processes=default_processes(study), console=console)
    except MegalignError:
        if any(folder.path.glob("runs/*/seed*/scores.jsonl")):
            _report(folder.path, console)
        raise
    _report(folder.path, console)
    if study.ladder is not None:
        fit = f"megalign scaling fit {folder.path} --out {folder.path / 'scaling'}"
        console.print(f"scale:  {fit}", highlight=False, soft_wrap=True)


@study_app.command("report")
def study_report(folder: Annotated[Path, typer.Argument(help="A study's folder, e.g. runs/enclone-demo.")]) -> None:
    """Write the report of a study from the scores that are there: HTML page, PNG figures, CSV tables."""
    _report(folder, _console())


def _console() -> Console:
    """Standard output; where it is no terminal (a log, a pipe) wide enough for the tables."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=_LOG_COLUMNS)


def _report(folder: Path, console: Console) -> None:
    from megalign.study.report import build_report, console_table

    report = build_report(folder)
    console.print(console_table(report))
    console.print(f"report: {report.page}", highlight=False, soft_wrap=True)
    console.print(f"table:  {folder / 'report' / 'summary.csv'}", highlight=False, soft_wrap=True)


def _run(kind: str, config: Path, overrides: list[str] | None, threads: int) -> None:
    """Train or measure in the processes of the layout: those we are one of, or new ones on this machine."""
    from megalign.cli.processes import run_worker
    from megalign.config import load_run
    from megalign.config.layout import Layout

    run = load_run(config, overrides or [])  # wrong settings end here, before processes start
    layout = Layout(run.parallel)
    layout.check(run.model)
    arguments = [kind, str(config), *(overrides or [])]
    run_worker(arguments, layout, threads)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A run's YAML file, as `megalign settings run` prints one.")],
    overrides: Overrides = None,
    threads: Threads = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and count the run; start and write nothing.")
    ] = False,
    device: Annotated[
        str | None,
        typer.Option(
            help="Dry run: what each rank computes on, e.g. h100 (a100, h200, b200, mi300x, or track.devices)."
        ),
    ] = None,
    mfu: Annotated[
        float | None, typer.Option(min=0.001, max=1.0, help="Dry run: share of the device's peak to expect, e.g. 0.4.")
    ] = None,
    tokens_per_second: Annotated[
        float | None, typer.Option(min=1e-9, help="Dry run: speed of pretraining, all ranks together.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Dry run: also write the numbers here.")] = None,
) -> None:
    """Train one run: pretraining, and the injection before, during or after it. Rerun to continue.

    Starts the processes of the layout on this machine; under torchrun or srun it joins those.

    `--dry-run` checks settings, layout, data and table as a start does, with the same errors and exit codes, and says what
    the run would be: parameters, batches, tokens and epochs of every source, FLOPs, memory of a rank by part, checkpoints,
    time. The time comes from --tokens-per-second, or --device and --mfu, or the metrics that the run's folder already has.

    Example: `megalign train run.yaml --dry-run --device h100 --mfu 0.4 parallel.tensor=2`
    """
    from megalign.cli.dry_run import Assumptions, refuse_without_dry_run, show

    given = Assumptions(device, mfu, tokens_per_second, json_file)
    if dry_run:
        show(config, overrides or [], given, Console())
        return
    refuse_without_dry_run(given)
    _run("train", config, overrides, threads)


@app.command("eval")
def evaluate(
    config: Annotated[Path, typer.Argument(help="The YAML file the run was trained with.")],
    overrides: Overrides = None,
    threads: Threads = 1,
) -> None:
    """Measure a trained run: perplexity, bits per byte, knowledge application, alignment; into its scores.jsonl."""
    _run("eval", config, overrides, threads)


@store_app.command("check")
def store_check(
    store: Annotated[Path, typer.Argument(help="Folder of a token store.")],
    quick: Annotated[bool, typer.Option("--quick", help="Sizes and structure only, no checksums or ids.")] = False,
) -> None:
    """Check a token store: shards, checksums, offsets, ids, word flags. Ends with 3 where something is wrong."""
    from megalign.corpus.store import check_store
    from megalign.errors import DataError

    problems = check_store(store, deep=not quick)
    for problem in problems:
        print(f"{problem.unit}: {problem.kind}: {problem.message}")
    if problems:
        raise DataError(f"{store} has {len(problems)} problems.", fix="Build the damaged units again.")
    print(f"{store}: no problem found")


@app.command()
def doctor() -> None:
    """Say what is installed, which path the engine will take here, and why."""
    from megalign.cli.doctor import diagnosis

    _console().print(diagnosis())


def main() -> None:
    """Entry point of the `megalign` command."""
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)  # of torch to Megatron: nothing a user can do about
    outlive_reader()
    try:
        app()
    except (MegalignError, OSError) as error:
        sys.exit(report_error(error, int(os.environ.get("RANK", "0"))))


if __name__ == "__main__":
    main()
