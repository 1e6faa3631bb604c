"""The alignment table in token ids, as its words stand in running text."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from megalign.corpus.vocabulary import Vocabulary
from megalign.errors import DataError
from megalign.prealign.collector import collector_paused
from megalign.prealign.table import AlignmentTable

Int64 = npt.NDArray[np.int64]

# ISO 639 codes of languages whose words are not separated by spaces.
_WITHOUT_SPACES = frozenset({"zh", "yue", "wuu", "ja", "th", "lo", "km", "my", "bo", "dz"})


def has_spaces(vocabulary: Vocabulary, language: str) -> bool:
    """Whether spaces separate the words of a language; a clone is written like its original."""
    original = vocabulary.clone_of.get(language, language)
    return original.replace("_", "-").split("-")[0].lower() not in _WITHOUT_SPACES


def ranges(starts: Int64, lengths: Int64) -> Int64:
    """The concatenation of arange(start, start + length) over all pairs, int64 [sum of lengths]."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(total)


class EncodedTable:
    """Every word of every entry as the token ids it has inside a sentence, that is, with the space before it.

    A word counts once per entry: of two translations with equal ids the first is kept. Words that are too long are left
    out, and so are entries that keep fewer than two words, since nothing in them can be aligned.

    Args:
        table: the alignment table.
        vocabulary: encodes all languages of the table.
        source_language: the run's source language; must be the table's.
        max_word_tokens: longest word taken.

    Attributes:
        languages: the source language, then the table's target languages.
        ids: token ids of all words one after the other, int64 [tokens].
        offsets: word w has ids[offsets[w] : offsets[w + 1]], int64 [words + 1].
        entry: index into `table.entries` of each word, int64 [words], ascending.
        language: index into `languages` of each word, int64 [words].
        surface: equal for words with equal ids and for no others, int64 [words].
        entry_offsets: entry e has the words entry_offsets[e] to entry_offsets[e + 1] - 1, int64 [entries + 1].
        batch_entries: the entries that have words, int64.
        num_words_too_long, num_words_repeated, num_entries_left_out: what is not there, and why.

    Raises:
        DataError: the table has another source language, or no entry can be used.
        ConfigError: the vocabulary lacks a language of the table.
    """

    @collector_paused()
    def __init__(
        self,
        table: AlignmentTable,
        vocabulary: Vocabulary,
        source_language: str | None = None,
        *,
        max_word_tokens: int = 16,
    ) -> None:
        if source_language not in (None, table.source_language):
            raise DataError(
                f"The alignment table starts from {table.source_language!r}, the run from {source_language!r}.",
                fix="Build the table from the word counts of the run's source language, or set source_language.",
            )
        self.table, self.vocabulary, self.max_word_tokens = table, vocabulary, max_word_tokens
        self.source_language = table.source_language
        self.languages: tuple[str, ...] = (table.source_language, *table.languages)
        self.num_words_too_long = self.num_words_repeated = self.num_entries_left_out = 0
        words: list[tuple[int, int, bytes]] = []
        entry_offsets = [0]
        for index, members in enumerate(self._encode_entries()):
            words.extend((index, language, ids) for language, ids in members)
            entry_offsets.append(len(words))
        if not words:
            raise DataError(
                f"None of the {len(table)} entries of the alignment table has two different words of at most "
                f"{max_word_tokens} tokens.",
                "There is nothing to align.",
                "Check the table's languages and the tokenizer.",
            )
        surfaces: dict[bytes, int] = {}
        self.ids: Int64 = np.frombuffer(b"".join(ids for _, _, ids in words), dtype=np.int64)
        lengths = [len(ids) // 8 for _, _, ids in words]
        self.offsets: Int64 = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self.entry: Int64 = np.array([entry for entry, _, _ in words], dtype=np.int64)
        self.language: Int64 = np.array([language for _, language, _ in words], dtype=np.int64)
        self.surface: Int64 = np.array([surfaces.setdefault(ids, len(surfaces)) for _, _, ids in words], dtype=np.int64)
        self.entry_offsets: Int64 = np.array(entry_offsets, dtype=np.int64)
        self.batch_entries: Int64 = np.flatnonzero(np.diff(self.entry_offsets))

    @property
    def num_words(self) -> int:
        """Number of words in all entries."""
        return len(self.entry)

    def running_text_ids(self, word: str, language: str) -> Int64:
        """The ids a word has in the middle of a sentence, int64 [tokens]."""
        space = " " if has_spaces(self.vocabulary, language) else ""
        return self.vocabulary.encode(space + word, language).astype(np.int64)

    def _encode_entries(self) -> Iterator[list[tuple[int, bytes]]]:
        """Per entry its words as (language index, ids as bytes), or nothing where it cannot be aligned."""
        index_of = {language: index for index, language in enumerate(self.languages)}
        before = {language: " " if has_spaces(self.vocabulary, language) else "" for language in self.languages}
        longest = 8 * self.max_word_tokens
        for entry in self.table.entries:
            texts = [(self.source_language, entry.word), *((t.language, t.text) for t in entry.translations)]
            members: dict[bytes, int] = {}
            for language, text in texts:
                ids = self.vocabulary.encode(before[language] + text, language).astype(np.int64).tobytes()
                if len(ids) > longest:
                    self.num_words_too_long += 1
                elif ids in members:
                    self.num_words_repeated += 1
                else:
                    members[ids] = index_of[language]
            if len(members) < 2:
                self.num_entries_left_out += 1
                members = {}
            yield [(language, key) for key, language in members.items()]
