"""Instruction data: CTD in the Platypus format, LUD in the Alpaca format with one index-aligned file per language.

A row is {"instruction", "input", "output"}; Platypus rows may have data_source. Files are json (a list), jsonl or parquet, or
hub:ID for a data set on the Hub.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import regex

from megalign.errors import ConfigError, DataError, EnvironmentProblem, first_line
from megalign.files import is_utf8

FIELDS = ("instruction", "input", "output")
ENGLISH = "en"
HUB = "hub:"
_DIGITS = regex.compile(r"\d+")

# Windows of rows that are laid side by side, how far they are shifted against each other, and by how much a shift must fit better.
WINDOW_ROWS, MAX_SHIFT_ROWS, MIN_WINDOW_ROWS, SHIFT_MARGIN = 64, 8, 12, 0.1


@dataclass(frozen=True, slots=True)
class Record:
    """A task. `place` is its row, counted from 0; `origin` names where it came from, for Platypus its data_source."""

    place: int
    instruction: str
    input: str
    output: str
    origin: str = ""

    @property
    def missing(self) -> bool:
        """Whether instruction or output is empty: a translation that failed, or a row that teaches nothing."""
        return not (self.instruction.strip() and self.output.strip())


@dataclass(frozen=True)
class Source:
    """A file of tasks.

    Attributes:
        name: of the file, without its folder.
        sha256: of its content; empty for a data set from the Hub.
    """

    name: str
    records: list[Record]
    sha256: str


@dataclass(frozen=True)
class Lud:
    """The linguistic uniformity data: the same tasks in several languages, by row.

    Attributes:
        sources: by language; English is one of them.
        failures: (language, row) -> why the row must not be used in that language; filled by the quality gate.
    """

    sources: Mapping[str, Source]
    failures: dict[tuple[str, int], str] = field(default_factory=dict)

    @property
    def languages(self) -> list[str]:
        """English first, then in the order given."""
        return [ENGLISH, *(code for code in self.sources if code != ENGLISH)]

    @property
    def num_rows(self) -> int:
        """Rows of every language's file."""
        return len(self.sources[ENGLISH].records)

    def usable(self, language: str, place: int) -> bool:
        """Whether the row passed the gate in this language."""
        return (language, place) not in self.failures

    def record(self, language: str, place: int) -> Record:
        """A row in a language."""
        return self.sources[language].records[place]


def parse_named(given: Sequence[str]) -> dict[str, str]:
    """{name: value} of texts NAME=VALUE.

    Raises:
        ConfigError: one cannot be read, or a name stands twice.
    """
    named: dict[str, str] = {}
    for text in given:
        name, _, value = text.partition("=")
        if not (name and value and is_utf8(text)) or name in named:
            raise ConfigError(f"{text!r} cannot be read.", fix="Write NAME=VALUE in UTF-8, each name once.")
        named[name] = value
    return named


def read_source(name: str) -> Source:
    """The tasks of a file or of a data set on the Hub (hub:ID, its train split).

    Raises:
        DataError: missing, damaged, or a row without the fields.
        EnvironmentProblem: the data set's library is not installed.
    """
    rows, digest = _hub_rows(name) if name.startswith(HUB) else _file_rows(Path(name))
    if not rows:
        raise DataError(f"{name} holds no rows.")
    return Source(
        name if name.startswith(HUB) else Path(name).name,
        [_record(name, place, row) for place, row in enumerate(rows)],
        digest,
    )


def read_lud(named: Mapping[str, str]) -> Lud:
    """The aligned files of all languages.

    Args:
        named: file by language; "en" is needed.

    Raises:
        ConfigError: no English file, or no other.
        DataError: files of different lengths, other ids by row, or rows that fit better when shifted.
    """
    if ENGLISH not in named or len(named) < 2:
        raise ConfigError(
            f"LUD is given in {', '.join(named) or 'no language'}.",
            "Translations are checked against English, and mixed with it.",
            "Give en=FILE and one file for each further language.",
        )
    sources = {language: read_source(name) for language, name in named.items()}
    english = sources[ENGLISH]
    for language, source in sources.items():
        if len(source.records) != len(english.records):
            raise DataError(
                f"{source.name} ({language}) has {len(source.records)} rows, {english.name} (en) has {len(english.records)}.",
                "The files are aligned by row: from the first missing row on, questions would meet answers of other questions.",
                "Make them again together, with an empty output where a translation failed.",
            )
        if language != ENGLISH:
            check_alignment(english, source, language)
    return Lud(sources)


