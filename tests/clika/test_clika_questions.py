"""Questions from folders and tables, in prompts equal to the released ones."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from megalign.clika import Protocol, load_protocol
from megalign.clika.questions import prompt_of, read_questions
from megalign.errors import ConfigError, DataError


def parts_of(prompt: str) -> tuple[str | None, str, list[str]]:
    """Premise, question and options of a prompt's last question."""
    before, named, last = prompt.rpartition("Question:")
    last = last if named else last.partition("\n")[2]
    question, _, tail = last.removesuffix("\nAnswer:").partition("\nA. ")
    premise = before.rpartition("Premise:")[2].removesuffix("\n") if "Premise:" in before else None
    return premise, question, re.split(r"\n[B-E]\. ", tail)


@pytest.mark.reference_data
@pytest.mark.parametrize("dataset", ["x_geo", "x_name", "x_copa", "x_csqa"])
def test_prompts_are_the_released_ones(reference_data: Path, dataset: str) -> None:
    """Every language, model and data set: 60,000 rows, of which every tenth is compared."""
    protocol = load_protocol()
    forms = {"example": 0, "plain": 0}
    for path in sorted((reference_data / "clika" / dataset).glob("*/*.jsonl")):
        form = "plain" if path.name.startswith("chatgpt") else "example"
        instruction = protocol.dataset(dataset).instructions.get(protocol.language(path.parent.name))
        assert (instruction is not None) == (dataset == "x_csqa")
        for line in path.read_text(encoding="utf-8").splitlines()[::10]:
            prompt = json.loads(line)["input"]
            premise, question, options = parts_of(prompt)
            made = prompt_of(question, options, premise=premise, form=form, instruction=instruction)
            assert made == prompt
            forms[form] += 1
    assert forms["plain"] >= 180
    assert forms["example"] > 400


@pytest.mark.reference_data
def test_the_released_folders_are_questions(reference_data: Path) -> None:
    found = read_questions(reference_data / "clika", load_protocol(), files="llama_7b_res*.jsonl")
    counts = {name: [len(f.questions) for f in found if f.dataset == name] for name in ("x_geo", "x_copa", "x_csqa")}
    assert set(counts["x_geo"]) == {200}
    assert set(counts["x_copa"]) == {500}
    assert set(counts["x_csqa"]) == {1000}
    assert {file.folder for file in found if file.dataset == "x_csqa"} >= {"DE_trans", "en", "ar_trans"}


def test_with_fewer_options_the_example_stays_right() -> None:
    assert "A. 1\nB. 5\nAnswer:B. 5\n" in prompt_of("Is it?", ["yes", "no"])
    assert "A. 1\nB. 2\nC. 5\nAnswer:C. 5\n" in prompt_of("Is it?", ["yes", "no", "so"])
    assert "E. 6\nF. 7\nAnswer:D. 5\n" in prompt_of("Is it?", list("uvwxyz"))


def row(**changes: Any) -> dict[str, Any]:
    content = {
        "dataset": "x_copa",
        "language": "de",
        "item": "one",
        "question": "Warum?",
        "options": ["ja", "nein"],
        "label": "B",
        "premise": "Es ist so.",
    }
    return content | changes


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


