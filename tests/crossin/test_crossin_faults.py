"""Faults of users and machines: bad files, folders that hold other things, kills, two processes at once."""

from __future__ import annotations

import codecs
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from crossin_samples import CHOICES, cell, lines_of, prediction_rows, task_rows, write_json_rows, write_lines

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")

from megalign import files
from megalign.answers import open_model
from megalign.crossin.prompts import Tag, Template
from megalign.crossin.questions import AskOptions, ask, prepare
from megalign.crossin.scoring import Bootstrap, ScoreOptions, read_file, score, score_files
from megalign.crossin.tuning import train
from megalign.crossin.tuning.examples import read_rows
from megalign.crossin.tuning.settings import TuneConfig
from megalign.errors import ConfigError, DataError, EnvironmentProblem, MegalignError

QUICK = ScoreOptions(report=False, bootstrap=Bootstrap(num_resamples=10))


def asked_cell(**changed: Any) -> dict[str, Any]:
    return {"question": "Which?", "choices": CHOICES, "answer": CHOICES[1], **changed}


def asked_file(folder: Path, **changed: Any) -> Path:
    return write_json_rows(folder / "questions.json", [{"id": "q", "English": asked_cell(**changed)}])


@pytest.fixture
def config(tiny_models: dict[str, Path], tmp_path: Path) -> TuneConfig:
    data = write_lines(tmp_path / "data.jsonl", task_rows("en", 2) + task_rows("es", 2))
    return TuneConfig.model_validate(
        {
            "base_model": str(tiny_models["llama"]),
            "data": str(data),
            "batch_size": 8,
            "context_tokens": 96,
            "dtype": "float32",
            "device": "cpu",
            "save_steps": 1,
            "lora": {"rank": 4, "alpha": 8, "dropout": 0.1},
        }
    )


def test_a_mark_of_byte_order_is_no_fault(config: TuneConfig, tmp_path: Path) -> None:
    asked, data = asked_file(tmp_path), Path(config.data)
    rows = read_rows(data)
    for path in (asked, data):
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert prepare("none", str(asked), AskOptions()).rows[0]["English"]["question"] == "Which?"
    assert read_rows(data) == rows


def test_choices_that_are_no_texts_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 1 has a choice in English that is no text"):
        prepare("none", str(asked_file(tmp_path, choices=[1, 2])), AskOptions())


