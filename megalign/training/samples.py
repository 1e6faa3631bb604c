"""Samples: windows of the store in the order of the plan, codeswitched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from megalign.config import RunConfig, SourceConfig
from megalign.config.run import RunDataConfig
from megalign.corpus.store import TokenStore
from megalign.engine.batch import LanguageBatch
from megalign.errors import ConfigError, DataError
from megalign.prealign.codeswitch import Codeswitcher
from megalign.prealign.encoded import EncodedTable
from megalign.training.order import order_over
from megalign.training.period_windows import PeriodWindows, StatedWindow

_SELF_TEST_WINDOWS = 64


@dataclass
class SwitchCounts:
    """Words seen, words the table covers, words switched."""

    words: int = 0
    covered: int = 0
    switched: int = 0

    @property
    def rate(self) -> float:
        """Share of the words that were switched."""
        return self.switched / self.words if self.words else 0.0

    def __add__(self, other: SwitchCounts) -> SwitchCounts:
        return SwitchCounts(self.words + other.words, self.covered + other.covered, self.switched + other.switched)

    def to_list(self) -> list[int]:
        """Words, covered, switched."""
        return [self.words, self.covered, self.switched]


class Samples:
    """`sample(i)` and batches of samples.

    Args:
        store: the token store.
        data: what is mixed, in which stages, and what is left out.
        sequence_length: tokens of a window.
        seed: the run's seed.
        name: name of the order, see order_over.
        switcher: codeswitching; None leaves the text as it is.
        periods: facts that stand in place of some samples; None: none do.

    Raises:
        DataError: the store lacks a language, or a source is too short.
    """

    def __init__(
        self,
        store: TokenStore,
        data: RunDataConfig,
        sequence_length: int,
        seed: int,
        *,
        name: str = "pretrain",
        switcher: Codeswitcher | None = None,
        periods: PeriodWindows | None = None,
    ) -> None:
        self.store, self.length, self.switcher, self.periods = store, sequence_length, switcher, periods
        self.order = order_over(store, data, sequence_length, seed, name)
        self.sources = data.all_sources[: len(self.order.sources)]
        self._totals = [store.num_tokens(source.language) for source in self.sources]
        # A replacement may be shorter than its word: what follows the window fills it up again.
        self._slack = sequence_length // 4 if switcher else 0
        self.counts_by_language = {source.read_as: SwitchCounts() for source in self.sources}

    @property
    def counts(self) -> SwitchCounts:
        """Counts of all sources."""
        return sum(self.counts_by_language.values(), start=SwitchCounts())

    def sample(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """int64 tokens and labels and float32 loss mask, all [sequence], of sample `number`."""
        if self.periods and (stated := self.periods.at(number)):
            return self._stated(stated, number)
        place = self.order.place(number)
        source = self.sources[place.source]
        start = place.window * self.length
        wanted = min(self.length + 1 + self._slack, self._totals[place.source] - start)
        window = self._window(source, start, wanted)
        if self.switcher is None:
            return window[:-1], window[1:], np.ones(self.length, dtype=np.float32)
        flags = self.store.word_start_flags(source.language, start, wanted)
        switched = self.switcher.switch(window, flags, language=source.read_as, sample_id=number, length=self.length)
        self.counts_by_language[source.read_as] += SwitchCounts(
            switched.num_words, switched.num_covered, switched.num_switched
        )
        return switched.tokens, switched.labels, switched.loss_mask

    def _stated(self, stated: StatedWindow, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A window of facts, switched like text; the end-of-text tokens that fill it up are no targets."""
        tokens, labels, mask = stated.ids[:-1], stated.ids[1:], np.ones(self.length, dtype=np.float32)
        if self.switcher is not None:
            switched = self.switcher.switch(
                stated.ids, stated.flags, language=stated.language, sample_id=number, length=self.length
            )
            tokens, labels, mask = switched.tokens, switched.labels, switched.loss_mask
        eos = self.store.vocabulary.eos_id
        return tokens, labels, np.where((tokens == eos) & (labels == eos), np.float32(0), mask)

    def _source_of(self, number: int) -> int:
        """Number of the source a sample counts to: a window of facts to its language, where that is a source."""
        place = self.order.place(number).source
        stated = self.periods.at(number) if self.periods else None
        names = [source.read_as for source in self.sources]
        return names.index(stated.language) if stated and stated.language in names else place

    def _window(self, source: SourceConfig, start: int, length: int) -> np.ndarray:
        ids: np.ndarray = self.store.window(source.language, start, length)
        if source.as_clone:
            ids = self.store.vocabulary.shift(ids.astype(np.uint32), source.as_clone)
        return ids.astype(np.int64)

    def micro_batches(self, first: int, count: int, *, rank: int, world: int, size: int) -> list[LanguageBatch]:
        """The micro-batches of one data-parallel rank in the global batch at positions first .. first + count - 1.

        Ranks take contiguous shares, so that all ranks together read the same samples whatever their number is.
        """
        share = count // world
        positions = range(first + rank * share, first + (rank + 1) * share)
        numbers = [self.order.sample_at(position) for position in positions]
        return [self._batch(numbers[start : start + size]) for start in range(0, share, size)]

    def _batch(self, numbers: list[int]) -> LanguageBatch:
        tokens, labels, mask = (np.stack(column) for column in zip(*map(self.sample, numbers), strict=True))
        sources = np.array([self._source_of(number) for number in numbers])
        num_bytes = np.where(mask > 0, self.store.vocabulary.token_num_bytes[labels], 0).sum(axis=1)
        return LanguageBatch(tokens, labels, mask, sources, num_bytes)


