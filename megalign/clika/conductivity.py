"""Conductivity: is what was learned in English known in another language? (Gao et al. 2024, arXiv:2404.04659, section 3.3)

XRR = |K_en and K_l| / |K_en| over the places of type 1, taught in English alone; K are the places after whose continent the
response names the right one. It counts only where the model learned what it was taught: four gates stand before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megalign.clika.bootstrap import MAX_UNDEFINED_SHARE, resampled_weights
from megalign.clika.knowledge import ENGLISH, Knowledge
from megalign.errors import DataError
from megalign.intervals import wilson_interval

GATE = 0.9
TRANSLATION = "translation"
_TRAILING = " \t\r\n.。．"


@dataclass(frozen=True)
class Share:
    """A share of right responses with its interval."""

    hits: int
    n: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """Between 0 and 1."""
        return self.hits / self.n

    @classmethod
    def of(cls, right: npt.NDArray[np.bool_], confidence: float) -> Share:
        """Of [n] responses, with Wilson's interval."""
        return cls(int(right.sum()), len(right), *wilson_interval(int(right.sum()), len(right), confidence))


@dataclass(frozen=True)
class Gate:
    """What a model must have learned before its XRR means something: more than 90 % right."""

    name: str
    share: Share

    @property
    def passed(self) -> bool:
        """Whether the share is above the bound; its interval may reach below."""
        return self.share.value > GATE


