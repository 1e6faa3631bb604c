"""Words at every level of the model, under any layout: forward hooks on the transformer layers.

A word's vector at a level is the mean over its sub-words of, at level 0, the input embedding, at levels 1..L, a layer's
output, and at level L+1, the output embedding's rows (PreAlign Eq. 1). Every pipeline stage computes the contrastive
losses of its own levels and adds them to the gradient of its hidden states, so any schedule carries them.
Context-parallel ranks compute rows of their own and know the vectors of all.

The hooks know a micro-batch of words by the tensor `tags` that travels through the layers in an argument which
decoder-only layers ignore, because under 1F1B with recomputation "the current batch" is another micro-batch's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from megalign.engine import context
from megalign.engine.device import DEVICE
from megalign.engine.groups import gather_rows
from megalign.engine.mcore import (
    TransformerConfig,
    make_viewless_tensor,
    parallel_state,
    reduce_from_tensor_model_parallel_region,
)
from megalign.prealign.loss import supervised_contrastive
from megalign.prealign.words import WordBatch

TAGS = "context_mask"  # the argument of the layers that carries the tags


@dataclass(frozen=True)
class DeviceWords:
    """A batch of words on the device, with what the hooks need to pool it; rows are those of this context-parallel rank."""

    batch: WordBatch  # with all rows
    tokens: torch.Tensor  # int64 [rows, width]
    position_ids: torch.Tensor  # int64 [rows, width]
    attention_mask: torch.Tensor  # bool [rows, 1, width, width], True = hidden
    tags: torch.Tensor  # int64 [rows, width + 1]: the word of each token, -1 for padding; then the batch's number
    lengths: torch.Tensor  # float32 [num_words, 1]: sub-words a word has
    entry: torch.Tensor  # int64 [all ranks' words]
    surface: torch.Tensor  # int64 [all ranks' words]

    @classmethod
    def of(cls, batch: WordBatch, number: int) -> DeviceWords:
        """Move a batch to the device; `number` is its place among the step's batches of words."""
        everywhere = batch.word_of_token
        lengths = torch.from_numpy(np.bincount(everywhere[everywhere >= 0], minlength=batch.num_words))
        own = context.own_rows(batch)
        words = torch.from_numpy(own.word_of_token)
        tags = torch.cat([words, torch.full((len(words), 1), number)], dim=1)
        return cls(
            batch,
            *(
                tensor.to(DEVICE)
                for tensor in (
                    torch.from_numpy(own.tokens),
                    torch.from_numpy(own.position_ids),
                    torch.from_numpy(own.segment_mask()),
                    tags,
                    lengths[:, None].float(),
                    torch.from_numpy(batch.entry),
                    torch.from_numpy(batch.surface),
                )
            ),
        )


