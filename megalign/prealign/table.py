"""The alignment table: which words of the target languages translate a word of the source language.

PreAlign (arXiv 2407.16222, section 3.1) builds it from every word of the source corpus that occurs more than 20 times,
with up to five translations in each target language.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from megalign import files
from megalign.errors import ConfigError, DataError
from megalign.prealign.collector import collector_paused

FORMAT_VERSION = 1
_METADATA_KEY = b"megalign_alignment_table"
_SCHEMA = pa.schema(
    [
        pa.field("word", pa.string(), nullable=False),
        pa.field("language", pa.string(), nullable=False),
        pa.field("translation", pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("frequency", pa.int64(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Translation:
    """One translation of an entry's word.

    Attributes:
        language: language of `text`.
        text: the translation, as the dictionary writes it.
        source: where it comes from, for example "golden" or "muse".
    """

    language: str
    text: str
    source: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One word of the source language with all its translations.

    Attributes:
        word: the word, as the dictionary writes it.
        frequency: how often the word occurs in the source corpus (a count).
        translations: in the dictionary's order within each language; no pair (language, text) occurs twice.
    """

    word: str
    frequency: int
    translations: tuple[Translation, ...]


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of a corpus the table's words (in any of `case_variants`) cover; counts of types and of tokens (words)."""

    num_types: int
    num_types_covered: int
    num_tokens: int
    num_tokens_covered: int

    @property
    def types(self) -> float:
        """Share of the types covered, 0 to 1."""
        return self.num_types_covered / max(self.num_types, 1)

    @property
    def tokens(self) -> float:
        """Share of the tokens (running words) covered, 0 to 1."""
        return self.num_tokens_covered / max(self.num_tokens, 1)


def case_variants(word: str) -> tuple[str, str, str, str]:
    """`word` as written, in lower case, with a capital first letter, and in upper case.

    All four are equal in a script without case. They are given in order of preference: where one text is a variant of
    several words, the word that is written like it comes first.
    """
    return word, word.lower(), word[:1].upper() + word[1:], word.upper()


