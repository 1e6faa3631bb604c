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
from functools import cached_property
from itertools import accumulate

from megalign.config.run import RunConfig, RunDataConfig
from megalign.corpus.store import TokenStore
from megalign.errors import ConfigError, DataError

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
class Mixture:
    """Weights that hold from a sample on.

    Attributes:
        start: the first sample, moved up to the end of a block of the mixture before, so that no window is read twice
            or left out where mixtures meet.
        weights: one for each source, in their order; 0: not read.
    """

    start: int
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Place:
    """Where a sample comes from."""

    source: int
    epoch: int
    window: int


@dataclass(frozen=True)
class _Phase:
    """A mixture in blocks: the composition of a block, and where each source stood when it began."""

    start: int
    counts: tuple[int, ...]
    cursors: tuple[int, ...]
    key: int

    @cached_property
    def block(self) -> int:
        return sum(self.counts)

    @cached_property
    def ends(self) -> list[int]:
        return list(accumulate(self.counts))

    def locate(self, sample: int) -> tuple[int, int]:
        """Source and running number in it (over all epochs) of a sample of this phase."""
        block, position = divmod(sample - self.start, self.block)
        position = permute(position, self.block, self.key ^ _mix(block))
        source = bisect_right(self.ends, position)
        position -= self.ends[source] - self.counts[source]
        return source, self.cursors[source] + block * self.counts[source] + position

    def taken(self, end: int) -> list[int]:
        """Samples of each source from the beginning of all to sample `end`, which is in this phase or its end."""
        blocks, rest = divmod(end - self.start, self.block)
        totals = [c + blocks * count for c, count in zip(self.cursors, self.counts, strict=True)]
        for sample in range(end - rest, end):
            totals[self.locate(sample)[0]] += 1
        return totals


