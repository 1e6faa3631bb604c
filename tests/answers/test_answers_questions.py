"""Questions answered by a model into files that the scorer reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import small_study
from small_models import CHAT_TEMPLATE, write_model

from megalign.answers import open_model
from megalign.answers.questions import AnswerSettings, answer_questions
from megalign.clika import ScoreOptions, load_protocol, score
from megalign.clika.questions import read_questions
from megalign.errors import ConfigError, DataError

LANGUAGES = ("en", "de")


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = [
        {
            "dataset": dataset,
            "language": language,
            "item": number,
            "question": f"{language} {number} {'a' * (5 * number % 7)}?",
            "options": [f"one {number}", "two", "three", "four"][:count],
            "label": "ABCD"[number % count],
        }
        for dataset, count in (("x_geo", 4), ("x_copa", 2))
        for language in LANGUAGES
        for number in range(12)
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a limit of length, with a chat template."""
    return write_model(tmp_path_factory.mktemp("wide") / "wide", "bloom", chat_template=CHAT_TEMPLATE)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_letters_are_the_most_likely_ones_and_are_scored(wide: Path, questions: Path, tmp_path: Path) -> None:
    found = read_questions(questions, load_protocol())
    told: list[int] = []
    written = answer_questions(
        str(wide), found, tmp_path / "out", AnswerSettings(mode="letters"), told.append, device="cpu", batch_size=5
    )
    assert [str(path.relative_to(tmp_path / "out")) for path in written] == [
        f"{dataset}/{language}/wide-letters_res.jsonl" for dataset in ("x_geo", "x_copa") for language in LANGUAGES
    ]
    assert told[-1] == 48
    model = open_model(str(wide), device="cpu")
    hits = {}
    for file, path in zip(found, written, strict=True):
        letters = "ABCD"[: file.num_options]
        values = model.option_log_likelihoods([q.prompt for q in file.questions], [list(letters)] * 12)
        best = [letters[value.index(max(value))] for value in values]
        assert [row["res"] for row in rows(path)] == best
        hits[file.dataset, file.folder] = sum(a == q.label for a, q in zip(best, file.questions, strict=True))
    result = score(tmp_path / "out", tmp_path / "scores", ScoreOptions(load_protocol(), num_resamples=20, report=False))
    got = {(row["dataset"], row["language"]): row["accuracy"] for row in result.scores}
    assert got == {cell: pytest.approx(100 * count / 12) for cell, count in hits.items()}
    assert {finding.kind for finding in result.findings} <= {"missing_rows", "constant_answers", "repeated_options"}


def test_files_of_texts_are_continued(wide: Path, questions: Path, tmp_path: Path) -> None:
    found = read_questions(questions, load_protocol())
    written = answer_questions(str(wide), found, tmp_path, AnswerSettings(), device="cpu")
    whole = {path: path.read_bytes() for path in written}
    model = open_model(str(wide), device="cpu")
    texts = model.generate([q.prompt for q in found[0].questions], max_new_tokens=8)
    assert [row["res"] for row in rows(written[0])] == texts
    assert {tuple(row) for row in rows(written[0])} == {("id", "input", "res", "label", "uuid")}
    written[1].write_bytes(whole[written[1]][:-200])
    assert answer_questions(str(wide), found, tmp_path, AnswerSettings(), device="cpu") == written
    assert {path: path.read_bytes() for path in written} == whole
    with pytest.raises(ConfigError, match="max_new_tokens was 8, is 9"):
        answer_questions(str(wide), found, tmp_path, AnswerSettings(max_new_tokens=9), device="cpu")
    with pytest.raises(ConfigError, match="chat was False, is True"):
        answer_questions(str(wide), found, tmp_path, AnswerSettings(chat=True), device="cpu")


def test_a_line_may_end_before_the_answer(
    wide: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models that start a new line before they answer are scored as the released scorer does it, which strips responses."""
    model = open_model(str(wide), device="cpu")
    label = {q.prompt: q.label for file in read_questions(questions, load_protocol()) for q in file.questions}
    monkeypatch.setattr(model, "_decode", lambda ids: "".join(map(chr, ids)))
    monkeypatch.setattr(model, "_encode", lambda text: [*map(ord, text)])
    monkeypatch.setattr(
        model, "_continue", lambda batch, *_: [[*map(ord, f"\n{label[''.join(map(chr, ids))]}.\n")] for ids in batch]
    )
    monkeypatch.setattr("megalign.answers.questions.open_model", lambda *_, **__: model)
    answer_questions("any", read_questions(questions, load_protocol()), tmp_path / "out", AnswerSettings())
    result = score(tmp_path / "out", tmp_path / "scores", ScoreOptions(load_protocol(), num_resamples=2, report=False))
    assert [row["accuracy"] for row in result.scores] == [100.0] * 4


def test_texts_and_letters_of_a_model_are_scored_together(wide: Path, questions: Path, tmp_path: Path) -> None:
    found = read_questions(questions, load_protocol())
    for mode in ("text", "letters"):
        answer_questions(str(wide), found, tmp_path / "out", AnswerSettings(mode=mode), device="cpu")
    result = score(tmp_path / "out", tmp_path / "scores", ScoreOptions(load_protocol(), num_resamples=2, report=False))
    assert {row["model"] for row in result.scores} == {"wide", "wide-letters"}


def test_a_prompt_that_does_not_fit_leaves_nothing(models: dict[str, Path], questions: Path, tmp_path: Path) -> None:
    found = read_questions(questions, load_protocol())
    with pytest.raises(DataError, match="gpt2 takes 64"):
        answer_questions(str(models["gpt2"]), found, tmp_path, AnswerSettings(), device="cpu")
    assert not [path for path in (tmp_path / "x_geo").rglob("*") if path.is_file()]


def test_the_chat_template_is_used_where_asked(wide: Path, questions: Path, tmp_path: Path) -> None:
    found = read_questions(questions, load_protocol())[:1]
    settings = AnswerSettings(chat=True, name="chat/model")
    (path,) = answer_questions(str(wide), found, tmp_path, settings, device="cpu")
    assert path.name == "chat-model_res.jsonl"
    assert rows(path)[0]["input"] == f"<|endoftext|>[user]{found[0].questions[0].prompt}\n[assistant]"


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="The mode is 'guess'"):
        AnswerSettings(mode="guess")


def test_the_command_answers_and_names_errors(wide: Path, questions: Path, tmp_path: Path) -> None:
    options = ["--out", tmp_path / "out", "--device", "cpu"]
    done = small_study.megalign("clika", "answer", wide, questions, *options)
    assert done.returncode == 0, done.stderr
    assert "4 files of answers in" in done.stdout
    assert "48 of 48 questions" in done.stderr
    assert "Loading weights" not in done.stderr, "bars are for terminals"
    unknown = small_study.megalign("clika", "answer", wide, questions, *options, "--mode", "guess")
    assert unknown.returncode == 2
    assert "The mode is 'guess'" in unknown.stderr
    absent = small_study.megalign("clika", "answer", tmp_path / "absent", questions, *options)
    assert absent.returncode == 3
    assert "does not exist" in absent.stderr
