"""The same tasks in this process, in worker processes, or on MPI ranks: who is free takes the next one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from megalign.errors import ConfigError, DataError

Result = TypeVar("Result")


class InProcess(Executor):
    """Runs each call at once, in this process."""

    def submit(self, function: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """The result of the call, already known."""
        future: Future[Result] = Future()
        future.set_result(function(*args, **kwargs))
        return future


class Processes(ProcessPoolExecutor):
    """Worker processes that end with this one, however it ends, and leave Ctrl-C to it."""

    def __init__(self, number: int) -> None:
        # Fork is unsafe beside the threads of pyarrow and tokenizers.
        super().__init__(number, multiprocessing.get_context("spawn"), _end_with_parent)

    def submit(self, function: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """The result of the call in a worker, which is started here if need be."""
        # A new process inherits the signals that are blocked.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(function, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def terminate(self) -> None:
        """End the workers in the middle of what they do."""
        for process in list(self._processes.values()):
            process.terminate()


def _end_with_parent() -> None:
    """In a worker: end as soon as the process that started it has ended, which its queue does not tell."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Workers:
    """Where tasks run.

    Attributes:
        number: how many run at once.
    """

    def __init__(self, executor: Executor, number: int) -> None:
        self._executor, self.number = executor, number

    def unordered(self, function: Callable[..., Result], calls: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
        """Results of `function(*call)` as they are ready; at most two calls per worker wait or run at a time.

        Raises:
            DataError: a worker process died.
        """
        waiting: set[Future[Result]] = set()
        try:
            for call in calls:
                waiting.add(self._executor.submit(function, *call))
                if len(waiting) >= 2 * self.number or self.number == 1:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BrokenProcessPool:
            raise DataError(
                "A worker process was killed, perhaps for want of memory.",
                "What was finished is kept.",
                "Start the same command again to continue, with fewer workers if memory is short.",
            ) from None
        finally:
            for future in waiting:
                future.cancel()


def under_mpi() -> bool:
    """Whether the program was started as `python -m mpi4py`."""
    return "mpi4py" in sys.modules


@contextmanager
def open_workers(number: int = 1) -> Iterator[Workers | None]:
    """Workers for a run.

    Under `mpiexec -n N python -m mpi4py ...` rank 0 gets the other N - 1 ranks as workers, and those get None: they serve
    until rank 0 leaves the block. Otherwise `number` processes, or this one where it is 1.

    Raises:
        ConfigError: `number` is below 1.
    """
    if number < 1:
        raise ConfigError(f"The number of workers is {number}.", fix="Set it to 1 or more.")
    if under_mpi():
        from mpi4py import MPI
        from mpi4py.futures import MPICommExecutor

        ranks = MPI.COMM_WORLD.Get_size()
        if ranks > 1:
            with MPICommExecutor(MPI.COMM_WORLD, root=0) as pool:
                executor: Any = pool
                yield None if executor is None else Workers(executor, ranks - 1)
            return
    if number == 1:
        yield Workers(InProcess(), 1)
        return
    with Processes(number) as processes:
        try:
            yield Workers(processes, number)
        except KeyboardInterrupt:
            processes.terminate()
            raise