class DataOrder:
    """Weighted mixing of sources, each read in whole shuffled epochs.

    Samples come in blocks of fixed composition, shuffled inside. The block is the smallest that meets the weights within
    0.1 %, or the best of at most 4096 samples: 20 : 1 has blocks of 21.

    A *sample* is an absolute number; a *position* counts the samples that are read. They are the same where nothing is
    left out. What was read up to a position does not depend on what is planned behind it: later mixtures and ranges to
    leave out can be added to a run that has begun.

    Args:
        sources: what is mixed, with the weights of the beginning (0 for a source that only comes later).
        seed: the run's seed.
        name: a second order over the same sources takes another name and shares nothing with the first.
        later: mixtures that follow, each continuing every source where the one before left it.
        skip: ranges of samples [first, last] to leave out.

    Raises:
        DataError: a source has no whole window, or a weight is too small for any block.
        ConfigError: mixtures or ranges that are out of order or empty.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        seed: int,
        name: str = "pretrain",
        *,
        later: Sequence[Mixture] = (),
        skip: Sequence[Sequence[int]] = (),
    ) -> None:
        self.sources = list(sources)
        self.name, self.seed = name, seed
        for source in self.sources:
            if source.num_windows < 1:
                raise DataError(
                    f"The source {source.language} has not a single training window.",
                    "Its text is shorter than model.sequence_length + 1 tokens.",
                    "Give it more text, or leave it out of data.sources.",
                )
        self._phases: list[_Phase] = []
        for mixture in (Mixture(0, tuple(source.weight for source in self.sources)), *later):
            self._add(mixture)
        self._starts = [phase.start for phase in self._phases]
        self.skip = _merged(skip)
        self._epoch_keys = [key_of(seed, name, "epoch", number) for number in range(len(self.sources))]

    def _add(self, mixture: Mixture) -> None:
        counts = _composition(mixture.weights, self.sources)
        if not self._phases:
            key = key_of(self.seed, self.name, "block")
            self._phases.append(_Phase(0, counts, (0,) * len(counts), key))
            return
        last = self._phases[-1]
        if mixture.start <= last.start:
            raise ConfigError(
                f"A mixture begins at sample {mixture.start:,}, not behind sample {last.start:,} where the one before "
                "it begins.",
                fix="Order data.stages by after_tokens, with at least a block of samples in each.",
            )
        start = last.start + -(-(mixture.start - last.start) // last.block) * last.block
        key = key_of(self.seed, self.name, "block", len(self._phases))
        self._phases.append(_Phase(start, counts, tuple(last.taken(start)), key))

    @property
    def counts(self) -> list[int]:
        """Samples of each source in a block at the beginning."""
        return list(self._phases[0].counts)

    @property
    def block(self) -> int:
        """Samples of a block at the beginning."""
        return self._phases[0].block

    @property
    def starts(self) -> list[int]:
        """First samples of the mixtures."""
        return list(self._starts)

    def fingerprint(self, position: int | None = None) -> str:
        """Names what is read before `position` (None: at all): equal fingerprints give equal samples."""
        end = None if position is None else self._end(position)
        phases = [
            [
                phase.start,
                [[s.language, s.num_windows, c] for s, c in zip(self.sources, phase.counts, strict=True) if c],
            ]
            for phase in self._phases
            if end is None or phase.start < end or phase.start == 0
        ]
        skip = [
            [first, last if end is None else min(last, end - 1)]
            for first, last in self.skip
            if end is None or first < end
        ]
        identity = [self.name, self.seed, phases, skip]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]

    def place(self, sample: int) -> Place:
        """The place of a sample, from 0."""
        phase = self._phases[self.mixture(sample)]
        source, index = phase.locate(sample)
        epoch, index = divmod(index, self.sources[source].num_windows)
        key = self._epoch_keys[source] ^ _mix(epoch)
        return Place(source, epoch, permute(index, self.sources[source].num_windows, key))

    def mixture(self, sample: int) -> int:
        """Number of the mixture a sample belongs to, from 0."""
        return bisect_right(self._starts, sample) - 1

    def sample_at(self, position: int) -> int:
        """The sample that stands at a position: `position` plus the samples left out before it."""
        sample = position
        for first, last in self.skip:
            if first > sample:
                break
            sample += last - first + 1
        return sample

    def _end(self, position: int) -> int:
        """One past the last sample read before `position`."""
        return self.sample_at(position - 1) + 1 if position else 0

    def consumed(self, position: int) -> list[int]:
        """Samples of each source that were read before `position`."""
        end = self._end(position)
        totals = self._taken(end)
        for first, last in self.skip:
            if first < end:
                left_out = zip(self._taken(min(last + 1, end)), self._taken(first), strict=True)
                totals = [total - (until - before) for total, (until, before) in zip(totals, left_out, strict=True)]
        return totals

    def _taken(self, end: int) -> list[int]:
        """Samples of each source before sample `end`, those left out among them."""
        return self._phases[self.mixture(end)].taken(end)

    def positions_in_epochs(self, epochs: float) -> int:
        """Positions after which the most repeated source has been read `epochs` times; skipped samples count as read."""
        for number, phase in enumerate(self._phases):
            length = min(
                int((epochs * source.num_windows - cursor) * phase.block / count)
                for source, count, cursor in zip(self.sources, phase.counts, phase.cursors, strict=True)
                if count
            )
            end = phase.start + max(length, 0)
            if number + 1 == len(self._phases) or end <= self._starts[number + 1]:
                break
        return end - sum(min(last + 1, end) - first for first, last in self.skip if first < end)


def _composition(weights: Sequence[float], sources: Sequence[Source]) -> tuple[int, ...]:
    """Samples of each source in a block; a source of weight 0 has none."""
    present = [number for number, weight in enumerate(weights) if weight > 0]
    counts = [0] * len(weights)
    for number, count in zip(present, _block([weights[number] for number in present]), strict=True):
        if count == 0:
            raise DataError(
                f"The source {sources[number].language} has less than 1 in {2 * _MAX_BLOCK} of the samples.",
                "It would hardly ever be read.",
                "Raise its weight, or leave it out of data.sources.",
            )
        counts[number] = count
    return tuple(counts)


def _merged(ranges: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Ranges in order, those that touch joined."""
    result: list[tuple[int, int]] = []
    for first, last in sorted((first, last) for first, last in ranges):
        if not 0 <= first <= last:
            raise ConfigError(
                f"data.skip_samples has the range [{first}, {last}].", fix="Write [FIRST, LAST], 0 <= FIRST <= LAST."
            )
        if result and first <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(last, result[-1][1]))
        else:
            result.append((first, last))
    return result


def order_over(
    store: TokenStore, data: RunDataConfig, sequence_length: int, seed: int, name: str = "pretrain"
) -> DataOrder:
    """The order in which a run reads the windows of a store; window w of a language starts at token w x sequence_length.

    The order "pretrain" has the run's stages and leaves out its skipped samples; others only have the first mixture.

    Raises:
        DataError: the store lacks a language, or a source is too short.
        ConfigError: stages or ranges are out of order.
    """
    planned = name == "pretrain"
    read = data.all_sources if planned else data.sources
    for source in read:
        if not store.has(source.language):
            raise DataError(
                f"The token store has no training text in {source.language!r}.",
                f"It has {', '.join(store.languages)}.",
                "Correct data.sources, or build the store with this language.",
            )
    first = {source.read_as: source.weight for source in data.sources}
    sources = [
        Source(s.read_as, first.get(s.read_as, 0.0), (store.num_tokens(s.language) - 1) // sequence_length)
        for s in read
    ]
    if not planned:
        return DataOrder(sources, seed, name)
    later = []
    for stage in data.stages:
        weights = {source.read_as: source.weight for source in stage.sources}
        start = -(-stage.after_tokens // sequence_length)
        later.append(Mixture(start, tuple(weights.get(source.language, 0.0) for source in sources)))
    return DataOrder(sources, seed, name, later=later, skip=data.skip_samples)


def window_of(run: RunConfig, store: TokenStore, sample: int) -> tuple[str, int, int]:
    """Language of the store, window and length in tokens of sample number `sample` of a run's pretraining."""
    length = run.model.sequence_length
    place = order_over(store, run.data, length, run.seed).place(sample)
    return run.data.all_sources[place.source].language, place.window, length


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
