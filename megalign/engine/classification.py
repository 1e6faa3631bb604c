"""A classification head on the last hidden state, under tensor, pipeline, sequence and data parallelism.

The head is one linear layer over the final-normed hidden state at one position of a row. It lives on the last pipeline stage, whole on
every tensor-parallel rank: all compute the same loss, so its gradient needs no reduction between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from megalign.engine.mcore import TransformerConfig, gather_from_sequence_parallel_region

HEAD = "classification_head"


@dataclass(frozen=True)
class LabelledBatch:
    """Rows with a label each.

    Attributes:
        tokens: int64 [rows, width], filled up at the right, where causal attention hides it.
        ends: int64 [rows]: the position whose hidden state is classified.
        labels: int64 [rows].
        weights: float32 [rows]: 0 for rows that only fill the batch up.
    """

    tokens: np.ndarray
    ends: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


def attach_head(chunk: Any, config: TransformerConfig, num_labels: int) -> None:
    """Give the last chunk a head; `engine.weights.initialise` fills it like any other weight."""
    head = torch.nn.Linear(config.hidden_size, num_labels, dtype=config.params_dtype)
    setattr(chunk, HEAD, head)


def label_logits(chunk: Any, hidden: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """float32 [rows, labels] from hidden states [width (or this rank's slice of it), rows, hidden size]."""
    if chunk.config.sequence_parallel:
        # Every rank goes on with the whole, alike: the gradient is cut, not summed.
        hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)
    rows = torch.arange(len(ends), device=hidden.device)
    logits: torch.Tensor = getattr(chunk, HEAD)(hidden[ends, rows])
    return logits.float()


def label_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sum of the weighted cross-entropies, nats."""
    return (F.cross_entropy(logits, labels, reduction="none") * weights).sum()


@contextmanager
def without_head(chunks: Sequence[Any]) -> Iterator[None]:
    """While active the chunks look as they do without a head, for loading a checkpoint that has none."""
    held = [(chunk, chunk._modules.pop(HEAD)) for chunk in chunks if HEAD in chunk._modules]
    try:
        yield
    finally:
        for chunk, head in held:
            chunk._modules[HEAD] = head
