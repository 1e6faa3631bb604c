"""The next step's data are made while the device computes the present step."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

Made = TypeVar("Made")


class Prefetch(Generic[Made]):
    """Makes one step ahead, in a thread of its own; used as a context manager.

    Args:
        make: step -> its data; called for one step at a time, in order.
        last: no step behind this one is made.
    """

    def __init__(self, make: Callable[[int], Made], last: int) -> None:
        self._make, self._last = make, last
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._ahead: tuple[int, Future[Made]] | None = None

    def __enter__(self) -> Prefetch[Made]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # After an error nobody needs what is being made.
        self._thread.shutdown(wait=error is None, cancel_futures=True)

    def take(self, step: int) -> Made:
        """The data of a step; the next one's are begun. Raises what `make` raised for this step."""
        if self._ahead is None or self._ahead[0] != step:
            self._ahead = (step, self._thread.submit(self._make, step))
        made = self._ahead[1].result()
        self._ahead = (step + 1, self._thread.submit(self._make, step + 1)) if step < self._last else None
        return made
