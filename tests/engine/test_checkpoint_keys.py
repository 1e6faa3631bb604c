"""Names in checkpoints are those of TransformerEngine's layers, so that either kind of layers reads what the other wrote.

The lists were recorded from Megatron-Core's TransformerEngine spec (TELayerNormColumnParallelLinear holds the norm before
it; gpt_layer_specs.py), which cannot be built without a GPU.
"""

from __future__ import annotations

import cases
import pytest
import ranks

from megalign.engine.model import unwrapped
from megalign.engine.weights import sharded_parameters

MATRICES = ["self_attention.linear_proj", "self_attention.linear_qkv", "mlp.linear_fc1", "mlp.linear_fc2"]
# Linear layers with the norm in front of them inside.
NORMED = ["self_attention.linear_qkv", "mlp.linear_fc1"]
EMBEDDING = "embedding.word_embeddings.weight"
OF_LAYERS = {
    "gpt": [f"{name}.{part}" for name in MATRICES for part in ("weight", "bias")]
    + [f"{name}.layer_norm_{part}" for name in NORMED for part in ("weight", "bias")],
    "llama": [f"{name}.weight" for name in MATRICES] + [f"{name}.layer_norm_weight" for name in NORMED],
}
OTHERS = {
    "gpt": [EMBEDDING, "embedding.position_embeddings.weight", "decoder.final_layernorm.weight", "decoder.final_layernorm.bias"],
    "llama": [EMBEDDING, "output_layer.weight", "decoder.final_layernorm.weight"],
}  # fmt: skip


@pytest.mark.parametrize("kind", OF_LAYERS)
def test_names_are_those_of_transformer_engines_layers(one_process: None, kind: str) -> None:
    engine = cases.engine_of(ranks.layout_of(), model=cases.MODELS[kind])
    found = {tensor.key for chunk in engine.chunks for tensor in sharded_parameters(unwrapped(chunk))}
    assert found == {*OTHERS[kind], *(f"decoder.layers.{name}" for name in OF_LAYERS[kind])}


@pytest.mark.parametrize("kind", OF_LAYERS)
def test_the_states_of_fp8_that_those_layers_read_are_written(one_process: None, kind: str) -> None:
    """TransformerEngine's layers ask a checkpoint for `_extra_state`; Megatron's write an empty one in its place."""
    engine = cases.engine_of(ranks.layout_of(), model=cases.MODELS[kind])
    state = unwrapped(engine.chunks[0]).sharded_state_dict()
    extra = {value.key for value in state.values() if "_extra_state" in value.key}
    assert extra >= {f"decoder.layers.{name}._extra_state" for name in MATRICES}
