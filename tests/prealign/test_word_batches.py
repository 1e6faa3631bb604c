"""Packed word batches: every word once, each blind to its neighbours, the same ones on every layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prealign_fakes import FakeVocabulary, table_of

from megalign.errors import ConfigError
from megalign.prealign.encoded import EncodedTable
from megalign.prealign.loss import supervised_contrastive
from megalign.prealign.words import WordBatch, WordBatches, pack


def encoded_table(num_entries: int = 20) -> EncodedTable:
    rng = np.random.default_rng(5)

    def text() -> str:
        return "".join(rng.choice(list("abcdefghij"), size=rng.integers(1, 12)))

    entries = {f"{text()}{i}": {"de": [text() + "ä" for _ in range(rng.integers(1, 4))]} for i in range(num_entries)}
    unique = {w: {"de": list(dict.fromkeys(targets["de"]))} for w, targets in entries.items()}
    return EncodedTable(table_of(unique), FakeVocabulary())


ENCODED = encoded_table()


def words_of(batch: WordBatch) -> list[tuple[int, ...]]:
    """The ids of the own words, read from the packed rows."""
    flat, ids = batch.word_of_token.reshape(-1), batch.tokens.reshape(-1)
    return [tuple(ids[flat == w].tolist()) for w in range(batch.num_words)]


def expected_words(entries: np.ndarray) -> list[tuple[int, ...]]:
    return [
        tuple(ENCODED.ids[ENCODED.offsets[w] : ENCODED.offsets[w + 1]].tolist())
        for e in entries
        for w in range(ENCODED.entry_offsets[e], ENCODED.entry_offsets[e + 1])
    ]


def first_fit_decreasing(lengths: list[int], width: int) -> list[list[int]]:
    """Item lengths per row, item by item."""
    rows: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        row = next((row for row in rows if sum(row) + length <= width), None)
        if row is None:
            rows.append(row := [])
        row.append(length)
    return rows


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 16), min_size=1, max_size=60), st.integers(16, 40))
def test_packing_is_first_fit_decreasing(lengths: list[int], width: int) -> None:
    row, column = pack(np.array(lengths), width)
    rows: dict[int, list[tuple[int, int]]] = {}
    for length, r, c in zip(lengths, row.tolist(), column.tolist(), strict=True):
        rows.setdefault(r, []).append((c, length))
    packed = [sorted(rows[r]) for r in range(len(rows))]
    for items in packed:
        assert [c for c, _ in items] == np.cumsum([0, *[n for _, n in items]])[:-1].tolist()
    assert [[length for _, length in items] for items in packed] == first_fit_decreasing(lengths, width)


@pytest.mark.parametrize("row_width", [1, 16, 32])
def test_every_word_is_there_once_at_its_positions(row_width: int) -> None:
    batches = WordBatches(ENCODED, entries_per_batch=8, seed=1, row_width_tokens=row_width)
    batch = batches.batch(3)
    assert batches.width == max(row_width, np.diff(ENCODED.offsets).max())
    assert batch.tokens.shape == batch.position_ids.shape == batch.word_of_token.shape
    assert batch.tokens.shape[1] == batches.width
    assert batch.tokens.dtype == batch.position_ids.dtype == batch.word_of_token.dtype == np.int64
    assert words_of(batch) == expected_words(batches.entries(3))
    for word in range(batch.num_words):
        rows, columns = np.nonzero(batch.word_of_token == word)
        assert len(set(rows.tolist())) == 1
        assert np.diff(columns).tolist() == [1] * (len(columns) - 1)
        assert batch.position_ids[rows, columns].tolist() == list(range(len(columns)))
    empty = batch.word_of_token < 0
    assert (batch.tokens[empty] == 0).all()
    assert batch.fill == pytest.approx(1 - empty.mean())


def test_surface_and_entry_describe_the_words() -> None:
    batch = WordBatches(ENCODED, entries_per_batch=20, seed=1).batch(0)
    words = words_of(batch)
    entries = batch.entry.tolist()
    for i, one in enumerate(words):
        for j, other in enumerate(words):
            assert (batch.surface[i] == batch.surface[j]) == (one == other)
        members = expected_words(np.array([entries[i]]))
        assert one in members
        assert entries.count(entries[i]) == len(members)


def test_the_mask_shows_a_token_its_own_word_alone() -> None:
    batch = WordBatches(ENCODED, entries_per_batch=8, seed=1).batch(0)
    mask = batch.segment_mask()
    num_rows, width = batch.tokens.shape
    assert mask.shape == (num_rows, 1, width, width)
    assert mask.dtype == np.bool_
    for r in range(num_rows):
        for q in range(width):
            for k in range(width):
                same_word = batch.word_of_token[r, q] == batch.word_of_token[r, k] >= 0
                assert mask[r, 0, q, k] == (not (q == k or (same_word and k < q)))


def test_a_batch_depends_on_nothing_but_seed_and_step() -> None:
    one = WordBatches(ENCODED, entries_per_batch=6, seed=7)
    other = WordBatches(encoded_table(), entries_per_batch=6, seed=7)
    for step in (9, 0, 4):
        one.batch(step + 1)
        assert words_of(one.batch(step)) == words_of(other.batch(step))
        assert (one.batch(step).tokens == other.batch(step).tokens).all()
    different = WordBatches(ENCODED, entries_per_batch=6, seed=8)
    assert different.entries(0).tolist() != one.entries(0).tolist()


def test_an_epoch_has_every_entry_at_most_once() -> None:
    batches = WordBatches(ENCODED, entries_per_batch=6, seed=7)
    assert batches.batches_per_epoch == 3
    epochs = [np.concatenate([batches.entries(3 * epoch + i) for i in range(3)]) for epoch in range(40)]
    assert all(len(set(drawn.tolist())) == 18 for drawn in epochs)
    assert epochs[0].tolist() != epochs[1].tolist()
    # Those left out change from epoch to epoch: 40 x 18 draws of 20 entries, 36 each expected (deviation 1.9).
    counts = np.bincount(np.concatenate(epochs), minlength=20)
    assert counts.min() >= 27


@pytest.mark.parametrize("world", [2, 3, 5, 8])
def test_the_union_over_ranks_does_not_depend_on_the_layout(world: int) -> None:
    batches = WordBatches(ENCODED, entries_per_batch=8, seed=1)
    alone = batches.batch(2)
    parts = [batches.batch(2, rank, world) for rank in range(world)]
    assert [word for part in parts for word in words_of(part)] == words_of(alone)
    start = 0
    for rank, part in enumerate(parts):
        assert part.entry.tolist() == alone.entry.tolist()
        assert part.surface.tolist() == alone.surface.tolist()
        assert part.local_start == start
        assert part.words_per_rank[rank] == part.num_words > 0
        start += part.num_words
    assert start == alone.num_words


def pooled(batch: WordBatch, embedding: torch.Tensor) -> torch.Tensor:
    """Mean of the token vectors of each own word."""
    flat = torch.from_numpy(batch.word_of_token).reshape(-1)
    vectors = embedding[torch.from_numpy(batch.tokens).reshape(-1)]
    return torch.stack([vectors[flat == w].mean(dim=0) for w in range(batch.num_words)])


def test_empty_positions_cannot_enter_the_loss() -> None:
    embedding = torch.randn(ENCODED.vocabulary.size, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    losses = []
    for width in (16, 64):
        batch = WordBatches(ENCODED, entries_per_batch=8, seed=1, row_width_tokens=width).batch(0)
        poisoned = embedding.clone()
        poisoned[ENCODED.vocabulary.eos_id] = torch.nan
        entry, surface = torch.from_numpy(batch.entry), torch.from_numpy(batch.surface)
        losses.append(supervised_contrastive(pooled(batch, poisoned), entry, surface, temperature=0.1))
    assert losses[0] == losses[1]
    assert torch.isfinite(losses[0])


def test_rows_are_nearly_full_on_words_of_natural_length() -> None:
    rng = np.random.default_rng(0)
    lengths = 1 + rng.geometric(0.4, size=2000).clip(max=15)
    row, _ = pack(lengths, 32)
    assert lengths.sum() / (32 * (row.max() + 1)) > 0.98
    # Padding each word to 30 positions would leave this share used.
    assert lengths.sum() / (30 * len(lengths)) < 0.15


def test_errors() -> None:
    with pytest.raises(ConfigError, match=r"batch of 21 entries needs as many .* which has 20 that can be aligned"):
        WordBatches(ENCODED, entries_per_batch=21, seed=0)
    with pytest.raises(ConfigError, match="batch of 0 entries in rows of 32 tokens is impossible"):
        WordBatches(ENCODED, entries_per_batch=0, seed=0)
    with pytest.raises(ConfigError, match="batch of 4 entries cannot be shared by 5 data-parallel ranks"):
        WordBatches(ENCODED, entries_per_batch=4, seed=0).batch(0, 0, 5)
