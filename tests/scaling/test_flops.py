"""FLOPs against torch's count of a real forward and backward pass, and shares of the peak."""

from __future__ import annotations

from typing import Any

import pytest
from counted_flops import counted
from ranks import layout_of, run

from megalign.config import MODELS, ModelConfig, model_preset
from megalign.scaling.flops import (
    achieved_flops,
    forward_flops,
    hardware_flops_per_token,
    training_flops_per_token,
    utilisation,
)
from megalign.scaling.parameters import count_parameters

_SHAPE: dict[str, Any] = {
    "num_layers": 3,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "ffn_hidden_size": 192,
    "sequence_length": 48,
}
GPT = ModelConfig(**_SHAPE)
LLAMA = ModelConfig(
    **_SHAPE,
    num_query_groups=2,
    position_embedding="rotary",
    normalization="RMSNorm",
    activation="swiglu",
    linear_bias=False,
    tied_embeddings=False,
)


@pytest.mark.parametrize("model", [GPT, LLAMA], ids=["gpt", "llama"])
@pytest.mark.parametrize(
    "parallel",
    [{}, {"recompute": "full"}, {"recompute": "selective"}, {"tensor": 2}, {"pipeline": 3}, {"data": 2}],
    ids=str,
)
def test_flops_are_those_of_a_counted_step(model: ModelConfig, parallel: dict[str, Any]) -> None:
    layout, rows = layout_of(**parallel), 4
    ranks = run(counted, layout, model, 500, rows)
    tokens = rows * model.sequence_length
    forward, training = (sum(column) / tokens for column in zip(*ranks, strict=True))
    assert forward_flops(model, 500).total == pytest.approx(forward, rel=0.01)
    assert hardware_flops_per_token(model, 500, layout.parallel.recompute) == pytest.approx(training, rel=0.01)
    if layout.parallel.recompute == "none":
        assert training_flops_per_token(model, 500) == pytest.approx(training, rel=0.01)


@pytest.mark.parametrize("preset", MODELS)
def test_model_flops_are_palm_s(preset: str) -> None:
    """6 N + 12 L h s for a token, N without the parameters that are no matrices (PaLM, appendix B)."""
    model = ModelConfig(**model_preset(preset))
    counts = count_parameters(model, 50257)
    matrices = counts.attention + counts.feed_forward + counts.embedding
    palm = 6 * matrices + 12 * model.num_layers * model.hidden_size * model.sequence_length
    assert training_flops_per_token(model, 50257) == pytest.approx(palm, rel=0.005)  # biases stand in N


def test_causal_attention_counts_the_pairs_that_are_seen() -> None:
    whole, causal = (forward_flops(GPT, 500, causal=value) for value in (False, True))
    seen = sum(range(1, 49))  # the first token sees itself, the last one all 48
    assert causal.attention * 48**2 == pytest.approx(whole.attention * seen)
    assert causal.layers - causal.attention == whole.layers - whole.attention
    assert forward_flops(GPT, 500, sequence_length=96).attention == 2 * whole.attention


def test_utilisation_is_a_share_of_the_peak_of_all_devices() -> None:
    assert achieved_flops(1000.0, 6e9, 4) == 1.5e12
    assert utilisation(1000.0, 6e9, 4, 3e12) == pytest.approx(0.5)
    assert utilisation(1000.0, 6e9, 4, None) is None
