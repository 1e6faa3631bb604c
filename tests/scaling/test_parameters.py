"""Parameter counts against the models that the engine builds, on real ranks, and against a second formula."""

from __future__ import annotations

from typing import Any

import pytest
from built_models import parameters_of, parameters_without_memory, plain_name
from cases import MODELS as SMALL
from cases import VOCAB_SIZE
from ranks import layout_of, run

from megalign.config import MODELS, ModelConfig, model_preset
from megalign.config.layout import Layout
from megalign.scaling.parameters import PARTS, count_parameters, count_rank, stage_tensors

LAYOUTS: list[tuple[str, dict[str, Any]]] = [
    ("gpt", {}),
    ("gpt-untied", {}),
    ("llama", {}),
    ("llama-tied", {}),
    ("gpt", {"tensor": 2}),
    ("llama", {"tensor": 2}),
    ("gpt", {"pipeline": 2}),
    ("gpt-untied", {"pipeline": 2}),
    ("llama-tied", {"pipeline": 2, "virtual_pipeline": 2}),
    ("gpt", {"pipeline": 2, "virtual_pipeline": 2}),
    ("gpt-5-layers", {"pipeline": 3, "uneven_stages": True}),
    ("gpt", {"tensor": 2, "pipeline": 2}),
]


def listed(model: ModelConfig, vocab_size: int, layout: Layout, stage: int) -> list[tuple[str, tuple[int, ...], bool]]:
    return sorted((plain_name(t.name), t.shape, t.cut) for t in stage_tensors(model, vocab_size, layout, stage))


@pytest.mark.parametrize(("name", "parallel"), LAYOUTS, ids=lambda value: str(value))
def test_every_rank_holds_the_tensors_that_are_listed(name: str, parallel: dict[str, Any]) -> None:
    model, layout = SMALL[name], layout_of(**parallel)
    for rank, (held, total) in enumerate(run(parameters_of, layout, model, VOCAB_SIZE)):
        stage = layout.coordinates(rank).pipeline
        # Without a cut, Megatron does not mark tensors as parallel, but for those of the vocabulary.
        expected = listed(model, VOCAB_SIZE, layout, stage)
        if layout.parallel.tensor == 1:
            assert [tensor[:2] for tensor in held] == [tensor[:2] for tensor in expected]
        else:
            assert held == expected
        assert (
            sum(t.numel for t in stage_tensors(model, VOCAB_SIZE, layout, stage))
            == count_rank(model, VOCAB_SIZE, layout, stage).total
        )
        assert total == count_parameters(model, VOCAB_SIZE).total


@pytest.mark.parametrize(
    ("preset", "parallel"),
    [
        *((preset, {}) for preset in MODELS),
        ("13b", {"tensor": 2}),
        ("llama-70b", {"tensor": 2}),
        pytest.param("30b", {"pipeline": 2}, marks=pytest.mark.slow),
        pytest.param("6.7b", {"tensor": 2, "pipeline": 2}, marks=pytest.mark.slow),
        pytest.param("llama-30b", {"pipeline": 2, "virtual_pipeline": 3}, marks=pytest.mark.slow),
        pytest.param("llama-2.7b", {"pipeline": 3, "uneven_stages": True}, marks=pytest.mark.slow),
        ("70b", {"pipeline": 2, "virtual_pipeline": 2}),
    ],
    ids=str,
)
def test_presets_are_built_with_the_parameters_that_are_listed(preset: str, parallel: dict[str, Any]) -> None:
    model, layout = ModelConfig(**model_preset(preset)), layout_of(**parallel)
    for rank, held in enumerate(run(parameters_without_memory, layout, model, 50257)):
        stage = layout.coordinates(rank).pipeline
        assert [tensor[:2] for tensor in held] == [tensor[:2] for tensor in listed(model, 50257, layout, stage)]


@pytest.mark.parametrize("preset", MODELS)
def test_counts_follow_a_second_formula(preset: str) -> None:
    model = ModelConfig(**model_preset(preset))
    h, f, layers = model.hidden_size, model.ffn_hidden_size, model.num_layers
    rows = -(-50257 // 128) * 128
    counts = count_parameters(model, 50257)
    if preset.startswith("llama"):
        kv = h * (model.num_query_groups or model.num_attention_heads) // model.num_attention_heads
        matrices = layers * (2 * h * h + 2 * h * kv + 3 * h * f)
        assert counts.non_embedding == matrices + (2 * layers + 1) * h
        assert counts.total == counts.non_embedding + 2 * rows * h
    else:
        assert counts.non_embedding == 12 * layers * h * h + (13 * layers + 2) * h  # GPT-2's biases and norms
        positions = 0 if model.position_embedding == "rotary" else model.sequence_length * h
        assert counts.total == counts.non_embedding + rows * h + positions


@pytest.mark.parametrize(
    ("preset", "vocab_size", "published"),
    [
        # Hugging Face's counts of Llama 2's and LLaMA's weights, all with a vocabulary of 32000.
        ("llama-6.7b", 32000, 6_738_415_616),
        ("llama-13b", 32000, 13_015_864_320),
        ("llama-30b", 32000, 32_528_943_616),
        ("llama-70b", 32000, 68_976_648_192),
    ],
)
def test_llama_presets_have_the_published_numbers_of_parameters(preset: str, vocab_size: int, published: int) -> None:
    assert count_parameters(ModelConfig(**model_preset(preset)), vocab_size).total == published


@pytest.mark.parametrize(
    "parallel",
    [{"pipeline": 2}, {"tensor": 4, "pipeline": 4, "virtual_pipeline": 2}, {"pipeline": 3, "uneven_stages": True}],
)
@pytest.mark.parametrize("tied", [True, False])
def test_stages_together_hold_the_model_and_its_copies(parallel: dict[str, Any], tied: bool) -> None:
    model = ModelConfig(**{**model_preset("1.3b"), "tied_embeddings": tied})
    layout = layout_of(**parallel)
    whole = count_parameters(model, 50257)
    held: dict[str, int] = dict.fromkeys(PARTS, 0)
    copies = 0
    for stage in range(layout.parallel.pipeline):
        for tensor in stage_tensors(model, 50257, layout, stage):
            num = tensor.numel * (layout.parallel.tensor if tensor.cut else 1)
            held[tensor.part] += 0 if tensor.copy else num
            copies += num if tensor.copy else 0
    assert held == {part: getattr(whole, part) for part in PARTS}
    assert copies == (50304 * 2048 if tied else 0)
