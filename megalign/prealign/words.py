"""Batches of words for the alignment injection: many short words packed into rows, each blind to its neighbours."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from megalign.corpus.keyed_random import generator
from megalign.errors import ConfigError
from megalign.prealign.encoded import EncodedTable, Int64, ranges


@dataclass(frozen=True)
class WordBatch:
    """One rank's words, packed into rows, and what the loss must know of all ranks' words.

    Attributes:
        tokens: token ids, int64 [rows, width]; end-of-text where there is no word.
        position_ids: position inside the word, int64 [rows, width]; every word starts at 0.
        word_of_token: index of the own word a token belongs to, int64 [rows, width]; -1 where there is none.
        num_words: own words; word w of them is word `local_start + w` of the global batch.
        entry: table entry of every word of all ranks, in rank order, int64 [all words].
        surface: surface form of every word of all ranks, int64 [all words]; equal for words with equal ids.
        words_per_rank: number of words of each rank.
        local_start: number of words of the ranks before this one.
    """

    tokens: Int64
    position_ids: Int64
    word_of_token: Int64
    num_words: int
    entry: Int64
    surface: Int64
    words_per_rank: tuple[int, ...]
    local_start: int

    @property
    def fill(self) -> float:
        """Share of the positions that hold a word's token, 0 to 1."""
        return float((self.word_of_token >= 0).mean())

    def segment_mask(self) -> npt.NDArray[np.bool_]:
        """Attention mask, bool [rows, 1, width, width] (query, key); True hides, as Megatron has it.

        A token sees the earlier tokens of its own word and itself; an empty position sees itself, so that no row of the
        softmax is empty.
        """
        width = self.tokens.shape[1]
        query, key = self.word_of_token[:, :, None], self.word_of_token[:, None, :]
        earlier = np.tri(width, dtype=np.bool_)
        visible = (query == key) & (query >= 0) & earlier
        hidden: npt.NDArray[np.bool_] = ~(visible | np.eye(width, dtype=np.bool_))[:, None]
        return hidden