class _AddGradient(torch.autograd.Function):
    """Passes `hidden` through; in the backward pass `loss` receives the gradient `scale`."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, loss: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(scale)
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        (scale,) = ctx.saved_tensors
        return grads[0], scale, None


def pool(hidden: torch.Tensor, tags: torch.Tensor, lengths: torch.Tensor, *, sequence_parallel: bool) -> torch.Tensor:
    """Mean over each word's sub-words, in float32; of all words, also those in other context-parallel ranks' rows.

    Args:
        hidden: [width (or this rank's slice of it), rows, hidden size].
        tags: see DeviceWords.
        lengths: float32 [num_words, 1].
        sequence_parallel: each tensor-parallel rank holds a slice of the width; the parts are summed over the ranks.
    """
    words = tags[:, :-1].T
    if sequence_parallel:
        start = parallel_state.get_tensor_model_parallel_rank() * hidden.size(0)
        words = words[start : start + hidden.size(0)]
    inside = words >= 0
    total = hidden.new_zeros(len(lengths), hidden.size(-1), dtype=torch.float32)
    total = total.index_add(0, words[inside], hidden[inside].float())
    if sequence_parallel:
        total = reduce_from_tensor_model_parallel_region(total)
    return context.sum_over_ranks(total) / lengths


def output_rows(weight: torch.Tensor, words: DeviceWords) -> torch.Tensor:
    """Mean of the output embedding's rows of each word; the vocabulary is cut over tensor-parallel ranks.

    Args:
        weight: [ids of this rank, hidden size].
        words: the batch.
    """
    first = parallel_state.get_tensor_model_parallel_rank() * weight.size(0)
    word = words.tags[:, :-1]
    here = (word >= 0) & (words.tokens >= first) & (words.tokens < first + weight.size(0))
    rows = F.embedding(words.tokens[here] - first, weight).float()
    total = rows.new_zeros(len(words.lengths), weight.size(1)).index_add(0, word[here], rows)
    if parallel_state.get_tensor_model_parallel_world_size() > 1:
        total = reduce_from_tensor_model_parallel_region(total)
    return context.sum_over_ranks(total) / words.lengths


class WordTaps:
    """Hooks that see the words of a micro-batch at every level of this rank's chunks.

    Args:
        chunks: GPTModels below DDP.
        config: from `transformer_config`.
    """

    def __init__(self, chunks: Sequence[Any], config: TransformerConfig) -> None:
        self.chunks = chunks
        self.config = config
        self.num_levels: int = config.num_layers + 2
        self.batches: list[DeviceWords] = []
        self.level_losses = torch.zeros(self.num_levels, device=DEVICE)
        self.vectors: list[dict[int, torch.Tensor]] = []
        self._temperature = 0.1
        self._weights: Sequence[float] = [1.0] * self.num_levels
        self._loss_scale = torch.ones((), device=DEVICE)

    @contextmanager
    def training(
        self, batches: Sequence[WordBatch], *, temperature: float, weights: Sequence[float], loss_scale: torch.Tensor
    ) -> Iterator[list[DeviceWords]]:
        """Add each level's weight x its contrastive loss to the gradients of the enclosed backward passes."""
        self._temperature, self._weights, self._loss_scale = temperature, weights, loss_scale
        self.level_losses.zero_()
        with self._attached(batches, self._add_loss):
            yield self.batches

    @contextmanager
    def capturing(self, batches: Sequence[WordBatch]) -> Iterator[list[DeviceWords]]:
        """Collect the words' vectors of the enclosed forward passes in `vectors`, a dict by level for each batch."""
        self.vectors = [{} for _ in batches]
        with self._attached(batches, self._capture):
            yield self.batches

    @contextmanager
    def _attached(self, batches: Sequence[WordBatch], visit: Any) -> Iterator[None]:
        self.batches = [DeviceWords.of(batch, number) for number, batch in enumerate(batches)]
        handles = []
        try:
            for chunk in self.chunks:
                for number, layer in enumerate(chunk.decoder.layers):
                    if chunk.pre_process and number == 0:
                        handles.append(layer.register_forward_pre_hook(partial(_before, visit), with_kwargs=True))
                    handles.append(layer.register_forward_hook(partial(_after, visit), with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def loss_of(self, level: int, vectors: torch.Tensor, words: DeviceWords) -> torch.Tensor:
        """The weighted contrastive loss of a level, over the words of all data-parallel ranks.

        Every rank has the value; its gradient with respect to the own words is complete, so gradients are summed, not
        averaged, over data-parallel ranks.
        """
        counts = [int(count) for count in words.batch.words_per_rank]
        loss = supervised_contrastive(
            vectors,
            words.entry,
            words.surface,
            temperature=self._temperature,
            gather=(lambda rows: gather_rows(rows, counts)) if len(counts) > 1 else None,
            local_start=words.batch.local_start,
        )
        self.level_losses[level] += loss.detach() / len(self.batches)
        return loss * (self._weights[level] / len(self.batches))

    def output_loss(self, chunk: Any, words: DeviceWords) -> torch.Tensor:
        """The loss of the last level, the output rows; on the last stage."""
        return self.loss_of(self.num_levels - 1, output_rows(_output_weight(chunk), words), words)

    def capture_output_rows(self, chunk: Any, words: DeviceWords) -> None:
        """Collect the last level's vectors; on the last stage."""
        vectors = output_rows(_output_weight(chunk), words).detach()
        self.vectors[self._number(words.tags)][self.num_levels - 1] = vectors

    def _number(self, tags: torch.Tensor) -> int:
        return int(tags[0, -1]) if len(self.batches) > 1 else 0  # reading it would stall a GPU

    def _pooled(self, hidden: torch.Tensor, tags: torch.Tensor) -> tuple[torch.Tensor, DeviceWords]:
        words = self.batches[self._number(tags)]
        return pool(hidden, tags, words.lengths, sequence_parallel=self.config.sequence_parallel), words

    def _add_loss(self, level: int, hidden: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():  # the pass that recomputation will repeat
            return hidden
        vectors, words = self._pooled(hidden, tags)
        loss = self.loss_of(level, vectors, words)
        hidden = _AddGradient.apply(hidden, loss, self._loss_scale)
        # A view would make the pipeline refuse to free the tensor after sending it.
        result: torch.Tensor = make_viewless_tensor(hidden, requires_grad=True, keep_graph=True)
        return result

    def _capture(self, level: int, hidden: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
        vectors, _ = self._pooled(hidden, tags)
        self.vectors[self._number(tags)][level] = vectors.detach()
        return hidden


def _output_weight(chunk: Any) -> torch.Tensor:
    if chunk.share_embeddings_and_output_weights:
        weight: torch.Tensor = chunk.shared_embedding_or_output_weight()
        return weight
    weight = chunk.output_layer.weight
    return weight


def _before(visit: Any, layer: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tags = kwargs.get(TAGS)
    if tags is not None:
        kwargs["hidden_states"] = visit(0, kwargs["hidden_states"], tags)
    return args, kwargs


def _after(visit: Any, layer: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
    tags = kwargs.get(TAGS)
    if tags is None:
        return output
    hidden, rest = output
    return visit(layer.layer_number, hidden, tags), rest
