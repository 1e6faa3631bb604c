"""How alike aligned words are, at every level of the model, beside random pairs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from megalign.engine.engine import Engine
from megalign.evaluation.scores import Score
from megalign.intervals import bootstrap_mean
from megalign.prealign.encoded import EncodedTable
from megalign.prealign.words import WordBatches

_SEED = 20240722


def alignment_scores(engine: Engine, encoded: EncodedTable, *, num_entries: int, step: int) -> Iterator[Score]:
    """Aligned cosine, random cosine and retrieval@1 for every target language and level.

    Every word is encoded alone. Intervals are bootstraps over entries. The random cosine of an entry is the mean over
    all translations of other entries.

    Args:
        engine: the model.
        encoded: the alignment table.
        num_entries: most frequent entries that are measured.
        step: training step the scores belong to.
    """
    entries = encoded.batch_entries[:num_entries]
    batch = WordBatches(encoded, entries_per_batch=len(entries), seed=0).all_of(entries)
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
        # The same surface in another entry is no random pair: its vectors are equal by construction.
        other = ~own & (batch.surface[sources][:, None] != batch.surface[targets][None])
        for level in range(len(unit)):
            cosine = (unit[level, sources] @ unit[level, targets].T)[known]
            yield from _level_scores(cosine, own[known], other[known], name, level, step)


def _level_scores(
    cosine: np.ndarray, own: np.ndarray, other: np.ndarray, language: str, level: int, step: int
) -> Iterator[Score]:
    measured = {
        "aligned_cosine": ((cosine * own).sum(1) / own.sum(1), "cosine"),
        "random_cosine": ((cosine * other).sum(1) / np.maximum(other.sum(1), 1), "cosine"),
        "retrieval_at_1": (own[np.arange(len(own)), cosine.argmax(axis=1)].astype(np.float64), "share"),
    }
    for metric, (values, unit) in measured.items():
        values = values.astype(np.float64)
        low, high = bootstrap_mean(values, seed=_SEED) if len(values) > 1 else (None, None)
        yield Score(metric, language, level, step, float(values.mean()), low, high, len(values), unit)
