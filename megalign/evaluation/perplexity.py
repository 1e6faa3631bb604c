"""Perplexity, bits per byte and the mass on other languages, on held-out text."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from megalign.corpus.store import TokenStore
from megalign.engine.engine import Engine
from megalign.errors import DataError
from megalign.evaluation.batched import score_rows
from megalign.evaluation.scores import Score
from megalign.intervals import bootstrap_mean, bootstrap_ratio
from megalign.prealign.lookup import FormLookup

_SEED = 20240722  # of the bootstrap: intervals are part of the result and must repeat


def validation_windows(store: TokenStore, language: str, length: int, max_windows: int) -> np.ndarray:
    """Held-out windows, evenly spread over the text: int64 [windows, length + 1].

    Raises:
        DataError: the store has no held-out text of the language, or less than a window.
    """
    total = store.num_tokens(language, "valid") if store.has(language, "valid") else 0
    available = (total - 1) // length
    if available < 1:
        raise DataError(
            f"The token store has {total} held-out tokens of {language!r}, less than one window of {length + 1}.",
            "Perplexity needs at least one.",
            "Build the store with more validation text.",
        )
    starts = _starts(available, length, max_windows)
    return np.stack([store.window(language, at, length + 1, "valid") for at in starts]).astype(np.int64)


def validation_flags(store: TokenStore, language: str, length: int, max_windows: int) -> np.ndarray:
    """Which tokens of `validation_windows` begin a word or what lies between words: bool [windows, length + 1]."""
    available = (store.num_tokens(language, "valid") - 1) // length
    starts = _starts(available, length, max_windows)
    return np.stack([store.word_start_flags(language, at, length + 1, "valid") for at in starts])


def _starts(available: int, length: int, max_windows: int) -> list[int]:
    chosen = np.unique(np.linspace(0, available - 1, min(max_windows, available)).round().astype(np.int64))
    return [int(at) * length for at in chosen]


def perplexity_scores(
    engine: Engine,
    store: TokenStore,
    language: str,
    *,
    length: int,
    max_windows: int,
    batch_size: int,
    step: int,
    mass_on: tuple[str, ...] = (),
    lookup: FormLookup | None = None,
) -> Iterator[Score]:
    """Perplexity, bits per byte and negative log-likelihood of a language's held-out text.

    Intervals are bootstraps over windows. End-of-text tokens count as tokens and have no bytes.

    Args:
        engine, store: the model and its text.
        language: a language of the store.
        length: tokens of a window.
        max_windows, batch_size: how much is computed, in all and at once.
        step: training step the scores belong to.
        mass_on: clone languages whose probability mass at this language's positions is measured.
        lookup: knows the words of the alignment table in this language: the perplexity is told apart for them and for
            other words (PreAlign section 5.5); None: it is not.
    """
    windows = validation_windows(store, language, length, max_windows)
    ranges = {name: store.vocabulary.language_range(name) for name in mass_on}
    tokens, labels = windows[:, :-1].copy(), windows[:, 1:].copy()
    nll, masses = score_rows(engine, tokens, labels, batch_size=batch_size, ranges=ranges)
    per_window = nll.sum(axis=1, dtype=np.float64)
    num_tokens = np.full(len(per_window), float(length))
    num_bytes = store.vocabulary.token_num_bytes[labels].sum(axis=1).astype(np.float64)
    count = int(labels.size)

    mean = float(per_window.sum() / num_tokens.sum())
    low, high = _interval(per_window, num_tokens)
    yield Score("perplexity", language, None, step, _exp(mean), _exp(low), _exp(high), count, "perplexity")
    yield Score("nll_per_token", language, None, step, mean, low, high, count, "nats")
    bits = float(per_window.sum() / num_bytes.sum()) / math.log(2)
    low, high = (None if end is None else end / math.log(2) for end in _interval(per_window, num_bytes))
    yield Score("bits_per_byte", language, None, step, bits, low, high, int(num_bytes.sum()), "bits per byte")
    for mass in masses.values():
        share = mass.mean(axis=1, dtype=np.float64)
        low, high = bootstrap_mean(share, seed=_SEED) if len(share) > 1 else (None, None)
        yield Score("target_mass", language, None, step, float(share.mean()), low, high, count, "probability")
    if lookup is not None:
        flags = validation_flags(store, language, length, max_windows)
        for name, chosen in seen_and_unseen(windows, flags, lookup).items():
            yield from _perplexity_of(f"perplexity_{name}", nll, chosen, language, step)


def seen_and_unseen(windows: np.ndarray, flags: np.ndarray, lookup: FormLookup) -> dict[str, np.ndarray]:
    """Which targets belong to words of the table ("seen") and which to other words ("unseen").

    A word is the tokens from one flag to the next. What stands at a window's edge and may be the part of a word, and what has no
    letter or digit, is neither.

    Args:
        windows: token ids, int64 [windows, length + 1].
        flags: whether a token begins a word or what lies between words, bool, likewise.
        lookup: of the windows' language.

    Returns:
        bool [windows, length] each.
    """
    found = {name: np.zeros((len(windows), windows.shape[1] - 1), dtype=np.bool_) for name in ("seen", "unseen")}
    vocabulary = lookup.encoded.vocabulary
    for number, (ids, starts_word) in enumerate(zip(windows, flags, strict=True)):
        starts = np.flatnonzero(starts_word)
        # The first token of a window is no target.
        starts, ends = starts[:-1][starts[:-1] > 0], starts[1:][starts[:-1] > 0]
        for start, end, form in zip(starts, ends, lookup.find(ids, starts, ends), strict=True):
            if form >= 0:
                found["seen"][number, start - 1 : end - 1] = True
            elif any(letter.isalnum() for letter in vocabulary.decode(ids[start:end])):
                found["unseen"][number, start - 1 : end - 1] = True
    return found


def _perplexity_of(metric: str, nll: np.ndarray, chosen: np.ndarray, language: str, step: int) -> Iterator[Score]:
    """Perplexity per chosen token; nothing where there is none."""
    sums, counts = (nll * chosen).sum(axis=1, dtype=np.float64), chosen.sum(axis=1).astype(np.float64)
    has = counts > 0
    if has.any():
        mean = float(sums.sum() / counts.sum())
        low, high = _interval(sums[has], counts[has])
        yield Score(metric, language, None, step, _exp(mean), _exp(low), _exp(high), int(counts.sum()), "perplexity")


def _interval(numerators: np.ndarray, denominators: np.ndarray) -> tuple[float | None, float | None]:
    return bootstrap_ratio(numerators, denominators, seed=_SEED) if len(numerators) > 1 else (None, None)


def _exp(value: float | None) -> float | None:
    """exp, or None where it exceeds a float: a model of other languages can be that surprised."""
    return None if value is None or value > 700 else math.exp(value)
