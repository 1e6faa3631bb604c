"""Where teaching stands: a file of losses, and now and then a line for the person who waits."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

LOG_STEPS = 20
SAY_SECONDS = 10.0


class TuningLog:
    """Losses of one model.

    Args:
        path: JSON lines {step, loss, lr} are appended.
        num_steps: steps in all.
        say: told the step, the loss and the time left.
    """

    def __init__(self, path: Path, num_steps: int, say: Callable[[str], None] = lambda text: None) -> None:
        self.path, self.num_steps, self.say = path, num_steps, say
        self._said = time.monotonic()
        self._first: tuple[int, float] | None = None

    def write(self, step: int, loss: float, lr: float) -> None:
        """Note a step; most are only counted."""
        now = time.monotonic()
        self._first = self._first or (step, now)
        if step % LOG_STEPS and step != self.num_steps:
            return
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, "loss": round(loss, 6), "lr": lr}) + "\n")
        if now - self._said > SAY_SECONDS and step > self._first[0]:
            left = (self.num_steps - step) * (now - self._first[1]) / (step - self._first[0])
            self.say(f"  step {step} of {self.num_steps}, loss {loss:.3f}, {left:.0f} s left")
            self._said = now
