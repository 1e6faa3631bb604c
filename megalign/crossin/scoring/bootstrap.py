"""Bootstrap intervals over questions, and paired comparisons of two files with the same questions.

Questions are resampled; a question brings its answers in all languages along. Files with the same questions are scored on the same
resamples, whatever the order of their rows, so a difference between two of them is paired. All scores of all resamples are one
matrix product with the counts of how often each question was drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from megalign.crossin.scoring.answers import INVALID, Answers
from megalign.crossin.scoring.scores import ac3, agreement
from megalign.errors import DataError
from megalign.intervals import check_resampling

Floats = npt.NDArray[np.float64]


class Metric(NamedTuple):
    """What a number is: accuracy, consistency, ac3 or invalid_rate; of one language, or of subsets of `s` languages."""

    name: str
    language: str | None = None
    s: int | None = None


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made.

    Raises:
        ConfigError: no resamples or too many, or a confidence that is not between 0 and 1.
    """

    seed: int = 0
    num_resamples: int = 1000
    confidence: float = 0.95

    def __post_init__(self) -> None:
        check_resampling(self.num_resamples, self.confidence)

    def draws(self, answers: Answers) -> dict[Metric, Floats]:
        """Each score on the data and on all resamples: [1 + resamples], the data itself first."""
        order = np.argsort(np.array(answers.items))
        agreeing = agreement(answers)[order]
        features = np.concatenate([answers.right[order], answers.options[order] == INVALID, agreeing], axis=1)
        weights = resampled_weights(_fingerprint(answers), len(answers.items), self.num_resamples, self.seed)
        means = weights @ features.astype(np.float64) / len(answers.items)
        num_languages = len(answers.languages)
        accuracy = means[:, :num_languages].mean(axis=1)
        draws = {
            Metric("accuracy"): accuracy,
            Metric("invalid_rate"): means[:, num_languages : 2 * num_languages].mean(axis=1),
        }
        for column, language in enumerate(answers.languages):
            draws[Metric("accuracy", language)] = means[:, column]
        for s in range(2, num_languages + 1):
            draws[Metric("consistency", s=s)] = means[:, 2 * num_languages + s - 2]
        for s in range(2, num_languages + 1):
            draws[Metric("ac3", s=s)] = ac3(accuracy, draws[Metric("consistency", s=s)])
        return draws

    def interval(self, draws: Floats) -> tuple[float, float]:
        """The percentile interval (Efron and Tibshirani 1993, chapter 13) of [1 + resamples]."""
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(draws[1:], [tail, 1 - tail])
        return float(low), float(high)


@lru_cache(maxsize=8)
def resampled_weights(fingerprint: str, num_items: int, num_resamples: int, seed: int) -> Floats:
    """[1 + resamples, items] how often each question is drawn; the first row is all ones."""
    digest = hashlib.blake2b(f"consistency {seed} {fingerprint}".encode(), digest_size=8).digest()
    generator = np.random.default_rng(int.from_bytes(digest, "little"))
    weights = np.ones((1 + num_resamples, num_items))
    for row in weights[1:]:
        row[:] = np.bincount(generator.integers(0, num_items, size=num_items), minlength=num_items)
    return weights


def interval_rows(bootstrap: Bootstrap, answers: Answers) -> Iterator[dict[str, Any]]:
    """Per metric: value and interval; no interval where there is one question only."""
    for metric, draws in bootstrap.draws(answers).items():
        low, high = bootstrap.interval(draws) if len(answers.items) > 1 else (None, None)
        yield {
            "file": answers.file,
            **({"model": answers.model} if answers.model else {}),
            "metric": metric.name,
            "language": metric.language,
            "s": metric.s,
            "n": len(answers.items),
            "value": float(draws[0]),
            "low": low,
            "high": high,
        }


def compare(bootstrap: Bootstrap, base: Answers, other: Answers) -> list[dict[str, Any]]:
    """`other` minus `base` per metric, paired over questions, with interval and two-sided p-value.

    The p-value is twice the smaller share of resampled differences on either side of zero, ties counting for both, with one added to
    the count and to the resamples; it is at most 1. Nothing is corrected for the number of comparisons.

    Raises:
        DataError: the two have not the same questions in the same languages.
    """
    for what, one, two in (
        ("languages", base.languages, other.languages),
        ("questions", base.items, other.items),
    ):
        if set(one) != set(two):
            odd = sorted(set(one) ^ set(two))
            raise DataError(
                f"{base.name} and {other.name} have other {what}: {', '.join(odd[:5])} and so on ({len(odd)} differ).",
                "A paired comparison needs the same questions in the same languages.",
            )
    ours, theirs = bootstrap.draws(other), bootstrap.draws(base)
    rows = []
    for metric, draws in ours.items():
        difference = draws - theirs[metric]
        low, high = bootstrap.interval(difference)
        tail = min(int((difference[1:] <= 0).sum()), int((difference[1:] >= 0).sum()))
        rows.append(
            {
                "base": base.name,
                "other": other.name,
                "metric": metric.name,
                "language": metric.language,
                "s": metric.s,
                "n": len(base.items),
                "difference": float(difference[0]),
                "low": low,
                "high": high,
                "p_value": min(1.0, 2 * (tail + 1) / (bootstrap.num_resamples + 1)),
            }
        )
    return rows


def _fingerprint(answers: Answers) -> str:
    return hashlib.blake2b("\x1f".join(sorted(answers.items)).encode(), digest_size=16).hexdigest()
