"""Batches of text. No torch here: what only reads data needs none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LanguageBatch:
    """Windows of text.

    Attributes:
        tokens, labels: int64 [windows, sequence].
        loss_mask: float32 [windows, sequence].
        sources: int64 [windows]: number of each window's source; None: all of source 0.
        num_bytes: int64 [windows]: bytes of the text that its targets are; None: unknown.
    """

    tokens: np.ndarray
    labels: np.ndarray
    loss_mask: np.ndarray
    sources: np.ndarray | None = None
    num_bytes: np.ndarray | None = None

    @property
    def num_targets(self) -> float:
        """Weight of all targets."""
        return float(self.loss_mask.sum())

    def count_by_source(self, num_sources: int) -> np.ndarray:
        """Weight of the targets, and their bytes: float64 [2, sources]."""
        sources = np.zeros(len(self.tokens), dtype=np.int64) if self.sources is None else self.sources
        num_bytes = np.zeros(len(self.tokens)) if self.num_bytes is None else self.num_bytes
        weights = (self.loss_mask.sum(axis=1, dtype=np.float64), num_bytes)
        return np.stack([np.bincount(sources, weights=weight, minlength=num_sources) for weight in weights])
