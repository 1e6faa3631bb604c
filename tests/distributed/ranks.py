"""Run a function on the ranks of a layout, as real processes over gloo.

The processes are forked from a server that has imported torch and Megatron-Core once, so a case costs a fork and not an
import, and nothing that the test process did before (threads, process groups) reaches them. Every case has process groups
of its own, a time limit, and an end: when a rank fails or the time is over, all ranks and their children are killed and
what every rank wrote and raised is reported.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from megalign.config.layout import Layout
from megalign.config.sections import ParallelConfig

_GRACE_SECONDS = 3.0  # for the other ranks to fail by themselves, and tell, after the first one has
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["pytest", "megalign.engine.engine", "megalign.engine.checkpoint"])


class RanksFailed(AssertionError):
    """A rank raised, died or did not end in time; the message holds every rank's traceback and output."""


def layout_of(**parallel: Any) -> Layout:
    """The layout with these fields of ParallelConfig."""
    return Layout(ParallelConfig(**parallel))


def run(function: Callable[..., Any], layout: Layout, *args: Any, timeout_seconds: float = 240) -> list[Any]:
    """`function(layout, *args)` on every rank of `layout`, inside its process groups.

    Args:
        function: importable by name, with picklable arguments and result.
        layout: number of processes and their groups.
        args: equal on all ranks.
        timeout_seconds: limit for the whole case.

    Returns:
        the results in rank order.

    Raises:
        RanksFailed: as the class says.
    """
    with tempfile.TemporaryDirectory(prefix="ranks-") as name:
        folder = Path(name)
        pipes, processes = [], []
        for rank in range(layout.world_size):
            receiver, sender = _context.Pipe(duplex=False)
            process = _context.Process(target=_rank, args=(rank, layout, folder, sender, function, args))
            process.start()
            sender.close()
            pipes.append(receiver)
            processes.append(process)
        try:
            outcomes = _collect(pipes, time.monotonic() + timeout_seconds)
        finally:
            for process in processes:
                process.join(timeout=2.0)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.join()
        if all(outcome is not None and outcome[0] for outcome in outcomes):
            return [outcome[1] for outcome in outcomes]  # type: ignore[index]
        raise RanksFailed(
            "\n".join(
                f"--- rank {rank}: "
                + (
                    f"no answer within {timeout_seconds} s or died, exit code {process.exitcode}"
                    if outcome is None
                    else ""
                )
                + ("ended well" if outcome is not None and outcome[0] else "")
                + (str(outcome[1]) if outcome is not None and not outcome[0] else "")
                + f"\n{_text(folder / f'output{rank}')}"
                for rank, (outcome, process) in enumerate(zip(outcomes, processes, strict=True))
            )
        )


def _collect(pipes: list[Connection], deadline: float) -> list[tuple[bool, Any] | None]:
    outcomes: list[tuple[bool, Any] | None] = [None] * len(pipes)
    waiting = dict(zip(pipes, range(len(pipes)), strict=True))
    while waiting and (left := deadline - time.monotonic()) > 0:
        for pipe in wait(list(waiting), timeout=left):
            rank = waiting.pop(pipe)  # type: ignore[call-overload]
            with contextlib.suppress(EOFError):  # it died without a word
                outcomes[rank] = pipe.recv()  # type: ignore[union-attr]
            if outcomes[rank] is None or not outcomes[rank][0]:  # type: ignore[index]
                deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
    return outcomes


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _rank(
    rank: int, layout: Layout, folder: Path, pipe: Connection, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.setsid()  # so that this rank's own children can be ended with it
    output = os.open(folder / f"output{rank}", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # it may be killed before it ends
    import torch

    from megalign.engine import groups

    torch.set_num_threads(1)
    try:
        groups.start(
            layout,
            rank=rank,
            world_size=layout.world_size,
            local_rank=rank,
            init_method=f"file://{folder}/meeting",
        )
        result = function(layout, *args)
        groups.stop()
        pipe.send((True, result))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
