"""`megalign nli`: language inference on a trained run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def nli(
    run: Annotated[Path, typer.Argument(help="A run's folder; its trained weights are read and stay as they are.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Another layout, e.g. parallel.tensor=2.")] = None,
    train: Annotated[
        str, typer.Option(help="Pairs in the source language: XNLI's .tsv, .jsonl, .parquet, or a folder.")
    ] = "",
    test: Annotated[list[str] | None, typer.Option(help="LANGUAGE=FILE; may stand often.")] = None,
    num_train: Annotated[int, typer.Option(min=0, help="Only the first so many pairs; 0: all.")] = 0,
    num_test: Annotated[int, typer.Option(min=0, help="Likewise, of every language.")] = 0,
    epochs: Annotated[int, typer.Option(min=1, help="Times every pair is seen.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs in a step.")] = 32,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-5,
    max_tokens: Annotated[
        int | None, typer.Option(min=8, help="Longest pair; unset: the model's sequence length.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads each process computes with.")] = 1,
) -> None:
    """Fine-tune a run on inference in its source language, and test it in others (zero-shot cross-lingual transfer).

    The accuracies are added to RUN/scores.jsonl, the tuned weights stand in RUN/nli. The same command goes on where it was
    stopped; where all is tuned it only tests. Uses the run's layout: starts its processes here, or joins those of torchrun or srun.

    Example: `megalign nli runs/r/runs/prealign/seed0 --train multinli.train.en.tsv --test en=xnli.test.tsv --test de=xnli.test.tsv`
    """
    from megalign.cli.processes import run_worker
    from megalign.config import load_run, validate
    from megalign.config.layout import Layout
    from megalign.config.tasks import NliConfig
    from megalign.errors import ConfigError

    named = dict(one.partition("=")[::2] for one in test or [])
    if not train or not named or not all(named) or not all(named.values()):
        raise ConfigError("Files are missing.", fix="Name them: --train FILE --test LANGUAGE=FILE.")
    if len(named) < len(test or []):
        raise ConfigError("A language has two --test files.", "Only one would be read.", "Name one file a language.")
    content = {
        "kind": "files",
        "train": train,
        "test": named,
        "num_train": num_train,
        "num_test": num_test,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "max_tokens": max_tokens,
    }
    settings = validate(NliConfig, content, "the options")
    config = load_run(run / "config.yaml", [f"folder={run}", *(overrides or [])])
    arguments = ["nli", str(run), settings.model_dump_json(), f"folder={run}", *(overrides or [])]
    run_worker(arguments, Layout(config.parallel), threads)
