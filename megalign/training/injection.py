"""Watching an injection: the alignment at every level while it is made, and its end where there is nothing left to gain."""

from __future__ import annotations

from typing import Any

import torch

from megalign.config.sections import InjectConfig
from megalign.engine import groups
from megalign.engine.engine import Engine
from megalign.prealign.encoded import EncodedTable
from megalign.prealign.loss import AlignmentMetrics, alignment_metrics
from megalign.prealign.words import WordBatches


class InjectionMonitor:
    """Measures the same words every `inject.measure_interval` steps, and says when the injection may end.

    The words are all those of the most frequent `inject.measure_entries` entries, each encoded alone.

    Args:
        encoded: the alignment table.
        inject: the settings.
    """

    def __init__(self, encoded: EncodedTable, inject: InjectConfig) -> None:
        self.inject = inject
        entries = encoded.batch_entries[: inject.measure_entries]
        self._words = WordBatches(encoded, entries_per_batch=len(entries), seed=0).all_of(entries)
        self._num_reached = 0

    @property
    def ended(self) -> bool:
        """Whether retrieval@1 was high enough at every level often enough in a row; equal on all ranks."""
        return self.inject.stop_at_retrieval is not None and self._num_reached >= self.inject.stop_patience

    def measure(self, engine: Engine, step: int) -> dict[str, Any]:
        """The alignment after `step` for metrics.jsonl, lists by level; empty where it is not due. A collective."""
        if self.inject.measure_interval is None or step % self.inject.measure_interval:
            return {}
        (vectors,) = engine.represent([self._words])
        entry, surface = torch.from_numpy(self._words.entry), torch.from_numpy(self._words.surface)
        levels = [alignment_metrics(torch.from_numpy(level), entry, surface) for level in vectors]
        values = {f"{name}_by_level": [getattr(level, name) for level in levels] for name in AlignmentMetrics._fields}
        # Replicas hold equal weights, and yet the last bit of a sum may differ: rank 0 decides for all.
        lowest = float(groups.gather_from_all([min(values["retrieval_at_1_by_level"])])[0, 0])
        reached = self.inject.stop_at_retrieval is not None and lowest >= self.inject.stop_at_retrieval
        self._num_reached = self._num_reached + 1 if reached else 0
        return values

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"measurements_reached": self._num_reached, "ended": self.ended}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self._num_reached = int(state.get("measurements_reached", 0))
