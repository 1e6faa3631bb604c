"""Floating-point operations of a model, and what share of the hardware's peak a speed is (MFU).

Conventions, the common ones, so that numbers can be held against those of papers and other frameworks:

- A product of [m, k] and [k, n] is 2 m k n operations; nothing but matrix products is counted (norms, activations and the
  softmax are below 1 %), nor is the look-up of embeddings.
- The backward pass costs twice the forward pass.
- *Model FLOPs*, from which MFU follows (PaLM, arXiv 2204.02311, appendix B): forward plus backward, attention as if every
  token saw the whole window, no recomputation. `causal=True` counts only the pairs that causal attention needs, (s + 1) / 2
  a token instead of s: what a kernel that skips the rest computes.
- *Hardware FLOPs* (Korthikanti et al., arXiv 2205.05198): recomputed products count too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megalign.config.sections import ModelConfig
from megalign.scaling.parameters import fc1_width, qkv_width


@dataclass(frozen=True)
class ForwardFlops:
    """Operations of a forward pass for one token.

    Attributes:
        projections: query, key, value and output matrices of all layers.
        attention: queries times keys, and weights times values, of all layers.
        feed_forward: both linear layers (three matrices with SwiGLU).
        output: logits over the padded vocabulary.
    """

    projections: int
    attention: float
    feed_forward: int
    output: int

    @property
    def layers(self) -> float:
        """All but the logits."""
        return self.projections + self.attention + self.feed_forward

    @property
    def total(self) -> float:
        """All of it."""
        return self.layers + self.output


def forward_flops(
    model: ModelConfig, vocab_size: int, *, sequence_length: int | None = None, causal: bool = False
) -> ForwardFlops:
    """Operations of a forward pass for one token of a window.

    Args:
        model: the model.
        vocab_size: ids of the vocabulary, before padding.
        sequence_length: tokens of the window; None: the model's.
        causal: count only the pairs of tokens that causal attention needs.
    """
    length = sequence_length or model.sequence_length
    seen = (length + 1) / 2 if causal else length
    width, layers = model.hidden_size, model.num_layers
    return ForwardFlops(
        projections=layers * 2 * width * (qkv_width(model) + width),
        attention=layers * 4 * width * seen,
        feed_forward=layers * 2 * width * (fc1_width(model) + model.ffn_hidden_size),
        output=2 * width * model.padded_vocab_size(vocab_size),
    )


def training_flops_per_token(model: ModelConfig, vocab_size: int, *, causal: bool = False) -> float:
    """Model FLOPs of training for one token: three times the forward pass."""
    return 3 * forward_flops(model, vocab_size, causal=causal).total


def word_training_flops_per_token(model: ModelConfig, vocab_size: int, row_width_tokens: int) -> float:
    """Model FLOPs of training for one token of an injection's words, in rows of that width; words have no logits."""
    return 3 * forward_flops(model, vocab_size, sequence_length=row_width_tokens).layers


def hardware_flops_per_token(
    model: ModelConfig, vocab_size: int, recompute: Literal["none", "selective", "full"], *, causal: bool = False
) -> float:
    """What is computed for a token with activation recomputation.

    Full recomputation runs the layers once more, selective recomputation the core of the attention.
    """
    forward = forward_flops(model, vocab_size, causal=causal)
    again = {"none": 0.0, "selective": forward.attention, "full": forward.layers}[recompute]
    return 3 * forward.total + again


def achieved_flops(tokens_per_second: float, flops_per_token: float, num_devices: int) -> float:
    """Operations a second on each device."""
    return tokens_per_second * flops_per_token / num_devices


def utilisation(
    tokens_per_second: float, flops_per_token: float, num_devices: int, peak_flops: float | None
) -> float | None:
    """Share of the devices' dense peak that is used: MFU with model FLOPs, HFU with hardware FLOPs.

    Args:
        tokens_per_second: of the whole run.
        flops_per_token: see the module.
        num_devices: devices of the run.
        peak_flops: dense peak of one device in the run's dtype, operations a second; None: unknown.

    Returns:
        the share, or None where the peak is unknown.
    """
    if not peak_flops:
        return None
    return achieved_flops(tokens_per_second, flops_per_token, num_devices) / peak_flops
