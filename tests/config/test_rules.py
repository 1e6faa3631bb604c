"""Rules between keys of a run, a study and a layout, each by its message."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from config_contents import run_content, study_content

from megalign.config import (
    ModelConfig,
    ParallelConfig,
    RunConfig,
    StudyConfig,
    apply_overrides,
    model_preset,
    validate,
)
from megalign.config.layout import Coordinates, Layout
from megalign.config.sections import InjectConfig
from megalign.errors import (
    ConfigError,
    DataError,
    EnvironmentProblem,
    MegalignError,
    StoppedOnRequest,
    SupersededError,
    TrainingProblem,
)


def refused(kind: Any, content: dict[str, Any], changes: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(kind, apply_overrides(content, changes.items()), "c")
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.table": None}, "c: inject.steps and codeswitch.ratio need data.table, which is not set."),
        (
            {"data.table": None, "inject.steps": 0},
            "c: inject.steps and codeswitch.ratio need data.table, which is not set.",
        ),
        (
            {"train.global_batch_size": 6},
            "c: train: global_batch_size 6 is not a multiple of micro_batch_size 4.",
        ),
        (
            {"parallel.data": 4},
            "c: train.global_batch_size 8 is not a multiple of train.micro_batch_size 4 x parallel.data 4.",
        ),
        (
            {"parallel.data": 3, "train.micro_batch_size": None},
            "c: train.global_batch_size 8 is not a multiple of parallel.data 3.",
        ),
        (
            {"train.batch_size_ramp": [{"until_tokens": 100, "global_batch_size": 6}]},
            "c: train.batch_size_ramp.0.global_batch_size 6 is not a multiple of train.micro_batch_size 4 x parallel.data 1.",
        ),
        (
            {"parallel.data": 2, "inject.lm_batch_size": 3},
            "c: inject.lm_batch_size 3 is not a multiple of parallel.data 2.",
        ),
        ({"train.optimizer.beta2": 1.0}, "c: train.optimizer.beta2: Input should be less than 1 (it is 1.0)."),
    ],
)
def test_rules_of_a_run(changes: dict[str, Any], message: str) -> None:
    assert refused(RunConfig, run_content(), changes) == message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 4),
        ({"train.micro_batch_size": None}, 8),
        ({"train.micro_batch_size": None, "parallel.data": 2}, 4),
        (
            {
                "train.micro_batch_size": None,
                "train.batch_size_ramp": [{"until_tokens": 100, "global_batch_size": 6}],
                "parallel.data": 2,
            },
            1,
        ),
    ],
)
def test_unset_a_micro_batch_is_what_a_rank_has_of_every_step(changes: dict[str, Any], expected: int) -> None:
    config = validate(RunConfig, apply_overrides(run_content(), changes.items()), "c")
    assert config.micro_batch_size == expected


def test_a_run_that_neither_injects_nor_switches_needs_no_table() -> None:
    changes = {"data.table": None, "inject.steps": 0, "codeswitch.ratio": 0.0, "inject.lm_batch_size": 3}
    config = validate(RunConfig, apply_overrides(run_content(), {**changes, "parallel.data": 2}.items()), "c")
    assert config.data.table is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"name": "a b"},
            "c: name: 'a b' must be letters, digits, '.', '_' and '-', and begin with a letter or digit.",
        ),
        (
            {"name": "../up"},
            "c: name: '../up' must be letters, digits, '.', '_' and '-', and begin with a letter or digit.",
        ),
        (
            {"name": "x\n"},
            "c: name: 'x\\n' must be letters, digits, '.', '_' and '-', and begin with a letter or digit.",
        ),
        (
            {"methods": ["joint", "joint"]},
            "c: two methods are called 'joint': give one of them another `name`.",
        ),
        (
            {"methods": [{"method": "joint", "name": "a/b"}]},
            "c: method name 'a/b' must be letters, digits, '.', '_' and '-', and begin with a letter or digit.",
        ),
        ({"seeds": [1, 2, 1]}, "c: seeds [1, 2, 1] has one twice."),
        (
            {"corpus.clone": False, "corpus.kind": "folder", "corpus.path": "p", "corpus.target_languages": ["de"]},
            "c: table.kind 'golden' needs corpus.clone: only a clone has a golden table.",
        ),
        (
            {
                "corpus.kind": "folder",
                "corpus.path": "p",
                "corpus.target_languages": ["zh", "de"],
                "table": {"kind": "muse", "dictionaries": {"fr": "f"}},
            },
            "c: table.dictionaries has no file for de, zh.",
        ),
        (
            {
                "corpus.clone": False,
                "corpus.kind": "folder",
                "corpus.path": "p",
                "corpus.target_languages": ["de"],
                "table": {"kind": "muse", "dictionaries": {"de": "f"}},
            },
            "c: facts of kind 'invented' are tested in a clone language: set corpus.clone or facts.kind, or leave facts out.",
        ),
        ({"corpus.kind": "folder"}, "c: corpus: kind 'folder' needs path."),
        (
            {"corpus.path": "p"},
            "c: corpus: kind 'procedural' takes neither path nor target_languages: it makes its own English text.",
        ),
        (
            {"corpus.clone": False},
            "c: corpus: there is no target language: set clone or target_languages.",
        ),
        ({"table": {"kind": "muse"}}, "c: table: kind 'muse' needs dictionaries: {language: file}."),
        (
            {"table.dictionaries": {"de": "f"}},
            "c: table: kind 'golden' takes no dictionaries.",
        ),
        (
            {"corpus": {"kind": "store", "path": "s", "source_tokens": 9, "target_tokens": 9, "validation_tokens": 1}},
            "c: corpus: kind 'store' takes no validation_tokens: the store has its own held-out text.",
        ),
        (
            {
                "corpus": {"kind": "store", "path": "s", "clone": True, "source_tokens": 9, "target_tokens": 9},
                "ladder": {"sizes": [32], "target_ratios": [5], "budget": {"source_tokens": 9}},
            },
            "c: a ladder counts with corpus.vocab_size: set it to the ids of the store's tokenizer.",
        ),
    ],
)
def test_rules_of_a_study(changes: dict[str, Any], message: str) -> None:
    assert refused(StudyConfig, study_content(), changes) == message


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"seeds": []}, "c: seeds: List should have at least 1 item"),
        ({"seeds": [-1]}, "c: seeds.0: Input should be greater than or equal to 0"),
        ({"methods": []}, "c: methods: List should have at least 1 item"),
        (
            {"corpus.vocab_size": 257},
            "c: corpus: kind 'procedural' needs validation_tokens of 1 or more and vocab_size of 258 or more",
        ),
        (
            {"facts.objects_per_relation": 3},
            "c: facts.objects_per_relation: Input should be greater than or equal to 4",
        ),
        ({"table.fraction": 0.0}, "c: table.fraction: Input should be greater than 0"),
    ],
)
def test_ranges_of_a_study(changes: dict[str, Any], start: str) -> None:
    assert refused(StudyConfig, study_content(), changes).startswith(start)


def test_labels_and_languages_of_a_study() -> None:
    study = validate(StudyConfig, study_content(), "c")
    assert [method.label for method in study.methods] == ["joint", "ours"]
    assert study.methods[1].set == {"inject.steps": 7}
    assert study.corpus.clone_language == "en-clone"
    assert study.corpus.all_target_languages == ["en-clone"]


def test_exit_codes_mean_something_to_a_launcher() -> None:
    codes = {kind: kind("x").exit_code for kind in MegalignError.__subclasses__()}
    assert codes == {
        ConfigError: 2,
        DataError: 3,
        EnvironmentProblem: 4,
        TrainingProblem: 5,
        SupersededError: 6,
        StoppedOnRequest: 75,
    }
    assert MegalignError("x").exit_code == 1
    error = DataError("What.", "Why.", "Fix.")
    assert (error.what, error.why, error.fix, str(error)) == ("What.", "Why.", "Fix.", "What. Why. Fix.")
    assert str(DataError("What.", fix="Fix.")) == "What. Fix."


TINY = ModelConfig.model_validate({**model_preset("tiny"), "num_layers": 4})


@pytest.mark.parametrize(
    ("parallel", "model", "message"),
    [
        (
            {"tensor": 3},
            {},
            "parallel.tensor is 3, which does not divide model.num_attention_heads 4. Every rank must hold an equal "
            "part. Set parallel.tensor to 2 or 4, or change model.num_attention_heads.",
        ),
        ({"tensor": 8}, {}, "Set parallel.tensor to 4, or change model.num_attention_heads."),
        (
            {"tensor": 4},
            {"num_query_groups": 2},
            "parallel.tensor is 4, which does not divide model.num_query_groups 2.",
        ),
        (
            {"tensor": 4},
            {"ffn_hidden_size": 514},
            "parallel.tensor is 4, which does not divide model.ffn_hidden_size 514.",
        ),
        (
            {"tensor": 4},
            {"vocab_size_multiple": 6},
            "parallel.tensor is 4, which does not divide model.vocab_size_multiple 6.",
        ),
        (
            {"pipeline": 3},
            {},
            "parallel.pipeline is 3, which does not divide model.num_layers 4. Every rank must hold an equal part. Set "
            "parallel.pipeline to 2 or 4, or change model.num_layers. parallel.uneven_stages=true lets stages differ by "
            "one layer.",
        ),
        ({"pipeline": 8}, {}, "Set parallel.pipeline to 4, or change model.num_layers."),
        (
            {"pipeline": 5, "uneven_stages": True},
            {},
            "parallel.pipeline is 5, with model.num_layers 4. Every stage must hold a layer. Set parallel.pipeline to at "
            "most 4.",
        ),
        (
            {"pipeline": 2, "virtual_pipeline": 3},
            {},
            "parallel.pipeline x parallel.virtual_pipeline is 6, which does not divide model.num_layers 4.",
        ),
        (
            {"virtual_pipeline": 2},
            {},
            "parallel.virtual_pipeline is 2 with parallel.pipeline 1. Interleaving needs at least two stages. Unset "
            "parallel.virtual_pipeline or raise parallel.pipeline.",
        ),
        (
            {"sequence_parallel": True},
            {},
            "parallel.sequence_parallel is on with parallel.tensor 1. Sequence parallelism cuts activations between "
            "tensor-parallel ranks. Turn it off, or raise parallel.tensor.",
        ),
        (
            {"sequence_parallel": True, "tensor": 2},
            {"sequence_length": 127},
            "parallel.tensor is 2, which does not divide model.sequence_length 127.",
        ),
        (
            {"context": 2},
            {"sequence_length": 126},
            "2 x parallel.context is 4, which does not divide model.sequence_length 126.",
        ),
        (
            {"sequence_parallel": True, "tensor": 4, "context": 2},
            {"sequence_length": 124},
            "parallel.tensor x parallel.context is 8, which does not divide model.sequence_length 124. Every rank must hold "
            "an equal part. Set parallel.tensor x parallel.context to 4 or 31, or change model.sequence_length.",
        ),
    ],
)
def test_layouts_that_do_not_divide_the_model_are_refused(
    parallel: dict[str, Any], model: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Layout(ParallelConfig(**parallel)).check(TINY.model_copy(update=model))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "parallel",
    [
        {},
        {"tensor": 4},
        {"pipeline": 4},
        {"pipeline": 2, "virtual_pipeline": 2},
        {"pipeline": 3, "uneven_stages": True},
        {"tensor": 2, "sequence_parallel": True, "context": 2, "data": 3, "pipeline": 2},
    ],
)
def test_layouts_that_divide_the_model_are_taken(parallel: dict[str, Any]) -> None:
    Layout(ParallelConfig(**parallel)).check(TINY)


@pytest.mark.parametrize(
    ("parallel", "num_layers", "expected"),
    [
        ({}, 3, [3]),
        ({"pipeline": 2}, 3, [2, 1]),
        ({"pipeline": 3}, 4, [1, 2, 1]),
        ({"pipeline": 4}, 31, [8, 8, 8, 7]),
        ({"pipeline": 4}, 30, [7, 8, 8, 7]),
        ({"pipeline": 2, "virtual_pipeline": 2}, 5, [1, 2, 1, 1]),
        ({"pipeline": 2, "virtual_pipeline": 2}, 8, [2, 2, 2, 2]),
    ],
)
def test_the_last_stage_is_the_last_to_get_another_layer(
    parallel: dict[str, Any], num_layers: int, expected: list[int]
) -> None:
    assert Layout(ParallelConfig(**parallel)).layers_of_chunks(num_layers) == expected


def test_coordinates_count_tensor_fastest_and_pipeline_slowest() -> None:
    layout = Layout(ParallelConfig(tensor=2, context=3, data=2, pipeline=2))
    assert layout.world_size == 24
    order = itertools.product(range(2), range(2), range(3), range(2))
    expected = [Coordinates(tensor=t, context=c, data=d, pipeline=p) for p, d, c, t in order]
    assert [layout.coordinates(rank) for rank in range(24)] == expected


def test_another_number_of_processes_is_refused() -> None:
    layout = Layout(ParallelConfig(tensor=2, data=2))
    layout.check_world_size(4)
    with pytest.raises(ConfigError) as caught:
        layout.check_world_size(3)
    assert str(caught.value) == (
        "3 processes were started for a layout of 4 (tensor 2 x context 1 x data 2 x pipeline 1). "
        "Start 4 processes, or change parallel.data."
    )


def test_one_setting_of_the_injections_optimizer_leaves_its_others() -> None:
    default, changed = InjectConfig().optimizer, InjectConfig.model_validate({"optimizer": {"lr": 1e-3}}).optimizer
    assert (default.lr, default.warmup_fraction, default.decay, default.min_lr_ratio) == (5e-4, 0.1, "trapezoid", 0.0)
    assert changed.model_dump() == default.model_dump() | {"lr": 1e-3}
