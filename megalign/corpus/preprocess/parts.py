"""A task read by one worker, published part by part, so that a killed run goes on inside a file.

A part is a run of rows with about `unit_text_bytes` of text. Its documents become one unit per split; its record, written
last, says what became of its rows. A part whose record and units are there is not built again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import google_crc32c
import orjson

from megalign import files
from megalign.corpus.build import encode_documents, split_of
from megalign.corpus.preprocess.deduplicate import load_duplicates
from megalign.corpus.preprocess.plan import Task, read_task
from megalign.corpus.preprocess.select import Selection
from megalign.corpus.preprocess.settings import PreprocessSettings
from megalign.corpus.readers import BadRow, Document
from megalign.corpus.store.writer import SPLITS, UNIT, StoreWriter, UnitWriter
from megalign.corpus.tokenizer import Tokenizer
from megalign.corpus.vocabulary import Vocabulary
from megalign.errors import DataError

WORK = "_build"
Rows = Iterator[tuple[int, Document | BadRow]]


@dataclass(frozen=True, slots=True)
class PartRecord:
    """What became of a part.

    Attributes:
        task: index of its task.
        part: its number within the task.
        last: whether the task ends with it.
        counts: rows read, kept, bad and left out, by reason.
        units: entries for the manifest, with their paths, of the splits that have documents.
    """

    task: int
    part: int
    last: bool
    counts: dict[str, int]
    units: list[dict[str, Any]]

    def tokens(self, split: str = "train") -> int:
        """Tokens of a split."""
        return sum(unit["tokens"] for unit in self.units if unit["split"] == split)

    @property
    def num_text_bytes(self) -> int:
        """Bytes of text in all units."""
        return int(sum(unit["bytes_of_text"] for unit in self.units))


@dataclass(frozen=True, slots=True)
class Context:
    """What all tasks of a run share.

    Attributes:
        output: the store.
        tokenizer_fingerprint: of the tokenizer kept in the work folder.
        eos_token: its end-of-text token.
    """

    settings: PreprocessSettings
    output: Path
    tokenizer_fingerprint: str
    eos_token: str

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary of the run.

        Raises:
            DataError: the tokenizer in the work folder is not that of the run.
        """
        tokenizer = _TOKENIZERS.get(self.tokenizer_fingerprint)
        if tokenizer is None:
            tokenizer = remember(Tokenizer.load(self.output / WORK / "tokenizer.json", self.eos_token))
            if tokenizer.fingerprint != self.tokenizer_fingerprint:
                raise DataError(
                    f"The tokenizer in {self.output / WORK} is not that of the run.", fix="Remove the folder."
                )
        return Vocabulary(tokenizer, tuple(budget.language for budget in self.settings.languages))


# Each process reads a tokenizer once, not once per task.
_TOKENIZERS: dict[str, Tokenizer] = {}


def remember(tokenizer: Tokenizer) -> Tokenizer:
    """Keep a tokenizer for the tasks of this process."""
    _TOKENIZERS[tokenizer.fingerprint] = tokenizer
    return tokenizer


def record_path(output: Path, task: int, part: int) -> Path:
    """Where a part's record stands."""
    return output / WORK / "parts" / f"{task:06d}-{part:05d}.json"


def quarantine_path(output: Path, task: int, part: int) -> Path:
    """Where a part's bad rows stand."""
    return output / WORK / "quarantine" / f"{task:06d}-{part:05d}.jsonl"


def load_record(output: Path, task: int, part: int) -> PartRecord | None:
    """A finished part; None where its record or a unit of it is missing or is not the one recorded."""
    try:
        record = PartRecord(**orjson.loads(record_path(output, task, part).read_bytes()))
        for unit in record.units:
            if google_crc32c.value((output / unit["path"] / UNIT).read_bytes()) != unit["crc32c"]:
                return None
    except (FileNotFoundError, orjson.JSONDecodeError, TypeError):
        return None
    return record


def build_task(context: Context, task: Task, room_tokens: int | None) -> list[PartRecord]:
    """Build the parts of a task that are not there yet.

    Args:
        context: of the run.
        task: what to read.
        room_tokens: no further part is begun once the task's parts have this many training tokens.

    Raises:
        DataError: a row is bad and bad rows are errors, or a text cannot be encoded.
    """
    settings, output = context.settings, context.output
    rows = enumerate(read_task(task, settings))
    duplicates = load_duplicates(output / WORK, task.index) if settings.deduplicate else None
    records: list[PartRecord] = []
    to_skip = 0
    while not records or not records[-1].last:
        if room_tokens is not None and sum(record.tokens() for record in records) >= room_tokens:
            break
        record = load_record(output, task.index, len(records))
        if record is not None:
            to_skip += record.counts.get("rows", 0)
        else:
            next(islice(rows, to_skip, to_skip), None)
            to_skip = 0
            record = _build_part(context, task, len(records), rows, Selection(settings, duplicates))
        records.append(record)
    return records


def _num_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", errors="surrogatepass"))


class _Stretch:
    """Rows up to a number of bytes of text."""

    def __init__(self, rows: Rows, num_text_bytes: int) -> None:
        self._rows, self._room = rows, num_text_bytes
        self.ended = False

    def __iter__(self) -> Rows:
        while self._room > 0:
            try:
                place, row = next(self._rows)
            except StopIteration:
                self.ended = True
                return
            self._room -= _num_bytes(row.text) if isinstance(row, Document) else 1
            yield place, row


def _build_part(context: Context, task: Task, part: int, rows: Rows, selection: Selection) -> PartRecord:
    settings, output, vocabulary = context.settings, context.output, context.vocabulary
    writer = StoreWriter(output, vocabulary)
    stretch = _Stretch(rows, settings.unit_text_bytes)
    with ExitStack() as stack:
        open_units: dict[str, UnitWriter] = {}
        documents = (document for _, document in selection.keep(stretch))
        for ids, flags, document in encode_documents(documents, vocabulary, task.language):
            split = split_of(document.text, settings.valid_fraction) if settings.valid_fraction else "train"
            if split not in open_units:
                name = f"{task.language}/{split}-{task.index:06d}-{part:05d}"
                open_units[split] = stack.enter_context(writer.unit(name, task.language, split))
            open_units[split].add(ids, flags, document)
    if selection.quarantine:
        files.write_bytes(quarantine_path(output, task.index, part), b"".join(selection.quarantine))
    units = sorted(writer.entries(), key=lambda unit: SPLITS.index(unit["split"]))
    record = PartRecord(task.index, part, stretch.ended, dict(sorted(selection.counts.items())), units)
    files.write_json(record_path(output, task.index, part), asdict(record))
    return record
