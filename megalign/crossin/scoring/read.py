"""Prediction files in SeaEval's row format, and plain tables.

A SeaEval row is {"id", "<Language>": {"question", "choices", "answer", "model_prediction"}}, in a JSON list or one a line. A plain
table (csv, jsonl, parquet) has a row per question and language with the columns item, language, response and answer, and may have
choices and model.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from megalign.crossin.scoring.answers import INVALID, NO_ANSWER, Answers
from megalign.crossin.scoring.match import LETTERS, answer_place, letters_of, matcher
from megalign.errors import ConfigError, DataError

PREDICTION, LIKELIHOODS = "model_prediction", "option_log_likelihoods"
COLUMNS = ("item", "language", "response", "answer")
BY = ("text", "likelihood")
FIRST_LINE = ("auto", "yes", "no")
MAX_SHOWN = 5
_FIVE_SHOT = ("five_shot", "5_shot", "5shot", "fiveshot")

Row = Mapping[str, Any]


def read_file(path: Path, *, first_line: str = "auto", by: str = "text", name: str | None = None) -> list[Answers]:
    """The answers of a file: one set, or one for each model of a plain table.

    Args:
        path: .json or .jsonl in SeaEval's row format, or a plain table as .jsonl, .csv or .parquet.
        first_line: keep only a response's first line, as SeaEval does for five-shot predictions: yes, no, or auto, which is yes
            where the file's name says five_shot (or 5_shot).
        by: text (what the response says) or likelihood (the choice with the highest `option_log_likelihoods`).
        name: what the answers are to be called; the path where None.

    Raises:
        DataError: the file is missing, damaged, or lacks something; the message names file and row.
        ConfigError: an unknown `first_line` or `by`.
    """
    for value, known in ((first_line, FIRST_LINE), (by, BY)):
        if value not in known:
            raise ConfigError(f"There is no {value!r} here.", fix=f"Choose {' or '.join(known)}.")
    cut = first_line == "yes" or (first_line == "auto" and any(part in path.name.lower() for part in _FIVE_SHOT))
    label = name or str(path)
    rows = _rows(path)
    if not rows:
        raise DataError(f"{path} holds no rows.", "There is nothing to score.")
    if isinstance(rows[0], Mapping) and all(column in rows[0] for column in COLUMNS):
        tables = _by_model(rows, label)
        return [_answers(label, model, [*table.values()], [*table], cut, by) for model, table in tables]
    return [_answers(label, "", rows, None, cut, by)]


def is_score_file(path: Path) -> bool:
    """Whether the name is that of SeaEval's scores, which stand beside the predictions."""
    return path.name.endswith("_score.json")


def _rows(path: Path) -> list[Any]:
    readers = {".json": _json_rows, ".jsonl": _jsonl_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}
    if path.is_dir():
        raise DataError(f"{path} is a folder.", fix="Name its files, for example FOLDER/*.json.")
    if path.suffix not in readers:
        raise DataError(f"{path} is no kind of file that can be scored.", fix=f"Give one of {', '.join(readers)}.")
    try:
        return readers[path.suffix](path)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None


def _json_rows(path: Path) -> list[Any]:
    try:
        content = orjson.loads(path.read_bytes().removeprefix(codecs.BOM_UTF8))
    except orjson.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: {error}.", "It may be half-written or damaged.") from None
    if not isinstance(content, list):
        raise DataError(f"{path} holds no list of rows.", 'A row is {"id": ..., "English": {"choices": [...], ...}}.')
    return content


def _jsonl_rows(path: Path) -> list[Any]:
    rows = []
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                try:
                    rows.append(orjson.loads(line.removeprefix(codecs.BOM_UTF8)))
                except orjson.JSONDecodeError as error:
                    raise DataError(f"{path}:{number} is not JSON: {error}.") from None
    return rows


