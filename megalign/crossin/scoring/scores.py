"""Accuracy, consistency and AC3 (Wang et al. 2023, arXiv:2309.04766, section 3), from counts of equal answers.

With M languages, a_nl the answer to question n in language l:
    accuracy      = mean over l of mean over n of [a_nl is right]
    consistency_s = mean over all s-subsets of the languages of the share of questions whose answers agree in the whole subset
    AC3_s         = 2 accuracy consistency_s / (accuracy + consistency_s)
Consistency disregards correctness. Of M languages in which c give one answer, C(c, s) of the C(M, s) subsets agree on it, so no
subset is visited. An invalid answer is wrong and agrees with nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy as np
import numpy.typing as npt

from megalign.crossin.scoring.answers import Answers

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """The scores of one file.

    Attributes:
        accuracy: mean over languages.
        accuracy_by_language: in the order of the file.
        consistency, ac3: by the number of languages s, from 2 on.
    """

    accuracy: float
    accuracy_by_language: dict[str, float]
    consistency: dict[int, float]
    ac3: dict[int, float]


def score(answers: Answers) -> Scores:
    """Scores with undecided responses invalid."""
    return _scores(answers.languages, answers.right.mean(axis=0), agreement(answers).mean(axis=0))


def expected_released(answers: Answers) -> Scores:
    """The mean, over its random draws, of what SeaEval v0.1 gives for these responses; its very score where nothing is drawn.

    Draws are independent, so the means of accuracy and consistency are exact; AC3 is that of the means.
    """
    return _scores(
        answers.languages, right_probabilities(answers).mean(axis=0), agreement_probabilities(answers).mean(axis=0)
    )


def _scores(languages: tuple[str, ...], right: Floats, agreeing: Floats) -> Scores:
    accuracy = float(right.mean())
    consistency = {s: float(value) for s, value in enumerate(agreeing, 2)}
    return Scores(
        accuracy,
        dict(zip(languages, map(float, right), strict=True)),
        consistency,
        {s: float(ac3(accuracy, value)) for s, value in consistency.items()},
    )


def ac3(accuracy: npt.ArrayLike, consistency: npt.ArrayLike) -> Floats:
    """The harmonic mean of accuracy and consistency; 0 where both are 0."""
    one, other = np.asarray(accuracy, dtype=np.float64), np.asarray(consistency, dtype=np.float64)
    total = one + other
    return np.divide(2 * one * other, total, out=np.zeros(np.broadcast_shapes(one.shape, other.shape)), where=total > 0)


def agreement(answers: Answers) -> Floats:
    """[items, M - 1] the share of s-subsets of languages that agree on the item, s = 2..M along the columns."""
    num_languages = len(answers.languages)
    letters = range(int(answers.options.max(initial=0)) + 1)
    counts = np.stack([(answers.options == letter).sum(axis=1) for letter in letters], axis=1)
    columns = []
    for s in range(2, num_languages + 1):
        ways = np.array([comb(count, s) for count in range(num_languages + 1)], dtype=np.float64)
        columns.append(ways[counts].sum(axis=1) / comb(num_languages, s))
    return np.stack(columns, axis=1) if columns else np.zeros((len(answers.items), 0))


def right_probabilities(answers: Answers) -> Floats:
    """[items, languages] the probability that SeaEval's draw makes the answer right; 0 or 1 where nothing is drawn."""
    right = answers.right.astype(np.float64)
    for (item, language), options in answers.undecided.items():
        right[item, language] = options.count(int(answers.gold[item, language])) / len(options)
    return right


def agreement_probabilities(answers: Answers) -> Floats:
    """[items, M - 1] the expected share of s-subsets that agree on the item under SeaEval's draws.

    A subset agrees on a letter with the product of its languages' probabilities of that letter; the sum of such products over all
    s-subsets is the elementary symmetric polynomial of degree s.
    """
    agreeing = agreement(answers)
    num_languages = len(answers.languages)
    drawn = sorted({item for item, _ in answers.undecided})
    if not drawn or num_languages < 2:
        return agreeing
    highest = max(int(answers.options.max()), *(max(options) for options in answers.undecided.values()))
    probabilities = np.zeros((len(drawn), num_languages, highest + 1))
    for row, item in enumerate(drawn):
        for language in range(num_languages):
            options = answers.undecided.get((item, language), (int(answers.options[item, language]),))
            for option in options:
                probabilities[row, language, option] += 1 / len(options)
    polynomials = np.zeros((num_languages + 1, len(drawn), highest + 1))
    polynomials[0] = 1
    for language in range(num_languages):
        polynomials[1:] += polynomials[:-1] * probabilities[:, language]
    for s in range(2, num_languages + 1):
        agreeing[drawn, s - 2] = polynomials[s].sum(axis=1) / comb(num_languages, s)
    return agreeing


def accuracy_deviation(answers: Answers) -> float:
    """The standard deviation of SeaEval's accuracy over its own draws: how much it changes between two runs on the same responses."""
    right = right_probabilities(answers)
    return float(np.sqrt((right * (1 - right)).sum()) / right.size)
