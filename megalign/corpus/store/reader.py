"""Reading a token store: one file to open it, units mapped when first touched."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from megalign.corpus.readers import Document
from megalign.corpus.store.writer import FORMAT_VERSION, MANIFEST, UNIT
from megalign.corpus.store.zarr_files import Array, map_array
from megalign.corpus.tokenizer import Tokenizer
from megalign.corpus.vocabulary import Vocabulary
from megalign.errors import DataError

_KEYS = ("tokenizer_fingerprint", "eos_token", "vocabulary", "dtype", "eos_id", "word_segmenter", "languages", "units")
_UNIT_KEYS = ("path", "language", "split", "tokens", "documents", "bytes_of_text")


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document of a store.

    Attributes:
        ids: token ids with the closing end-of-text id, [tokens], a view.
        word_starts: which tokens start a word or what lies between words, bool [tokens].
        start: position of its first token in the language's tokens.
    """

    ids: Array
    word_starts: npt.NDArray[np.bool_]
    start: int
    source: str
    row: int
    url: str | None


class Unit:
    """One unit's arrays, each mapped at first use."""

    def __init__(self, folder: Path, entry: dict[str, Any]) -> None:
        self.folder = folder
        self.num_tokens: int = entry["tokens"]
        self.num_documents: int = entry["documents"]
        self.shards = map_array(folder / "tokens")
        self.shard_tokens = len(self.shards[0]) if self.shards else 1
        if sum(map(len, self.shards)) != self.num_tokens:
            raise DataError(
                f"The unit {folder} has {sum(map(len, self.shards))} tokens; the manifest says {self.num_tokens}.",
                "It is not the unit the store was finished with.",
                "Run `megalign store check`.",
            )

    def whole(self, name: str) -> Array:
        """One of the small arrays, all of it."""
        shards = map_array(self.folder / name)
        return shards[0] if len(shards) == 1 else np.concatenate([np.zeros(0, dtype=np.uint8), *shards])

    @cached_property
    def doc_offsets(self) -> npt.NDArray[np.int64]:
        """Token position of each document and the end, int64 [documents + 1]."""
        return self.whole("doc_offsets").astype(np.int64)

    @cached_property
    def word_bits(self) -> Array:
        """Word-start flags, eight tokens a byte, lowest bit first."""
        return self.whole("word_starts")

    @cached_property
    def provenance(self) -> tuple[list[str], Array, Array, Array, Array]:
        """Sources, and per document source index, row, and the addresses as bytes with offsets."""
        sources = read_unit_json(self.folder)["sources"]
        source, row, urls, offsets = (self.whole(name) for name in ("source", "row", "urls", "url_offsets"))
        return sources, source, row, urls, offsets

    def tokens(self, start: int, length: int) -> Array:
        """A range of tokens; a view unless it crosses a shard edge."""
        first, offset = divmod(start, self.shard_tokens)
        if offset + length <= self.shard_tokens:
            return self.shards[first][offset : offset + length] if length else self.shards[0][:0]
        parts = []
        while length > 0:
            parts.append(self.shards[first][offset : offset + length])
            length -= len(parts[-1])
            first, offset = first + 1, 0
        return np.concatenate(parts)

    def word_start_flags(self, start: int, length: int) -> npt.NDArray[np.bool_]:
        """Flags of a range of tokens, bool [length]."""
        skip = start % 8
        bits = self.word_bits[start // 8 : -(-(start + length) // 8)]
        return np.unpackbits(bits, bitorder="little", count=skip + length)[skip:].view(np.bool_)

    def origin(self, index: int) -> tuple[str, int, str | None]:
        """Source, row and address of a document."""
        sources, source, row, urls, offsets = self.provenance
        url = urls[offsets[index] : offsets[index + 1]].tobytes().decode()
        return sources[int(source[index])], int(row[index]), url or None


class _Sequence:
    """The units of one language and split, end to end."""

    def __init__(self, root: Path, entries: list[dict[str, Any]]) -> None:
        self.root, self.entries = root, entries
        self.starts = list(accumulate((entry["tokens"] for entry in entries), initial=0))
        self.document_starts = list(accumulate((entry["documents"] for entry in entries), initial=0))
        self.num_text_bytes = sum(entry["bytes_of_text"] for entry in entries)
        self.units: list[Unit | None] = [None] * len(entries)

    def unit(self, index: int) -> Unit:
        unit = self.units[index]
        if unit is None:
            entry = self.entries[index]
            unit = self.units[index] = Unit(self.root / entry["path"], entry)
        return unit

    def pieces(self, start: int, length: int) -> Iterator[tuple[Unit, int, int]]:
        """Ranges within units that make up a range."""
        index = bisect_right(self.starts, start) - 1
        while length > 0:
            take = min(length, self.starts[index + 1] - start)
            if take:
                yield self.unit(index), start - self.starts[index], take
            start, length, index = start + take, length - take, index + 1


class TokenStore:
    """A finished token store, read-only. Opening reads the manifest alone; get one with `TokenStore.open`.

    Attributes:
        languages: languages that have a unit.
        vocabulary: of the ids.
        fingerprint: 16 hex digits of the manifest's content, which covers every byte of the store through checksums.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], fingerprint: str) -> None:
        self.path, self.manifest, self.fingerprint = path, manifest, fingerprint
        self.languages: tuple[str, ...] = tuple(manifest["languages"])
        self.eos_id: int = manifest["eos_id"]
        self.dtype = np.dtype(manifest["dtype"])
        grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for entry in manifest["units"]:
            grouped.setdefault((entry["language"], entry["split"]), []).append(entry)
        self._sequences = {key: _Sequence(path, entries) for key, entries in grouped.items()}

    @classmethod
    def open(cls, path: Path) -> TokenStore:
        """Open a store.

        Raises:
            DataError: there is no finished store, its manifest is damaged, or it is of another format version.
        """
        manifest, fingerprint = read_manifest(path)
        return cls(path, manifest, fingerprint)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary, with the tokenizer kept in the store.

        Raises:
            DataError: the tokenizer is missing or is not the store's.
        """
        tokenizer = Tokenizer.load(self.path / "tokenizer.json", self.manifest["eos_token"])
        return Vocabulary.from_json(self.manifest["vocabulary"], tokenizer)

    def has(self, language: str, split: str = "train") -> bool:
        """Whether there are units of a language in a split."""
        return (language, split) in self._sequences

    def _sequence(self, language: str, split: str) -> _Sequence:
        try:
            return self._sequences[language, split]
        except KeyError:
            there = ", ".join(f"{name} ({part})" for name, part in self._sequences)
            raise DataError(f"The store {self.path} has no {language} ({split}); it has {there}.") from None

    def num_tokens(self, language: str, split: str = "train") -> int:
        """Tokens of a language, end-of-text ids included."""
        return int(self._sequence(language, split).starts[-1])

    def num_documents(self, language: str, split: str = "train") -> int:
        """Documents of a language."""
        return int(self._sequence(language, split).document_starts[-1])

    def num_text_bytes(self, language: str, split: str = "train") -> int:
        """UTF-8 bytes of text the tokens stand for."""
        return int(self._sequence(language, split).num_text_bytes)

    def window(self, language: str, start: int, length: int, split: str = "train") -> Array:
        """Tokens `start` to `start + length` of a language, read-only, in the store's unsigned type.

        A view of the mapped file, except where the window crosses the edge of a unit or of a 16 Mi-token shard.

        Raises:
            DataError: the window is not inside the language's tokens, or a shard is missing or damaged.
        """
        sequence = self._sequence(language, split)
        if start < 0 or length < 0 or start + length > sequence.starts[-1]:
            raise self._outside(language, start, length, split)
        index = bisect_right(sequence.starts, start) - 1
        if index < len(sequence.units) and start + length <= sequence.starts[index + 1]:
            return sequence.unit(index).tokens(start - sequence.starts[index], length)
        parts = [unit.tokens(first, take) for unit, first, take in sequence.pieces(start, length)]
        return np.concatenate([np.zeros(0, dtype=self.dtype), *parts])

    def word_start_flags(self, language: str, start: int, length: int, split: str = "train") -> npt.NDArray[np.bool_]:
        """Which tokens of a window start a word or what lies between words, bool [length].

        The end-of-text id always does.

        Raises:
            DataError: as for `window`.
        """
        sequence = self._sequence(language, split)
        if start < 0 or length < 0 or start + length > sequence.starts[-1]:
            raise self._outside(language, start, length, split)
        parts = [unit.word_start_flags(first, take) for unit, first, take in sequence.pieces(start, length)]
        return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, dtype=np.bool_), *parts])

    def _outside(self, language: str, start: int, length: int, split: str) -> DataError:
        return DataError(
            f"Tokens {start} to {start + length} of {language} ({split}) are out of range:"
            f" the store {self.path} has {self.num_tokens(language, split)}."
        )

    def document_offsets(self, language: str, split: str = "train") -> npt.NDArray[np.int64]:
        """Position of each document's first token and the end, int64 [documents + 1]."""
        sequence = self._sequence(language, split)
        units = range(len(sequence.units))
        parts = [sequence.unit(i).doc_offsets[:-1] + sequence.starts[i] for i in units]
        return np.concatenate([*parts, np.array(sequence.starts[-1:], dtype=np.int64)])

    def document(self, language: str, index: int, split: str = "train") -> StoredDocument:
        """One document with where it came from.

        Raises:
            DataError: there is no such document.
        """
        sequence = self._sequence(language, split)
        if not 0 <= index < sequence.document_starts[-1]:
            raise DataError(
                f"Document {index} of {language} ({split}) does not exist:"
                f" the store {self.path} has {sequence.document_starts[-1]}."
            )
        at = bisect_right(sequence.document_starts, index) - 1
        unit, inner = sequence.unit(at), index - sequence.document_starts[at]
        start, end = (int(offset) for offset in unit.doc_offsets[inner : inner + 2])
        ids, flags = unit.tokens(start, end - start), unit.word_start_flags(start, end - start)
        return StoredDocument(ids, flags, sequence.starts[at] + start, *unit.origin(inner))

    def document_at(self, language: str, position: int, split: str = "train") -> int:
        """Index of the document that holds a token."""
        sequence = self._sequence(language, split)
        if not 0 <= position < sequence.starts[-1]:
            raise self._outside(language, position, 1, split)
        at = bisect_right(sequence.starts, position) - 1
        inner = np.searchsorted(sequence.unit(at).doc_offsets, position - sequence.starts[at], side="right") - 1
        return int(sequence.document_starts[at] + inner)

    def documents(self, language: str, split: str = "train") -> Iterator[StoredDocument]:
        """Every document in order."""
        for index in range(self.num_documents(language, split)):
            yield self.document(language, index, split)

    def text(self, document: StoredDocument) -> Document:
        """A stored document as text, without the end-of-text token."""
        return Document(self.vocabulary.decode(document.ids), document.source, document.row, document.url)


