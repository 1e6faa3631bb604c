"""Presets of models and methods: sizes against the formula and the paper, and what a method does to a run."""

from __future__ import annotations

from typing import Any

import pytest
from config_contents import run_content

from megalign.config import METHODS, MODELS, ModelConfig, RunConfig, SourceConfig, apply_method, model_preset, validate
from megalign.errors import ConfigError


def model_of(name: str, **changes: Any) -> ModelConfig:
    return ModelConfig.model_validate({**model_preset(name), **changes})


def num_matrix_parameters(model: ModelConfig) -> int:
    """Weights of attention (query, key, value, output) and feed-forward (in, out) matrices."""
    h = model.hidden_size
    return model.num_layers * (4 * h * h + 2 * h * model.ffn_hidden_size)


def num_non_embedding_parameters(model: ModelConfig) -> int:
    """The same with biases and LayerNorms, of the last one too (GPT-2, section 2.3)."""
    h = model.hidden_size
    biases = 4 * h + model.ffn_hidden_size + h
    return num_matrix_parameters(model) + model.num_layers * (biases + 4 * h) + 2 * h


@pytest.mark.parametrize(
    ("name", "shape", "paper_millions"),
    [
        # PreAlign section 4.3 counts the matrices: 12 x layers x hidden size squared.
        ("150m", (12, 1024, 16, 4096, 1024, "learned"), 151.0),
        ("400m", (24, 1024, 16, 4096, 1024, "learned"), 302.0),
        ("1.3b", (24, 2048, 16, 8192, 1024, "learned"), 1208.0),
        ("tiny", (3, 128, 4, 512, 128, "rotary"), 0.6),
    ],
)
def test_model_presets_have_the_paper_s_shapes_and_sizes(
    name: str, shape: tuple[Any, ...], paper_millions: float
) -> None:
    model = model_of(name)
    assert shape == (
        model.num_layers,
        model.hidden_size,
        model.num_attention_heads,
        model.ffn_hidden_size,
        model.sequence_length,
        model.position_embedding,
    )
    assert num_matrix_parameters(model) == 12 * model.num_layers * model.hidden_size**2
    assert round(num_matrix_parameters(model) / 1e6, 1) == paper_millions
    assert num_non_embedding_parameters(model) == num_matrix_parameters(model) + model.hidden_size * (
        13 * model.num_layers + 2
    )
    assert num_non_embedding_parameters(model) < 1.01 * num_matrix_parameters(model)


def test_tiny_has_a_million_parameters_with_a_vocabulary_of_3072() -> None:
    model = model_of("tiny")
    total = num_non_embedding_parameters(model) + model.padded_vocab_size(3072) * model.hidden_size
    assert round(total / 1e6, 1) == 1.0


def test_presets_are_new_values_at_each_call() -> None:
    assert {"tiny", "150m", "400m", "1.3b", "2.7b", "6.7b", "13b", "30b", "70b"} <= set(MODELS)
    model_preset("tiny")["num_layers"] = 99
    assert model_preset("tiny")["num_layers"] == 3


