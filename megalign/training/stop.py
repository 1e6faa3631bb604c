"""Requests to stop: a signal sets a flag, all ranks decide together."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

import torch
import torch.distributed as dist

from megalign.engine.device import DEVICE

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """While active, SIGTERM, SIGUSR1 and SIGUSR2 are requests to save and leave."""

    def __init__(self) -> None:
        self._received = False

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = True

    def agreed(self) -> bool:
        """Whether any rank was asked to stop. A collective: all ranks call it at the same step."""
        if dist.get_world_size() == 1:
            return self._received
        flag = torch.tensor([int(self._received)], device=DEVICE)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag.item())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
