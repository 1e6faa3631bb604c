"""A table of responses: one row per model, data set, language and item, as parquet, CSV or JSONL."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megalign.clika.datasets import Protocol
from megalign.clika.findings import Finding
from megalign.clika.rows import AnswerSet, Item, Questions, Rows, json_object, opened
from megalign.errors import DataError

COLUMNS = ("model", "dataset", "language", "item", "response", "label")
BATCH_ROWS = 8192
MAX_FIELD_CHARACTERS = 1 << 24


def read_table(path: Path, protocol: Protocol, accept_look_alikes: bool) -> tuple[list[AnswerSet], list[Finding]]:
    """The cells of a table; `line` is the line of a CSV or JSONL file, the row of a parquet file, counted from 1.

    Raises:
        DataError: another kind of file, columns missing, damaged, an unknown data set or language.
    """
    cells: dict[tuple[str, str, str], Rows] = {}
    languages: dict[str, str] = {}
    questions, not_json = Questions(), []
    # Items and first letters repeat over models and languages: one object for each keeps a large table small.
    interned: dict[Item, Item] = {}
    for line, row in table_rows(path, COLUMNS, ("input",)):
        if row is None:
            not_json.append(line)
            continue
        model, dataset_name, folder = (row.get(name) for name in COLUMNS[:3])
        if not (isinstance(model, str) and isinstance(dataset_name, str) and isinstance(folder, str) and model):
            raise DataError(f"{path}:{line}: model, dataset or language is missing or no text.")
        if folder not in languages:
            languages[folder] = protocol.language(folder)
        cell = (model, dataset_name, languages[folder])
        if cell not in cells:
            cells[cell] = Rows(protocol.dataset(dataset_name))
        item: Any = row.get("item")
        if type(item) in (int, str):
            item = interned.setdefault(item, item)
        cells[cell].add(line, item, row.get("response"), row.get("label"))
        if row.get("input") is not None:
            questions.look([row], [line], cell[1:], path.name, cells[cell].dataset)
    findings = []
    if not_json:
        findings.append(Finding("not_jsonl", path.name, tuple(not_json), f"{len(not_json)} line(s) are no JSON object"))
    answers = []
    for cell, rows in cells.items():
        found, faults = rows.finish(cell, path.name, accept_look_alikes=accept_look_alikes)
        findings += faults
        if found is not None:
            answers.append(found)
    return answers, findings + questions.findings


def table_rows(
    path: Path, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Line and content of each row of a .parquet, .csv or .jsonl file; None for a line that is no JSON object.

    Args:
        path: the file.
        columns: what every row must have.
        optional: more columns to read where they are there.

    Raises:
        DataError: another kind of file, columns missing, damaged.
    """
    readers = {".parquet": _parquet_rows, ".csv": _csv_rows, ".jsonl": _jsonl_rows}
    kind = path.suffix.lower()
    if kind not in readers:
        raise DataError(f"{path} is not a table that can be read.", fix=f"Give one of {', '.join(readers)}.")
    return readers[kind](path, columns, optional)


def _require(path: Path, names: list[str], columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in names]
    if missing:
        raise DataError(
            f"{path} lacks the column(s) {', '.join(missing)}.",
            f"It has {', '.join(names) or 'none'}.",
            f"Such a table has {', '.join(columns)}.",
        )


def _parquet_rows(
    path: Path, columns: Sequence[str], optional: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any] | None]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
        names = table.schema_arrow.names
        _require(path, names, columns)
        wanted = [*columns, *(name for name in optional if name in names)]
        line = 0
        for batch in table.iter_batches(batch_size=BATCH_ROWS, columns=wanted):
            for row in batch.to_pylist():
                line += 1
                yield line, row
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a parquet file that can be read: {error}") from None


def _csv_rows(
    path: Path, columns: Sequence[str], optional: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any] | None]]:
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            _require(path, list(reader.fieldnames or []), columns)
            line = reader.line_num + 1
            for row in reader:
                yield line, row
                line = reader.line_num + 1
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} is not a CSV file that can be read: {error}") from None


def _jsonl_rows(
    path: Path, columns: Sequence[str], optional: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any] | None]]:
    checked = False
    with opened(path) as stream:
        for line, text in enumerate(stream, 1):
            if not text.strip():
                continue
            row = json_object(text)
            if row is not None and not checked:
                _require(path, list(row), columns)
                checked = True
            yield line, row
