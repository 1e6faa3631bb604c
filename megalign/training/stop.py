"""Requests to stop or to save: signals, files, the clock. All ranks decide together, at a step boundary."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

import torch
import torch.distributed as dist

from megalign.console import tell
from megalign.engine.device import DEVICE
from megalign.errors import StoppedOnRequest

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
# Files in the run folder by which a person asks.
SAVE_FILE, EXIT_FILE = "save", "exit"
# A request is one number, so that the maximum over ranks picks one for all: kind, signal, and the lowest rank.
_RANKS = 1_000_000
_KIND = 1000 * _RANKS
_CLOCK, _EXIT, _SIGNAL = 1, 2, 3


@dataclass(frozen=True)
class Decision:
    """What all ranks do now.

    Attributes:
        stop: why to stop, in words; None: go on.
        save: save a checkpoint and go on.
        busy: some rank is still writing its part of a checkpoint.
    """

    stop: str | None
    save: bool
    busy: bool


class StopRequest:
    """While active, SIGTERM, SIGUSR1 and SIGUSR2 are requests to save and leave.

    Args:
        folder: where the files `save` and `exit` ask for a checkpoint, or for a checkpoint and the end; they are removed
            when seen. None: there are none.
        max_seconds: stop so many seconds after this object was made; None: no limit.
        margin_seconds: but so many seconds earlier, for the last step and the last checkpoint.
    """

    def __init__(
        self, folder: Path | None = None, *, max_seconds: float | None = None, margin_seconds: float = 0.0
    ) -> None:
        self._folder = folder
        self._max_seconds, self._margin_seconds = max_seconds, margin_seconds
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds - margin_seconds
        self._signal = 0
        self._exit_asked = self._save_asked = False

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._signal = self._signal or number

    def decide(self, *, busy: bool = False) -> Decision:
        """What all ranks do at this step boundary. One small all-reduce; all ranks call it at the same step.

        Args:
            busy: whether this rank is still writing its part of a checkpoint.
        """
        rank = dist.get_rank()
        self._save_asked |= rank == 0 and self._take(SAVE_FILE)
        values = _maximum([self._code(rank), int(self._save_asked), int(busy)])
        self._save_asked = False
        return Decision(self._reason(values[0]), bool(values[1]), bool(values[2]))

    def interrupt(self) -> None:
        """Leave a long measurement if asked to stop. A collective, as `decide`.

        Raises:
            StoppedOnRequest: on all ranks.
        """
        (code,) = _maximum([self._code(dist.get_rank())])
        if reason := self._reason(code):
            raise StoppedOnRequest(
                "Asked to stop while measuring; what was measured so far is not kept.",
                reason,
                "Run the same command again.",
            )

    def _code(self, rank: int) -> int:
        """This rank's request as a number; 0: none."""
        if self._signal:
            return _SIGNAL * _KIND + self._signal * _RANKS + (_RANKS - 1 - rank)
        if rank:  # one clock and one view of the file system decide
            return 0
        self._exit_asked = self._exit_asked or self._take(EXIT_FILE)
        if self._exit_asked:
            return _EXIT * _KIND
        return _CLOCK * _KIND if self._deadline is not None and time.monotonic() >= self._deadline else 0

    def _reason(self, code: int) -> str | None:
        kind, rest = divmod(code, _KIND)
        if kind == _SIGNAL:
            number, rank = divmod(rest, _RANKS)
            return f"Rank {_RANKS - 1 - rank} received {signal.Signals(number).name}."
        if kind == _EXIT:
            return f"There was a file {EXIT_FILE} in {self._folder}."
        if kind == _CLOCK:
            return f"train.max_seconds {self._max_seconds:g} less train.stop_margin_seconds {self._margin_seconds:g} is over."
        return None

    def _take(self, name: str) -> bool:
        """Whether the file was there; it is removed."""
        if self._folder is None:
            return False
        path = self._folder / name
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            # Seen at every step for ever: heed no file any more rather than save at every step.
            tell(f"warning: {path} is not heeded, it cannot be removed: {error}")
            self._folder = None
            return False
        return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _maximum(values: list[int]) -> list[int]:
    """The largest of all ranks' values, for each place."""
    if dist.get_world_size() == 1:
        return values
    together = torch.tensor(values, dtype=torch.int64, device=DEVICE)
    dist.all_reduce(together, dist.ReduceOp.MAX)
    return [int(value) for value in together]
