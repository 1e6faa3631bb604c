"""Asking a model: questions read and framed, answers as a prediction file, continued runs, and the whole loop of the example."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from crossin_samples import CHOICES, lines_of, write_json_rows

pytest.importorskip("torch")
pytest.importorskip("transformers")

from megalign.answers import open_model
from megalign.crossin.questions import AskOptions, as_trained, ask, chosen_rows, prepare, read_questions, turn_of
from megalign.crossin.scoring import read_file, score
from megalign.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "crossin"


def question_rows(count: int = 3) -> list[dict[str, Any]]:
    cell = {"question": "Which?", "choices": CHOICES, "answer": CHOICES[1], "model_prediction": "(D)"}
    return [
        {
            "id": f"q{number}",
            "English": {**cell, "question": f"Which {number}?"},
            "Chinese": {**cell, "context": "天空"},
        }
        for number in range(count)
    ]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write_json_rows(tmp_path / "questions.json", question_rows())


def test_likelihoods_are_those_of_a_plain_loop(tiny_models: dict[str, Path], questions: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = AskOptions(mode="likelihood", options="text", prompt="{question}", languages=("English",))
    with open_model(str(tiny_models["llama"]), device="cpu", batch_size=2) as model:
        path = ask(model, prepare(str(tiny_models["llama"]), str(questions), options), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["llama"])
    reference = AutoModelForCausalLM.from_pretrained(tiny_models["llama"]).eval()
    rows = json.loads(path.read_text(encoding="utf-8"))
    for number, row in enumerate(rows):
        cell = row["English"]
        assert cell["model_input"] == f"Which {number}?\n"
        values = []
        for choice in CHOICES:
            context = tokenizer(f"Which {number}?")["input_ids"]
            ids = tokenizer(f"Which {number}?\n{choice[4:]}")["input_ids"]
            with torch.no_grad():
                logits = reference(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            totals = [float(logits[at - 1, ids[at]]) for at in range(len(context), len(ids))]
            values.append(sum(totals) / len(totals))
        assert cell["option_log_likelihoods"] == pytest.approx(values, rel=1e-4)
        assert cell["model_prediction"] == CHOICES[values.index(max(values))]
    one, other = read_file(path, by="likelihood")[0], read_file(path, by="text")[0]
    assert score(one) == score(other)
    assert one.languages == ("English",)


def test_text_answers_and_a_continued_run(tiny_models: dict[str, Path], questions: Path, tmp_path: Path) -> None:
    options = AskOptions(max_new_tokens=6, max_questions=2)
    with open_model(str(tiny_models["llama"]), device="cpu") as model:
        path = ask(model, prepare("llama", str(questions), options), tmp_path / "out")
        rows = json.loads(path.read_text(encoding="utf-8"))
        for row in rows:
            for language in ("English", "Chinese"):
                cell = row[language]
                turn = turn_of(cell, language, options)
                assert cell["model_input"] == turn + "\n"
                assert cell["model_prediction"] == model.generate([turn + "\n"], max_new_tokens=6)[0]
        assert len(rows) == 2
        assert "Text:\n天空" in rows[0]["Chinese"]["model_input"]
        answers = tmp_path / "out" / "answers.jsonl"
        whole = answers.read_bytes()
        answers.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]) + b'{"id": "torn')
        moved = questions.rename(tmp_path / "moved.json")  # the same questions, wherever they are
        ask(model, prepare("llama", str(moved), options), tmp_path / "out")
        assert answers.read_bytes() == whole
        with pytest.raises(ConfigError, match="was begun with other settings"):
            ask(model, prepare("llama", str(moved), replace(options, max_new_tokens=7)), tmp_path / "out")


def test_template_and_tag_are_those_of_the_training(questions: Path, tmp_path: Path) -> None:
    assert as_trained(str(tmp_path), AskOptions()).template == "plain"
    with pytest.raises(ConfigError, match="does not say with which tag"):
        as_trained(str(tmp_path), AskOptions(tag="trained"))
    (tmp_path / "tune.json").write_text(json.dumps({"template": "alpaca", "tag": "\n[in {name}]"}))
    trained = as_trained(str(tmp_path), AskOptions(tag="trained"))
    assert (trained.template, trained.tag) == ("alpaca", "\n[in {name}]")
    assert as_trained(str(tmp_path), AskOptions()).tag == ""
    assert as_trained(str(tmp_path), AskOptions(template="vicuna")).template == "vicuna"
    asked = prepare(str(tmp_path), str(questions), AskOptions(tag="trained", prompt="{question}"))
    assert asked.turns[1, "English"] == "Which 1?\n[in English]"
    assert asked.turns[1, "Chinese"] == "Which?\n[in Chinese]"


def test_wrong_settings_end_before_a_model_is_loaded(questions: Path, tmp_path: Path) -> None:
    for options, message in (
        (AskOptions(template="none"), "There is no template 'none'"),
        (AskOptions(prompt="{query}"), "cannot be filled in"),
    ):
        with pytest.raises(ConfigError, match=message):
            prepare(str(tmp_path), str(questions), options)


def test_turns() -> None:
    cell = question_rows(1)[0]["English"]
    assert turn_of(cell, "English", AskOptions(prompt="{question}", tag="[{code}]")) == "Which 0?\n[en]"
    assert turn_of(cell, "Chinese", AskOptions(prompt="Q {question} {choices}")).endswith("\n".join(CHOICES))
    with pytest.raises(ConfigError, match="cannot be filled in"):
        turn_of(cell, "English", AskOptions(prompt="{query}"))
    with pytest.raises(ConfigError, match="There is no language 'Elvish'"):
        turn_of(cell, "Elvish", AskOptions(tag="[{code}]"))


def test_questions_that_cannot_be_asked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cross_mmlu is on the Hub"):
        read_questions("cross_mmlu")
    with pytest.raises(DataError, match="does not exist"):
        read_questions(str(tmp_path / "none.json"))
    with pytest.raises(DataError, match="holds no questions"):
        read_questions(str(write_json_rows(tmp_path / "a.json", {})))
    rows = question_rows(2)
    del rows[1]["Chinese"]
    with pytest.raises(DataError, match="q: row 2 has no question in Chinese"):
        chosen_rows(rows, AskOptions(), "q")
    rows[1]["English"]["choices"] = ["one"]
    with pytest.raises(DataError, match="q: row 2 has no list of choices in English"):
        chosen_rows(rows, AskOptions(languages=("English",)), "q")
    with pytest.raises(ConfigError, match="mode is 'luck'"):
        AskOptions(mode="luck")


@pytest.mark.reference_data
def test_released_predictions_serve_as_questions(reference_data: Path) -> None:
    path = next(iter(sorted((reference_data / "seaeval").rglob("zero_shot_p3.json"))))
    rows = chosen_rows(
        read_questions(str(path)), AskOptions(languages=("English", "Chinese"), max_questions=4), path.name
    )
    assert [sorted(row) for row in rows] == [["Chinese", "English", "id"]] * 4
    assert all("model_prediction" not in row["English"] for row in rows)


def run_example(out: Path, *arguments: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLE / "loop.py"), "--out", str(out), *arguments]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_example_runs_from_data_to_report(tmp_path: Path) -> None:
    """The whole loop with few steps: what it prints, writes, and does not do twice."""
    few = ("--steps", "3", "--model-steps", "3", "--mixes", "base,x2x_translation")
    said = run_example(tmp_path, *few)
    accuracy = re.findall(r"accuracy (0\.\d+), invalid 0\.000, consistency_3 (0\.\d+), AC3_3 (0\.\d+)", said)
    assert len(accuracy) == 2
    rows = lines_of(tmp_path / "report" / "scores.jsonl")
    assert [f"{row['accuracy']:.3f}" for row in rows] == [one[0] for one in accuracy]
    assert [row["num_questions"] for row in rows] == [40, 40]
    compared = lines_of(tmp_path / "report" / "comparisons.jsonl")
    assert {Path(row["base"]).parent.name for row in compared} == {"base_0"}
    assert (tmp_path / "report" / "report.html").is_file()
    again = run_example(tmp_path, *few)
    assert "crossin tune" not in again
    assert "make_model" not in again