@dataclass(frozen=True)
class Conductivity:
    """The result for one language.

    Attributes:
        language: tested beside English.
        gates: translation, English type 0 and 1, and type 0 of the language.
        type_1: places of type 1 right in the language, whatever was right in English.
        known: places of type 1 right in English.
        ratio: XRR as measured, gates or not; None where nothing is known in English.
        low, high: bootstrap interval over the places of type 1; None where there is none.
        dealt: the ratio expected if the language's responses were dealt out to the places at random: what naming continents
            without knowing the places gives.
        num_continents: a guess is right once in so many.
        num_several: responses after type 1 that name more than one continent.
    """

    language: str
    gates: tuple[Gate, ...]
    type_1: Share
    known: int
    ratio: float | None
    low: float | None
    high: float | None
    dealt: float | None
    num_continents: int
    num_several: int

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the gates that were not passed."""
        return tuple(gate.name for gate in self.gates if not gate.passed)

    @property
    def xrr(self) -> float | None:
        """The cross-lingual retrieval ratio; None where a gate failed or nothing is known in English."""
        return None if self.failed else self.ratio

    def row(self) -> dict[str, object]:
        """As a line of conductivity.jsonl."""
        gates = {
            gate.name: {"value": gate.share.value, "low": gate.share.low, "high": gate.share.high, "n": gate.share.n}
            for gate in self.gates
        }
        return {
            "language": self.language,
            "xrr": self.xrr,
            "low": None if self.xrr is None else self.low,
            "high": None if self.xrr is None else self.high,
            "n": self.known,
            "failed_gates": list(self.failed),
            "gate": GATE,
            "gates": gates,
            "ratio_without_gates": self.ratio,
            "type_1": self.type_1.value,
            "dealt": self.dealt,
            "chance": 1 / self.num_continents,
            "responses_naming_several": self.num_several,
        }


def translated(response: str, answer: str) -> bool:
    """Whether a response is the name asked for, nothing but white space and a full stop beside it."""
    return response.strip().strip(_TRAILING) == answer.strip().strip(_TRAILING)


def require_scorable(knowledge: Knowledge) -> None:
    """Refuse knowledge that no responses could give a score of.

    Raises:
        DataError: the tests are of different lengths, or one of their parts has no rows.
    """
    english, other = knowledge.tests[ENGLISH], knowledge.tests[knowledge.language]
    if len(english) != len(other):
        raise DataError(
            f"There are {len(english)} questions in {ENGLISH} and {len(other)} in {knowledge.language}.",
            "They are compared place by place.",
            "Complete the files.",
        )
    for code, tests in knowledge.tests.items():
        for kind in (0, 1):
            if kind not in {one.type for one in tests}:
                raise DataError(
                    f"There are no questions of type {kind} in {code}.",
                    "The test is not complete.",
                    "Complete the files.",
                )


def conductivity(
    knowledge: Knowledge,
    responses: Mapping[str, Sequence[str]],
    *,
    seed: int = 0,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> Conductivity:
    """Score the responses of one model.

    Args:
        knowledge: what was asked.
        responses: "translation", "en" and the language's code -> a response per row of `names` and `tests`.
        seed, num_resamples, confidence: of the bootstrap over places of type 1.

    Raises:
        DataError: responses are missing, or the knowledge cannot be scored.
    """
    require_scorable(knowledge)
    language = knowledge.language
    asked = {TRANSLATION: len(knowledge.names), **{code: len(tests) for code, tests in knowledge.tests.items()}}
    for name, count in asked.items():
        if len(responses.get(name, ())) != count:
            raise DataError(
                f"There are {len(responses.get(name, ()))} responses to the {count} rows of {name}.",
                "Every row needs one.",
                "Finish answering first.",
            )
    right = {
        code: np.array([one.continent in response for one, response in zip(tests, responses[code], strict=True)])
        for code, tests in knowledge.tests.items()
    }
    types = {code: np.array([one.type for one in tests]) for code, tests in knowledge.tests.items()}
    names_right = np.array(
        [translated(text, name.translated) for name, text in zip(knowledge.names, responses[TRANSLATION], strict=True)]
    )
    parts = {
        TRANSLATION: names_right,
        "english_type_0": right[ENGLISH][types[ENGLISH] == 0],
        "english_type_1": right[ENGLISH][types[ENGLISH] == 1],
        "language_type_0": right[language][types[language] == 0],
    }
    gates = tuple(Gate(name, Share.of(part, confidence)) for name, part in parts.items())
    second = types[language] == 1
    english, other = right[ENGLISH][second], right[language][second]
    texts = [text for text, kind in zip(responses[language], types[language], strict=True) if kind == 1]
    golds = [one.continent for one in knowledge.tests[language] if one.type == 1]
    continents = list(dict.fromkeys(one.continent for one in knowledge.tests[language]))
    known = int(english.sum())
    ratio, dealt, low, high = None, None, None, None
    if known:
        ratio = float((english & other).sum() / known)
        dealt = _dealt(texts, golds, english)
        weights = resampled_weights(f"conductivity {language}", len(english), num_resamples, seed)
        low, high = _interval(weights, english & other, english, confidence)
    return Conductivity(
        language=language,
        gates=gates,
        type_1=Share.of(other, confidence),
        known=known,
        ratio=ratio,
        low=low,
        high=high,
        dealt=dealt,
        num_continents=len(continents),
        num_several=sum(sum(one in text for one in continents) > 1 for text in texts),
    )


def _interval(
    weights: npt.NDArray[np.float32], both: npt.NDArray[np.bool_], known: npt.NDArray[np.bool_], confidence: float
) -> tuple[float | None, float | None]:
    """The percentile interval of the ratio over places; None for both where resamples know nothing too often, or of one place."""
    tops, bottoms = (weights[1:] @ one.astype(np.float32) for one in (both, known))
    defined = bottoms > 0
    if len(known) < 2 or defined.mean() < 1 - MAX_UNDEFINED_SHARE:
        return None, None
    ratios = tops[defined].astype(np.float64) / bottoms[defined]
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _dealt(texts: Sequence[str], golds: Sequence[str], known: npt.NDArray[np.bool_]) -> float:
    """The mean, over places known in English, of the share of all responses that hold the place's continent."""
    holds = {gold: sum(gold in text for text in texts) / len(texts) for gold in set(golds)}
    return float(np.mean([holds[gold] for gold, one in zip(golds, known, strict=True) if one]))