def check_alignment(english: Source, other: Source, language: str) -> None:
    """Look for windows of rows that fit their neighbours in English better than their own row.

    Rows are compared by what translations keep: the numbers, whether there is an input, and the lengths of the fields relative to
    their median.

    Raises:
        DataError: a window fits clearly better when it is shifted.
    """
    ours, theirs = _signatures(english.records), _signatures(other.records)
    num_rows = len(ours)
    if num_rows < MIN_WINDOW_ROWS:
        return
    for start in range(0, max(1, num_rows - MIN_WINDOW_ROWS), WINDOW_ROWS // 2):
        places = range(start, min(num_rows, start + WINDOW_ROWS))
        fits = {}
        for shift in range(-MAX_SHIFT_ROWS, MAX_SHIFT_ROWS + 1):
            pairs = [(ours[place + shift], theirs[place]) for place in places if 0 <= place + shift < num_rows]
            # Rows without a translation say nothing.
            known = [_likeness(one, two) for one, two in pairs if one is not None and two is not None]
            if len(known) >= MIN_WINDOW_ROWS:
                fits[shift] = sum(known) / len(known)
        if 0 not in fits:
            continue
        best = max(fits, key=lambda shift: (fits[shift], -abs(shift)))
        if best and fits[best] > fits[0] + SHIFT_MARGIN:
            raise DataError(
                f"{other.name} ({language}) is misaligned: rows {places[0]} to {places[-1]} fit {english.name} better when "
                f"shifted by {best} ({fits[best]:.2f} against {fits[0]:.2f}).",
                "Questions would meet answers of other questions.",
                "Look for a row that is missing or stands twice before there.",
            )


@dataclass(frozen=True, slots=True)
class _Signature:
    numbers: frozenset[str]
    has_input: bool
    lengths: tuple[float, ...]


def _signatures(records: Sequence[Record]) -> list[_Signature | None]:
    lengths = {name: sorted(len(getattr(one, name)) for one in records if not one.missing) for name in FIELDS}
    medians = {name: max(1, values[len(values) // 2]) if values else 1 for name, values in lengths.items()}
    found: list[_Signature | None] = []
    for one in records:
        if one.missing:
            found.append(None)
            continue
        texts = {name: getattr(one, name) for name in FIELDS}
        numbers = frozenset(_DIGITS.findall(" ".join(texts.values())))
        relative = tuple(len(texts[name]) / medians[name] for name in ("instruction", "output"))
        found.append(_Signature(numbers, bool(one.input.strip()), relative))
    return found


def _likeness(one: _Signature, other: _Signature) -> float:
    """0 to 1; rows with numbers are told by them, the rest by their lengths."""
    either = one.numbers | other.numbers
    parts = [float(one.has_input == other.has_input)]
    if either:
        parts += [len(one.numbers & other.numbers) / len(either)] * 2
    for ours, theirs in zip(one.lengths, other.lengths, strict=True):
        larger = max(ours, theirs)
        parts.append(min(ours, theirs) / larger if larger else 1.0)
    return sum(parts) / len(parts)


def _file_rows(path: Path) -> tuple[list[Any], str]:
    try:
        content = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise DataError(f"{path} does not exist or is no file.") from None
    digest = hashlib.sha256(content).hexdigest()
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            return pyarrow.parquet.read_table(path).to_pylist(), digest
        except pyarrow.ArrowException as error:
            raise DataError(f"{path} is not a parquet file that can be read: {error}.") from None
    content, where = content.removeprefix(codecs.BOM_UTF8), str(path)
    try:
        if path.suffix == ".jsonl":
            rows = []
            for number, line in enumerate(content.splitlines(), 1):
                where = f"{path}:{number}"
                if line.strip():
                    rows.append(orjson.loads(line))
            return rows, digest
        rows = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON: {error}.", "It may be half-written or damaged.") from None
    if not isinstance(rows, list):
        raise DataError(f"{path} holds no list of rows.")
    return rows, digest


def _hub_rows(name: str) -> tuple[list[Any], str]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise EnvironmentProblem("datasets is not installed.", fix="pip install megalign[hf]") from None
    try:
        return list(load_dataset(name.removeprefix(HUB), split="train")), ""
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{name} cannot be loaded: {first_line(error)}.") from None


def _record(name: str, place: int, row: Any) -> Record:
    if not isinstance(row, Mapping) or "instruction" not in row or "output" not in row:
        raise DataError(
            f"{name}: row {place} has no instruction and output.",
            f"A row is {{{', '.join(FIELDS)}}}.",
            "Give a file in the Alpaca or Platypus format.",
        )
    texts = {key: "" if row.get(key) is None else row[key] for key in FIELDS}
    wrong = [key for key, value in texts.items() if not isinstance(value, str)]
    if wrong:
        raise DataError(f"{name}: row {place}: {wrong[0]} is no text.")
    origin = row.get("data_source")
    return Record(
        place, texts["instruction"], texts["input"], texts["output"], origin if isinstance(origin, str) else ""
    )
