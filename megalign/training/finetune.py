"""Fine-tuning: the loop that takes steps, saves, and goes on where it was stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from megalign.config.compare import differences
from megalign.engine import checkpoint
from megalign.engine.engine import Engine, StepResult
from megalign.errors import DataError, StoppedOnRequest

STAGE = "finetune"


class Told(Protocol):
    """Hears of every step."""

    def write(self, step: int, loss: float, lr: float) -> None:
        """Note a step."""


def finetune(
    engine: Engine,
    where: Path,
    state: Mapping[str, object],
    *,
    start: Callable[[], object],
    take: Callable[[int], StepResult],
    num_steps: int,
    save_steps: int | None,
    told: Told,
    fence: Callable[[], None] | None = None,
) -> None:
    """Take the remaining steps; called by every process of the layout.

    Args:
        engine: its weights are those of `start` or of the newest checkpoint in `where`.
        where: checkpoints; the last one is kept.
        state: kept with each of them; one that was begun with another is refused.
        start: loads the weights to begin with.
        take: step (from 1) -> its result.
        num_steps: steps in all.
        save_steps: steps between checkpoints; None: only the last one, and where a request to stop comes.
        told: hears of every step.
        fence: called on rank 0 right before a checkpoint is published; raises where this process may not publish any more.

    Raises:
        DataError: `where` was begun with another state.
        StoppedOnRequest: `engine.interrupt` said so; the state is saved.
    """
    saved, saver = _resume(engine, where, state, start), checkpoint.Saver(where, keep=1, fence=fence)
    for step in range(saved + 1, num_steps + 1):
        try:
            engine.interrupt()
        except StoppedOnRequest as asked:
            if step - 1 > saved:
                saver.save(engine, step - 1, dict(state))
            what = f"Asked to stop: {STAGE} is saved at step {step - 1} of {num_steps}."
            raise StoppedOnRequest(what, asked.why, "Run the same command again to continue.") from None
        result = take(step)
        told.write(step, result.loss, result.lr)
        if step == num_steps or (save_steps and step % save_steps == 0):
            saver.save(engine, step, dict(state))
            saved = step


def _resume(engine: Engine, where: Path, state: Mapping[str, object], start: Callable[[], object]) -> int:
    """Load the state to go on from; the steps taken."""
    begun = checkpoint.latest(where)
    if begun is None:
        start()
        return 0
    found = checkpoint.load(engine, begun)
    changed = [
        f"{key} was {old!r}, is {new!r}"
        for key, old, new in differences({key: found.get(key) for key in state}, dict(state))
    ]
    if changed:
        raise DataError(
            f"{where} was begun otherwise: {'; '.join(changed)}.",
            "Continuing would mix two runs.",
            f"Restore the settings, choose another folder, or remove {where} to begin anew.",
        )
    return int(found["step"])