def _csv_rows(path: Path) -> list[Any]:
    csv.field_size_limit(1 << 24)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            return list(csv.DictReader(stream, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a CSV file that can be read: {error}.") from None


def _parquet_rows(path: Path) -> list[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[Any] = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a parquet file that can be read: {error}.") from None
    return rows


def _by_model(rows: Sequence[Any], label: str) -> Iterator[tuple[str, Mapping[str, Row]]]:
    """A plain table's rows for each model: by item, cells by language as in a SeaEval row."""
    models: dict[str, dict[str, dict[str, Any]]] = {}
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping) or any(row.get(one) in (None, "") for one in ("item", "language", "answer")):
            raise DataError(f"{label}: row {number} lacks item, language or answer.")
        if "response" not in row:
            raise DataError(f"{label}: row {number} lacks response.", fix="Give an empty one where none was given.")
        item, language = str(row["item"]), str(row["language"])
        cells = models.setdefault(str(row.get("model") or ""), {}).setdefault(item, {})
        if language in cells:
            raise DataError(f"{label}: item {item} has two rows in {language}.", "Only one of them can be the answer.")
        cells[language] = {"answer": str(row["answer"]), PREDICTION: row["response"], "choices": row.get("choices")}
        if row.get(LIKELIHOODS) is not None:
            cells[language][LIKELIHOODS] = row[LIKELIHOODS]
    num_options = _letters_used(rows)
    for model, items in models.items():
        for item, cells in items.items():
            for language, cell in cells.items():
                cell["choices"] = _choices(cell["choices"], num_options, f"{label}: item {item}, {language}")
        yield model, items


def _letters_used(rows: Sequence[Row]) -> int:
    """How many letters the right answers of a table without choices use, at least four."""
    given = [str(row["answer"]).strip().strip("()").upper() for row in rows]
    return max([4, *(LETTERS.index(one) + 1 for one in given if len(one) == 1 and one in LETTERS)])


def _choices(given: Any, num_options: int, where: str) -> list[str]:
    if given is None or given == "":
        return [f"({letter})" for letter in LETTERS[:num_options]]
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except json.JSONDecodeError:
            given = None
    if not isinstance(given, list):
        raise DataError(f"{where}: the choices are no list of texts (in a CSV file, of a JSON list).")
    return [str(choice) for choice in given]


def _answers(label: str, model: str, rows: Sequence[Any], items: list[str] | None, cut: bool, by: str) -> Answers:
    """The answers of rows with a cell by language; `items` names them, else their key `id` does."""
    languages = _languages(label, rows)
    options = np.full((len(rows), len(languages)), INVALID, dtype=np.int8)
    gold = np.full((len(rows), len(languages)), NO_ANSWER, dtype=np.int8)
    num_options, undecided = 0, dict[tuple[int, int], tuple[int, ...]]()
    faults: dict[str, list[str]] = {}
    for place, row in enumerate(rows):
        for column, language in enumerate(languages):
            where = f"{label}: row {place + 1}, {language}"
            cell = row[language]
            choices = _choices_of(cell, where)
            num_options = max(num_options, len(choices))
            letters = letters_of(tuple(choices))
            right = None if cell.get("answer") is None else answer_place(str(cell["answer"]), choices)
            if right is None:
                faults.setdefault("answer_not_in_choices", []).append(f"{place + 1} {language}")
            else:
                gold[place, column] = letters[right]
            named = _named(cell, choices, cut, by, where)
            if len(named) == 1:
                options[place, column] = letters[named[0]]
            else:
                undecided[place, column] = tuple(letters[one] for one in named)
        if len({int(one) for one in gold[place] if one != NO_ANSWER}) > 1:
            faults.setdefault("different_answers", []).append(str(place + 1))
    if items is None:
        items = [str(place) if row.get("id") is None else str(row["id"]) for place, row in enumerate(rows, 1)]
    counts = Counter(items)
    if len(counts) < len(items):
        faults["repeated_ids"] = [name for name, count in counts.items() if count > 1]
        items = [f"{name} (row {place})" if counts[name] > 1 else name for place, name in enumerate(items, 1)]
    if len(languages) == 1:
        faults["one_language"] = [languages[0]]
    found = tuple(_findings(faults))
    return Answers(label, model, languages, tuple(items), options, gold, num_options, undecided, found)


def _languages(label: str, rows: Sequence[Any]) -> tuple[str, ...]:
    languages: dict[str, None] = {}
    for place, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(f"{label}: row {place + 1} is no object.")
        for key, cell in row.items():
            if isinstance(cell, Mapping):
                languages.setdefault(key)
    if not languages:
        raise DataError(
            f"{label} has no language in its rows.",
            f"It is neither SeaEval's row format nor a table with the columns {', '.join(COLUMNS)}.",
        )
    for place, row in enumerate(rows):
        lacking = [language for language in languages if not isinstance(row.get(language), Mapping)]
        if lacking:
            raise DataError(
                f"{label}: row {place + 1} has no {', '.join(lacking)}.",
                "Consistency compares the same questions in all languages.",
                "Answer the question in that language, or leave the row out.",
            )
    return tuple(languages)


def _choices_of(cell: Row, where: str) -> list[str]:
    choices = cell.get("choices")
    if not isinstance(choices, list) or not all(isinstance(one, str) for one in choices):
        raise DataError(f"{where}: the choices are no list of texts.")
    if not 2 <= len(choices) <= len(LETTERS):
        raise DataError(f"{where}: there are {len(choices)} choices.", f"Two to {len(LETTERS)} can be told apart.")
    return choices


def _named(cell: Row, choices: list[str], cut: bool, by: str, where: str) -> tuple[int, ...]:
    if by == "likelihood":
        values = cell.get(LIKELIHOODS)
        if not isinstance(values, list) or len(values) != len(choices) or not all(map(_is_number, values)):
            raise DataError(
                f"{where}: {LIKELIHOODS} is not one number for each of the {len(choices)} choices.",
                fix="Make them by `megalign crossin eval --mode likelihood`, or score by text.",
            )
        highest = max(values)
        return tuple(place for place, value in enumerate(values) if value == highest)
    if PREDICTION not in cell:
        raise DataError(
            f"{where}: there is no {PREDICTION}.", "The file holds questions, not answers.", "Answer them first."
        )
    response = cell[PREDICTION]
    if response is None:
        response = ""
    if not isinstance(response, str):
        raise DataError(f"{where}: {PREDICTION} is a {type(response).__name__}, not a text.")
    return matcher(tuple(choices)).options(response.split("\n")[0] if cut else response)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))


def _findings(faults: Mapping[str, list[str]]) -> Iterator[tuple[str, str]]:
    said = {
        "answer_not_in_choices": "right answers are not among the choices, so no response can be right: rows",
        "different_answers": "questions have another right letter in another language: rows",
        "repeated_ids": "ids stand at several questions; each is scored:",
        "one_language": "language is too few for consistency:",
    }
    for kind, places in faults.items():
        more = f" and {len(places) - MAX_SHOWN} more" if len(places) > MAX_SHOWN else ""
        yield kind, f"{len(places)} {said[kind]} {', '.join(places[:MAX_SHOWN])}{more}"
