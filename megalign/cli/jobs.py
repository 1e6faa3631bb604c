"""`megalign status`, `logs` and `cancel`: of a study or a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from megalign.cli.job_status import StepStatus

Folder = Annotated[Path, typer.Argument(help="Folder of a study or a run, e.g. runs/enclone-demo.")]
_STYLES = {"failed": "red", "lost": "red", "cancelled": "red", "running": "bold", "waiting": "dim", "not begun": "dim"}


def status(
    folder: Folder,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what ran, what runs, what failed and why, how far it is, and when it will be done.

    Read from the folder's files and, for submitted jobs, from squeue. Ends with 0 whatever the state is.
    """
    from megalign.cli.job_status import status_of

    found = status_of(folder)
    if as_json:
        print(json.dumps(found.as_json(), indent=2, ensure_ascii=False))
        return
    console = Console(markup=False, emoji=False)  # paths and errors may hold brackets
    counts = {
        state: sum(step.state == state for step in found.steps) for state in dict.fromkeys(s.state for s in found.steps)
    }
    summary = ", ".join(f"{number} {state}" for state, number in counts.items())
    console.print(f"{found.kind} {found.folder}: {summary}", highlight=False, soft_wrap=True)
    if found.queue:
        console.print(f"the queue cannot be asked: {found.queue}", highlight=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for column in ("step", "state", "job", "restarts", "progress", "why"):
        table.add_column(column, overflow="fold")
    for step in found.steps:
        restarts = str(step.restarts or "")
        table.add_row(
            step.step, step.state, step.job, restarts, _progress(step), step.why, style=_STYLES.get(step.state, "")
        )
    console.print(table, highlight=False)


def _progress(step: StepStatus) -> str:
    from megalign.training.metrics import format_seconds

    line = step.metrics
    if line is None:
        return ""
    text = f"{line['stage']} {line['step']}/{line['total_steps']}"
    if line.get("loss") is not None:
        text += f"  loss {float(line['loss']):.3f}"
    if step.state not in ("running", "begun"):
        return text
    text += f"  {float(line['tokens_per_second']):,.0f} tok/s"
    if not step.eta_seconds and line["stage"] == "pretrain":
        return f"{text}  measuring"
    return f"{text}  ETA {format_seconds(step.eta_seconds or 0.0)}"


def logs(
    folder: Folder,
    step: Annotated[
        str | None, typer.Argument(help="Name of a step, as `megalign status` shows it; unset: all.")
    ] = None,
    lines: Annotated[int, typer.Option(min=1, help="Lines from the end of each log.")] = 20,
) -> None:
    """Print the end of the logs: what the steps said, and what Slurm said of their jobs."""
    from megalign.cli.job_status import status_of, tail
    from megalign.cluster.submit import last_jobs
    from megalign.errors import ConfigError

    found = status_of(folder)
    names = [one.step for one in found.steps]
    if step is not None and step not in names:
        raise ConfigError(f"{found.folder} has no step {step!r}.", fix=f"Its steps are: {', '.join(names)}.")
    jobs = last_jobs(found.folder)
    for one in found.steps:
        if step not in (None, one.step):
            continue
        paths = [Path(one.log)] if one.log else []
        output = found.folder / "slurm" / "output"
        for job in jobs:
            if one.step in job.steps:
                paths.append(output / f"{job.name}-{job.number_of(one.step)}.out")
        for path in paths:
            if path.exists() and path.stat().st_size:
                print(f"==> {path} ({one.step}: {one.state}) <==")
                print("\n".join(tail(path, lines)))


def cancel(folder: Folder) -> None:
    """Cancel the jobs of a study or a run. Running ones save their state if they can; submit again to continue."""
    from megalign.cluster import commands
    from megalign.cluster.submit import cancelled_marker, last_jobs, submissions
    from megalign.errors import ConfigError

    folder = folder.resolve()
    jobs = last_jobs(folder)
    if not jobs:
        raise ConfigError(f"{folder} was not submitted to Slurm: there is nothing to cancel.")
    live = [job.number for job in commands.queue([j.number for j in jobs]).values() if job.is_live]
    if not live:
        print("no job of it is in the queue")
        return
    # First the file: a job that is asked to stop must not requeue itself.
    cancelled_marker(folder, submissions(folder)[-1]["number"]).touch()
    commands.cancel(sorted({job.number for job in jobs}, key=int))
    print(f"cancelled: {', '.join(live)}")
