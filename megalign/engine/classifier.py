"""An engine with a classification head: trains on rows with labels, and labels rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import torch

from megalign.config.layout import Layout
from megalign.config.sections import ModelConfig, OptimizerConfig, PrecisionConfig
from megalign.engine import groups
from megalign.engine.classification import LabelledBatch, label_logits, label_loss, without_head
from megalign.engine.device import DEVICE
from megalign.engine.engine import ONE, Engine, StepResult, hidden_states, positions_of
from megalign.engine.model import unwrapped
from megalign.errors import ConfigError


class ClassifierEngine(Engine):
    """An Engine whose last stage has a head for `num_labels` labels.

    Args:
        num_labels: labels.
        others: see Engine.

    Raises:
        ConfigError: parallel.context is above 1: rows with labels are not cut.
    """

    def __init__(
        self,
        model: ModelConfig,
        layout: Layout,
        precision: PrecisionConfig,
        *,
        vocab_size: int,
        seed: int,
        num_labels: int,
        optimizer: OptimizerConfig | None = None,
        num_steps: int = 1,
    ) -> None:
        if layout.parallel.context > 1:
            raise ConfigError(
                f"parallel.context is {layout.parallel.context}; a classification head reads rows that are not cut.",
                fix="Set parallel.context to 1.",
            )
        super().__init__(
            model,
            layout,
            precision,
            vocab_size=vocab_size,
            seed=seed,
            optimizer=optimizer,
            num_steps=num_steps,
            num_labels=num_labels,
        )
        self.num_labels = num_labels

    def step_labels(self, batches: Sequence[LabelledBatch], step: int) -> StepResult:
        """One optimizer step on rows with labels: the gradient of the mean cross-entropy over the global batch's rows.

        Args:
            batches: this data-parallel rank's micro-batches, of one shape each, as many on every rank.
            step: number of this step, from 1.

        Raises:
            NonFiniteStep: see `step`.
        """
        self._begin(len(batches), step)
        count = sum(float(batch.weights.sum()) for batch in batches)
        self.timer.end()
        total = float(groups.sum_over_replicas(torch.tensor([count], dtype=torch.float64, device=DEVICE)))
        self.timer.begin()

        def loss_of(batch: LabelledBatch, chunk: Any, hidden: torch.Tensor) -> tuple[Any, ...]:
            ends, labels, weights = _on_device(batch.ends, batch.labels, batch.weights)
            loss = label_loss(label_logits(chunk, hidden, ends), labels, weights)
            return loss / max(total, 1.0), ONE.clone(), {"loss": loss.detach().double()}

        reports = self._run_labels(batches, loss_of, forward_only=False)
        summed = torch.stack([report["loss"] for report in reports]).sum()[None] if reports else _no_sum()
        summed = groups.broadcast_from_last_stage(groups.sum_over_data_parallel(summed))
        loss = float(summed) / max(total, 1.0)
        grad_norm, lr = self._update(step, loss, [])
        return StepResult(loss, [loss * total], [total], [0.0], [], grad_norm, lr)

    @torch.no_grad()
    def label_logits(self, batch: LabelledBatch) -> np.ndarray:
        """What the classification head says of rows: float32 [rows, labels], on every rank that shares a model part."""

        def collect(batch: LabelledBatch, chunk: Any, hidden: torch.Tensor) -> torch.Tensor:
            return label_logits(chunk, hidden, *_on_device(batch.ends))

        for chunk in self.chunks:
            chunk.eval()
        copies = self.layout.parallel.pipeline if self.layout.parallel.virtual_pipeline else 1
        outputs = self._run_labels([batch] * copies, collect, forward_only=True)
        for chunk in self.chunks:
            chunk.train()
        logits = outputs[0] if outputs else torch.zeros(len(batch.tokens), self.num_labels, device=DEVICE)
        return groups.broadcast_from_last_stage(logits.contiguous()).cpu().numpy()

    def without_head(self) -> AbstractContextManager[None]:
        """While active, checkpoints are read as if there were no classification head: it keeps its initial weights."""
        return without_head([unwrapped(chunk) for chunk in self.chunks])

    def _run_labels(
        self, batches: Sequence[LabelledBatch], then: Callable[..., Any], *, forward_only: bool
    ) -> list[Any]:
        def forward(iterator: Iterator[Any], model: Any) -> tuple[torch.Tensor, Callable[..., Any]]:
            batch = next(iterator)
            (tokens,) = _on_device(batch.tokens)
            hidden = hidden_states(model, tokens, positions_of(tokens), None)
            chunk = unwrapped(model)
            if forward_only:
                return hidden, lambda output, non_loss_data: then(batch, chunk, output)
            return hidden, partial(then, batch, chunk)

        return self._schedule(batches, [], forward, forward_only=forward_only)


def _on_device(*arrays: np.ndarray) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(array).to(DEVICE) for array in arrays)


def _no_sum() -> torch.Tensor:
    return torch.zeros(1, dtype=torch.float64, device=DEVICE)
