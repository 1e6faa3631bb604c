"""YAML and overrides to typed configuration: every mistake is named by its dotted path."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from config_contents import run_content, study_content
from hypothesis import given
from hypothesis import strategies as st

from megalign.config import (
    MODELS,
    ModelConfig,
    RunConfig,
    StudyConfig,
    apply_overrides,
    load_run,
    load_study,
    model_preset,
    parse_override,
    read_yaml,
    validate,
)
from megalign.errors import ConfigError


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def run_with(*overrides: str) -> RunConfig:
    return validate(RunConfig, apply_overrides(run_content(), [parse_override(text) for text in overrides]), "r.yaml")


def study_with(*overrides: str) -> StudyConfig:
    return validate(StudyConfig, apply_overrides(study_content(), map(parse_override, overrides)), "s.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sede=1", "r.yaml: unknown key sede: did you mean seed?"),
        ("train.step=1", "r.yaml: unknown key train.step: did you mean train.steps?"),
        (
            "train.optimizer.weigth_decay=0",
            "r.yaml: unknown key train.optimizer.weigth_decay: did you mean train.optimizer.weight_decay?",
        ),
        (
            "inject.optimizer.warmup=0.1",
            "r.yaml: unknown key inject.optimizer.warmup: did you mean inject.optimizer.warmup_fraction?",
        ),
        (
            "zzz.a=1",
            "r.yaml: unknown key zzz: known keys: name, folder, method, seed, model, data, train, inject, "
            "codeswitch, initial_weights, golden_embeddings, parallel, precision, guards, evaluate, track.",
        ),
    ],
)
def test_an_unknown_key_of_a_run_is_named_with_the_nearest_known_one(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run_with(override)
    assert str(caught.value) == message
    assert caught.value.exit_code == 2


def test_an_unknown_key_inside_a_list_is_named_by_its_index() -> None:
    content = run_content()
    content["data"]["sources"][1]["wieght"] = 2.0
    with pytest.raises(ConfigError) as caught:
        validate(RunConfig, content, "r.yaml")
    assert str(caught.value) == ("r.yaml: unknown key data.sources.1.wieght: did you mean data.sources.1.weight?")


def test_an_unknown_key_inside_an_optional_section_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"^s\.yaml: unknown key facts\.repetition: did you mean facts\.repetitions\?"
    ):
        study_with("facts.repetition=3")


def test_an_unknown_key_of_a_method_in_the_list_is_named() -> None:
    content = study_content()
    content["methods"][1]["titel"] = "x"
    with pytest.raises(ConfigError, match=r"unknown key methods\.1\.titel: did you mean methods\.1\.title\?"):
        validate(StudyConfig, content, "s.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps=1.5", r"train\.steps: Input should be a valid integer.* \(it is 1\.5\)"),
        ("train.steps='10'", r"train\.steps: Input should be a valid integer \(it is '10'\)"),
        ("train.steps=true", r"train\.steps: Input should be a valid integer \(it is True\)"),
        ("train.steps=0", r"train\.steps: Input should be greater than or equal to 1 \(it is 0\)"),
        ("train=5", r"train: Input should be a valid dictionary or instance of TrainConfig \(it is 5\)"),
        ("codeswitch.ratio=1.2", r"codeswitch\.ratio: Input should be less than or equal to 1 \(it is 1\.2\)"),
        ("train.optimizer.lr=fast", r"train\.optimizer\.lr: Input should be a valid number \(it is 'fast'\)"),
        ("train.optimizer.lr=.inf", r"train\.optimizer\.lr: Input should be a finite number \(it is inf\)"),
        ("train.optimizer.lr=.nan", r"train\.optimizer\.lr: Input should be .* \(it is nan\)"),
        ("train.optimizer.decay=cosin", r"train\.optimizer\.decay: Input should be 'cosine', 'linear'.*it is 'cosin'"),
        ("golden_embeddings=1", r"golden_embeddings: Input should be a valid boolean \(it is 1\)"),
        ("data.sources=[]", r"data\.sources: List should have at least 1 item"),
        # YAML 1.1 reads Norwegian's code as false: an error, not a language called False.
        ("data.source_language=no", r"data\.source_language: Input should be a valid string \(it is False\)"),
        ("model=[1]", r"model: Input should be a valid dictionary or instance of ModelConfig \(it is \[1\]\)"),
    ],
)
def test_wrong_values_are_named_with_what_stands_there(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_with(override)


def test_a_missing_key_is_named() -> None:
    content = run_content()
    del content["train"]["steps"], content["data"]["store"], content["data"]["sources"][0]["language"]
    with pytest.raises(ConfigError) as caught:
        validate(RunConfig, content, "r.yaml")
    assert str(caught.value).split("\n  ") == [
        "r.yaml: data.store is missing.",
        "data.sources.0.language is missing.",
        "train.steps is missing.",
    ]


def test_all_errors_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        run_with("sede=1", "train.steps=x", "parallel.tensor=0")
    lines = str(caught.value).split("\n  ")
    assert len(lines) == 3
    assert any("sede" in line for line in lines)
    assert any("train.steps" in line for line in lines)
    assert any("parallel.tensor" in line for line in lines)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "c.yaml", "train:\n  steps: 1\n  other: 2\n  steps: 3\n")
    with pytest.raises(ConfigError, match=r"c\.yaml is not YAML: the key 'steps' stands twice[\s\S]*line 4"):
        read_yaml(path)
    with pytest.raises(ConfigError, match=r"the key 'a' stands twice"):
        parse_override("facts={a: 1, a: 2}")
    assert read_yaml(written(path, "a: {x: 1}\nb: {x: 2}\n")) == {"a": {"x": 1}, "b": {"x": 2}}


def test_anchors_and_merge_keys_are_yaml(tmp_path: Path) -> None:
    path = written(tmp_path / "c.yaml", "base: &base {lr: 3e-4, eps: 1e-8}\nother:\n  <<: *base\n  lr: 1e-3\n")
    assert read_yaml(path) == {"base": {"lr": 3e-4, "eps": 1e-8}, "other": {"lr": 1e-3, "eps": 1e-8}}


def test_keys_that_are_no_names_are_errors_not_crashes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unhashable key"):
        read_yaml(written(tmp_path / "c.yaml", "? [a]\n: 1\n"))
    with pytest.raises(ConfigError, match="stands twice"):
        read_yaml(written(tmp_path / "c.yaml", "1: a\n1: b\n"))
    with pytest.raises(ConfigError, match=r"train\.1: Keys should be strings"):
        validate(RunConfig, {**run_content(), "train": {1: 2, **run_content()["train"]}}, "r.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [("3e-4", 3e-4), ("1E5", 1e5), ("+2.e3", 2e3), (".5e-1", 0.05), ("-1e0", -1.0), ("1e-4x", "1e-4x"), ("7", 7)],
)
def test_numbers_with_an_exponent_are_numbers(text: str, value: Any) -> None:
    parsed = parse_override(f"a.b={text}")
    assert parsed == ("a.b", value)
    assert type(parsed[1]) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_as_python_writes_it_is_read_back(value: float) -> None:
    assert parse_override(f"x={value!r}") == ("x", value)


@pytest.mark.parametrize("text", ["train.steps", "=5", ".a=5", "a.=5", "a..b=5", "a b=5", "1a=5", ""])
def test_a_malformed_override_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_override(text)
    assert str(caught.value) == (f"The override {text!r} is not of the form section.key=value. E.g. train.steps=50.")


def test_an_override_whose_value_is_not_yaml_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^The value of the override 'a=\[1' is not YAML: "):
        parse_override("a=[1")


def test_an_override_may_hold_an_equals_sign_and_any_yaml() -> None:
    assert parse_override("a=b=c") == ("a", "b=c")
    assert parse_override("a.b-c.0=[1, {x: y}]") == ("a.b-c.0", [1, {"x": "y"}])
    assert parse_override("a=") == ("a", None)


def test_overrides_are_nested_make_sections_and_leave_the_original() -> None:
    content = {"a": {"b": 1, "c": [1, {"d": 2}]}, "empty": None}
    result = apply_overrides(content, [("a.b", 5), ("x.y.z", 6), ("empty.k", 7), ("a.b", 8)])
    assert result == {"a": {"b": 8, "c": [1, {"d": 2}]}, "empty": {"k": 7}, "x": {"y": {"z": 6}}}
    assert content == {"a": {"b": 1, "c": [1, {"d": 2}]}, "empty": None}
    result["a"]["c"][1]["d"] = 3
    assert content["a"]["c"] == [1, {"d": 2}]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("train.steps.x", "train.steps.x: train.steps is a value, not a section."),
        ("name.a.b", "name.a.b: name is a value, not a section."),
        ("data.sources.weight", "data.sources.weight: data.sources is a value, not a section."),
    ],
)
def test_an_override_below_a_value_is_refused(key: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(run_content(), [(key, 1)])
    assert str(caught.value) == message


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^There is no configuration file {tmp_path / 'none.yaml'}\.$"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"cannot be read: .*[Dd]irectory"):
        read_yaml(tmp_path)
    bad = tmp_path / "bad.yaml"
    bad.write_bytes(b"a: \xff\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml cannot be read: .*utf-8"):
        read_yaml(bad)
    with pytest.raises(ConfigError, match=r"bad\.yaml is not YAML: "):
        read_yaml(written(bad, "a: [1\n"))
    with pytest.raises(ConfigError, match=r"bad\.yaml is not YAML: "):
        read_yaml(written(bad, "a: !!python/object/apply:os.getcwd []\n"))
    with pytest.raises(ConfigError, match=r"bad\.yaml must be a mapping of sections, not list\.$"):
        read_yaml(written(bad, "- a\n"))
    with pytest.raises(ConfigError, match=r"bad\.yaml must be a mapping of sections, not NoneType\.$"):
        read_yaml(written(bad, ""))


@pytest.mark.parametrize("model", ["model=150m", "model.preset=150m"])
def test_a_preset_gives_the_values_and_keys_override_it_in_any_order(model: str) -> None:
    assert run_with("model.num_layers=6", "model.preset=tiny").model.num_layers == 6
    study = (
        study_with(model)
        if model == "model=150m"
        else validate(StudyConfig, {**study_content(), "model": {"num_layers": 2, "preset": "150m"}}, "s")
    )
    assert study.model.hidden_size == 1024
    assert study.model.num_layers == (12 if model == "model=150m" else 2)
    assert study.model.preset == "150m"


def test_a_model_without_a_preset_needs_all_its_keys() -> None:
    content = {**run_content(), "model": {"num_layers": 2}}
    with pytest.raises(ConfigError, match=r"model\.hidden_size is missing\.\n"):
        validate(RunConfig, content, "r.yaml")


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("tinny", "Did you mean 'tiny'?"),
        ("150", "Did you mean '150m'?"),
        ("zzz", f"Choose one of {', '.join(MODELS)}."),
    ],
)
def test_an_unknown_model_preset_is_named(name: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run_with(f"model.preset={name}")
    assert str(caught.value) == f"model.preset: there is no model preset {name!r}. {fix}"


@pytest.mark.parametrize(("kind", "content"), [(RunConfig, run_content()), (StudyConfig, study_content())])
def test_the_resolved_configuration_round_trips_through_yaml(
    tmp_path: Path, kind: Any, content: dict[str, Any]
) -> None:
    config = validate(kind, content, "c")
    resolved = config.model_dump(mode="json")
    text = yaml.safe_dump(resolved, sort_keys=False)
    assert validate(kind, yaml.safe_load(text), "again") == config
    assert validate(kind, read_yaml(written(tmp_path / "c.yaml", text)), "again") == config


def test_load_run_and_load_study_read_a_file_with_overrides(tmp_path: Path) -> None:
    run_file = written(tmp_path / "r.yaml", yaml.safe_dump(run_content()))
    assert load_run(run_file) == validate(RunConfig, run_content(), "r")
    run = load_run(run_file, ["train.steps=50", "parallel.data=2"])
    assert (run.train.steps, run.parallel.data) == (50, 2)
    study_file = written(tmp_path / "s.yaml", yaml.safe_dump(study_content()))
    assert load_study(study_file, ["seeds=[3]"]).seeds == [3]
    with pytest.raises(ConfigError, match=rf"^{study_file}: unknown key seed: did you mean seeds\?"):
        load_study(study_file, ["seed=3"])
    with pytest.raises(ConfigError, match=rf"^{run_file}: unknown key seeds: did you mean seed\?"):
        load_run(run_file, ["seeds=[3]"])


def test_the_file_of_the_other_kind_is_told_as_such(tmp_path: Path) -> None:
    run_file = written(tmp_path / "r.yaml", yaml.safe_dump(run_content()))
    study_file = written(tmp_path / "s.yaml", yaml.safe_dump(study_content()))
    with pytest.raises(
        ConfigError, match=r"s\.yaml is the file of a study, not of a run\. Use it with `megalign study run`"
    ):
        load_run(study_file)
    with pytest.raises(
        ConfigError, match=r"r\.yaml is the file of a run, not of a study\. Use it with `megalign train`"
    ):
        load_study(run_file)


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_numbers_are_finite(tmp_path: Path, value: str) -> None:
    run_file = written(tmp_path / "r.yaml", yaml.safe_dump(run_content()))
    with pytest.raises(ConfigError, match=r"train\.optimizer\.lr: "):
        load_run(run_file, [f"train.optimizer.lr={value}"])


def test_configuration_does_not_change_after_loading() -> None:
    config = run_with()
    with pytest.raises(ValueError, match="frozen"):
        config.train.steps = 3  # type: ignore[misc]


def test_configuration_imports_neither_torch_nor_megatron() -> None:
    program = (
        "import sys, megalign.config, megalign.config.layout\n"
        "print(sorted({'torch', 'megatron', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_a_new_preset_replaces_the_values_of_the_one_before_but_none_of_ours() -> None:
    resolved = ModelConfig.model_validate({**model_preset("tiny"), "embedding_init_std": 0.1}).model_dump(mode="json")
    for before in (resolved, {"preset": "tiny", "embedding_init_std": 0.1}):
        overrides = {"model.preset": "150m", "model.num_layers": 6}
        for order in (overrides.items(), reversed(overrides.items())):
            content = apply_overrides({"model": before}, order)
            model = ModelConfig.model_validate({**model_preset("150m"), **content["model"]})
            expected = {**model_preset("150m"), "embedding_init_std": 0.1, "num_layers": 6}
            assert model == ModelConfig.model_validate(expected)


def test_a_model_named_by_its_preset_alone_can_be_overridden() -> None:
    assert apply_overrides({"model": "tiny"}, [("model.num_layers", 6)])["model"] == {"preset": "tiny", "num_layers": 6}