class WordBatches:
    """The word batches of an injection: `batch` is a pure function of the seed and the step.

    The entries are drawn without replacement: one permutation per epoch, of which the last few entries are left out where
    they do not fill a batch, so that no batch meets an entry twice.

    Args:
        encoded: the table in token ids.
        entries_per_batch: entries in the global batch, with all words of all their languages.
        seed: the run's seed.
        row_width_tokens: width of the rows; the longest word of the table, where that is longer.

    Raises:
        ConfigError: the table has fewer entries than a batch, or a number is not positive.
    """

    def __init__(self, encoded: EncodedTable, *, entries_per_batch: int, seed: int, row_width_tokens: int = 32) -> None:
        if entries_per_batch < 1 or row_width_tokens < 1:
            raise ConfigError(
                f"A word batch of {entries_per_batch} entries in rows of {row_width_tokens} tokens is impossible.",
                fix="Set both to at least 1.",
            )
        if entries_per_batch > len(encoded.batch_entries):
            raise ConfigError(
                f"A word batch of {entries_per_batch} entries needs as many in the alignment table, which has "
                f"{len(encoded.batch_entries)} that can be aligned.",
                "An entry met twice in a batch would be its own positive.",
                f"Set the entries per step to at most {len(encoded.batch_entries)}, or use a larger table.",
            )
        self.encoded, self.entries_per_batch, self.seed = encoded, entries_per_batch, seed
        self.width = max(row_width_tokens, int(np.diff(encoded.offsets).max()))
        self._permutation = lru_cache(maxsize=2)(self._compute_permutation)

    @property
    def batches_per_epoch(self) -> int:
        """Batches in which every entry occurs at most once."""
        return len(self.encoded.batch_entries) // self.entries_per_batch

    def entries(self, step: int) -> Int64:
        """The table entries of the global batch of a step, int64 [entries_per_batch]."""
        epoch, place = divmod(step, self.batches_per_epoch)
        start = place * self.entries_per_batch
        return self._permutation(epoch)[start : start + self.entries_per_batch]

    def num_read(self, num_batches: int) -> tuple[int, int]:
        """Words and their tokens in the first `num_batches` global batches, repetitions counted."""
        starts = self.encoded.entry_offsets
        words = tokens = 0
        for step in range(num_batches):
            entries = self.entries(step)
            first, last = starts[entries], starts[entries + 1]
            words += int((last - first).sum())
            tokens += int((self.encoded.offsets[last] - self.encoded.offsets[first]).sum())
        return words, tokens

    def batch(self, step: int, rank: int = 0, world: int = 1) -> WordBatch:
        """The words of a data-parallel rank at a step.

        The ranks take contiguous shares of the entries, so the words of all ranks in rank order are the same ones in the
        same order whatever `world` is.

        Args:
            step: injection step, from 0.
            rank: data-parallel rank.
            world: data-parallel size.

        Raises:
            ConfigError: there are more ranks than entries in a batch.
        """
        if world > self.entries_per_batch:
            raise ConfigError(
                f"A word batch of {self.entries_per_batch} entries cannot be shared by {world} data-parallel ranks.",
                fix=f"Set the entries per step to at least {world}.",
            )
        entries = self.entries(step)
        starts = self.encoded.entry_offsets[entries]
        counts = self.encoded.entry_offsets[entries + 1] - starts
        shares = [self.entries_per_batch * r // world for r in range(world + 1)]
        words_per_rank = tuple(int(counts[a:b].sum()) for a, b in itertools.pairwise(shares))
        words = ranges(starts, counts)
        local_start = sum(words_per_rank[:rank])
        own = words[local_start : local_start + words_per_rank[rank]]
        tokens, position_ids, word_of_token = self._pack(own)
        return WordBatch(
            tokens=tokens,
            position_ids=position_ids,
            word_of_token=word_of_token,
            num_words=len(own),
            entry=self.encoded.entry[words],
            surface=self.encoded.surface[words],
            words_per_rank=words_per_rank,
            local_start=local_start,
        )

    def all_of(self, entries: Int64) -> WordBatch:
        """A batch, for one rank, of all words of the given table entries (for measuring, not for injection)."""
        starts = self.encoded.entry_offsets[entries]
        words = ranges(starts, self.encoded.entry_offsets[entries + 1] - starts)
        tokens, position_ids, word_of_token = self._pack(words)
        return WordBatch(
            tokens=tokens,
            position_ids=position_ids,
            word_of_token=word_of_token,
            num_words=len(words),
            entry=self.encoded.entry[words],
            surface=self.encoded.surface[words],
            words_per_rank=(len(words),),
            local_start=0,
        )

    def _compute_permutation(self, epoch: int) -> Int64:
        return generator(self.seed, "word batches", epoch).permutation(self.encoded.batch_entries)

    def _pack(self, words: Int64) -> tuple[Int64, Int64, Int64]:
        """tokens, position_ids and word_of_token of the given words of the table, each int64 [rows, width]."""
        offsets = self.encoded.offsets
        lengths = offsets[words + 1] - offsets[words]
        row, column = pack(lengths, self.width)
        place = ranges(row * self.width + column, lengths)
        shape = (int(row.max()) + 1, self.width)
        tokens = np.full(shape, self.encoded.vocabulary.eos_id, dtype=np.int64)
        position_ids = np.zeros(shape, dtype=np.int64)
        word_of_token = np.full(shape, -1, dtype=np.int64)
        tokens.reshape(-1)[place] = self.encoded.ids[ranges(offsets[words], lengths)]
        position_ids.reshape(-1)[place] = ranges(np.zeros_like(lengths), lengths)
        word_of_token.reshape(-1)[place] = np.repeat(np.arange(len(words)), lengths)
        return tokens, position_ids, word_of_token


def pack(lengths: Int64, width: int) -> tuple[Int64, Int64]:
    """First-fit decreasing: the row and the first column of each item, int64 [items].

    Filling one row after the other, always with the longest item left that fits, gives the rows of first-fit decreasing;
    since items of one length are interchangeable, the work grows with rows x width instead of items x rows.

    Args:
        lengths: item lengths, int64 [items], each from 1 to `width`.
        width: length of a row.
    """
    order = np.argsort(-lengths, kind="stable")
    left = np.bincount(lengths, minlength=width + 1)
    # Items of one length stand together in `order`; the next one of length n is order[next_item[n]].
    next_item = len(lengths) - np.cumsum(left)
    left_list, next_list = left.tolist(), next_item.tolist()
    row, column = np.empty(len(lengths), dtype=np.int64), np.empty(len(lengths), dtype=np.int64)
    placed = current = 0
    while placed < len(lengths):
        used = 0
        for length in range(width, 0, -1):
            take = min(left_list[length], (width - used) // length)
            if take:
                items = order[next_list[length] : next_list[length] + take]
                row[items] = current
                column[items] = used + length * np.arange(take)
                left_list[length] -= take
                next_list[length] += take
                used += take * length
                placed += take
        current += 1
    return row, column
