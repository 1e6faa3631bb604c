"""Reading responses: the released folder layout or one table, as a stream."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from megalign.clika.datasets import DataSet, Protocol
from megalign.clika.findings import Finding
from megalign.clika.rows import AnswerSet, Item, Questions, Rows, json_object, opened
from megalign.clika.table import read_table
from megalign.errors import DataError

# Few enough rows that the garbage collector, which starts after 700 new objects, rarely looks at them.
BLOCK_LINES = 256
DEFAULT_FILES = "*_res*.jsonl"
# How the answers beside it were made; written by `megalign clika answer`.
SETTINGS_END = ".settings.json"
MODEL_OF_FILE = re.compile(r"(?P<model>.+)_res(?=[_.]).*\.jsonl")
FAULTS_OF_ROWS = (KeyError, TypeError, AttributeError, ValueError)


def read_answers(
    source: Path,
    protocol: Protocol,
    *,
    files: str = DEFAULT_FILES,
    accept_look_alikes: bool = False,
    progress: Callable[[str], None] = lambda path: None,
) -> tuple[list[AnswerSet], list[Finding]]:
    """Every cell (model, data set, language) of the input, ordered by data set, model and language, and what was found wrong.

    Args:
        source: a folder `{dataset}/{language}/{model}_res*.jsonl` with rows id, input, res, label, uuid; or a table (.parquet,
            .csv, .jsonl) with columns model, dataset, language, item, response, label and optionally input.
        protocol: the data sets' constants and names of language folders.
        files: the file names read from a folder, where a model has several.
        accept_look_alikes: count answers by letters that only look like an option's.
        progress: told each file's path before it is read.

    Raises:
        DataError: nothing to read, an unknown data set or language, two files for one cell.
    """
    if source.is_dir():
        answers, findings = _read_folder(source, protocol, files, accept_look_alikes, progress)
    elif source.is_file():
        answers, findings = read_table(source, protocol, accept_look_alikes)
    else:
        raise DataError(f"{source} does not exist.", fix="Give a folder of responses or a table.")
    if not answers:
        raise DataError(
            f"{source} holds no responses.",
            "; ".join(map(str, findings[:3])),
            f"A folder has the layout DATASET/LANGUAGE/MODEL_res.jsonl (here: {files}); a table has a row per response.",
        )
    return sorted(answers, key=lambda one: (one.dataset, one.model, one.language)), findings


def _read_folder(
    root: Path, protocol: Protocol, files: str, accept_look_alikes: bool, progress: Callable[[str], None]
) -> tuple[list[AnswerSet], list[Finding]]:
    answers: list[AnswerSet] = []
    questions, findings = Questions(), []
    interned: dict[tuple[Item, ...], tuple[Item, ...]] = {}
    cells: dict[tuple[str, str, str], str] = {}
    for path in sorted(root.glob("*/*/*")):
        if path.name.endswith(SETTINGS_END) or path.is_dir():
            continue
        name = str(path.relative_to(root))
        match = MODEL_OF_FILE.fullmatch(path.name)
        dataset_name, folder = path.parts[-3], path.parts[-2]
        if match is None or not fnmatch.fnmatchcase(path.name, files):
            if dataset_name in protocol.datasets:
                findings.append(
                    Finding("ignored_file", name, (), f"the name does not match MODEL_res*.jsonl and {files}")
                )
            continue
        dataset, language = protocol.dataset(dataset_name), protocol.language(folder)
        cell = (match["model"], dataset_name, language)
        if cell in cells:
            raise DataError(
                f"{cells[cell]} and {name} are both {cell[0]} on {dataset_name} in {language}.",
                "A model has one response per question.",
                "Choose by --files, such as --files '*_res_bf16_add_simple_example.jsonl', or move one away.",
            )
        cells[cell] = name
        progress(name)
        rows = read_file(path, name, dataset, questions, (dataset_name, language))
        found, faults = rows.finish(cell, name, accept_look_alikes=accept_look_alikes)
        findings += faults
        if found is not None:
            answers.append(replace(found, items=interned.setdefault(found.items, found.items)))
    return answers, findings + questions.findings


def read_file(path: Path, name: str, dataset: DataSet, questions: Questions, cell: tuple[str, str]) -> Rows:
    """The rows of one file of responses, a block of lines at a time; DataError where it cannot be opened."""
    rows, line, key = Rows(dataset), 1, ""
    with opened(path) as stream:
        while block := list(islice(stream, BLOCK_LINES)):
            try:
                parsed = list(map(orjson.loads, block))
                name_of_item = key or item_key(parsed[0])
                rows.add_block(parsed, line, name_of_item)
                key = name_of_item
            except FAULTS_OF_ROWS:
                for offset, text in enumerate(block):
                    content = json_object(text)
                    if content is not None:
                        key = key or item_key(content)
                        rows.add(line + offset, content.get(key), content.get("res"), content.get("label"))
                        questions.look([content], [line + offset], cell, name, dataset)
                    elif text.strip():
                        rows.not_json.append(line + offset)
            else:
                questions.look(parsed, range(line, line + len(block)), cell, name, dataset)
            line += len(block)
    return rows


def item_key(row: dict[str, Any]) -> str:
    """The column that names the question: uuid where the rows have it, else id."""
    return "uuid" if "uuid" in row else "id"
