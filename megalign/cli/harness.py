"""`megalign lm-eval`: tasks of lm-evaluation-harness on a run's checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def lm_eval(
    run: Annotated[Path, typer.Argument(help="A run's folder; its newest checkpoint is read.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Another layout to read under, e.g. parallel.tensor=1.")
    ] = None,
    tasks: Annotated[str, typer.Option(help="Tasks or groups, comma-separated, e.g. xnli,xstorycloze.")] = "",
    out: Annotated[Path, typer.Option(help="Folder of the results; the same one goes on where it was stopped.")] = Path(
        "runs/lm-eval"
    ),
    include_path: Annotated[Path | None, typer.Option(help="Folder with more task files.")] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="Default: the task's.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many documents of each task.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows computed at once.")] = 16,
    language: Annotated[str | None, typer.Option(help="Language of the tasks, for cloned languages.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16; default: as trained.")] = None,
    gen_kwargs: Annotated[str | None, typer.Option(help="Of generating tasks, e.g. max_gen_toks=32.")] = None,
    allow_download: Annotated[bool, typer.Option("--allow-download", help="May fetch the tasks' data.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads each process computes with.")] = 1,
) -> None:
    """Evaluate a run with lm-evaluation-harness, without exporting it.

    Uses the run's tensor and pipeline layout: starts its processes on this machine, or joins those of torchrun or srun.
    Task data come from local files: those in the cache of `datasets`, or data_files of a task's YAML file.

    Example: `megalign lm-eval runs/demo/runs/prealign/seed0 --tasks xnli_en --out runs/demo-xnli`
    """
    from megalign.cli.processes import run_worker
    from megalign.config import validate
    from megalign.config.layout import Layout
    from megalign.errors import ConfigError
    from megalign.evaluation.harness_run import HarnessSettings, go_offline, reading
    from megalign.files import make_folder

    named = [name for name in tasks.split(",") if name]
    if not named:
        raise ConfigError("No tasks are named.", fix="Name some: --tasks xnli_en,xstorycloze_zh.")
    content = {
        "out": str(out),
        "tasks": named,
        "include_path": str(include_path) if include_path else None,
        "num_fewshot": num_fewshot,
        "limit": limit,
        "batch_size": batch_size,
        "language": language,
        "dtype": dtype,
        "gen_kwargs": gen_kwargs,
        "allow_download": allow_download,
    }
    settings = validate(HarnessSettings, content, "the options")
    config = reading(run, overrides or [], dtype)
    make_folder(out)
    if not allow_download:
        go_offline()
    arguments = ["lm-eval", str(run), settings.model_dump_json(), *(overrides or [])]
    run_worker(arguments, Layout(config.parallel), threads)