def read_manifest(path: Path) -> tuple[dict[str, Any], str]:
    """The manifest of a finished store and its fingerprint.

    Raises:
        DataError: it is missing, damaged or of another format version.
    """
    try:
        content = (path / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"There is no finished token store at {path}.",
            f"It has no {MANIFEST}, which is written last.",
            "Build it, or start its build again to continue.",
        ) from None
    try:
        manifest = orjson.loads(content)
        version = manifest["format_version"]
        missing = _missing(manifest) if version == FORMAT_VERSION else []
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{path / MANIFEST} is damaged: {error}.", fix="Restore it or build the store again.") from None
    if version != FORMAT_VERSION:
        raise DataError(f"The store {path} has format version {version}; this program reads {FORMAT_VERSION}.")
    if missing:
        raise DataError(
            f"{path / MANIFEST} is damaged: it has no {', '.join(missing)}.", fix="Restore it or build the store again."
        )
    return manifest, hashlib.sha256(content).hexdigest()[:16]


def _missing(manifest: dict[str, Any]) -> list[str]:
    """What a manifest and its entries lack."""
    missing = [key for key in _KEYS if key not in manifest]
    return missing or sorted({key for entry in manifest["units"] for key in _UNIT_KEYS if key not in entry})


def read_unit_json(folder: Path) -> dict[str, Any]:
    """The content of a unit's _unit.json.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        content: dict[str, Any] = orjson.loads((folder / UNIT).read_bytes())
    except FileNotFoundError:
        raise DataError(f"The unit {folder} is missing or unfinished.", fix="Run `megalign store check`.") from None
    except orjson.JSONDecodeError as error:
        raise DataError(f"{folder / UNIT} is damaged: {error}.", fix="Build the unit again.") from None
    return content