class AlignmentTable:
    """Entries sorted by falling frequency, then by word. Immutable.

    Args:
        entries: one per word of the source language.
        source_language: language of the entries' words.
        build_counts: what the builder counted (lines read, lines left out ...), kept in the file for whoever inspects it.

    Raises:
        DataError: an empty word or translation, a word twice, an entry without translations, a translation twice.
    """

    def __init__(
        self, entries: Iterable[Entry], source_language: str, build_counts: Mapping[str, int] | None = None
    ) -> None:
        self.entries: tuple[Entry, ...] = tuple(sorted(entries, key=lambda entry: (-entry.frequency, entry.word)))
        self.source_language = source_language
        self.build_counts: dict[str, int] = dict(build_counts or {})
        self.languages: tuple[str, ...] = tuple(
            dict.fromkeys(translation.language for entry in self.entries for translation in entry.translations)
        )
        _check_entries(self.entries, source_language)

    def __len__(self) -> int:
        """Number of entries."""
        return len(self.entries)

    @property
    def num_rows(self) -> int:
        """Number of (word, translation) pairs."""
        return sum(len(entry.translations) for entry in self.entries)

    @property
    def num_identical(self) -> int:
        """Number of translations written exactly like their word (names, loans, untranslated words)."""
        return sum(translation.text == entry.word for entry in self.entries for translation in entry.translations)

    def top_fraction(self, fraction: float) -> AlignmentTable:
        """The most frequent entries (PreAlign, section 4.4: tables of 25, 50, 75 and 100 % of the words).

        Args:
            fraction: share of the entries to keep, above 0 and at most 1; at least one entry is kept.

        Raises:
            ConfigError: `fraction` is out of range.
        """
        if not 0.0 < fraction <= 1.0:
            raise ConfigError(
                f"The share of the alignment table to keep is {fraction}; it must be above 0 and at most 1.",
                fix="For the most frequent 25 % of the entries, set it to 0.25.",
            )
        keep = min(len(self), max(1, round(fraction * len(self))))
        return AlignmentTable(self.entries[:keep], self.source_language, self.build_counts)

    def merge(self, other: AlignmentTable) -> AlignmentTable:
        """The union of two tables: this table's translations come first; the greater frequency of a word counts.

        Raises:
            DataError: the tables have different source languages.
        """
        if other.source_language != self.source_language:
            raise DataError(
                f"A table of {self.source_language!r} words cannot be merged with one of {other.source_language!r} words.",
                fix="Build both from the word counts of one source language.",
            )
        merged = {entry.word: entry for entry in self.entries}
        for entry in other.entries:
            mine = merged.get(entry.word)
            if mine is None:
                merged[entry.word] = entry
                continue
            known = {(translation.language, translation.text) for translation in mine.translations}
            new = tuple(t for t in entry.translations if (t.language, t.text) not in known)
            merged[entry.word] = replace(
                mine, frequency=max(mine.frequency, entry.frequency), translations=mine.translations + new
            )
        names = sorted({*self.build_counts, *other.build_counts})
        counts = {name: self.build_counts.get(name, 0) + other.build_counts.get(name, 0) for name in names}
        return AlignmentTable(merged.values(), self.source_language, counts)

    def coverage(self, word_counts: Mapping[str, int]) -> Coverage:
        """How many of a corpus' words are in the table, whatever their case."""
        forms = {form for entry in self.entries for form in case_variants(entry.word)}
        covered = {word: count for word, count in word_counts.items() if word in forms}
        return Coverage(len(word_counts), len(covered), sum(word_counts.values()), sum(covered.values()))

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows as stored: word, language, translation, rank (0 = first of its language), source, frequency."""
        for entry in self.entries:
            ranks: dict[str, int] = {}
            for translation in entry.translations:
                rank = ranks.get(translation.language, 0)
                ranks[translation.language] = rank + 1
                yield {
                    "word": entry.word,
                    "language": translation.language,
                    "translation": translation.text,
                    "rank": rank,
                    "source": translation.source,
                    "frequency": entry.frequency,
                }

    def save(self, path: Path) -> None:
        """Write one parquet file, whole or not at all."""
        header = {
            "format_version": FORMAT_VERSION,
            "source_language": self.source_language,
            "build_counts": self.build_counts,
        }
        schema = _SCHEMA.with_metadata({_METADATA_KEY: json.dumps(header, sort_keys=True).encode()})
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(list(self.rows()), schema=schema), buffer, compression="zstd")
        files.write_bytes(path, buffer.getvalue())

    @classmethod
    @collector_paused()
    def load(cls, path: Path) -> AlignmentTable:
        """Read a table written by `save`.

        Raises:
            DataError: the file is missing, is not parquet, or is not an alignment table of this version.
        """
        rows, header = _read_parquet(path)
        names = ("word", "frequency", "language", "translation", "source")
        frequencies: dict[str, int] = {}
        found: dict[str, list[Translation]] = {}
        for word, frequency, language, text, source in zip(*(rows[name].to_pylist() for name in names), strict=True):
            if frequencies.setdefault(word, frequency) != frequency:
                several = sorted({frequency, frequencies[word]})
                raise DataError(f"{path}: the word {word!r} has several frequencies: {several}.")
            found.setdefault(word, []).append(Translation(language, text, source))
        entries = [Entry(word, frequencies[word], tuple(translations)) for word, translations in found.items()]
        return cls(entries, header["source_language"], header["build_counts"])


def _check_entries(entries: Sequence[Entry], source_language: str) -> None:
    seen: set[str] = set()
    for entry in entries:
        if entry.word in seen:
            raise DataError(f"The alignment table has two entries for the word {entry.word!r}.")
        seen.add(entry.word)
        pairs = [(translation.language, translation.text) for translation in entry.translations]
        if not pairs:
            raise DataError(f"The entry for {entry.word!r} has no translation.")
        if len(set(pairs)) < len(pairs):
            raise DataError(f"The entry for {entry.word!r} has the same translation twice: {pairs}.")
        if not entry.word.strip() or not all(text.strip() for _, text in pairs):
            raise DataError(f"The entry for {entry.word!r} has an empty word or translation: {pairs}.")
        if any(language == source_language for language, _ in pairs):
            raise DataError(f"The entry for {entry.word!r} has a translation in its own language, {source_language!r}.")


def _read_parquet(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    if not path.is_file():
        raise DataError(f"There is no alignment table at {path}.", fix="Build one, or correct the path.")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable parquet file: {error}.", fix="Build the table again.") from None
    raw = (table.schema.metadata or {}).get(_METADATA_KEY)
    header: dict[str, Any] = json.loads(raw) if raw else {}
    if header.get("format_version") != FORMAT_VERSION:
        found = header.get("format_version", "no version")
        raise DataError(
            f"{path} is not an alignment table of format version {FORMAT_VERSION} (found: {found}).",
            fix="Build the table with this version of megalign.",
        )
    if not table.schema.equals(_SCHEMA):
        raise DataError(f"{path} has other columns than an alignment table: {table.schema.names}.")
    if any(column.null_count for column in table.columns):
        raise DataError(f"{path} has empty cells.", fix="Build the table again.")
    return table, header


def golden_table(
    word_counts: Mapping[str, int],
    *,
    source_language: str = "en",
    clone_language: str = "en-clone",
    min_count: int = 20,
) -> AlignmentTable:
    """The one-to-one table of a cloned language: every word is its own translation (PreAlign, section 4.1).

    Args:
        word_counts: how often each word occurs in the source corpus.
        source_language: language of the words.
        clone_language: the language whose token ids are the source's, shifted.
        min_count: words that occur more often than this are taken.
    """
    entries = [
        Entry(word, count, (Translation(clone_language, word, "golden"),))
        for word, count in word_counts.items()
        if count > min_count
    ]
    return AlignmentTable(entries, source_language)