@pytest.mark.parametrize(("ids", "rows"), [(1, 128), (128, 128), (129, 256), (50257, 50304)])
def test_the_vocabulary_is_padded_to_a_multiple(ids: int, rows: int) -> None:
    assert model_of("tiny").padded_vocab_size(ids) == rows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 3}, "hidden_size 128 is not a multiple of num_attention_heads 3"),
        ({"num_query_groups": 3}, "num_attention_heads 4 is not a multiple of num_query_groups 3"),
    ],
)
def test_heads_must_divide(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^r: model: {message}\.$"):
        validate(RunConfig, {**run_content(), "model": {"preset": "tiny", **changes}}, "r")


def base_run(**changes: Any) -> RunConfig:
    return validate(RunConfig, {**run_content(), **changes}, "r")


def changed_sections(before: RunConfig, after: RunConfig) -> set[str]:
    return {name for name in RunConfig.model_fields if getattr(before, name) != getattr(after, name)} - {"method"}


@pytest.mark.parametrize(
    ("method", "changed", "inject_steps", "ratio", "golden"),
    [
        ("joint", {"inject", "codeswitch"}, 0, 0.0, False),
        ("prealign", set(), 5, 0.05, False),
        ("cs_only", {"inject"}, 0, 0.05, False),
        ("init_only", {"codeswitch"}, 5, 0.0, False),
        ("golden", {"inject", "golden_embeddings"}, 0, 0.05, True),
        ("only_target", {"inject", "codeswitch", "data"}, 0, 0.0, False),
        ("full_target", {"inject", "codeswitch", "data"}, 0, 0.0, False),
        ("on_the_fly", {"inject", "codeswitch"}, 5, 0.0, False),
        ("post", {"inject", "codeswitch"}, 5, 0.0, False),
        ("table_25", {"data"}, 5, 0.05, False),
        ("vanilla_switching", {"codeswitch"}, 5, 0.05, False),
        ("first_subword_switching", {"codeswitch"}, 5, 0.05, False),
    ],
)
def test_a_method_changes_what_it_says_and_nothing_else(
    method: str, changed: set[str], inject_steps: int, ratio: float, golden: bool
) -> None:
    before = base_run()
    after = apply_method(method, before)
    assert after.method == method
    assert changed_sections(before, after) == changed
    assert (after.inject.steps, after.codeswitch.ratio, after.golden_embeddings) == (inject_steps, ratio, golden)
    # Everything but "whether", when and with which targets stays as the study set it.
    assert after.inject.model_copy(update={"steps": 5, "when": "before"}) == before.inject
    assert after.codeswitch.model_copy(update={"ratio": 0.05, "label_mode": "omit"}) == before.codeswitch
    preset = METHODS[method]
    assert (preset.injects, preset.switches) == (inject_steps > 0, ratio > 0)
    # What a preset makes is a valid run: it can be written and read again.
    assert validate(RunConfig, after.model_dump(mode="json"), "again") == after
    assert before == base_run()


def test_all_methods_of_the_paper_are_there_with_titles() -> None:
    assert set(METHODS) == {
        *("joint", "prealign", "cs_only", "init_only", "golden", "only_target", "full_target", "on_the_fly", "post"),
        *("table_25", "table_50", "table_75", "vanilla_switching", "first_subword_switching"),
    }
    assert len({method.title for method in METHODS.values()}) == len(METHODS)
    assert all(method.description.endswith(".") for method in METHODS.values())


def test_only_target_reads_the_targets_alone() -> None:
    data = run_content()["data"]
    data["sources"].append({"language": "de", "weight": 3.0})
    after = apply_method("only_target", base_run(data=data))
    assert after.data.sources == [
        SourceConfig(language="en-clone", weight=1.0),
        SourceConfig(language="de", weight=3.0),
    ]
    assert after.data.model_copy(update={"sources": base_run().data.sources}) == base_run().data


def test_full_target_reads_the_source_as_its_clone() -> None:
    after = apply_method("full_target", base_run())
    assert after.data.sources == [SourceConfig(language="en", weight=20.0, as_clone="en-clone")]
    assert after.data.sources[0].read_as == "en-clone"


@pytest.mark.parametrize(
    ("method", "when", "stages"),
    [
        ("joint", "before", ("pretrain",)),
        ("prealign", "before", ("inject", "pretrain")),
        ("on_the_fly", "during", ("pretrain",)),
        ("post", "after", ("pretrain", "inject")),
    ],
)
def test_a_method_says_when_it_injects(method: str, when: str, stages: tuple[str, ...]) -> None:
    # Whatever the study says: a preset that injects before pretraining does so.
    after = apply_method(
        method, base_run(inject={"steps": 5, "when": "after"} if method == "prealign" else {"steps": 5})
    )
    assert (after.inject.when, after.stages) == (when, stages)


def test_parts_of_the_table_and_label_modes_are_what_they_are_called() -> None:
    runs = {name: apply_method(name, base_run()) for name in METHODS if "table" in name or "switching" in name}
    assert {name: run.data.table_fraction for name, run in runs.items() if "table" in name} == {
        "table_25": 0.25, "table_50": 0.5, "table_75": 0.75,
    }  # fmt: skip
    assert {name: run.codeswitch.label_mode for name, run in runs.items()} == {
        "table_25": "omit", "table_50": "omit", "table_75": "omit",
        "vanilla_switching": "vanilla", "first_subword_switching": "first_subword",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"inject": {"steps": 11, "when": "during"}},
            r"inject\.when is 'during', and train\.steps 10 has no room for 11 batches of words \(inject\.steps\)",
        ),
        (
            {"inject": {"steps": 5, "when": "during"}, "precision": {"dtype": "bfloat16", "fp8": "delayed"}},
            r"inject\.when 'during' computes words in pretraining's precision, and precision\.fp8 has none",
        ),
        (
            {"inject": {"steps": 5, "when": "during", "measure_interval": 1, "stop_at_retrieval": 0.9}},
            r"inject: stop_at_retrieval ends a stage of its own; with when 'during' there is none",
        ),
    ],
)
def test_words_during_pretraining_have_their_rules(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        base_run(**changes)
    relaxed = {**changes["inject"], "when": "before"}
    assert base_run(**{**changes, "inject": relaxed}).stages == ("inject", "pretrain")


def test_methods_that_need_another_language_say_so() -> None:
    english = {"store": "s", "table": "t", "sources": [{"language": "en", "weight": 1.0}]}
    with pytest.raises(ConfigError) as caught:
        apply_method("only_target", base_run(data=english))
    assert str(caught.value) == (
        "The method only_target needs a source in another language than data.source_language ('en'). "
        "Add one to data.sources."
    )
    german = {**english, "sources": [{"language": "en", "weight": 1.0}, {"language": "de", "weight": 1.0}]}
    with pytest.raises(
        ConfigError, match=r"The method full_target needs a clone language among data\.sources\. Only a"
    ):
        apply_method("full_target", base_run(data=german))
    clone_alone = {**english, "sources": [{"language": "en-clone", "weight": 1.0}]}
    with pytest.raises(ConfigError, match="The method full_target needs"):
        apply_method("full_target", base_run(data=clone_alone))


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("prealing", "Did you mean 'prealign'?"),
        ("goldn", "Did you mean 'golden'?"),
        ("zzz", f"Choose one of {', '.join(METHODS)}."),
    ],
)
def test_an_unknown_method_is_named(name: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_method(name, base_run())
    assert str(caught.value) == f"There is no method {name!r}. {fix}"
    assert caught.value.exit_code == 2