def build_switcher(config: RunConfig, encoded: EncodedTable) -> Codeswitcher:
    """The run's codeswitching: as codeswitch.sources has it, otherwise from the source language into all table languages
    that are sources, and back.

    Raises:
        ConfigError: there is nothing to switch, or a target is not in the table.
    """
    origin, settings = config.data.source_language, config.codeswitch
    read = [source.read_as for source in config.data.all_sources]
    others = [language for language in encoded.languages if language != origin and language in read]
    targets: dict[str, Sequence[str] | Mapping[str, float]] = {}
    if others and origin in read:
        targets = {origin: others, **{other: [origin] for other in others}}
    ratios = dict.fromkeys(targets, settings.ratio)
    for language, source in settings.sources.items():
        if source.targets is not None:
            targets[language] = source.targets
        ratios[language] = settings.ratio if source.ratio is None else source.ratio
    targets = {language: names for language, names in targets.items() if ratios[language]}
    if not targets:
        raise ConfigError(
            f"Codeswitching needs {origin!r} and a language of the alignment table ({', '.join(encoded.languages)}) "
            f"among data.sources, which has {', '.join(read)}.",
            fix="Correct data.sources or data.table, or set codeswitch.ratio to 0.",
        )
    return Codeswitcher(encoded, ratio=ratios, label_mode=settings.label_mode, seed=config.seed, targets=targets)


def check_hit_rate(samples: Samples, config: RunConfig) -> dict[str, float]:
    """Share of the running words of every source that the table covers, on the first windows of the store.

    Sources that codeswitch.sources gives the ratio 0 are left out.

    Raises:
        DataError: below codeswitch.minimum_hit_rate: the run would hardly switch a word, silently.
    """
    switcher = samples.switcher
    if switcher is None:
        return {}
    rates = {}
    for source, total in zip(samples.sources, samples._totals, strict=True):
        named = config.codeswitch.sources.get(source.read_as)
        if named is not None and named.ratio == 0:
            continue
        length = min(samples.length, total)
        count = min(_SELF_TEST_WINDOWS, max(1, total // length))
        starts = [number * length for number in range(count)]
        windows = [
            (samples._window(source, at, length), samples.store.word_start_flags(source.language, at, length))
            for at in starts
        ]
        rate = rates[source.read_as] = switcher.hit_rate(windows, language=source.read_as)
        if rate < config.codeswitch.minimum_hit_rate:
            raise DataError(
                f"The alignment table covers {rate:.1%} of the words of {source.read_as}, below "
                f"codeswitch.minimum_hit_rate {config.codeswitch.minimum_hit_rate:.1%}.",
                "Codeswitching would hardly happen.",
                "Check that the table was made for this tokenizer's text and languages, or lower the minimum; "
                f"codeswitch.sources.{source.read_as}.ratio=0 leaves this source as it is.",
            )
    return rates
