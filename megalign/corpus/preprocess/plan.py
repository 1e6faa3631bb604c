"""The work of a run: tasks in an order that settings and input alone decide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet

from megalign.corpus.keyed_random import generator
from megalign.corpus.preprocess import hub
from megalign.corpus.preprocess.settings import PreprocessSettings
from megalign.corpus.readers import BadRow, BrokenFile, Document, InputFile, list_files, read_rows
from megalign.errors import DataError

# Bytes of text per byte of file, for estimates of how much must be read.
_EXPANSION = {"parquet": 1.0, "jsonl": 1.0, "jsonl.gz": 4.0, "jsonl.zst": 4.0, "text": 1.0, "hub": 1.0}

# Files, row groups and bytes of text of a task.
Piece = tuple[tuple[InputFile, ...], tuple[int, int] | None, int]


@dataclass(frozen=True, slots=True)
class Task:
    """What one worker reads from beginning to end.

    Attributes:
        index: its number within the run.
        files: read one after the other.
        row_groups: of a parquet file, first and end; None for whole files.
        num_text_bytes: an estimate.
    """

    index: int
    language: str
    files: tuple[InputFile, ...]
    row_groups: tuple[int, int] | None
    num_text_bytes: int

    def to_json(self) -> dict[str, Any]:
        """A JSON value that `from_json` reads."""
        files = [[str(file.path), file.source, file.format] for file in self.files]
        return {"index": self.index, "language": self.language, "files": files} | {
            "row_groups": self.row_groups and list(self.row_groups),
            "num_text_bytes": self.num_text_bytes,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Task:
        """Read what `to_json` wrote."""
        files = tuple(InputFile(Path(path), source, fmt) for path, source, fmt in content["files"])
        groups = content["row_groups"]
        return cls(content["index"], content["language"], files, groups and tuple(groups), content["num_text_bytes"])


def make_tasks(settings: PreprocessSettings) -> list[Task]:
    """The tasks of all languages, each language's in the order in which its store is filled.

    Consecutive row groups of a parquet file, or consecutive small text files, make a task of `unit_text_bytes`; a jsonl
    file is one task. A language with a budget takes its tasks in an order drawn by the seed.

    Raises:
        DataError: an input is missing, is of several languages at once, or a parquet file has no readable footer and bad
            rows are errors.
    """
    tasks: list[Task] = []
    language_of: dict[Path, str] = {}
    for budget in settings.languages:
        if settings.input.startswith(hub.PREFIX):
            pieces: list[Piece] = [((hub.input_file(settings.input),), None, hub.UNKNOWN_BYTES)]
        else:
            files = list_files(Path(settings.input), budget.language)
            for file in files:
                if (other := language_of.setdefault(file.path, budget.language)) != budget.language:
                    raise DataError(
                        f"{file.path} would be read as {other} and as {budget.language}.",
                        "Only an input folder with a folder for each language (INPUT/en/*.parquet) tells them apart.",
                        "Correct the languages, or read each language from an input of its own.",
                    )
            pieces = list(_pieces(files, settings))
        if budget.budget_tokens is not None:
            order = generator(settings.seed, "task-order", budget.language).permutation(len(pieces))
            pieces = [pieces[int(i)] for i in order]
        tasks += [Task(len(tasks) + i, budget.language, *piece) for i, piece in enumerate(pieces)]
    return tasks


def _pieces(files: list[InputFile], settings: PreprocessSettings) -> Iterator[Piece]:
    small: list[InputFile] = []
    small_bytes = 0
    for file in files:
        if file.format == "text":
            small.append(file)
            small_bytes += file.path.stat().st_size
            if small_bytes >= settings.unit_text_bytes:
                yield tuple(small), None, small_bytes
                small, small_bytes = [], 0
        elif file.format == "parquet":
            yield from _row_group_pieces(file, settings)
        else:
            ending = file.path.name[file.path.name.rindex(".jsonl") + 1 :]
            yield (file,), None, int(file.path.stat().st_size * _EXPANSION[ending])
    if small:
        yield tuple(small), None, small_bytes


def _row_group_pieces(file: InputFile, settings: PreprocessSettings) -> Iterator[Piece]:
    try:
        metadata = parquet.read_metadata(file.path)
    except (OSError, pyarrow.ArrowException) as error:
        if settings.on_bad_row == "error":
            raise BrokenFile(
                f"The file {file.path} is broken: {error}.",
                "It may be truncated or half-copied.",
                "Copy it again, or set on_bad_row to skip or quarantine.",
            ) from None
        # Reading it will fail again, and be counted there.
        yield (file,), None, file.path.stat().st_size
        return
    first, held = 0, 0
    for group in range(metadata.num_row_groups):
        held += metadata.row_group(group).total_byte_size
        if held >= settings.unit_text_bytes or group == metadata.num_row_groups - 1:
            yield (file,), (first, group + 1), held
            first, held = group + 1, 0


def read_task(task: Task, settings: PreprocessSettings) -> Iterator[Document | BadRow]:
    """Every row of a task; rows that cannot be read are bad rows, unless bad rows are errors.

    A parquet row group that cannot be read loses its rows, each of which is a bad row. Any other file loses what is left of
    it; how many rows that is cannot be known, so it is one bad row.

    Raises:
        BrokenFile: a file is broken and bad rows are errors.
    """
    for file in task.files:
        for group in range(*task.row_groups) if task.row_groups else [None]:
            num_read = 0
            try:
                for row in hub.read_rows(file, task.language) if file.format == "hub" else read_rows(file, group):
                    yield row
                    num_read += 1
            except BrokenFile as error:
                if settings.on_bad_row == "error":
                    raise
                for number in [-1] if group is None else _rows_of_group(file, group)[num_read:]:
                    yield BadRow(file.source, number, f"broken: {error.what}")


def _rows_of_group(file: InputFile, group: int) -> range:
    """The numbers of the rows of a parquet file's row group, by its footer."""
    metadata = parquet.read_metadata(file.path)
    first = sum(metadata.row_group(earlier).num_rows for earlier in range(group))
    return range(first, first + metadata.row_group(group).num_rows)
