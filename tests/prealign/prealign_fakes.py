"""A vocabulary whose tokens the tests choose, and small tables in it."""

from __future__ import annotations

import string
from collections.abc import Iterable

import numpy as np

from megalign.prealign.table import AlignmentTable, Entry, Translation

ALPHABET = string.ascii_letters + string.digits + " ,.()\n" + "äöüßÄÖÜ" + "банкБАНК" + "银行河岸"


class FakeVocabulary:
    """Greedy longest match over single characters, a space with a character, and the given pieces.

    The same interface as `megalign.corpus.vocabulary.Vocabulary`, with ids that can be read off a test.
    """

    def __init__(self, pieces: Iterable[str] = (), clone_of: dict[str, str] | None = None) -> None:
        spaced = [" " + character for character in ALPHABET if character != " "]
        self.pieces = ["", *dict.fromkeys([*ALPHABET, *spaced, *pieces])]
        self.id_of = {piece: index for index, piece in enumerate(self.pieces) if index}
        self.clone_of = clone_of or {}
        self.eos_id = 0
        self.is_lossless = True
        self.size = len(self.pieces) * (1 + len(self.clone_of))

    def encode(self, text: str, language: str) -> np.ndarray:
        offset = len(self.pieces) * (1 + list(self.clone_of).index(language)) if language in self.clone_of else 0
        ids, place = [], 0
        while place < len(text):
            piece = max((p for p in self.id_of if text.startswith(p, place)), key=len)
            ids.append(self.id_of[piece] + offset)
            place += len(piece)
        return np.array(ids, dtype=np.uint32)

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.pieces[int(i) % len(self.pieces)] for i in ids)


def table_of(entries: dict[str, dict[str, list[str]]], source_language: str = "en") -> AlignmentTable:
    """A table from word -> language -> translations; the first word is the most frequent."""
    return AlignmentTable(
        [
            Entry(word, 1000 - i, tuple(Translation(lang, t, "test") for lang, ts in targets.items() for t in ts))
            for i, (word, targets) in enumerate(entries.items())
        ],
        source_language,
    )


def window_of(vocabulary: FakeVocabulary, segments: list[str], language: str) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and segment flags of a text given as its segments; "<eos>" is the end-of-text token, without a flag."""
    ids: list[int] = []
    flags: list[bool] = []
    for segment in segments:
        tokens = [0] if segment == "<eos>" else vocabulary.encode(segment, language).tolist()
        ids += tokens
        flags += [segment != "<eos>", *[False] * (len(tokens) - 1)]
    return np.array(ids, dtype=np.uint16), np.array(flags)