def test_a_table_is_put_into_the_prompt_format(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", row(), row(item=2, options="ja\nnein", premise=None, language="fr"))
    one, two = read_questions(path, load_protocol(), form="plain")
    assert (one.dataset, one.folder, one.num_options) == ("x_copa", "de", 2)
    assert one.questions[0].prompt.endswith("Premise:Es ist so.\nQuestion:Warum?\nA. ja\nB. nein\nAnswer:")
    assert one.questions[0].label == "B"
    assert (two.folder, two.questions[0].id, two.questions[0].uuid) == ("fr", 2, 2)
    assert "Premise" not in two.questions[0].prompt


def test_a_data_set_may_have_instructions_of_its_own(tmp_path: Path) -> None:
    options = list("vwxyz")
    rows = [row(dataset="x_csqa", language=code, options=options, premise=None) for code in ("FR_trans", "nl")]
    path = write(tmp_path / "q.jsonl", *rows)
    french, dutch = (one.questions[0].prompt for one in read_questions(path, load_protocol(), form="plain"))
    assert french.startswith("La question suivante est une question à choix multiples. ")
    assert french.endswith(" options suivantes.\nWarum?\nA. v\nB. w\nC. x\nD. y\nE. z\nAnswer:")
    assert dutch.endswith(" one from the following options.\nQuestion:Warum?\nA. v\nB. w\nC. x\nD. y\nE. z\nAnswer:")
    assert all("2+3=?" in one.questions[0].prompt for one in read_questions(path, load_protocol()))


def test_a_csv_gives_the_same_questions_as_jsonl(tmp_path: Path) -> None:
    import csv

    rows = [row(options="ja\nnein"), row(item="two", options="a\nb", label="A", premise="")]
    with (tmp_path / "q.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    jsonl = write(tmp_path / "q.jsonl", *rows)
    assert read_questions(tmp_path / "q.csv", load_protocol()) == read_questions(jsonl, load_protocol())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "C"}, "q.jsonl:1: the label 'C' is none of A, B"),
        ({"options": ["ja"]}, r"q.jsonl:1: options are \['ja'\]; x_copa has 2"),
        ({"item": None}, "q.jsonl:1: a question has id"),
        ({"question": 3}, "q.jsonl:1: dataset, language or question is missing"),
        ({"dataset": "x_new"}, "The data set x_new is unknown"),
        ({"language": "Klingon?"}, "is no language code"),
    ],
)
def test_faults_of_a_table_are_named_with_their_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_questions(write(tmp_path / "q.jsonl", row(**change)), load_protocol())


def test_a_table_lacking_columns_says_which(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lacks the column"):
        read_questions(write(tmp_path / "q.jsonl", {"dataset": "x_geo"}), load_protocol())


def test_files_with_other_questions_are_not_mixed(responses: Path, protocol: Protocol) -> None:
    assert len(read_questions(responses, protocol, files="small_res*.jsonl")) == 6
    path = responses / "x_geo" / "en" / "other_res.jsonl"
    write(path, {"id": 0, "input": "other", "label": "A"})
    with pytest.raises(DataError, match="do not hold the same questions"):
        read_questions(responses, protocol)
    path.unlink()
    path.mkdir()
    assert len(read_questions(responses, protocol)) == 6
    with pytest.raises(ConfigError, match="The prompt format is 'fancy'"):
        read_questions(responses, protocol, form="fancy")


@pytest.mark.parametrize(("source", "message"), [("absent", "absent does not exist"), ("empty", "holds no questions")])
def test_nothing_to_ask_is_an_error(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        read_questions(tmp_path / source, load_protocol())


def test_an_unreadable_line_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x_geo" / "en" / "q.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text('{"id": 0, "input": "a", "label": "A"}\nno json\n')
    with pytest.raises(DataError, match=r"q\.jsonl:2: this line is no JSON object"):
        read_questions(tmp_path, load_protocol())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prompt_of("q", ["a", "b"], form="fancy"), "The prompt format is 'fancy'"),
        (lambda: prompt_of("q", ["a"]), "A question has 1 options"),
    ],
)
def test_senseless_prompts_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


def row_of(**changed: Any) -> dict[str, Any]:
    return {
        "dataset": "x_copa",
        "language": "de",
        "item": 1,
        "question": "?",
        "options": ["a", "b"],
        "label": "A",
    } | changed


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row_of(), row_of(question="other")], r"x_copa in de: 1 id at several questions: 1\."),
        ([row_of(options=["a", None])], r":1: options are \['a', None\]"),
        ([row_of(language="../up")], r"'x_copa' in '\.\./up' cannot be a folder's name"),
    ],
)
def test_tables_that_cannot_be_asked(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    named = load_protocol().model_copy(update={"languages": {"../up": "de"}})
    with pytest.raises(DataError, match=message):
        read_questions(path, named)


def test_folders_that_cannot_be_asked(tmp_path: Path) -> None:
    path = tmp_path / "x_copa" / "de" / "a.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("")
    with pytest.raises(DataError, match=r"a\.jsonl holds no questions"):
        read_questions(tmp_path, load_protocol())
    path.write_text('{"id": 1, "input": "?", "label": "A"}\n' * 2)
    with pytest.raises(DataError, match=r"a\.jsonl: 1 id at several questions"):
        read_questions(tmp_path, load_protocol())
    with pytest.raises(ConfigError, match=r"--files 'a\*\*' cannot be used"):
        read_questions(tmp_path, load_protocol(), files="a**")
