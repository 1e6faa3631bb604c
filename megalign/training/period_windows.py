"""Windows that state a period's facts, in place of as many ordinary samples of that period.

Statements are documents of their own, packed whole into windows of one language, each after an end-of-text token. Which
samples they replace is a function of the facts, the seed and the sample's number: any layout and any resumed run read the same.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

import numpy as np

from megalign.corpus.build import encode_documents
from megalign.corpus.knowledge.export import statements
from megalign.corpus.knowledge.facts import Knowledge
from megalign.corpus.readers import Document
from megalign.corpus.vocabulary import Vocabulary
from megalign.errors import ConfigError
from megalign.training.order import key_of, permute

# Codeswitching can make a window longer: some room is left at its end.
_ROOM = 16
_MOST = 0.5


@dataclass(frozen=True)
class StatedWindow:
    """int64 ids and bool word-start flags, both [length + 1], and their language."""

    ids: np.ndarray
    flags: np.ndarray
    language: str


class PeriodWindows:
    """The facts of every period as windows.

    Args:
        knowledge: facts with periods.
        vocabulary: of the ids.
        length: sequence length; a window has one token more.
        samples_per_period: samples that a period reads.
        seed: of the order of statements and of the samples they replace.

    Raises:
        ConfigError: the facts would take more than half of a period, or a statement is longer than a window.
    """

    def __init__(
        self, knowledge: Knowledge, vocabulary: Vocabulary, *, length: int, samples_per_period: int, seed: int
    ) -> None:
        self.knowledge, self.vocabulary, self.length = knowledge, vocabulary, length
        self.samples_per_period, self.seed = samples_per_period, seed
        self._periods: dict[int, dict[int, StatedWindow]] = {}

    @property
    def fingerprint(self) -> str:
        """16 hex digits of everything that decides what is stated where."""
        identity = [asdict(self.knowledge), self.length, self.samples_per_period, self.seed]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]

    def at(self, sample: int) -> StatedWindow | None:
        """The window that stands in place of a sample; None for an ordinary one."""
        period, place = divmod(sample, self.samples_per_period)
        if period >= self.knowledge.num_periods:
            return None
        if period not in self._periods:
            self._periods = {period: self._place(period)}
        return self._periods[period].get(place)

    def _place(self, period: int) -> dict[int, StatedWindow]:
        """Windows by their place in the period; languages are mixed."""
        windows = [window for language in self.knowledge.stated_in for window in self._windows(period, language)]
        if len(windows) > _MOST * self.samples_per_period:
            raise ConfigError(
                f"The facts of period {period} fill {len(windows)} windows; the period reads {self.samples_per_period} samples.",
                "More than half of the text would be statements.",
                "Lower dynamics.frequencies or dynamics.facts_per_cell, or raise dynamics.period_steps.",
            )
        # Samples are drawn at random, windows keep their order: statements of one fact stay spread over the period.
        key = key_of(self.seed, "periods", period)
        samples = sorted(permute(number, self.samples_per_period, key) for number in range(len(windows)))
        return dict(zip(samples, self._interleaved(windows), strict=True))

    def _interleaved(self, windows: list[StatedWindow]) -> list[StatedWindow]:
        """The windows of each language in their order, evenly spread over the period."""
        ranked = []
        for language in self.knowledge.stated_in:
            own = [window for window in windows if window.language == language]
            ranked += [((place + 0.5) / len(own), language, window) for place, window in enumerate(own)]
        return [window for _, _, window in sorted(ranked, key=lambda one: one[:2])]

    def _windows(self, period: int, language: str) -> list[StatedWindow]:
        facts = self.knowledge.select(language, period=period)
        texts = statements(self.knowledge, facts, language, self.seed, period)
        documents = (Document(text, f"period {period}", number) for number, text in enumerate(texts))
        end = np.array([self.vocabulary.eos_id]), np.array([True])
        windows, parts, used = [], [end], 1
        capacity = self.length + 1 - self.length // _ROOM
        for ids, flags, document in encode_documents(documents, self.vocabulary, language):
            if len(ids) + 1 > capacity:
                raise ConfigError(
                    f"The statement {document.text!r} has {len(ids)} tokens, a window {self.length}.",
                    fix="Raise model.sequence_length.",
                )
            if used + len(ids) > capacity:
                windows.append(self._filled(parts, language))
                parts, used = [end], 1
            parts.append((ids.astype(np.int64), flags))
            used += len(ids)
        return [*windows, self._filled(parts, language)] if used > 1 else windows

    def _filled(self, parts: list[tuple[np.ndarray, np.ndarray]], language: str) -> StatedWindow:
        ids, flags = (np.concatenate(column) for column in zip(*parts, strict=True))
        lacking = self.length + 1 - len(ids)
        return StatedWindow(
            np.concatenate([ids, np.full(lacking, self.vocabulary.eos_id)]).astype(np.int64),
            np.concatenate([flags, np.ones(lacking, dtype=np.bool_)]),
            language,
        )
