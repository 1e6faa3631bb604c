"""The order of the data: `place(i)` is a pure function of the plan and the seed.

It does not depend on the number of ranks or workers, the micro-batch or the length of the run; nothing is stored but the
number of samples consumed. Permutations are computed by a keyed bijection, never kept.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from megalign.config.run import RunConfig, SourceConfig
from megalign.corpus.store import TokenStore
from megalign.errors import DataError

_MAX_BLOCK = 4096
# Four rounds leave small ranges visibly biased (a range of 5: up to 31 % off uniform); eight do not.
_ROUNDS = 8
_MASK = (1 << 64) - 1


def _mix(value: int) -> int:
    """splitmix64's finaliser."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def permute(index: int, size: int, key: int) -> int:
    """Where `index` goes in the permutation of range(size) that `key` names: a Feistel network, cycle-walking.

    Args:
        index: from 0 to size - 1.
        size: number of items.
        key: 64 bits.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for number in range(_ROUNDS):
            left, right = right, left ^ (_mix(key ^ _mix(right << 8 | number)) & mask)
        index = left << half | right
        if index < size:
            return index


def key_of(seed: int, *names: object) -> int:
    """64 bits that depend on the seed and the names alone."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Source:
    """A language of the plan: its name, its weight relative to the others, its windows in one epoch."""

    language: str
    weight: float
    num_windows: int


@dataclass(frozen=True)
class Place:
    """Where a sample comes from."""

    source: int
    epoch: int
    window: int


class DataOrder:
    """Weighted mixing of sources, each read in whole shuffled epochs.

    Samples come in blocks of fixed composition, shuffled inside. The block is the smallest that meets the weights within
    0.1 %, or the best of at most 4096 samples: 20 : 1 has blocks of 21.

    Args:
        sources: what is mixed.
        seed: the run's seed.
        name: a second order over the same sources takes another name and shares nothing with the first.

    Raises:
        DataError: a source has no whole window, or a weight is too small for any block.
    """

    def __init__(self, sources: Sequence[Source], seed: int, name: str = "pretrain") -> None:
        self.sources = list(sources)
        for source in self.sources:
            if source.num_windows < 1:
                raise DataError(
                    f"The source {source.language} has not a single training window.",
                    "Its text is shorter than model.sequence_length + 1 tokens.",
                    "Give it more text, or leave it out of data.sources.",
                )
        self.counts = _block([source.weight for source in self.sources])
        if 0 in self.counts:
            poor = self.sources[self.counts.index(0)]
            raise DataError(
                f"The source {poor.language} has less than 1 in {2 * _MAX_BLOCK} of the samples.",
                "It would hardly ever be read.",
                "Raise its weight, or leave it out of data.sources.",
            )
        self.block = sum(self.counts)
        self._ends = list(accumulate(self.counts))
        self._block_key = key_of(seed, name, "block")
        self._epoch_keys = [key_of(seed, name, "epoch", number) for number in range(len(self.sources))]
        self._identity = [name, seed, [[s.language, s.num_windows] for s in self.sources], self.counts]

    @property
    def fingerprint(self) -> str:
        """Names the plan: equal fingerprints give equal samples."""
        return hashlib.sha256(json.dumps(self._identity).encode()).hexdigest()[:16]

    def place(self, sample: int) -> Place:
        """The place of a sample, from 0."""
        block, position = divmod(sample, self.block)
        position = permute(position, self.block, self._block_key ^ _mix(block))
        source = bisect_right(self._ends, position)
        position -= self._ends[source] - self.counts[source]
        epoch, index = divmod(block * self.counts[source] + position, self.sources[source].num_windows)
        key = self._epoch_keys[source] ^ _mix(epoch)
        return Place(source, epoch, permute(index, self.sources[source].num_windows, key))

    def consumed(self, num_samples: int) -> list[int]:
        """Samples of each source among the first `num_samples`."""
        blocks, rest = divmod(num_samples, self.block)
        totals = [blocks * count for count in self.counts]
        for sample in range(num_samples - rest, num_samples):
            totals[self.place(sample).source] += 1
        return totals

    def samples_in_epochs(self, epochs: float) -> int:
        """Samples after which the most repeated source has been read `epochs` times."""
        return min(
            int(epochs * source.num_windows * self.block / count)
            for source, count in zip(self.sources, self.counts, strict=True)
        )


def order_over(
    store: TokenStore, sources: Sequence[SourceConfig], sequence_length: int, seed: int, name: str = "pretrain"
) -> DataOrder:
    """The order in which a run reads the windows of a store; window w of a language starts at token w x sequence_length.

    Raises:
        DataError: the store lacks a language, or a source is too short.
    """
    for source in sources:
        if not store.has(source.language):
            raise DataError(
                f"The token store has no training text in {source.language!r}.",
                f"It has {', '.join(store.languages)}.",
                "Correct data.sources, or build the store with this language.",
            )
    return DataOrder(
        [Source(s.read_as, s.weight, (store.num_tokens(s.language) - 1) // sequence_length) for s in sources],
        seed,
        name,
    )


def window_of(run: RunConfig, store: TokenStore, sample: int) -> tuple[str, int, int]:
    """Language of the store, window and length in tokens of sample number `sample` of a run's pretraining."""
    length = run.model.sequence_length
    place = order_over(store, run.data.sources, length, run.seed).place(sample)
    return run.data.sources[place.source].language, place.window, length


def _block(weights: Sequence[float]) -> list[int]:
    """The composition of the smallest block that meets the weights within 0.1 %, or the best one tried."""
    total = sum(weights)
    best: tuple[float, list[int]] = (float("inf"), [])
    for size in range(len(weights), _MAX_BLOCK + 1):
        exact = [weight / total * size for weight in weights]
        counts = [round(share) for share in exact]
        if sum(counts) != size:
            continue
        error = max(abs(count / share - 1) for count, share in zip(counts, exact, strict=True))
        if error < best[0] - 1e-12:
            best = (error, counts)
        if error <= 1e-3:
            break
    return best[1]
