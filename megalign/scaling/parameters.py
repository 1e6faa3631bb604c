"""Exact parameter counts of a model, and of what each rank of a layout holds.

Everything follows from `stage_tensors`, the list of the tensors that Megatron-Core's GPTModel builds for a stage with the
engine's settings; counts are sums over it. Memory and FLOPs are computed from the same list.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from typing import Literal

from megalign.config.layout import Layout
from megalign.config.sections import ModelConfig, ParallelConfig

Part = Literal["embedding", "position", "attention", "feed_forward", "norm", "output"]
PARTS: tuple[Part, ...] = ("embedding", "position", "attention", "feed_forward", "norm", "output")


@dataclass(frozen=True)
class ParameterTensor:
    """A parameter as one rank holds it.

    Attributes:
        name: e.g. "layers.3.self_attention.linear_qkv.weight".
        part: what it belongs to.
        shape: of this rank's shard.
        cut: tensor-parallel ranks hold different shards; otherwise each holds the same copy (norms, biases of the layers
            that sum over ranks, positions).
        copy: the tied output rows, which the last stage holds besides the first stage's embedding; not a parameter of
            its own.
    """

    name: str
    part: Part
    shape: tuple[int, ...]
    cut: bool
    copy: bool = False

    @cached_property
    def numel(self) -> int:
        """Numbers of this rank's shard."""
        return prod(self.shape)

    @cached_property
    def layer(self) -> int | None:
        """The transformer layer it belongs to, from 0; None: none."""
        return int(self.name.split(".")[1]) if self.name.startswith("layers.") else None


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters by part.

    Attributes:
        embedding: input rows, padding of the vocabulary included.
        position: learned positions.
        attention: query, key, value and output projections with biases.
        feed_forward: both linear layers (three with SwiGLU) with biases.
        norm: norms of the layers and the last one.
        output: output rows; 0 where they are tied and the embedding stands on the same rank.
    """

    embedding: int = 0
    position: int = 0
    attention: int = 0
    feed_forward: int = 0
    norm: int = 0
    output: int = 0

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(getattr(self, part) for part in PARTS)

    @property
    def non_embedding(self) -> int:
        """All but input rows, output rows and learned positions (Kaplan et al. 2020, arXiv 2001.08361)."""
        return self.attention + self.feed_forward + self.norm


def stage_chunks(model: ModelConfig, layout: Layout, stage: int) -> list[tuple[int, int]]:
    """The model chunks of pipeline stage `stage`, as (number of the chunk on a micro-batch's way, layers).

    Megatron deals the chunks out to the stages in turn, so stage p of P holds the chunks p, p + P, ...
    """
    stages = layout.parallel.pipeline
    return [(n, layers) for n, layers in enumerate(layout.layers_of_chunks(model.num_layers)) if n % stages == stage]


def stage_tensors(model: ModelConfig, vocab_size: int, layout: Layout, stage: int) -> Sequence[ParameterTensor]:
    """What every rank of pipeline stage `stage` holds.

    Args:
        model: the model.
        vocab_size: ids of the vocabulary, before padding.
        layout: the layout; it must divide the model (`Layout.check`).
        stage: from 0.
    """
    p = layout.parallel
    cut = {name: getattr(p, name) for name in ("tensor", "pipeline", "virtual_pipeline", "uneven_stages")}
    return _stage_tensors(model, vocab_size, Layout(ParallelConfig(**cut)), stage)


@lru_cache(maxsize=1024)  # a search of layouts asks for the same over and over
def _stage_tensors(model: ModelConfig, vocab_size: int, layout: Layout, stage: int) -> tuple[ParameterTensor, ...]:
    chunk_counts = layout.layers_of_chunks(model.num_layers)
    last_chunk = len(chunk_counts) - 1
    tensor = layout.parallel.tensor
    rows = model.padded_vocab_size(vocab_size) // tensor
    width = model.hidden_size
    held: list[ParameterTensor] = []
    for chunk, num_layers in stage_chunks(model, layout, stage):
        if chunk == 0:
            held.append(ParameterTensor("embedding.word_embeddings.weight", "embedding", (rows, width), True))
            if model.position_embedding == "learned":
                shape = (model.sequence_length, width)
                held.append(ParameterTensor("embedding.position_embeddings.weight", "position", shape, False))
        first_layer = sum(chunk_counts[:chunk])
        for layer in range(first_layer, first_layer + num_layers):
            held += layer_tensors(model, tensor, f"layers.{layer}.")
        if chunk == last_chunk:
            held += _norm(model, "final_layernorm")
            if not model.tied_embeddings or stage > 0:
                # Tied rows on the embedding's own stage are the embedding itself.
                held.append(
                    ParameterTensor("output_layer.weight", "output", (rows, width), True, copy=model.tied_embeddings)
                )
    return tuple(held)


def _norm(model: ModelConfig, name: str) -> Iterator[ParameterTensor]:
    shape = (model.hidden_size,)
    yield ParameterTensor(f"{name}.weight", "norm", shape, False)
    if model.normalization == "LayerNorm":
        yield ParameterTensor(f"{name}.bias", "norm", shape, False)


def layer_tensors(model: ModelConfig, tensor: int, prefix: str = "") -> list[ParameterTensor]:
    """The parameters of one transformer layer on one of `tensor` tensor-parallel ranks."""
    width = model.hidden_size
    matrices: list[tuple[str, Part, int, int, bool]] = [
        # name, part, outputs, inputs, whether the outputs are cut (else the inputs are)
        ("self_attention.linear_proj", "attention", width, width, False),
        ("self_attention.linear_qkv", "attention", qkv_width(model), width, True),
        ("mlp.linear_fc1", "feed_forward", fc1_width(model), width, True),
        ("mlp.linear_fc2", "feed_forward", width, model.ffn_hidden_size, False),
    ]
    held = [*_norm(model, f"{prefix}input_layernorm"), *_norm(model, f"{prefix}pre_mlp_layernorm")]
    for name, part, outputs, inputs, outputs_cut in matrices:
        shape = (outputs // tensor, inputs) if outputs_cut else (outputs, inputs // tensor)
        held.append(ParameterTensor(f"{prefix}{name}.weight", part, shape, True))
        if model.linear_bias:
            # A layer whose inputs are cut sums over ranks and then adds its bias, which every rank holds whole.
            held.append(ParameterTensor(f"{prefix}{name}.bias", part, shape[:1], outputs_cut))
    return held


def qkv_width(model: ModelConfig) -> int:
    """Outputs of the query, key and value projection, all heads together."""
    head_width = model.hidden_size // model.num_attention_heads
    return model.hidden_size + 2 * head_width * (model.num_query_groups or model.num_attention_heads)


def fc1_width(model: ModelConfig) -> int:
    """Outputs of the first feed-forward layer; SwiGLU has a gate of the same width."""
    return model.ffn_hidden_size * (2 if model.activation == "swiglu" else 1)


def count_rank(model: ModelConfig, vocab_size: int, layout: Layout, stage: int) -> ParameterCounts:
    """Parameters that a rank of pipeline stage `stage` holds, copies included; all ranks of a stage hold as many."""
    return _sums(stage_tensors(model, vocab_size, layout, stage))


def count_parameters(model: ModelConfig, vocab_size: int) -> ParameterCounts:
    """Parameters of the whole model: padding of the vocabulary included, tied rows once."""
    return _sums(stage_tensors(model, vocab_size, Layout(ParallelConfig()), 0))


def _sums(tensors: Sequence[ParameterTensor]) -> ParameterCounts:
    return ParameterCounts(**{part: sum(t.numel for t in tensors if t.part == part) for part in PARTS})
