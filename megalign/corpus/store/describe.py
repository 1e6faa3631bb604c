"""What is inside a store, for people."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from megalign.corpus.store.reader import StoredDocument, TokenStore


@dataclass(frozen=True, slots=True)
class Share:
    """One language's part of a store in one split."""

    language: str
    split: str
    units: int
    documents: int
    tokens: int
    bytes_of_text: int

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text per token, end-of-text ids counted."""
        return self.bytes_of_text / self.tokens


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of a document that falls into a window: tokens `first` to `first + tokens` of the document."""

    document: int
    first: int
    tokens: int
    source: str
    row: int
    url: str | None


def summary(store: TokenStore) -> list[Share]:
    """The store's languages and splits, from the manifest alone."""
    units: dict[tuple[str, str], int] = {}
    for entry in store.manifest["units"]:
        key = entry["language"], entry["split"]
        units[key] = units.get(key, 0) + 1
    return [
        Share(
            language,
            split,
            count,
            store.num_documents(language, split),
            store.num_tokens(language, split),
            store.num_text_bytes(language, split),
        )
        for (language, split), count in units.items()
    ]


def marked_text(store: TokenStore, document: StoredDocument, max_tokens: int = 200, mark: str = "|") -> str:
    """The beginning of a document's text with a mark wherever a word, or what lies between words, starts."""
    ids, flags = document.ids[:max_tokens], document.word_starts[:max_tokens]
    bounds = [*np.flatnonzero(flags).tolist(), len(ids)]
    pieces = [store.vocabulary.decode(ids[a:b]) for a, b in itertools.pairwise(bounds)]
    return mark.join(piece for piece in pieces if piece) + ("..." if len(document.ids) > max_tokens else "")


def trace(store: TokenStore, language: str, start: int, length: int, split: str = "train") -> list[Piece]:
    """Which documents a window of tokens comes from, and from which file and row each of them.

    Raises:
        DataError: the window is out of range.
    """
    store.window(language, start, length, split)
    pieces = []
    position = start
    while position < start + length:
        index = store.document_at(language, position, split)
        document = store.document(language, index, split)
        end = min(document.start + len(document.ids), start + length)
        first = position - document.start
        pieces.append(Piece(index, first, end - position, document.source, document.row, document.url))
        position = end
    return pieces
