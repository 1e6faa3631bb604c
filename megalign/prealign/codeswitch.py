"""Codeswitching: words of a training window replaced by their translations (PreAlign, section 3.2)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from megalign.errors import ConfigError, DataError
from megalign.prealign.encoded import EncodedTable, Int64, ranges
from megalign.prealign.lookup import FormLookup

Bools = npt.NDArray[np.bool_]
_Scalar = TypeVar("_Scalar", bound=np.generic)
LabelMode = Literal["omit", "first_subword", "vanilla"]
Window = tuple[npt.NDArray[np.integer], Bools]

_DRAW_SWITCH, _DRAW_LANGUAGE, _DRAW_TRANSLATION = range(3)


@dataclass(frozen=True)
class Switched:
    """A training window after codeswitching.

    Attributes:
        tokens: the model's input, int64 [length].
        labels: the next token of each position, int64 [length].
        loss_mask: 1 where the label carries loss, else 0, float32 [length].
        num_words: whole words that start in `tokens`; punctuation is none.
        num_covered: those of them that the table covers.
        num_switched: those of them that were replaced.
    """

    tokens: Int64
    labels: Int64
    loss_mask: npt.NDArray[np.float32]
    num_words: int
    num_covered: int
    num_switched: int


@dataclass(frozen=True)
class _Segments:
    """The whole segments of a window: starts and ends int64, is_word bool, form int64 (-1: not in the table)."""

    starts: Int64
    ends: Int64
    is_word: Bools
    form: Int64


class Codeswitcher:
    """Replaces words of training windows, the same ones in every layout, worker and resumed run.

    Each word of a window is drawn with probability `ratio`, keyed by (seed, sample id, position of the word's first token
    in the window); a drawn word that the table covers is replaced. The share really switched is thus ratio x coverage.

    Args:
        encoded: the alignment table in token ids.
        ratio: share of the words that are drawn, 0 to 1; the paper uses 0.05. Or a share by language of the window.
        label_mode: what the model learns to predict at a replacement:
            omit: nothing inside it carries loss (the paper's Eq. 6);
            first_subword: the position before it predicts the original word's first sub-word, the rest carries no loss;
            vanilla: every sub-word of the replacement is a target.
            The token after a replacement is predicted as usual in all of them.
        seed: the run's seed.
        targets: language of a window -> languages of the replacements, where they have weights in proportion to these;
            windows of other languages stay as they are.

    Raises:
        ConfigError: the ratio or the label mode is not one, or a language is not in the table.
    """

    def __init__(
        self,
        encoded: EncodedTable,
        *,
        ratio: float | Mapping[str, float],
        label_mode: LabelMode = "omit",
        seed: int,
        targets: Mapping[str, Sequence[str] | Mapping[str, float]],
    ) -> None:
        self.ratios = dict(ratio) if isinstance(ratio, Mapping) else dict.fromkeys(targets, ratio)
        for share in self.ratios.values():
            if not 0.0 <= share <= 1.0:
                raise ConfigError(
                    f"The codeswitching ratio is {share}; it is a share from 0 to 1.", fix="Set it to 0.05."
                )
        if label_mode not in get_args(LabelMode):
            raise ConfigError(
                f"The label mode {label_mode!r} is unknown.", fix=f"Use one of {', '.join(get_args(LabelMode))}."
            )
        self.label_mode, self.seed = label_mode, seed
        self.lookups = {name: FormLookup(encoded, name, others) for name, others in targets.items() if others}
        self._eos_id = encoded.vocabulary.eos_id
        self._is_word_token = _word_tokens(encoded)

    def switch(
        self, window: npt.NDArray[np.integer], word_starts: Bools, *, language: str, sample_id: int, length: int
    ) -> Switched:
        """Codeswitch one window.

        The window's first word is switched only if it starts in the window, the last only if it also ends in it. Where
        replacements are longer than their words, the window's end is cut off; where they are shorter, tokens beyond
        `length + 1` fill it up. When these are used up, it is filled with end-of-text that carries no loss.

        Args:
            window: token ids of the window and of what follows it, integer [at least length + 1].
            word_starts: whether a token begins a segment (a word, or what stands between words), bool, as long as `window`.
            language: language of the window.
            sample_id: global number of the sample.
            length: sequence length.

        Raises:
            DataError: `window` is too short or `word_starts` does not have its length.
        """
        if len(window) < length + 1 or len(word_starts) != len(window):
            raise DataError(
                f"A window of {len(window)} tokens and {len(word_starts)} word flags cannot give {length} positions.",
                f"It needs at least {length + 1} of each.",
            )
        ids: Int64 = window.astype(np.int64)
        segments = self._segments(ids, word_starts, language)
        chosen = self._drawn(segments, language, sample_id)
        starts, ends = segments.starts[chosen], segments.ends[chosen]
        replacement, lengths = self._replacements(segments.form[chosen], starts, language, sample_id)

        num_out = np.ones(len(ids), dtype=np.int64)
        num_out[ranges(starts, ends - starts)] = 0
        num_out[starts] = lengths
        out_start = np.cumsum(num_out) - num_out
        out = np.repeat(ids, num_out)
        replaced = ranges(out_start[starts], lengths)
        out[replaced] = replacement
        carries_loss = np.ones(len(out), dtype=np.bool_)
        target = out
        if self.label_mode != "vanilla":
            carries_loss[replaced] = False
        if self.label_mode == "first_subword":
            target = out.copy()
            target[out_start[starts]] = ids[starts]
            carries_loss[out_start[starts]] = True

        inside = out_start[segments.starts] < length
        words = segments.is_word & inside
        return Switched(
            tokens=_fit(out, length, self._eos_id),
            labels=_fit(target[1:], length, self._eos_id),
            loss_mask=_fit(carries_loss[1:].astype(np.float32), length, 0),
            num_words=int(words.sum()),
            num_covered=int((words & (segments.form >= 0)).sum()),
            num_switched=int(inside[chosen].sum()),
        )

    def hit_rate(self, windows: Iterable[Window], *, language: str) -> float:
        """Share of the whole words of some windows (ids, word_starts) that the table covers, 0 to 1; 0 without words."""
        num_words = num_covered = 0
        for ids, word_starts in windows:
            segments = self._segments(ids.astype(np.int64), word_starts, language)
            num_words += int(segments.is_word.sum())
            num_covered += int((segments.is_word & (segments.form >= 0)).sum())
        return num_covered / max(num_words, 1)

    def _segments(self, ids: Int64, word_starts: Bools, language: str) -> _Segments:
        is_eos = ids == self._eos_id
        begins = word_starts | is_eos
        # A document's first word begins after the end of the one before, flagged or not.
        begins[1:] |= is_eos[:-1]
        bounds = np.flatnonzero(begins)
        # What follows the last bound may go on beyond the window.
        starts, ends = bounds[:-1], bounds[1:]
        is_word = np.zeros(0, dtype=np.bool_)
        if len(starts):
            is_word = np.logical_or.reduceat(self._is_word_token[ids], bounds)[:-1]
        lookup = self.lookups.get(language)
        form = np.full(len(starts), -1, dtype=np.int64)
        words = np.flatnonzero(is_word)
        if lookup:
            form[words] = lookup.find(ids, starts[words], ends[words])
        return _Segments(starts, ends, is_word, form)

    def _drawn(self, segments: _Segments, language: str, sample_id: int) -> Int64:
        """Indices of the segments to switch, ascending."""
        ratio = self.ratios.get(language, 0.0)
        if language not in self.lookups or not ratio:
            return np.zeros(0, dtype=np.int64)
        uniform = self._uniform(sample_id, segments.starts, _DRAW_SWITCH)
        return np.flatnonzero((uniform < ratio) & segments.is_word & (segments.form >= 0))

    def _replacements(self, forms: Int64, starts: Int64, language: str, sample_id: int) -> tuple[Int64, Int64]:
        if not len(forms):
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        lookup = self.lookups[language]
        draw_language = self._uniform(sample_id, starts, _DRAW_LANGUAGE)
        draw_translation = self._uniform(sample_id, starts, _DRAW_TRANSLATION)
        return lookup.translations(lookup.choose(forms, draw_language, draw_translation))

    def _uniform(self, sample_id: int, positions: Int64, draw: int) -> npt.NDArray[np.float64]:
        """Uniform numbers in [0, 1) that depend on nothing but the seed, the sample, the position and the draw.

        The outputs of SplitMix64 (Steele, Lea & Flood 2014) number `positions`, from a state hashed from the other three.
        """
        name = f"codeswitch {self.seed} {sample_id} {draw}".encode()
        state = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")
        x = np.uint64(state) + (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
        return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _fit(values: npt.NDArray[_Scalar], length: int, filler: int) -> npt.NDArray[_Scalar]:
    """The first `length` values, with `filler` after them where there are fewer."""
    missing = length - len(values)
    if missing <= 0:
        return values[:length]
    return np.concatenate([values, np.full(missing, filler, dtype=values.dtype)])


def _word_tokens(encoded: EncodedTable) -> Bools:
    """Whether a token id holds a letter or digit, or a part of a character that may be one, bool [vocabulary]."""
    vocabulary = encoded.vocabulary
    texts = (vocabulary.decode([token]) for token in range(vocabulary.size))
    return np.array([any(c.isalnum() or c == "\ufffd" for c in text) for text in texts], dtype=np.bool_)
