"""The ids a model knows: a tokenizer's, and a shifted copy of them for every cloned language.

En-Clone (PreAlign, arXiv 2407.16222, section 4.1) is a language with English text and fresh ids: a clone's id is the
original's plus the tokenizer's vocabulary size. The end-of-text id is shared, so a clone's copy of it is never used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from megalign.corpus.tokenizer import Tokenizer
from megalign.errors import ConfigError, DataError


class Vocabulary:
    """The ids of a set of languages.

    Args:
        tokenizer: the tokenizer of all languages.
        languages: names of all languages, clones included.
        clone_of: clone -> the language it copies.

    Attributes:
        size: number of ids, V for no clone, V x (1 + clones) otherwise.

    Raises:
        ConfigError: a language is named twice, a clone is not among the languages, or a clone copies a clone.
    """

    def __init__(
        self, tokenizer: Tokenizer, languages: tuple[str, ...], clone_of: Mapping[str, str] | None = None
    ) -> None:
        self.tokenizer, self.languages, self.clone_of = tokenizer, tuple(languages), dict(clone_of or {})
        if len(set(self.languages)) != len(self.languages):
            raise ConfigError(f"A language is named twice in {', '.join(self.languages)}.")
        for clone, original in self.clone_of.items():
            if clone not in self.languages:
                raise ConfigError(f"The clone {clone} is not among the languages {', '.join(self.languages)}.")
            if original in self.clone_of:
                raise ConfigError(f"The clone {clone} copies {original}, itself a clone.", fix="Copy an original.")
        self._offsets = {clone: (i + 1) * tokenizer.vocab_size for i, clone in enumerate(self.clone_of)}
        self.size = tokenizer.vocab_size * (1 + len(self.clone_of))
        self.eos_id = tokenizer.eos_id

    def offset(self, language: str) -> int:
        """What is added to the tokenizer's ids in a language: 0 unless it is a clone.

        Raises:
            ConfigError: the language is unknown.
        """
        if language not in self.languages:
            raise ConfigError(
                f"The language {language} is unknown.", fix=f"The vocabulary has {', '.join(self.languages)}."
            )
        return self._offsets.get(language, 0)

    def encode(self, text: str, language: str) -> npt.NDArray[np.uint32]:
        """Ids of a text in a language, uint32 [tokens], without an end-of-text id."""
        return self.shift(self.tokenizer.encode(text), language)

    @property
    def is_lossless(self) -> bool:
        """Whether every text is what its ids decode to: true of byte-level BPE, false where encoding changes a text."""
        return self.tokenizer.is_fast

    def shift(self, ids: npt.NDArray[np.uint32], language: str) -> npt.NDArray[np.uint32]:
        """A tokenizer's ids as those of a language; the end-of-text id stays."""
        offset = self.offset(language)
        return np.where(ids == self.eos_id, ids, ids + np.uint32(offset)) if offset else ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids of any languages."""
        return self.tokenizer.decode(self._originals(ids))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of ids of any languages."""
        return self.tokenizer.decode_bytes(self._originals(ids))

    def _originals(self, ids: Iterable[int]) -> list[int]:
        array = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), dtype=np.int64)
        if array.size and not 0 <= array.min() <= array.max() < self.size:
            raise DataError(f"An id is outside the vocabulary of {self.size}.")
        originals: list[int] = (array % self.tokenizer.vocab_size).tolist()
        return originals

    @cached_property
    def token_num_bytes(self) -> npt.NDArray[np.int64]:
        """Bytes of text per id, int64 [size]; a clone's id counts as its original's."""
        return np.tile(self.tokenizer.token_num_bytes, 1 + len(self.clone_of))

    def row_sources(self) -> npt.NDArray[np.int64]:
        """For each id the id whose embedding it copies, int64 [size]: a clone's original, otherwise itself."""
        return np.arange(self.size, dtype=np.int64) % self.tokenizer.vocab_size

    def language_range(self, language: str) -> tuple[int, int]:
        """First id and end of the ids that belong to this language alone; empty for a language that is no clone."""
        offset = self.offset(language)
        return (offset, offset + self.tokenizer.vocab_size) if offset else (0, 0)

    @property
    def fingerprint(self) -> str:
        """16 hex digits naming the tokenizer, the languages and the clones."""
        content = json.dumps([self.tokenizer.fingerprint, list(self.languages), list(self.clone_of.items())])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """A JSON value that `from_json` reads; the tokenizer is named by its fingerprint, not contained."""
        return {
            "languages": list(self.languages),
            "clone_of": self.clone_of,
            "size": self.size,
            "eos_id": self.eos_id,
            "tokenizer_vocab_size": self.tokenizer.vocab_size,
            "tokenizer_fingerprint": self.tokenizer.fingerprint,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], tokenizer: Tokenizer) -> Vocabulary:
        """Read what `to_json` wrote.

        Raises:
            DataError: the tokenizer is not the one the vocabulary was made with.
        """
        if content["tokenizer_fingerprint"] != tokenizer.fingerprint:
            raise DataError(
                f"The tokenizer {tokenizer.fingerprint} is not the vocabulary's {content['tokenizer_fingerprint']}.",
                "Its ids would mean other words.",
                "Use the tokenizer the store was built with.",
            )
        return cls(tokenizer, tuple(content["languages"]), content["clone_of"])
