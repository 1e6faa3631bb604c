"""Batches of text. No torch here: what only reads data needs none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LanguageBatch:
    """Windows of text: int64 `tokens` and `labels`, float32 `loss_mask`, all [windows, sequence]."""

    tokens: np.ndarray
    labels: np.ndarray
    loss_mask: np.ndarray

    @property
    def num_targets(self) -> float:
        """Weight of all targets."""
        return float(self.loss_mask.sum())
