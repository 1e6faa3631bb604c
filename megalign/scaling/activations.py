"""What the backward pass keeps of a forward pass, tensor by tensor.

The tensors are those that Megatron-Core's layers with the engine's local specification save: its tensor-parallel linear
layers, torch's fused attention, torch's norms. TransformerEngine's layers, which the engine takes on a GPU that has them,
save about the same. In FP8 they save the inputs of their linear layers in 8 bits instead (TransformerEngine's
`save_original_input` is off by default); what attention itself saves stays in the model's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from megalign.config.layout import Layout
from megalign.config.sections import ModelConfig, PrecisionConfig
from megalign.scaling.parameters import qkv_width

Hardware = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class MicroBatch:
    """What goes through the model at once on a data-parallel rank.

    Attributes:
        rows, width: windows and their tokens; of an injection's words, rows and width they are packed in.
        num_words: own words; 0 for text.
        num_all_words: words of all data-parallel ranks together.
    """

    rows: int
    width: int
    num_words: int = 0
    num_all_words: int = 0


@dataclass(frozen=True)
class Kept:
    """A tensor that the backward pass needs."""

    name: str
    shape: tuple[int, ...]
    element_bytes: int

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return prod(self.shape) * self.element_bytes


@dataclass(frozen=True)
class Activations:
    """Sizes of the tensors of one micro-batch on a rank of a layout.

    Args:
        model, layout, precision: what is computed.
        vocab_size: ids of the vocabulary, before padding.
        micro_batch: how much.
        hardware: on CPUs torch composes RMSNorm of small kernels and dropout of a multiplication, which keep more.
    """

    model: ModelConfig
    layout: Layout
    precision: PrecisionConfig
    vocab_size: int
    micro_batch: MicroBatch
    hardware: Hardware = "gpu"

    @property
    def element_bytes(self) -> int:
        """Bytes of a number of the model's dtype."""
        return 2 if self.precision.dtype == "bfloat16" else 4

    @property
    def num_tokens(self) -> int:
        """Tokens of the micro-batch on this rank: context-parallel ranks share windows, and rows of words."""
        return self.micro_batch.rows * self.micro_batch.width // self.layout.parallel.context

    @property
    def num_residual_tokens(self) -> int:
        """Tokens of the residual stream on this rank: cut between tensor-parallel ranks by sequence parallelism."""
        parallel = self.layout.parallel
        return self.num_tokens // parallel.tensor if parallel.sequence_parallel else self.num_tokens

    @property
    def residual_bytes(self) -> int:
        """The residual stream: [tokens, hidden size]."""
        return self.num_residual_tokens * self.model.hidden_size * self.element_bytes

    @property
    def hidden_bytes(self) -> int:
        """Hidden states of all tokens of the micro-batch, gathered under sequence parallelism."""
        return self.num_tokens * self.model.hidden_size * self.element_bytes

    @property
    def feed_forward_bytes(self) -> int:
        """Between the feed-forward layers: [tokens, feed-forward width / tensor]."""
        return self.num_tokens * self.model.ffn_hidden_size // self.layout.parallel.tensor * self.element_bytes

    @property
    def logits(self) -> int:
        """Numbers of the logits on this rank: [tokens, padded vocabulary / tensor]; words have none."""
        if self.micro_batch.num_words:
            return 0
        return self.num_tokens * self.model.padded_vocab_size(self.vocab_size) // self.layout.parallel.tensor

    def linear_input(self, name: str, tokens: int, width: int, fp8: bool) -> list[Kept]:
        """What a linear layer keeps of its input: [tokens, width] in the model's dtype or in 8 bits with their scales."""
        if not fp8:
            return [Kept(name, (tokens, width), self.element_bytes)]
        kept = [Kept(f"{name}.fp8", (tokens, width), 1)]
        if self.precision.fp8 == "mxfp8":  # a scale of 8 bits for 32 numbers
            kept.append(Kept(f"{name}.scales", (tokens, width // 32), 1))
        elif self.precision.fp8 == "blockwise":  # float32 for 128 numbers
            kept.append(Kept(f"{name}.scales", (tokens, -(-width // 128)), 4))
        return kept

    def norm(self, name: str, *, fp8: bool = False) -> list[Kept]:
        """What a norm and the linear layer behind it keep."""
        tokens, width = self.num_residual_tokens, self.model.hidden_size
        output = self.linear_input(f"{name}.output", tokens, width, fp8)
        if self.model.normalization == "LayerNorm":
            return [
                Kept(f"{name}.input", (tokens, width), self.element_bytes),
                Kept(f"{name}.mean_rstd", (tokens, 2), 4),
                *output,
            ]
        if self.hardware == "gpu":
            fused = Kept(f"{name}.input", (tokens, width), self.element_bytes)
            return [fused, Kept(f"{name}.rstd", (tokens,), 4), *output]
        # Composed of float32 operations: the input (a copy in bfloat16) and the normalised input.
        composed = [Kept(f"{name}.input", (tokens, width), 4), Kept(f"{name}.normalised", (tokens, width), 4)]
        return [*composed, Kept(f"{name}.rstd", (tokens,), 4), *output]

    def attention(self, *, fp8: bool = False) -> list[Kept]:
        """Between the query-key-value projection and the output projection."""
        model, tensor = self.model, self.layout.parallel.tensor
        heads, width = model.num_attention_heads // tensor, model.hidden_size // tensor
        kv_width = (qkv_width(model) - model.hidden_size) // 2 // tensor
        size, tokens, rotary = self.element_bytes, self.num_tokens, model.position_embedding == "rotary"
        recomputed = self.layout.parallel.recompute == "selective"
        gathers = self.layout.parallel.context > 1 and not self.micro_batch.num_words and not recomputed
        # One tensor, which both the attention and the output projection keep; in FP8 they keep one each.
        kept = [] if fp8 and recomputed else [Kept("attention.context", (tokens, width), size)]
        if fp8:
            kept += self.linear_input("attention.context", tokens, width, fp8)
        if not (gathers and rotary):
            # Where the keys and values are gathered, nothing but unturned queries needs the projection's output.
            kept.append(Kept("attention.qkv", (tokens, qkv_width(model) // tensor), size))
        if rotary:
            # Queries and keys are turned into new tensors; the values stay a view of the projection's output.
            kept.append(Kept("attention.rotated_q", (tokens, width), size))
            head_width = model.hidden_size // model.num_attention_heads
            kept.append(Kept("attention.cos_sin", (4, self.micro_batch.width, head_width), size))
            if not gathers:
                kept.append(Kept("attention.rotated_k", (tokens, kv_width), size))
        if gathers:
            kept += self._gathered(kv_width, width)
        if recomputed:
            return kept
        kept.append(Kept("attention.logsumexp", (tokens, heads), 4))
        if self.micro_batch.num_words:
            kept.append(Kept("attention.mask", (self.micro_batch.rows, *(self.micro_batch.width,) * 2), size))
        if model.attention_dropout and self.hardware == "cpu":
            # No fused kernel: the weights before and after dropout, and the mask.
            pairs = (self.micro_batch.rows, heads, *(self.micro_batch.width,) * 2)
            kept += [Kept(f"attention.{name}", pairs, size) for name in ("weights", "dropped", "dropout")]
        return kept

    def _gathered(self, kv_width: int, width: int) -> list[Kept]:
        """Under context parallelism: keys and values of whole windows, and the two chunks' results before they are joined."""
        parts, size = 2 * self.layout.parallel.context, self.element_bytes
        whole = self.num_tokens * self.layout.parallel.context
        kept = [
            Kept("attention.gathered_kv", (whole, 2 * kv_width), size),
            Kept("attention.chunks", (self.num_tokens, width), size),
        ]
        if self.hardware == "cpu":
            # Masks of the two chunks, which together see `parts + 1` chunks.
            chunk = self.micro_batch.width // parts
            kept.append(Kept("attention.masks", (chunk, (parts + 1) * chunk), size))
        return kept

    def feed_forward(self, *, fp8: bool = False) -> list[Kept]:
        """Between the feed-forward layers."""
        width = self.model.ffn_hidden_size // self.layout.parallel.tensor
        names = ["feed_forward.fc1_output"]
        if self.model.activation == "swiglu":
            names = ["feed_forward.gate", "feed_forward.linear", "feed_forward.silu"]
            # Megatron adds an offset, 0 here, to the linear half, which makes a copy.
            names.append("feed_forward.linear_offset")
        kept = [Kept(name, (self.num_tokens, width), self.element_bytes) for name in names]
        return [*kept, *self.linear_input("feed_forward.activated", self.num_tokens, width, fp8)]

    def dropout(self, num: int) -> list[Kept]:
        """Masks of `num` dropouts on hidden states."""
        if not self.model.hidden_dropout:
            return []
        size = 1 if self.hardware == "gpu" else self.element_bytes
        return [Kept("dropout", (self.num_residual_tokens, self.model.hidden_size), size)] * num

    def layer(self, *, fp8: bool = False) -> list[Kept]:
        """What one layer keeps where it is not recomputed as a whole; `fp8`: its linear layers compute in FP8."""
        return [
            *self.norm("input_norm", fp8=fp8),
            *self.attention(fp8=fp8),
            *self.norm("feed_forward_norm", fp8=fp8),
            *self.feed_forward(fp8=fp8),
            *self.dropout(2),
        ]

    def checkpointed_layer(self, *, fp8: bool = False) -> list[Kept]:
        """What one layer keeps between its passes under parallel.recompute."""
        if self.layout.parallel.recompute != "full":
            return self.layer(fp8=fp8)
        return [Kept("layer.input", (self.num_residual_tokens, self.model.hidden_size), self.element_bytes)]

    def words(self) -> list[Kept]:
        """What one level of the contrastive loss keeps, float32: its words' tokens, the pooled vectors, their gradients."""
        batch, width = self.micro_batch, self.model.hidden_size
        vectors = (batch.num_words, width)
        return [
            Kept("words.tokens", (self.num_residual_tokens, width), 4),
            Kept("words.vectors", vectors, 4),
            Kept("words.gradients", vectors, 4),
        ]

    def contrast_bytes(self, tile: int = 4096) -> int:
        """Temporaries of one level's contrastive loss: unit vectors, all ranks' words (keys), tiles of similarities.

        Args:
            tile: edge of a tile, as `megalign.prealign.loss` has it.
        """
        batch, row_bytes = self.micro_batch, self.model.hidden_size * 4
        own, everyone = min(batch.num_words, tile), min(batch.num_all_words, tile)
        keys = batch.num_all_words * row_bytes if batch.num_all_words > batch.num_words else 0
        # Unit vectors and a product beside the gradient; keys before and after they are put in order; similarities and
        # three tiles on the way to their gradient; two masks.
        return 2 * batch.num_words * row_bytes + 2 * keys + own * everyone * (4 * 4 + 2)


def total_bytes(kept: list[Kept]) -> int:
    """Their sizes together."""
    return sum(tensor.num_bytes for tensor in kept)
