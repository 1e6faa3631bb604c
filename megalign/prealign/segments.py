"""Segments of windows (runs of token ids) recognised by their ids, all of a window in a few array operations."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from megalign.corpus.keyed_random import generator
from megalign.prealign.encoded import Int64, ranges

UInt64 = npt.NDArray[np.uint64]
_Number = TypeVar("_Number", np.int64, np.uint64)


class SegmentHash:
    """Hashes of all segments of a window.

    The hash of the ids x_0 ... x_k is the sum of r(x_j) B^j modulo 2^64, with random r and an odd random B. Differences of
    running sums times a power of 1/B give it for every segment at once.

    Args:
        num_ids: size of the vocabulary.
    """

    def __init__(self, num_ids: int) -> None:
        draws = generator(0, "segment hash").integers(0, 2**64, size=num_ids + 1, dtype=np.uint64)
        self._of_id: UInt64 = draws[1:]
        self._base = int(draws[0]) | 1
        self._powers: UInt64 = np.ones(1, dtype=np.uint64)
        self._inverse_powers: UInt64 = np.ones(1, dtype=np.uint64)

    def segments(self, ids: Int64, starts: Int64, ends: Int64) -> UInt64:
        """Hashes of ids[start:end], uint64 [segments]."""
        if len(self._powers) <= len(ids):
            self._grow(2 * len(ids) + 1)
        sums = np.zeros(len(ids) + 1, dtype=np.uint64)
        np.cumsum(self._of_id[ids] * self._powers[: len(ids)], out=sums[1:])
        return (sums[ends] - sums[starts]) * self._inverse_powers[starts]

    def _grow(self, length: int) -> None:
        inverse = pow(self._base, -1, 2**64)
        self._powers = _powers(self._base, length)
        self._inverse_powers = _powers(inverse, length)


class SegmentValues:
    """A number for every segment met so far, found by hash and confirmed by comparing the ids.

    A hash table with linear probing, of which at most half is in use. Two different segments with equal hashes and lengths
    are never taken for each other; the second is then not kept.

    Args:
        num_ids: size of the vocabulary.
        max_segments: with so many the table is emptied, so that its memory stays bounded.
    """

    UNKNOWN = -2

    def __init__(self, num_ids: int, max_segments: int = 1 << 20) -> None:
        self._hash = SegmentHash(num_ids)
        self.max_segments = max_segments
        self._count, self._num_ids = 0, 0
        self._slots: Int64
        self._hashes: UInt64
        self._rows: Int64  # length, first of the ids and value of each segment
        self._ids: Int64
        self._clear()

    def __len__(self) -> int:
        """Segments that are kept."""
        return self._count

    def find(self, ids: Int64, starts: Int64, ends: Int64) -> tuple[Int64, UInt64]:
        """The value of each segment, UNKNOWN where it has none, int64 [segments]; and its hash, uint64 [segments].

        Args:
            ids: token ids of a window, int64 [tokens].
            starts: first token of each segment, int64 [segments].
            ends: token after the last of each segment, int64 [segments].
        """
        hashes = self._hash.segments(ids, starts, ends)
        lengths = ends - starts
        values = np.full(len(starts), self.UNKNOWN, dtype=np.int64)
        places = (hashes & np.uint64(len(self._slots) - 1)).astype(np.int64)
        rest = np.arange(len(starts))
        entries = np.full(len(starts), -1, dtype=np.int64)
        while len(rest):
            entry = self._slots[places[rest]]
            used = entry >= 0
            rest, entry = rest[used], entry[used]
            hit = (self._hashes[entry] == hashes[rest]) & (self._rows[3 * entry] == lengths[rest])
            entries[rest[hit]] = entry[hit]
            rest = rest[~hit]
            places[rest] = (places[rest] + 1) & (len(self._slots) - 1)
        found = np.flatnonzero(entries >= 0)
        if len(found):
            own, kept = lengths[found], self._rows[3 * entries[found] + 1]
            equal = ids[ranges(starts[found], own)] == self._ids[ranges(kept, own)]
            same = np.logical_and.reduceat(equal, np.cumsum(own) - own)
            values[found[same]] = self._rows[3 * entries[found[same]] + 2]
        return values, hashes

    def add(self, segment: Int64, hashed: np.uint64, value: int) -> None:
        """Keep the value of a segment (its ids, int64 [at least 1 token]) with its hash."""
        if self._count >= self.max_segments:
            self._clear()
        place = int(hashed) & (len(self._slots) - 1)
        while (entry := int(self._slots[place])) >= 0:
            if self._hashes[entry] == hashed and self._rows[3 * entry] == len(segment):
                return
            place = (place + 1) & (len(self._slots) - 1)
        entry, first = self._count, self._num_ids
        self._ids = with_room(self._ids, first + len(segment))
        self._ids[first : first + len(segment)] = segment
        self._hashes = with_room(self._hashes, entry + 1)
        self._rows = with_room(self._rows, 3 * (entry + 1))
        self._hashes[entry] = hashed
        self._rows[3 * entry : 3 * entry + 3] = len(segment), first, value
        self._slots[place] = entry
        self._count, self._num_ids = entry + 1, first + len(segment)
        if 2 * self._count > len(self._slots):
            self._rehash()

    def _clear(self) -> None:
        self._count = self._num_ids = 0
        self._slots = np.full(1 << 10, -1, dtype=np.int64)
        self._hashes = np.zeros(1 << 9, dtype=np.uint64)
        self._rows = np.zeros(3 << 9, dtype=np.int64)
        self._ids = np.zeros(1 << 10, dtype=np.int64)

    def _rehash(self) -> None:
        self._slots = np.full(2 * len(self._slots), -1, dtype=np.int64)
        mask = len(self._slots) - 1
        for entry, hashed in enumerate(self._hashes[: self._count].tolist()):
            place = hashed & mask
            while self._slots[place] >= 0:
                place = (place + 1) & mask
            self._slots[place] = entry


def with_room(array: npt.NDArray[_Number], length: int) -> npt.NDArray[_Number]:
    """The array, or a copy of at least twice its length where it has less than `length`."""
    if len(array) >= length:
        return array
    larger = np.zeros(max(2 * len(array), length), dtype=array.dtype)
    larger[: len(array)] = array
    return larger


def _powers(base: int, length: int) -> UInt64:
    factors = np.full(length, base, dtype=np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)
