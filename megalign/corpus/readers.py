"""Documents from parquet files in the CulturaX layout, JSON lines and plain text."""

from __future__ import annotations

import codecs
import glob
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow
import pyarrow.parquet as parquet

from megalign.errors import DataError


class BrokenFile(DataError):
    """A file, or a part of one, that cannot be read to its end."""


FORMATS = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".jsonl.zst": "jsonl",
    ".txt": "text",
}
_BATCH_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Document:
    """A text and where it came from.

    Attributes:
        source: path of the file relative to the input's root, with "/".
        row: row of a parquet file, line of a jsonl file (both from 0), 0 for a text file.
        url: the field `url`, where there is one.
        collection: the field `source`, in CulturaX the crawl a document comes from (mC4, OSCAR-2301).
    """

    text: str
    source: str
    row: int
    url: str | None = None
    collection: str | None = None

    @property
    def place(self) -> str:
        """Source and row, for messages."""
        return f"{self.source}:{self.row}"


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that holds no usable text.

    Attributes:
        reason: what is wrong with it.
        content: what could be read of it, for a quarantine file.
    """

    source: str
    row: int
    reason: str
    content: str = ""

    @property
    def place(self) -> str:
        """Source and row, for messages."""
        return f"{self.source}:{self.row}"


@dataclass(frozen=True, slots=True)
class InputFile:
    """A readable file below an input's root."""

    path: Path
    source: str
    format: str


def list_files(path: Path, language: str | None = None) -> list[InputFile]:
    """The readable files of an input, sorted by their path relative to its root.

    Args:
        path: a file, a folder (searched through all levels) or a glob.
        language: where the folder has a folder of this name (the CulturaX layout), only that one is read.

    Raises:
        DataError: nothing is there, nothing of it is readable, or a folder in the CulturaX layout lacks the language.
    """
    if glob.has_magic(str(path)) and not path.exists():
        # Path.glob takes no absolute pattern.
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207
        root = Path(os.path.commonpath([p.parent for p in found])) if found else path
    elif path.is_dir():
        root = path
        folder = path / language if language and (path / language).is_dir() else path
        if language and folder == path and (others := _language_folders(path)):
            raise DataError(
                f"The input {path} has no folder of the language {language}; it has {', '.join(others)}.",
                fix="Correct the language, or name the folder that holds its text.",
            )
        found = sorted(
            p for p in folder.rglob("*") if not any(part.startswith(".") for part in p.parts[len(root.parts) :])
        )
    else:
        root, found = path.parent, [path] if path.exists() else []
    if not found:
        raise DataError(f"The input {path} does not exist or is empty.", fix="Name a file, a folder or a glob.")
    known = [(p, fmt) for p in found if p.is_file() and (fmt := format_of(p)) is not None]
    if not known:
        raise DataError(
            f"The input {path} has no file that can be read.",
            f"Read are {', '.join(FORMATS)}.",
        )
    return [InputFile(p, p.relative_to(root).as_posix(), fmt) for p, fmt in known]


def _language_folders(path: Path) -> list[str]:
    """The languages of a folder in the CulturaX layout, `{language}/{language}_part_*`; none where it is another one."""
    return sorted(p.name for p in path.iterdir() if p.is_dir() and any(p.glob(f"{glob.escape(p.name)}_part_*")))


def format_of(path: Path) -> str | None:
    """The format a file's name stands for: parquet, jsonl or text; None for any other name."""
    for ending, name in FORMATS.items():
        if path.name.endswith(ending):
            return name
    return None


def read_documents(path: Path, language: str | None = None) -> Iterator[Document]:
    """Every document of an input, files in the order of their names, rows in their order.

    Args:
        path: a parquet, jsonl (also .gz, .zst) or txt file, a folder of them or a glob. Parquet and jsonl need a string
            field `text` and may have `url`; a txt file is one document.
        language: which language's folder to read in the CulturaX layout (`{language}/*.parquet`).

    Raises:
        DataError: nothing to read, a broken file, a missing text column, or a row without text.
    """
    for file in list_files(path, language):
        for row in read_rows(file):
            if isinstance(row, BadRow):
                raise DataError(
                    f"{path}: {row.place} has no usable text: {row.reason}.", fix="Remove or repair the row."
                )
            yield row


