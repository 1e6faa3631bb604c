"""Where teaching stands: a file of losses, and now and then a line for the person who waits."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

from megalign.errors import TrainingProblem
from megalign.files import write_text

LOG_STEPS = 20
SAY_SECONDS = 10.0


class Countdown:
    """Says how far something is and how long it will take, not oftener than people read.

    Args:
        say: told a line.
        unit: what is counted.
    """

    def __init__(self, say: Callable[[str], None], unit: str) -> None:
        self.say, self.unit = say, unit
        self._first: tuple[int, float] | None = None
        self._said = time.monotonic()

    def __call__(self, done: int, total: int, more: str = "") -> None:
        """Note that so many are done."""
        now = time.monotonic()
        first, begun = self._first = self._first or (done, now)
        if done > first and now - self._said > SAY_SECONDS:
            left = (total - done) * (now - begun) / (done - first)
            self.say(f"  {self.unit} {done} of {total}{more}, {left:.0f} s left")
            self._said = now


def require_finite(step: int, loss: float) -> None:
    """Refuse to go on with a loss that is no number.

    Raises:
        TrainingProblem: it is not finite.
    """
    if not math.isfinite(loss):
        raise TrainingProblem(
            f"The loss of step {step} is {loss}.",
            "What is learned from it means nothing.",
            "Lower --lr, look at the model's weights, or set --dtype float32; write to another folder.",
        )


class TuningLog:
    """Losses of one model.

    Args:
        path: JSON lines {step, loss, lr} are appended.
        num_steps: steps in all.
        say: told the step, the loss and the time left.
    """

    def __init__(self, path: Path, num_steps: int, say: Callable[[str], None] = lambda text: None) -> None:
        self.path, self.num_steps = path, num_steps
        self._countdown = Countdown(say, "step")
        self._begun = False

    def write(self, step: int, loss: float, lr: float) -> None:
        """Note a step; most are only counted.

        Raises:
            TrainingProblem: the loss is not finite.
        """
        require_finite(step, loss)
        self._countdown(step, self.num_steps, f", loss {loss:.3f}")
        if step % LOG_STEPS and step != self.num_steps:
            return
        if not self._begun:
            self._drop_from(step)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, "loss": round(loss, 6), "lr": lr}) + "\n")

    def _drop_from(self, step: int) -> None:
        """Drop the lines of steps that a stopped run took and that are taken again."""
        self._begun = True
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []:
            try:
                if json.loads(line)["step"] < step:
                    kept.append(line + "\n")
            except ValueError:  # torn by a kill
                continue
        write_text(self.path, "".join(kept))
