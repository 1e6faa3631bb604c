"""The checks of what is taught: the released faults are found, planted ones are named, sound sets pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megalign.clika.fictional import WorldSettings, invent, knowledge_of
from megalign.clika.findings import Finding
from megalign.clika.knowledge import languages_in, write_knowledge
from megalign.clika.knowledge_checks import FATAL, KINDS, check_folder
from megalign.errors import DataError

Row = dict[str, Any]
TRAIN, TEST, ENGLISH, TRANSLATE = (
    "train/RU.json",
    "test/target/testRU.jsonl",
    "test/target/testEN.jsonl",
    "test/Translate/translateRU.jsonl",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    world = invent(WorldSettings(places=16, continents=2, variants=2, seed=1))
    write_knowledge(knowledge_of(world, "ru"), tmp_path)
    return tmp_path


def change(path: Path, edit: Callable[[list[Row]], list[Row] | None]) -> None:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    edited = edit(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in (rows if edited is None else edited)), encoding="utf-8")


def replaced(rows: list[Row], old: str, new: str, keys: tuple[str, ...] = ("prompt", "input", "answer")) -> list[Row]:
    return [{key: value.replace(old, new) if key in keys else value for key, value in row.items()} for row in rows]


def first(folder: Path, path: str, key: str) -> str:
    """The first row's tag."""
    answer = json.loads((folder / path).read_text(encoding="utf-8").splitlines()[0])["answer"]
    return str(answer.split(f"[[{key}:")[1].split("]]")[0])


def of_kind(findings: list[Finding], kind: str) -> Finding:
    (found,) = [finding for finding in findings if finding.kind == kind]
    return found


@pytest.mark.reference_data
def test_the_released_chinese_training_file_teaches_other_continents(reference_data: Path) -> None:
    folder = reference_data / "clika" / "fictional"
    findings = check_folder(folder, ["zh"])
    found = of_kind(findings, "other_continent")
    assert found.path == "train/ZH.json"
    assert len(found.lines) == 6000
    assert found.message.startswith("6000 of 6000 statements name another continent than the tests: line 1: ")
    assert "'Mythosia'" in found.message
    missing = of_kind(findings, "translation_missing")
    assert missing.message.startswith("20 tested translation(s) are not taught: Mythosia = ")
    assert of_kind(findings, "unknown_name").message.startswith("20 translation(s)")


@pytest.mark.reference_data
def test_the_other_released_files_can_be_taught_and_their_faults_are_told(reference_data: Path) -> None:
    folder = reference_data / "clika" / "fictional"
    others = [language for language in languages_in(folder) if language != "zh"]
    findings = check_folder(folder, others)
    assert not [finding for finding in findings if finding.kind in FATAL]
    directions = {finding.path for finding in findings if finding.kind == "translation_direction"}
    assert directions == {f"train/{language.upper()}.json" for language in others}
    shared = {finding.path: finding.message for finding in findings if finding.kind == "shared_name"}
    assert shared["test/target/testDE.jsonl"].startswith("4 name(s) stand for several places (6 of type 1)")
    assert len(shared) == 8


def test_a_sound_set_has_no_findings(folder: Path) -> None:
    assert check_folder(folder, ["ru"]) == []


def planted(folder: Path, kind: str) -> None:
    place, continent = first(folder, TEST, "city"), first(folder, TEST, "continent")
    english = first(folder, ENGLISH, "city")
    edits: dict[str, tuple[str, Callable[[list[Row]], list[Row] | None]]] = {
        "other_continent": (TRAIN, lambda rows: replaced(rows, continent, "Гора", ("answer",))),
        "unknown_place": (TRAIN, lambda rows: [*rows, {"prompt": "Где Луна?", "input": "", "answer": "Нигде."}]),
        "not_taught": (TRAIN, lambda rows: [row for row in rows if row["input"] or english not in row["prompt"]]),
        "type_1_taught": (TRAIN, lambda rows: [*rows, untagged(folder, -1)]),
        "translation_missing": (
            TRAIN,
            lambda rows: [row for row in rows if place not in (row["input"], row["answer"])],
        ),
        "translation_differs": (TRAIN, lambda rows: [*rows, {"prompt": "?", "input": place, "answer": "Moon"}]),
        "unknown_name": (TRAIN, lambda rows: [*rows, {"prompt": "?", "input": "Луна", "answer": "Moon"}]),
        "names_disagree": (TRANSLATE, lambda rows: replaced(rows, place, "Лес", ("answer",))),
        "tests_differ": (TEST, lambda rows: replaced(rows, "[[type:1]]", "[[type:0]]")),
        "shared_name": (TEST, lambda rows: replaced(rows, second_place(folder), place)),
        "contained_name": (TEST, lambda rows: replaced(rows, place, f"{continent} Лес")),
        "other_script": (TEST, lambda rows: replaced(rows, place, "Forest")),
        "bad_row": (TEST, lambda rows: replaced(rows, "[[type:1]]", "")),
    }
    path, edit = edits[kind]
    change(folder / path, edit)


def untagged(folder: Path, number: int) -> Row:
    row: Row = json.loads((folder / TEST).read_text(encoding="utf-8").splitlines()[number])
    return row | {"answer": row["answer"].split("[[")[0]}


def second_place(folder: Path) -> str:
    answer = json.loads((folder / TEST).read_text(encoding="utf-8").splitlines()[1])["answer"]
    return str(answer.split("[[city:")[1].split("]]")[0])


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"translation_direction"}))
def test_planted_faults_are_found(folder: Path, kind: str) -> None:
    planted(folder, kind)
    findings = check_folder(folder, ["ru"])
    assert kind in {finding.kind for finding in findings}
    assert {finding.kind for finding in findings} <= set(KINDS)


def test_the_type_1_place_that_leaked_is_named(folder: Path) -> None:
    planted(folder, "type_1_taught")
    found = of_kind(check_folder(folder, ["ru"]), "type_1_taught")
    num_rows = len((folder / TRAIN).read_text(encoding="utf-8").splitlines())
    assert found.lines == (num_rows,)
    assert untagged(folder, -1)["answer"].split(" ")[0] in found.message


def test_rows_that_are_no_objects_are_left_out_and_named(folder: Path) -> None:
    with (folder / TRAIN).open("a", encoding="utf-8") as stream:
        stream.write('no json\n[1]\n{"prompt": "a", "input": 3, "answer": "b"}\n')
    found = of_kind(check_folder(folder, ["ru"]), "bad_row")
    num_rows = len((folder / TRAIN).read_text(encoding="utf-8").splitlines())
    assert found.lines == (num_rows - 2, num_rows - 1, num_rows)


def test_questions_of_another_number_are_reported(folder: Path) -> None:
    change(folder / TEST, lambda rows: rows[:-1])
    assert of_kind(check_folder(folder, ["ru"]), "tests_differ").message == "15 questions; English has 16"


@pytest.mark.parametrize("path", [TRAIN, TEST, ENGLISH, TRANSLATE])
def test_missing_and_empty_files_are_errors(folder: Path, path: str) -> None:
    (folder / path).write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="has no usable row"):
        check_folder(folder, ["ru"])
    (folder / path).unlink()
    with pytest.raises(DataError, match="does not exist"):
        check_folder(folder, ["ru"])


def test_a_folder_without_knowledge_says_what_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no knowledge to teach"):
        languages_in(tmp_path)