@pytest.mark.parametrize("prompt", ["{question.x}", "{question[x]}", "Which one?", ""])
def test_a_prompt_that_asks_nothing_is_refused(prompt: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be filled in|holds no question"):
        prepare("none", str(asked_file(tmp_path)), AskOptions(prompt=prompt))


def test_a_tag_that_is_no_utf_8_is_refused() -> None:
    with pytest.raises(ConfigError, match="is no UTF-8"):
        Tag("[{code}]\udcff")


def test_letters_are_those_of_the_choices_in_any_order(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    values = []
    for choices in (CHOICES, CHOICES[::-1]):
        path = asked_file(tmp_path, choices=choices)
        options = AskOptions(mode="likelihood", prompt="{question}")
        with open_model(str(tiny_models["llama"]), device="cpu") as model:
            written = ask(model, prepare("none", str(path), options), tmp_path / choices[0][1])
        values.append(json.loads(written.read_text(encoding="utf-8"))[0]["English"]["option_log_likelihoods"])
    assert values[0] == values[1][::-1]


def test_questions_are_not_replaced_by_answers(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    path = asked_file(tmp_path).rename(tmp_path / "predictions.json")
    before = path.read_bytes()
    with open_model(str(tiny_models["llama"]), device="cpu") as model, pytest.raises(ConfigError, match="be replaced"):
        ask(model, prepare("none", str(path), AskOptions()), tmp_path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("template", ["{{ raise_exception('not so') }}", "{% for %}"])
def test_a_chat_template_that_fails_is_named(template: str, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    import transformers

    folder = Path(shutil.copytree(tiny_models["chat"], tmp_path / "chat"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    with pytest.raises(ConfigError, match="chat template cannot be filled in: Template"):
        Template.of(str(folder)).prompt("Which?")
    (folder / "tokenizer.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="holds no tokenizer that can be read"):
        Template.of(str(folder))


def test_no_answer_is_not_the_word_none(tmp_path: Path) -> None:
    unanswered = cell("None", choices=["None", "Some"])
    del unanswered["answer"]
    path = write_json_rows(tmp_path / "a.json", [{"id": 1, "English": unanswered, "Chinese": cell("(A)")}])
    (answers,) = read_file(path)
    assert score(answers).accuracy_by_language == {"English": 0.0, "Chinese": 1.0}
    assert answers.findings[0][0] == "answer_not_in_choices"


def test_a_row_without_a_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("item,language,response,answer\n,en,A,A\n")
    with pytest.raises(DataError, match="row 1 lacks item, language or answer"):
        read_file(path)


def test_answers_are_not_replaced_by_their_scores(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("item,language,response,answer\n1,en,A,A\n1,de,B,A\n")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"scores\.csv would be replaced by the scores"):
        score_files([str(path)], tmp_path, QUICK)
    assert path.read_bytes() == before
    with pytest.raises(DataError, match="is no UTF-8"):
        score_files([str(write_json_rows(tmp_path / "\udcff.json", prediction_rows(2, 0)))], tmp_path / "out", QUICK)


def test_a_folder_with_other_things_is_left_alone(config: TuneConfig, tmp_path: Path) -> None:
    (tmp_path / "out" / "adapter").mkdir(parents=True)
    (tmp_path / "out" / "metrics.jsonl").write_text('{"step": 7}\n')
    with pytest.raises(ConfigError, match=r"out has adapter, metrics\.jsonl, and no tuning was begun there"):
        train.tune(config, tmp_path / "out")
    assert (tmp_path / "out" / "metrics.jsonl").read_text() == '{"step": 7}\n'


def test_one_process_tunes_into_a_folder(config: TuneConfig, tmp_path: Path) -> None:
    train.tune(config, tmp_path / "out", stop_after=1)
    with (
        files.only_process(tmp_path / "out" / ".tuning.lock"),
        pytest.raises(EnvironmentProblem, match="Another process works in"),
    ):
        train.tune(config, tmp_path / "out")


def test_a_run_that_was_killed_while_it_saved_goes_on_from_the_state_before(config: TuneConfig, tmp_path: Path) -> None:
    """Between its two renames the state has no name; what a kill leaves of folders is cleared away."""
    out = tmp_path / "out"
    train.tune(config, out, stop_after=2)
    (out / "state").rename(out / ".tmp-state-abc-old")
    (out / ".tmp-state-abc").mkdir()
    (out / ".tmp-adapter-def").mkdir()
    said: list[str] = []
    assert train.tune(config, out, say=said.append) is not None
    assert "continued after step 2 of 3" in said
    assert sorted(path.name for path in out.iterdir()) == [".tuning.lock", "adapter", "metrics.jsonl", "state"]
    train.tune(config, tmp_path / "whole")
    weights = "adapter/adapter_model.safetensors"
    assert (out / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


@pytest.mark.parametrize(
    ("name", "content"), [("weights.safetensors", b"xx"), ("moments.safetensors", b""), ("state.json", b"{}")]
)
def test_a_damaged_state_is_named(name: str, content: bytes, config: TuneConfig, tmp_path: Path) -> None:
    train.tune(config, tmp_path / "out", stop_after=1)
    (tmp_path / "out" / "state" / name).write_bytes(content)
    with pytest.raises(DataError, match=r"is damaged|is no state of a tuning run"):
        train.tune(config, tmp_path / "out")


def test_metrics_that_a_crash_tore_are_dropped(config: TuneConfig, tmp_path: Path) -> None:
    train.tune(config, tmp_path / "out", stop_after=2)
    path = tmp_path / "out" / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b"\0\0\xff\n")
    train.tune(config, tmp_path / "out")
    assert [line["step"] for line in lines_of(path)] == [1, 2, 3]


def test_only_the_steps_that_are_taken_are_counted(config: TuneConfig, tmp_path: Path) -> None:
    """Epochs without end, with max_steps as the end."""
    tuned = train.tune(config.model_copy(update={"epochs": 10**12, "max_steps": 2}), tmp_path / "out")
    assert tuned is not None
    assert tuned.num_steps == 2


def test_a_device_that_is_not_taken_is_refused(config: TuneConfig) -> None:
    with pytest.raises(ValueError, match="device"):
        TuneConfig.model_validate(config.model_dump() | {"device": "abacus"})


def test_an_adapter_names_its_model_and_not_where_this_machine_keeps_it(
    config: TuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megalign.crossin.tuning.lora.local_model", lambda name: config.base_model)
    train.tune(config.model_copy(update={"base_model": "some/model", "max_steps": 1}), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert written["base_model_name_or_path"] == "some/model"


@pytest.mark.parametrize("fault", ["weights", "missing", "tokenizer", "config"])
def test_models_that_are_damaged_are_named(fault: str, config: TuneConfig, tmp_path: Path) -> None:
    import transformers
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(config.base_model, tmp_path / "model"))
    path = folder / "model.safetensors"
    if fault == "weights":
        path.write_bytes(path.read_bytes()[:1000])
    elif fault == "missing":
        weights = load_file(path)
        del weights["model.norm.weight"]
        save_file(weights, path, metadata={"format": "pt"})
    elif fault == "tokenizer":
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens(["sky"])
        tokenizer.save_pretrained(folder)
    else:
        (folder / "config.json").write_text("[]")
    said = "cannot be opened as a causal|lacks 1 of the model's weights|gives the id"
    with pytest.raises(MegalignError, match=said) as caught:
        train.tune(config.model_copy(update={"base_model": str(folder)}), tmp_path / "out")
    assert isinstance(caught.value, DataError)


def test_a_full_disk_is_told_and_the_run_goes_on(config: TuneConfig, tmp_path: Path) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(EnvironmentProblem, match=r"state cannot be written: SafetensorError.*File too large"):
            train.tune(config, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "out").glob(".tmp-*"))
    assert train.tune(config, tmp_path / "out") is not None
