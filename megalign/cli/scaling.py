"""`megalign scaling`: the rungs of a ladder, and what its results say of scale."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

_TABLE_COLUMNS = 150  # where the output is no terminal

scaling_app = typer.Typer(no_args_is_help=True, help="Ladders of sizes: their rungs, and curves through their results.")


@scaling_app.command("ladder")
def ladder(
    config: Annotated[Path, typer.Argument(help="A study with a ladder, e.g. examples/scaling/ladder.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings that replace those of the file, as section.key=value.")
    ] = None,
) -> None:
    """Show what the ladder's rules make of each size: shape, parameters, tokens, batch, learning rates, FLOPs.

    Example: `megalign scaling ladder examples/scaling/ladder.yaml 'ladder.sizes=[64,128]'`
    """
    from megalign.config import load_study
    from megalign.errors import ConfigError
    from megalign.scaling.fits.findings import size_name
    from megalign.study.expand import ladder_runs

    study = load_study(config, overrides or [])
    runs = ladder_runs(study)
    if not runs:
        raise ConfigError(f"{config} has no ladder.", fix="Add a section `ladder` (see examples/scaling/ladder.yaml).")
    table = Table(box=None, pad_edge=False)
    for name in (
        "method",
        "layers",
        "width",
        "heads",
        "parameters",
        "tokens",
        "steps",
        "batch",
        "injection",
        "lr",
        "embedding lr",
        "FLOPs",
    ):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for run in runs:
        rung, model = run.rung, run.rung.model
        lr = float(rung.settings["train.optimizer.lr"])
        multiplier = float(rung.settings["train.optimizer.embedding_lr_multiplier"])
        table.add_row(
            run.method.label,
            str(model.num_layers),
            str(model.hidden_size),
            str(model.num_attention_heads),
            size_name(rung.non_embedding_parameters),
            size_name(sum(rung.tokens.values())),
            f"{rung.steps:,}",
            f"{rung.batch_tokens:,}",
            f"{rung.injection_steps:,}",
            f"{lr:.3g}",
            f"{lr * multiplier:.3g}",
            f"{rung.flops:.3g}",
        )
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _TABLE_COLUMNS)
    console.print(table)
    total = sum(run.rung.flops for run in runs) * len(study.seeds)
    console.print(
        f"{len(runs)} rungs x {len(study.seeds)} seeds = {len(runs) * len(study.seeds)} runs, {total:.3g} FLOPs of "
        "pretraining. Parameters without embeddings; injection in steps."
    )


@scaling_app.command("fit")
def fit(
    results: Annotated[Path, typer.Argument(help="A ladder's folder, or a CSV or JSON-lines table of measurements.")],
    out: Annotated[Path, typer.Option(help="Folder of the report; an older one is replaced.")],
    baseline: Annotated[str, typer.Option(help="The method that is compared with.")] = "joint",
    method: Annotated[str, typer.Option(help="The method whose gain is asked for.")] = "prealign",
    source_language: Annotated[
        str | None, typer.Option(help="Language with most text; unset: the study's, or en for a table.")
    ] = None,
    target_ratio: Annotated[
        float | None,
        typer.Option(help="Source tokens for one of a target language; unset: the largest of both methods."),
    ] = None,
    predict: Annotated[
        list[float] | None,
        typer.Option(help="Size at which curves are read; may stand often; unset: 10 x the largest."),
    ] = None,
    total_parameters: Annotated[bool, typer.Option(help="Count embeddings too.")] = False,
    confidence: Annotated[float, typer.Option(help="Coverage the intervals aim at.")] = 0.9,
    resamples: Annotated[int, typer.Option(help="Of the bootstrap.")] = 500,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
) -> None:
    """Fit losses and knowledge over size; gains, effective data, predictions; say what the data support. Writes a report.

    A table has a row for each number measured of a model, with the columns method, size, parameters, language, metric, value,
    and where they are known seed, target_ratio, target_tokens, total_parameters, flops, seconds. Metrics: perplexity or
    nll_per_token, clka (a share). OUT/measurements.csv is such a table.

    Example: `megalign scaling fit runs/scaling-ladder --out runs/scaling-ladder/fit --predict 1e7`
    """
    from megalign.scaling.fits.analysis import Question, analyse
    from megalign.scaling.fits.bootstrap import FitSettings
    from megalign.scaling.fits.measurements import read_table
    from megalign.scaling.fits.page import write_report
    from megalign.study.ladder_results import read_ladder

    settings = FitSettings(confidence, resamples, seed)
    notes: list[str] = []
    if results.is_dir():
        ladder_results = read_ladder(results)
        measurements, notes, title = ladder_results.measurements, ladder_results.notes, ladder_results.name
        source = source_language or ladder_results.source_language
    else:
        measurements, title, source = read_table(results), results.stem, source_language or "en"
    question = Question(baseline, method, source, target_ratio, total_parameters, tuple(predict or ()), settings)
    said = write_report(analyse(measurements, question), out, title, notes)
    console = Console(highlight=False, soft_wrap=True)
    console.print(said.supported)
    for text in notes:
        console.print(f"note: {text}")
    console.print(f"report: {out / 'index.html'}\nnumbers: {out / 'fits.json'}")
