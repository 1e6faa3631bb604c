"""Cross-lingual knowledge application (PreAlign section 4.2): facts stated in one language, asked in another.

The true statement must be more likely than three that name another object of the same relation. Every object is true
once in its relation and stands among the distractors of the others, so knowing the relation alone gives 25 %. Control
facts, never stated, are scored the same way. Likelihoods are compared in total and per token: the total favours objects
of few tokens, the mean per token those of many.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from megalign.corpus.facts import Fact, FactSet
from megalign.corpus.knowledge.facts import Knowledge
from megalign.corpus.vocabulary import Vocabulary
from megalign.engine.engine import Engine
from megalign.evaluation.batched import score_rows
from megalign.evaluation.scores import Score
from megalign.intervals import bootstrap_mean, wilson_interval

_SEED = 20240722
# Scores of facts by the language that stated them are called so, with the language behind it.
FROM = "clka_from_"


def log_likelihoods(
    engine: Engine, vocabulary: Vocabulary, statements: Sequence[str], language: str, *, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Total log-likelihood of each statement after an end-of-text token, and its tokens: float64 [statements] each."""
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
    return totals, mask.sum(axis=1)


def clka_scores(
    engine: Engine, vocabulary: Vocabulary, facts: FactSet, language: str, *, batch_size: int, step: int
) -> Iterator[Score]:
    """Accuracy (Wilson interval) on facts and control facts, and the margin to the best distractor, in a language."""
    for name, items in (("clka", facts.facts), ("clka_control", facts.control_facts)):
        if not items:
            continue
        total, per_token = _margins(engine, vocabulary, facts, items, language, batch_size)
        yield _share(name, language, None, step, total)
        if name == "clka":
            yield _share("clka_per_token", language, None, step, per_token)
            yield _mean("clka_margin", language, step, total, "nats")
            yield _mean("clka_margin_per_token", language, step, per_token, "nats per token")


def knowledge_scores(
    engine: Engine, vocabulary: Vocabulary, knowledge: Knowledge, source: str, *, batch_size: int, step: int
) -> Iterator[Score]:
    """Scores of facts in several languages, asked in all that the vocabulary has.

    The facts that the source language states give the scores of `clka_scores`. Where several languages state facts, each
    has an accuracy of its own, `clka_from_LANGUAGE`.
    """
    controls = knowledge.select(None)
    for language in knowledge.all_languages:
        if language not in vocabulary.languages:
            continue
        facts = knowledge.in_language(language, knowledge.select(source), controls)
        yield from clka_scores(engine, vocabulary, facts, language, batch_size=batch_size, step=step)
        for stated_in in knowledge.stated_in if len(knowledge.stated_in) > 1 else ():
            asked = knowledge.in_language(language, knowledge.select(stated_in))
            total, _ = _margins(engine, vocabulary, asked, asked.facts, language, batch_size)
            yield _share(FROM + stated_in, language, None, step, total)


def period_scores(
    engine: Engine, vocabulary: Vocabulary, knowledge: Knowledge, period: int, *, batch_size: int, step: int
) -> Iterator[Score]:
    """Learning dynamics (PreAlign section 5.2): the facts of a period, asked right after it in every language.

    A score for each language that stated facts (in the metric's name), language that asks, and frequency, which is the
    score's level. `clka_before` asks the facts of the next period, which were never stated: it must be at chance.
    """
    following = [fact for fact in knowledge.facts if fact.period == period + 1]
    for language in knowledge.all_languages:
        for stated_in in knowledge.stated_in:
            facts = knowledge.select(stated_in, period=period)
            for times in sorted({fact.times for fact in facts}):
                asked = knowledge.in_language(language, knowledge.select(stated_in, period=period, times=times))
                total, _ = _margins(engine, vocabulary, asked, asked.facts, language, batch_size)
                yield _share(FROM + stated_in, language, times, step, total)
        if following:
            asked = knowledge.in_language(language, following)
            total, _ = _margins(engine, vocabulary, asked, asked.facts, language, batch_size)
            yield _share("clka_before", language, None, step, total)


def _share(metric: str, language: str, level: int | None, step: int, margins: np.ndarray) -> Score:
    hits = int((margins > 0).sum())
    low, high = wilson_interval(hits, len(margins))
    return Score(metric, language, level, step, hits / len(margins), low, high, len(margins), "share")


def _mean(metric: str, language: str, step: int, margins: np.ndarray, unit: str) -> Score:
    low, high = bootstrap_mean(margins, seed=_SEED) if len(margins) > 1 else (None, None)
    return Score(metric, language, None, step, float(margins.mean()), low, high, len(margins), unit)


def _margins(
    engine: Engine, vocabulary: Vocabulary, facts: FactSet, items: Sequence[Fact], language: str, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Log-likelihood of the true statement minus that of the best distractor, in total and per token: float64 [items]."""
    statements = [facts.statement(fact, choice) for fact in items for choice in (fact.object, *fact.distractors)]
    totals, num_tokens = log_likelihoods(engine, vocabulary, statements, language, batch_size=batch_size)
    margins = []
    for values in (totals, totals / num_tokens):
        choices = values.reshape(len(items), -1)
        margins.append(choices[:, 0] - choices[:, 1:].max(axis=1))
    return margins[0], margins[1]