def read_rows(file: InputFile, row_group: int | None = None) -> Iterator[Document | BadRow]:
    """The rows of one file, the unusable ones as `BadRow`.

    Args:
        file: from `list_files`.
        row_group: of a parquet file, only this row group; rows keep their number within the file.

    Raises:
        DataError: the file cannot be read, or not to its end.
    """
    readers = {"parquet": _parquet_rows, "jsonl": _jsonl_rows, "text": _text_rows}
    try:
        yield from readers[file.format](file, row_group)
    except (OSError, EOFError, zlib.error, pyarrow.ArrowException) as error:
        raise BrokenFile(f"The file {file.path} is broken: {error}.", "It may be truncated or half-copied.") from None


def _parquet_rows(file: InputFile, row_group: int | None) -> Iterator[Document | BadRow]:
    with parquet.ParquetFile(file.path) as opened:
        names = opened.schema_arrow.names
        if names.count("text") != 1:
            number = "several columns" if "text" in names else "no column"
            raise DataError(f"The file {file.path} has {number} text; it has {', '.join(names)}.")
        columns = [name for name in ("text", "url", "source") if names.count(name) == 1]
        groups = list(range(opened.num_row_groups)) if row_group is None else [row_group]
        row = sum(opened.metadata.row_group(i).num_rows for i in range(groups[0])) if groups else 0
        for batch in opened.iter_batches(batch_size=_BATCH_ROWS, row_groups=groups, columns=columns):
            absent = [None] * batch.num_rows
            fields = (_strings(batch.column(name)) if name in columns else absent for name in ("text", "url", "source"))
            for text, url, collection in zip(*fields, strict=True):
                yield make_row(text, file.source, row, url, collection)
                row += 1


def _strings(column: Any) -> list[Any]:
    """Values of a column; a string that is not UTF-8 comes as bytes."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        values: list[Any] = []
        for raw in column.cast(pyarrow.binary()).to_pylist():
            try:
                values.append(raw if raw is None else raw.decode())
            except UnicodeDecodeError:
                values.append(raw)
        return values


def _jsonl_rows(file: InputFile, row_group: int | None) -> Iterator[Document | BadRow]:
    with _open(file.path) as stream:
        for row, line in enumerate(stream):
            line = line.removeprefix(codecs.BOM_UTF8) if row == 0 else line
            try:
                content = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                shown = line.decode(errors="replace").rstrip("\n")
                yield BadRow(file.source, row, "empty line" if not shown else f"not JSON ({error})", shown)
                continue
            if not isinstance(content, dict) or "text" not in content:
                yield BadRow(file.source, row, "no field text", line.decode(errors="replace").rstrip("\n"))
                continue
            yield make_row(content["text"], file.source, row, content.get("url"), content.get("source"))


def _open(path: Path) -> gzip.GzipFile | io.BufferedReader:
    if path.name.endswith(".gz"):
        return gzip.open(path, "rb")
    # pyarrow reports a truncated zstd stream; the zstandard package takes it for the end.
    compression = "zstd" if path.name.endswith(".zst") else None
    return io.BufferedReader(pyarrow.input_stream(str(path), compression=compression))


def _text_rows(file: InputFile, row_group: int | None) -> Iterator[Document | BadRow]:
    content = file.path.read_bytes().removeprefix(codecs.BOM_UTF8)
    yield make_row(content, file.source, 0, None, None)


def make_row(text: Any, source: str, row: int, url: Any, collection: Any) -> Document | BadRow:
    """A field `text`, a string or its UTF-8 bytes, as a document, or as a bad row; other fields only where they are strings."""
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError:
            return BadRow(source, row, "text is not UTF-8", text.decode(errors="backslashreplace"))
    if isinstance(text, str):
        if text and not text.isspace():
            url, collection = (value if isinstance(value, str) else None for value in (url, collection))
            return Document(text, source, row, url, collection)
        return BadRow(source, row, "empty text", text)
    return BadRow(source, row, "text is null" if text is None else f"text is a {type(text).__name__}", repr(text))
