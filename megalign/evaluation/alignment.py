"""How alike aligned words are, at every level of the model, beside random pairs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from megalign.engine.engine import Engine
from megalign.evaluation.scores import Score
from megalign.intervals import bootstrap_mean, wilson_interval
from megalign.prealign.encoded import EncodedTable
from megalign.prealign.words import WordBatches

_SEED = 20240722


def alignment_scores(engine: Engine, encoded: EncodedTable, *, num_entries: int, step: int) -> Iterator[Score]:
    """Aligned cosine, random cosine and retrieval@1 for every target language and level.

    Every word is encoded alone. Intervals are bootstraps over entries, of retrieval Wilson's. The random cosine of an entry is the mean over
    all translations of other entries, save those that are also its own.

    Args:
        engine: the model.
        encoded: the alignment table.
        num_entries: most frequent entries that are measured.
        step: training step the scores belong to.
    """
    entries = encoded.batch_entries[:num_entries]
    batch = WordBatches(encoded, entries_per_batch=len(entries), seed=0).all_of(entries)
    engine.interrupt()
    (vectors,) = engine.represent([batch])
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    words = np.concatenate([np.arange(encoded.entry_offsets[e], encoded.entry_offsets[e + 1]) for e in entries])
    language, entry = encoded.language[words], encoded.entry[words]
    sources = np.flatnonzero(language == 0)
    for number, name in enumerate(encoded.languages[1:], start=1):
        targets = np.flatnonzero(language == number)
        if not len(targets):
            continue
        own = entry[sources][:, None] == entry[targets][None]
        known = own.any(axis=1)
        right = _same_surface(own, batch.surface[targets])
        # The word itself in another entry is no random pair: its vectors are equal by construction.
        other = ~right & (batch.surface[sources][:, None] != batch.surface[targets][None])
        for level in range(len(unit)):
            cosine = (unit[level, sources] @ unit[level, targets].T)[known]
            yield from _level_scores(cosine, own[known], right[known], other[known], name, level, step)


def _same_surface(own: np.ndarray, surface: np.ndarray) -> np.ndarray:
    """Targets written like one of a source's translations, whichever entry they stand in: bool [sources, targets]."""
    number = np.unique(surface, return_inverse=True)[1]
    has = np.zeros((len(own), number.max() + 1), dtype=np.bool_)
    source, target = own.nonzero()
    has[source, number[target]] = True
    same: np.ndarray = has[:, number]
    return same


def _level_scores(
    cosine: np.ndarray, own: np.ndarray, right: np.ndarray, other: np.ndarray, language: str, level: int, step: int
) -> Iterator[Score]:
    paired = other.any(axis=1)
    measured = {
        "aligned_cosine": ((cosine * own).sum(1) / own.sum(1), "cosine"),
        "random_cosine": ((cosine * other)[paired].sum(1) / other[paired].sum(1), "cosine"),
        "retrieval_at_1": (right[np.arange(len(right)), cosine.argmax(axis=1)].astype(np.float64), "share"),
    }
    for metric, (values, unit) in measured.items():
        if not len(values):
            continue
        values = values.astype(np.float64)
        low: float | None = None
        high: float | None = None
        if unit == "share":  # also where all or no words are found
            low, high = wilson_interval(round(values.sum()), len(values))
        elif len(values) > 1:
            low, high = bootstrap_mean(values, seed=_SEED)
        yield Score(metric, language, level, step, float(values.mean()), low, high, len(values), unit)
