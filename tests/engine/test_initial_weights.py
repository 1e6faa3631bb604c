"""Initial weights: a function of seed, name and layer, with the asked spread; golden rows."""

from __future__ import annotations

import cases
import numpy as np
import pytest
import ranks
import torch

from megalign.config.sections import ModelConfig
from megalign.engine.weights import generator_for

WORDS = "embedding.word_embeddings.weight"


def weights_of(model: ModelConfig, **kwargs: object) -> dict[str, np.ndarray]:
    engine = cases.engine_of(ranks.layout_of(), model, optimizer=None, **kwargs)
    return cases.assemble([cases.shards_of(engine)])


def test_equal_seeds_equal_weights_and_the_global_generator_has_no_say(one_process: None) -> None:
    torch.manual_seed(1)
    first = weights_of(cases.GPT)
    torch.manual_seed(2)
    second = weights_of(cases.GPT)
    other = weights_of(cases.GPT, seed=12)
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key])
        constant = key.endswith(("bias", "layer_norm_weight", "layernorm.weight"))
        assert constant == np.array_equal(value, other[key]), key


def test_layers_differ_and_do_not_depend_on_the_depth(one_process: None) -> None:
    four = weights_of(cases.GPT)["decoder.layers.self_attention.linear_qkv.weight"]
    two = weights_of(cases.GPT.model_copy(update={"num_layers": 2}))["decoder.layers.self_attention.linear_qkv.weight"]
    np.testing.assert_array_equal(two, four[:2])
    assert len({layer.tobytes() for layer in four}) == 4


@pytest.mark.parametrize("name", ["gpt-untied", "llama"])
def test_spread(one_process: None, name: str) -> None:
    """init_std for matrices, over sqrt(2 L) into the residual stream, embedding_init_std for rows; 5 standard errors."""
    model = cases.MODELS[name].model_copy(update={"embedding_init_std": 0.3})
    for key, value in weights_of(model).items():
        if key.endswith("bias"):
            assert (value == 0).all(), key
        elif "norm" in key:
            assert (value == 1).all(), key
        else:
            if key.endswith(("linear_proj.weight", "linear_fc2.weight")):
                expected = 0.08 / np.sqrt(8)
            else:
                expected = 0.3 if "embedding" in key or key == "output_layer.weight" else 0.08
            assert abs(value.std() / expected - 1) < 5 / np.sqrt(2 * value.size), key
            assert abs(value.mean()) < 5 * expected / np.sqrt(value.size), key


@pytest.mark.parametrize("name", ["gpt", "gpt-untied"])
def test_golden_rows_start_as_copies(one_process: None, name: str) -> None:
    model = cases.MODELS[name]
    sources = np.concatenate([np.arange(45), np.arange(45)])  # ids 45..89 are the clone of 0..44
    plain, golden = weights_of(model), weights_of(model, row_sources=sources)
    for key, value in golden.items():
        if key in (WORDS, "output_layer.weight"):
            np.testing.assert_array_equal(value[:90], plain[key][sources])
            np.testing.assert_array_equal(value[90:], plain[key][90:])
        else:
            np.testing.assert_array_equal(value, plain[key])


def test_generator_depends_on_seed_and_names() -> None:
    draws = [
        torch.randn(4, generator=generator_for(*names))
        for names in ((1, "a", 0), (1, "a", 1), (1, "b", 0), (2, "a", 0))
    ]
    assert len({tuple(draw.tolist()) for draw in draws}) == 4
    assert torch.equal(draws[0], torch.randn(4, generator=generator_for(1, "a", 0)))
    # The value itself: runs of today and of another machine must start equal.
    expected = torch.Generator().manual_seed(generator_for(1, "a", 0).initial_seed())
    assert torch.equal(draws[0], torch.randn(4, generator=expected))


def test_number_of_parameters(one_process: None) -> None:
    """Counted by hand for the GPT: tied rows once, padding included."""
    hidden, ffn, layers, rows, positions = 32, 64, 4, 96, 16
    per_layer = 4 * (hidden * hidden + hidden) + 2 * hidden * ffn + ffn + hidden + 2 * 2 * hidden
    expected = rows * hidden + positions * hidden + layers * per_layer + 2 * hidden
    assert cases.engine_of(ranks.layout_of()).num_parameters == expected
    untied = cases.engine_of(ranks.layout_of(), cases.MODELS["gpt-untied"])
    assert untied.num_parameters == expected + rows * hidden
