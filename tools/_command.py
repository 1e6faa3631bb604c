"""What the tools share: options, progress, and errors without tracebacks."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from megalign.corpus import preprocess
from megalign.errors import ConfigError, MegalignError, report_error

Input = Annotated[
    str, typer.Option("--input", help="A file, folder or quoted glob of parquet, jsonl(.gz, .zst) or txt, or hub:ID.")
]
Output = Annotated[Path, typer.Option("--output", help="The folder or file to write.")]
Languages = Annotated[
    str, typer.Option("--languages", help="Languages, with training tokens or all: en=2e6,de=all,zh.")
]
Seed = Annotated[int, typer.Option("--seed", help="Draws which parts of the input a budget takes.")]
NumWorkers = Annotated[
    int,
    typer.Option("--workers", help="Processes. Under mpiexec or srun, with python -m mpi4py, ranks are used instead."),
]
EosToken = Annotated[
    str | None, typer.Option("--eos-token", help="The tokenizer's end-of-text token, where it is unusual.")
]
OnBadRow = Annotated[str, typer.Option("--on-bad-row", help="error, skip or quarantine.")]


def command(function: Callable[..., None]) -> None:
    """Run a function as a command line. Errors a user can act on are printed and end with their exit code."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(function)
    try:
        app()
    except (MegalignError, OSError) as error:
        sys.exit(report_error(error))


def whole(number: float, option: str) -> int:
    """The whole part of a number that may be written as 2e6.

    Raises:
        ConfigError: the number is not finite.
    """
    if not math.isfinite(number):
        raise ConfigError(f"{option} is {number}.", fix="Give a finite number.")
    return int(number)


@contextmanager
def progress_bars() -> Iterator[Callable[[preprocess.Progress], None]]:
    """A bar per language, with MB of text per second and the time left; drawn on a terminal's standard error."""
    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %")]
    columns += [TextColumn("{task.fields[speed]:.1f} MB/s"), TimeElapsedColumn(), TimeRemainingColumn()]
    bars: dict[str, TaskID] = {}
    begun: dict[str, float] = {}
    last = time.perf_counter()
    with Progress(*columns, console=Console(stderr=True)) as shown:

        def update(progress: preprocess.Progress) -> None:
            nonlocal last
            begun.setdefault(progress.language, last)
            last = time.perf_counter()
            bar = bars.get(progress.language)
            if bar is None:
                bar = bars[progress.language] = shown.add_task(progress.language, speed=0.0)
            done, total = progress.tasks_done, progress.tasks
            if progress.budget_tokens is not None:
                done, total = min(progress.tokens, progress.budget_tokens), progress.budget_tokens
            speed = progress.text_bytes / 1e6 / (last - begun[progress.language])
            shown.update(bar, completed=done, total=total, speed=speed)

        yield update
