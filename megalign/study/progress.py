"""What a person sees while a study runs: a live table on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from megalign.study.expand import StudyFolder
from megalign.study.graph import Step
from megalign.training.metrics import format_seconds

_LINE_SECONDS = 20.0


def last_metrics(path: Path) -> dict[str, float | str] | None:
    """The last complete line of a metrics file."""
    try:
        with path.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - 8192))
            lines = stream.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        try:
            found: dict[str, float | str] = json.loads(line)
        except json.JSONDecodeError:
            continue
        return found
    return None


class Progress:
    """Shows the state of every step.

    Args:
        folder: the study's files.
        steps: all steps.
        console: where to show.
    """

    def __init__(self, folder: StudyFolder, steps: Iterable[Step], console: Console) -> None:
        self.folder, self.steps, self.console = folder, list(steps), console
        self.state: dict[str, str] = {step.name: "waiting" for step in self.steps}
        self._started: dict[str, float] = {}
        self._took: dict[str, float] = {}
        self._begin = self._last_line = time.monotonic()
        self._live = Live(console=console, refresh_per_second=2, transient=True) if console.is_terminal else None

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def set(self, step: Step, state: str) -> None:
        """Note that a step is "running", "done", "done before", "failed", "stopped" or "skipped"."""
        now = time.monotonic()
        self.state[step.name] = state
        if state == "running":
            self._started[step.name] = now
        elif step.name in self._started:
            self._took[step.name] = now - self._started[step.name]
        if not self._live and state not in ("waiting", "done before"):
            took = f" after {format_seconds(self._took[step.name])}" if step.name in self._took else ""
            self._print(f"{step.name}: {state}{took}")

    def update(self) -> None:
        """Refresh; call it often."""
        if self._live:
            self._live.update(self._table())
        elif time.monotonic() - self._last_line > _LINE_SECONDS:
            self._last_line = time.monotonic()
            for step in self.steps:
                if self.state[step.name] == "running" and (text := self._metrics(step)):
                    self._print(f"{step.name}: {text}")

    def _print(self, text: str) -> None:
        self.console.print(
            f"[{format_seconds(time.monotonic() - self._begin):>6}] {text}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for column in ("step", "state", "time", "progress"):
            table.add_column(column)
        for step in self.steps:
            state = self.state[step.name]
            started = self._started.get(step.name)
            seconds = self._took.get(step.name, time.monotonic() - started if started is not None else None)
            style = {"running": "bold", "failed": "red", "waiting": "dim"}.get(state, "")
            shown = self._metrics(step) if state == "running" else ""
            table.add_row(step.name, state, "" if seconds is None else format_seconds(seconds), shown, style=style)
        return table

    def _metrics(self, step: Step) -> str:
        if step.run is None:
            return ""
        line = last_metrics(self.folder.run(*step.run) / "metrics.jsonl")
        if line is None:
            return ""
        left = (float(line["total_steps"]) - float(line["step"])) * float(line["step_seconds"])
        if not left and line["stage"] == "pretrain":
            return "measuring"
        loss = line.get("loss")
        shown = f"loss {float(loss):.3f}  " if loss is not None else ""
        return (
            f"{line['stage']} {line['step']}/{line['total_steps']}  {shown}"
            f"{float(line['tokens_per_second']):,.0f} tok/s  ETA {format_seconds(left)}"
        )
