"""Pairs of natural-language inference from files in XNLI's formats (Conneau et al. 2018, arXiv 1809.05053).

| file | columns or keys |
|---|---|
| .tsv (XNLI 1.0, xnli.dev.tsv) | language, gold_label, sentence1, sentence2 |
| .tsv (XNLI-MT, multinli.train.en.tsv) | premise, hypo, label |
| .jsonl, .jsonl.gz, .jsonl.zst (XNLI 1.0, MultiNLI) | gold_label, sentence1, sentence2, perhaps language |
| .parquet, or a folder with .parquet or .arrow files (Hugging Face) | premise, hypothesis, label 0, 1, 2 |

In Hugging Face's "all_languages" a premise is {language: text} and a hypothesis {language: [..], translation: [..]}.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow
import pyarrow.ipc
import pyarrow.parquet as parquet
import zstandard

from megalign.corpus.entailment import LABELS, Pair
from megalign.errors import DataError
from megalign.files import write_bytes

_LABELS = {**{str(number): name for number, name in enumerate(LABELS)}, **{name: name for name in LABELS}}
_LABELS["contradictory"] = "contradiction"
# What annotators did not agree on.
_UNLABELLED = ("-", "-1", "")
_PREMISES, _HYPOTHESES = ("premise", "sentence1"), ("hypothesis", "hypo", "sentence2")
_GOLD = ("gold_label", "label")
_UNREADABLE = (UnicodeDecodeError, pyarrow.ArrowInvalid, OSError, EOFError, csv.Error, zlib.error, zstandard.ZstdError)


def read_pairs(path: Path, language: str) -> list[Pair]:
    """The labelled pairs of a language; rows of other languages and rows without a label are left out.

    Args:
        path: a file or folder, see above.
        language: chosen where rows say their language; a clone's rows are those of its original, so name that.

    Raises:
        DataError: the file is missing, is of no known format, or a row lacks a field or has an unknown label.
    """
    pairs = []
    for place, row in _rows(path):
        if row.get("language") not in (None, language):
            continue
        label = str(_field(row, _GOLD, place))
        if label in _UNLABELLED:
            continue
        if label not in _LABELS:
            raise DataError(
                f"{place} has the label {label!r}.", f"Labels are {', '.join(LABELS)} or 0, 1, 2.", "Correct the file."
            )
        premise, hypothesis = (_text(_field(row, names, place), language, place) for names in (_PREMISES, _HYPOTHESES))
        if premise is not None and hypothesis is not None:
            pairs.append(Pair(premise, hypothesis, _LABELS[label]))
    if not pairs:
        raise DataError(
            f"{path} has no labelled pair in {language}.",
            "There is nothing to train on or to test.",
            "Name another file.",
        )
    return pairs


def write_pairs(path: Path, pairs: list[Pair], language: str) -> None:
    """Write pairs as JSON lines in XNLI's form."""
    lines = (
        orjson.dumps(
            {"language": language, "gold_label": pair.label, "sentence1": pair.premise, "sentence2": pair.hypothesis}
        )
        for pair in pairs
    )
    write_bytes(path, b"".join(line + b"\n" for line in lines))


def _field(row: dict[str, Any], names: tuple[str, ...], place: str) -> Any:
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise DataError(
        f"{place} has none of the fields {', '.join(names)}.",
        f"It has {', '.join(map(str, row))}.",
        "Give a file in one of XNLI's formats.",
    )


def _text(value: Any, language: str, place: str) -> str | None:
    """A text, or that of a language where a row has all; None where it lacks the language."""
    if isinstance(value, str):
        return value
    try:
        apart = isinstance(value, dict) and "translation" in value
        pairs = zip(value["language"], value["translation"], strict=True) if apart else value
        found = dict(pairs).get(language)  # a list of pairs is pyarrow's form of a map
    except (KeyError, TypeError, ValueError):
        found = value
    if found is None or isinstance(found, str):
        return found
    raise DataError(f"{place} has no text, but {value!r}.", fix="Give a file in one of XNLI's formats.")


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows with their places, for messages."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in (".parquet", ".arrow"))
        if not files:
            raise DataError(f"{path} has no .parquet or .arrow file.", fix="Name a file or a data set's folder.")
        for file in files:
            yield from _rows(file)
        return
    if not path.is_file():
        raise DataError(f"{path} does not exist.", fix="Correct the path.")
    name = path.name
    try:
        if name.endswith(".tsv"):
            yield from _table_rows(path)
        elif name.endswith((".jsonl", ".jsonl.gz", ".jsonl.zst")):
            for number, line in enumerate(_bytes(path).splitlines(), start=1):
                yield f"{path}, line {number}", _json_row(line, f"{path}, line {number}")
        elif name.endswith(".parquet"):
            yield from _arrow_rows(path, parquet.read_table(path))
        elif name.endswith(".arrow"):
            with pyarrow.OSFile(str(path)) as stream:
                yield from _arrow_rows(path, pyarrow.ipc.open_stream(stream).read_all())
        else:
            raise DataError(f"{path} is neither .tsv, .jsonl, .parquet nor .arrow.", fix="Name another file.")
    except _UNREADABLE as error:
        raise DataError(f"{path} cannot be read: {error}.", fix="Restore the file.") from None


def _table_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    # XNLI quotes nothing: a quotation mark is a quotation mark.
    reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")), delimiter="\t", quoting=csv.QUOTE_NONE)
    for number, row in enumerate(reader, start=2):
        if None in row:
            raise DataError(
                f"{path}, line {number} has more fields than the first line names.",
                "A tab within a text would shift the others.",
                "Correct the line.",
            )
        yield f"{path}, line {number}", row


def _arrow_rows(path: Path, table: pyarrow.Table) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, row in enumerate(table.to_pylist()):
        yield f"{path}, row {number}", row


def _bytes(path: Path) -> bytes:
    content = path.read_bytes()
    if path.name.endswith(".gz"):
        return gzip.decompress(content)
    if path.name.endswith(".zst"):
        return b"".join(_frames(content))
    return content


def _frames(content: bytes) -> Iterator[bytes]:
    """What the frames of a .zst file hold; joined files have several."""
    while content:
        frame = zstandard.ZstdDecompressor().decompressobj()
        yield frame.decompress(content)
        if not frame.eof:
            raise zstandard.ZstdError("it is cut off")
        content = frame.unused_data


def _json_row(line: bytes, place: str) -> dict[str, Any]:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise DataError(f"{place} cannot be read: {error}.", fix="Correct the line.") from None
    if not isinstance(row, dict):
        raise DataError(f"{place} is no JSON object.", fix="Give a file in one of XNLI's formats.")
    return row
