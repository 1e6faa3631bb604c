"""The layout object: ranks, coordinates, every divisibility rule's message; what the machine lacks."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from megalign.config.layout import Layout
from megalign.config.sections import ModelConfig, ParallelConfig, PrecisionConfig
from megalign.errors import ConfigError, EnvironmentProblem

MODEL: dict[str, Any] = {
    "num_layers": 6,
    "hidden_size": 48,
    "num_attention_heads": 12,
    "ffn_hidden_size": 96,
    "sequence_length": 24,
    "vocab_size_multiple": 24,
}


def layout(**parallel: Any) -> Layout:
    return Layout(ParallelConfig(**parallel))


@pytest.mark.parametrize(
    ("parallel", "model", "message"),
    [
        ({"tensor": 5}, {}, "parallel.tensor is 5, which does not divide model.num_attention_heads 12"),
        (
            {"tensor": 4},
            {"num_query_groups": 6},
            "parallel.tensor is 4, which does not divide model.num_query_groups 6",
        ),
        (
            {"tensor": 4},
            {"ffn_hidden_size": 98},
            "parallel.tensor is 4, which does not divide model.ffn_hidden_size 98",
        ),
        (
            {"tensor": 4},
            {"vocab_size_multiple": 6},
            "parallel.tensor is 4, which does not divide model.vocab_size_multiple 6",
        ),
        ({"pipeline": 4}, {}, "parallel.pipeline is 4, which does not divide model.num_layers 6"),
        (
            {"pipeline": 2, "virtual_pipeline": 2},
            {},
            "parallel.pipeline x parallel.virtual_pipeline is 4, which does not divide model.num_layers 6",
        ),
        ({"virtual_pipeline": 2}, {}, "parallel.virtual_pipeline is 2 with parallel.pipeline 1"),
        ({"sequence_parallel": True}, {}, "parallel.sequence_parallel is on with parallel.tensor 1"),
        (
            {"tensor": 4, "sequence_parallel": True},
            {"sequence_length": 26},
            "parallel.tensor is 4, which does not divide model.sequence_length 26",
        ),
        ({"context": 5}, {}, "2 x parallel.context is 10, which does not divide model.sequence_length 24"),
        (
            {"tensor": 4, "context": 2, "sequence_parallel": True},
            {"sequence_length": 12},
            "parallel.tensor x parallel.context is 8, which does not divide model.sequence_length 12",
        ),
    ],
)
def test_refused(parallel: dict[str, Any], model: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        layout(**parallel).check(ModelConfig(**{**MODEL, **model}))
    assert message in caught.value.what
    assert caught.value.why
    assert caught.value.fix
    assert caught.value.exit_code == 2


def test_the_fix_names_degrees_that_divide() -> None:
    with pytest.raises(ConfigError, match=r"Set parallel\.pipeline to 3 or 6, or change model\.num_layers\."):
        layout(pipeline=4).check(ModelConfig(**MODEL))
    with pytest.raises(ConfigError, match=r"Set parallel\.tensor to 4 or 6, or change model\.num_attention_heads\."):
        layout(tensor=5).check(ModelConfig(**MODEL))


@pytest.mark.parametrize(
    "parallel",
    [
        {},
        {"tensor": 4, "sequence_parallel": True, "pipeline": 3, "virtual_pipeline": 2, "data": 5},
        {"tensor": 12, "pipeline": 6},
        {"context": 3, "data": 2},
    ],
)
def test_accepted(parallel: dict[str, Any]) -> None:
    layout(**parallel).check(ModelConfig(**MODEL))


def test_world_size() -> None:
    cut = layout(tensor=2, pipeline=3, data=4)
    cut.check_world_size(24)
    with pytest.raises(
        ConfigError, match=r"8 processes were started for a layout of 24 \(tensor 2 x context 1 x data 4 x"
    ):
        cut.check_world_size(8)


def test_coordinates_number_tensor_fastest_and_pipeline_slowest() -> None:
    cut = layout(tensor=2, context=3, data=2, pipeline=2)
    expected = itertools.product(range(2), range(2), range(3), range(2))  # pipeline, data, context, tensor
    found = [(c.pipeline, c.data, c.context, c.tensor) for c in map(cut.coordinates, range(cut.world_size))]
    assert found == list(expected)


def test_the_engine_asks_before_it_builds(one_process: None) -> None:
    """Megatron-Core would accept FP8 and ignore it; the engine's own configuration must not get that far."""
    from megalign.engine.device import transformer_engine_available
    from megalign.engine.model import transformer_config

    if transformer_engine_available():
        pytest.skip("TransformerEngine can be used here")
    with pytest.raises(EnvironmentProblem, match="fp8"):
        transformer_config(ModelConfig(**MODEL), layout(), PrecisionConfig(fp8="tensorwise"))
    with pytest.raises(ConfigError, match=r"model\.num_layers"):
        transformer_config(ModelConfig(**MODEL), layout(pipeline=4), PrecisionConfig())
