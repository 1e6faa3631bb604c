"""A bar with the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

# Between lines where the output is no terminal, such as a job's log.
LINE_SECONDS = 30.0


@contextmanager
def late_bar(unit: str) -> Iterator[Callable[[int, int], None]]:
    """A `bar` that appears with the first call, which has the number that is done and the total."""
    with ExitStack() as stack:
        updates: list[Callable[[int], None]] = []

        def update(done: int, total: int) -> None:
            if not updates:
                updates.append(stack.enter_context(bar(total, unit)))
            updates[0](done)

        yield update


@contextmanager
def bar(total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Call what this gives with the number that is done: a bar on a terminal, now and then a line elsewhere."""
    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        columns = (TextColumn(unit), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as shown:
            task = shown.add_task(unit, total=total)
            yield lambda done: shown.update(task, completed=done)
        return
    begun = told = time.monotonic()
    first: int | None = None

    def update(done: int) -> None:
        nonlocal told, first
        first = done if first is None else first
        now = time.monotonic()
        if now - told < LINE_SECONDS and done < total:
            return
        told = now
        left = f", {(total - done) * (now - begun) / (done - first):.0f} s left" if first < done < total else ""
        console.print(f"{done} of {total} {unit}{left}")

    yield update
