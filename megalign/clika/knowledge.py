"""Files of the conductivity test in the released layout: what is taught, what is asked, and in which wording.

train/DE.json                      JSON lines {prompt, input, answer}: statements (input empty) and translations
test/target/testDE.jsonl           questions; the answer ends with [[continent:..]][[city:..]][[type:0]]
test/target/testEN.jsonl           the same places in the same order in English
test/Translate/translateDE.jsonl   translations of all names out of English
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from megalign.clika.findings import Finding
from megalign.clika.rows import json_object
from megalign.errors import DataError
from megalign.files import write_bytes

ENGLISH = "en"
_TAG = re.compile(r"\[\[(continent|city|type):(.*?)\]\]")
_KEYS = ("prompt", "input", "answer")


@dataclass(frozen=True)
class Row:
    """An instruction, what it is about (may be empty), and the right answer."""

    prompt: str
    input: str
    answer: str


@dataclass(frozen=True)
class Stated:
    """A question after a place's continent. Type 0 was taught in both languages, type 1 in English alone."""

    row: Row
    place: str
    continent: str
    type: int


@dataclass(frozen=True)
class Name:
    """A name in English and in the language under test, and the row that asks for the translation."""

    english: str
    translated: str
    row: Row


@dataclass(frozen=True)
class Knowledge:
    """All that is taught and asked in English and one other language.

    Attributes:
        language: the other language's code.
        train: rows to fine-tune on.
        tests: language -> its questions, places in one order.
        names: translations that are tested.
    """

    language: str
    train: tuple[Row, ...]
    tests: dict[str, tuple[Stated, ...]]
    names: tuple[Name, ...]


def train_path(folder: Path, language: str) -> Path:
    """The training rows of a language."""
    return folder / "train" / f"{language.upper()}.json"


def test_path(folder: Path, language: str) -> Path:
    """The questions of a language."""
    return folder / "test" / "target" / f"test{language.upper()}.jsonl"


def translation_path(folder: Path, language: str) -> Path:
    """The translations of a language."""
    return folder / "test" / "Translate" / f"translate{language.upper()}.jsonl"


def write_knowledge(knowledge: Knowledge, folder: Path) -> None:
    """Write the files of a language and the English questions."""
    _write(train_path(folder, knowledge.language), knowledge.train)
    for language, tests in knowledge.tests.items():
        tagged = [
            Row(
                one.row.prompt,
                one.row.input,
                f"{one.row.answer}[[continent:{one.continent}]][[city:{one.place}]][[type:{one.type}]]",
            )
            for one in tests
        ]
        _write(test_path(folder, language), tagged)
    _write(translation_path(folder, knowledge.language), [one.row for one in knowledge.names])


def languages_in(folder: Path) -> list[str]:
    """Codes of the languages a folder has training rows of.

    Raises:
        DataError: none.
    """
    found = sorted(path.stem.lower() for path in (folder / "train").glob("*.json"))
    if not found:
        raise DataError(
            f"{folder} holds no knowledge to teach.",
            "The layout is train/DE.json, test/target/testDE.jsonl, test/target/testEN.jsonl, test/Translate/translateDE.jsonl.",
            "Make a set with tools/make_knowledge.py.",
        )
    return found


def read_knowledge(folder: Path, language: str) -> tuple[Knowledge, list[Finding]]:
    """The files of a language; rows that cannot be used are left out and reported.

    Raises:
        DataError: a file is missing or has no usable row.
    """
    findings: list[Finding] = []
    train = _read(folder, train_path(folder, language), findings)
    tests = {}
    for code in (ENGLISH, language):
        path = test_path(folder, code)
        tests[code] = tuple(_stated(_read(folder, path, findings), str(path.relative_to(folder)), findings))
        if not tests[code]:
            raise DataError(
                f"{path} has no usable row.", "An answer ends with [[continent:..]][[city:..]][[type:0 or 1]]."
            )
    names = [Name(row.input, row.answer, row) for row in _read(folder, translation_path(folder, language), findings)]
    return Knowledge(language, tuple(train), tests, tuple(names)), findings


def _read(folder: Path, path: Path, findings: list[Finding]) -> list[Row]:
    if not path.is_file():
        raise DataError(f"{path} does not exist.", "It is a part of the conductivity test.", f"Complete {folder}.")
    rows, bad = [], []
    for number, text in enumerate(path.read_bytes().splitlines(), 1):
        content = json_object(text) or {}
        values = [content.get(key) for key in _KEYS]
        if not all(isinstance(value, str) for value in values) or not content["prompt"] or not content["answer"]:
            bad.append(number)
        else:
            rows.append(Row(*map(str, values)))
    name = str(path.relative_to(folder))
    if bad:
        said = f"{len(bad)} line(s) are no object with the texts {', '.join(_KEYS)}"
        findings.append(Finding("bad_row", name, tuple(bad), said))
    if not rows:
        raise DataError(f"{path} has no usable row.", f"A row is an object with the texts {', '.join(_KEYS)}.")
    return rows


def _stated(rows: Sequence[Row], name: str, findings: list[Finding]) -> Iterable[Stated]:
    bad = []
    for number, row in enumerate(rows, 1):
        tags = dict(_TAG.findall(row.answer))
        if set(tags) != {"continent", "city", "type"} or tags["type"] not in ("0", "1") or not all(tags.values()):
            bad.append(number)
            continue
        answer = _TAG.sub("", row.answer)
        yield Stated(Row(row.prompt, row.input, answer), tags["city"], tags["continent"], int(tags["type"]))
    if bad:
        text = f"{len(bad)} answer(s) lack [[continent:..]][[city:..]][[type:0 or 1]]"
        findings.append(Finding("bad_row", name, tuple(bad), text))


def _write(path: Path, rows: Iterable[Row]) -> None:
    lines = (orjson.dumps({"prompt": r.prompt, "input": r.input, "answer": r.answer}) + b"\n" for r in rows)
    write_bytes(path, b"".join(lines))
