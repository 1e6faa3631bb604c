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

    Raises:
        DataError: `where` was begun with another state.
        StoppedOnRequest: `engine.interrupt` said so; the state is saved.
    """
    saved = _resume(engine, where, state, start)
    for step in range(saved + 1, num_steps + 1):
        try:
            engine.interrupt()
        except StoppedOnRequest:
            if step - 1 > saved:
                checkpoint.save(engine, where, step - 1, dict(state), keep=1)
            raise
        result = take(step)
        told.write(step, result.loss, result.lr)
        if step == num_steps or (save_steps and step % save_steps == 0):
            checkpoint.save(engine, where, step, dict(state), keep=1)
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
