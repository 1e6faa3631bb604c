"""Cross-lingual knowledge application (PreAlign section 4.2): facts stated in one language, asked in another.

The true statement must be more likely than three that name another object of the same relation. Every object is true
once in its relation and stands among the distractors of the others, so knowing the relation alone gives 25 %. Control
facts, never stated, are scored the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from megalign.corpus.facts import Fact, FactSet
from megalign.corpus.vocabulary import Vocabulary
from megalign.engine.engine import Engine
from megalign.evaluation.batched import score_rows
from megalign.evaluation.scores import Score
from megalign.intervals import bootstrap_mean, wilson_interval

_SEED = 20240722


def log_likelihoods(
    engine: Engine, vocabulary: Vocabulary, statements: Sequence[str], language: str, *, batch_size: int
) -> np.ndarray:
    """Total log-likelihood of each statement after an end-of-text token: float64 [statements]."""
    rows = [np.concatenate([[vocabulary.eos_id], vocabulary.encode(text, language)]) for text in statements]
    parallel = engine.layout.parallel
    # Tensor- and context-parallel ranks share the positions in equal parts.
    parts = 2 * parallel.tensor * parallel.context
    width = -(-(max(map(len, rows)) - 1) // parts) * parts + 1
    tokens = np.full((len(rows), width), vocabulary.eos_id, dtype=np.int64)
    mask = np.zeros((len(rows), width - 1))
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = row
        mask[number, : len(row) - 1] = 1.0
    # Padding stands to the right, where causal attention hides it from the statement.
    nll, _ = score_rows(engine, tokens[:, :-1].copy(), tokens[:, 1:].copy(), batch_size=batch_size)
    totals: np.ndarray = -(nll * mask).sum(axis=1, dtype=np.float64)
    return totals


def clka_scores(
    engine: Engine, vocabulary: Vocabulary, facts: FactSet, language: str, *, batch_size: int, step: int
) -> Iterator[Score]:
    """Accuracy (Wilson interval) on facts and control facts, and the margin to the best distractor, in a language."""
    for name, items in (("clka", facts.facts), ("clka_control", facts.control_facts)):
        margins = _margins(engine, vocabulary, facts, items, language, batch_size)
        hits = int((margins > 0).sum())
        low, high = wilson_interval(hits, len(margins))
        yield Score(name, language, None, step, hits / len(margins), low, high, len(margins), "share")
        if name == "clka":
            mean_low, mean_high = bootstrap_mean(margins, seed=_SEED)
            yield Score(
                "clka_margin", language, None, step, float(margins.mean()), mean_low, mean_high, len(margins), "nats"
            )


def _margins(
    engine: Engine, vocabulary: Vocabulary, facts: FactSet, items: Sequence[Fact], language: str, batch_size: int
) -> np.ndarray:
    """Log-likelihood of the true statement minus that of the best distractor: float64 [items]."""
    statements = [facts.statement(fact, choice) for fact in items for choice in (fact.object, *fact.distractors)]
    totals = log_likelihoods(engine, vocabulary, statements, language, batch_size=batch_size)
    choices = totals.reshape(len(items), -1)
    margins: np.ndarray = choices[:, 0] - choices[:, 1:].max(axis=1)
    return margins
