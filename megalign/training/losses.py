"""The loss of each source of the text, over the steps since the last line of metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from megalign.engine.engine import StepResult


class SourceLosses:
    """Sums over steps: a source with a twentieth of the text is not in every batch.

    Args:
        names: of the sources, in the order in which the engine reports them.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._sums = np.zeros((3, len(self.names)))

    def add(self, result: StepResult) -> None:
        """Count a step."""
        self._sums += [result.nll_by_source, result.targets_by_source, result.bytes_by_source]

    def take(self) -> dict[str, Any]:
        """Nats a token and bits a byte of each source since this was last asked; null for one that was not read."""
        nll, targets, num_bytes = self._sums
        self._sums = np.zeros_like(self._sums)
        bits = nll / math.log(2)
        return {
            "loss_by_source": self._ratios(nll, targets),
            "bits_per_byte_by_source": self._ratios(bits, num_bytes),
        }

    def _ratios(self, sums: np.ndarray, counts: np.ndarray) -> dict[str, float | None]:
        rows = zip(self.names, sums, counts, strict=True)
        return {name: float(total / count) if count else None for name, total, count in rows}

    def state(self) -> dict[str, Any]:
        """For the checkpoint: a resumed run has the same lines."""
        return {"source_losses": self._sums.tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        """From a checkpoint; one over other sources has nothing to say of these."""
        sums = np.array(state.get("source_losses", self._sums))
        if sums.shape == self._sums.shape:
            self._sums = sums
