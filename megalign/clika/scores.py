"""The scores of CLiKA from counts of items, the same code for the data and for its bootstrap resamples.

Performance: RA = max(0, (accuracy - chance) / (top - chance)), without an upper cap.
Consistency with English (Gao et al. 2024, arXiv:2404.04659, section 3.2): en-CO = |C_l and C_en| / |C_l|, where C holds the items
answered right. It is undefined where C_l is empty and not corrected for chance, so it is to be read beside n and RA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from megalign.clika.datasets import DataSet, Protocol
from megalign.clika.panel import Panel
from megalign.errors import DataError

Draws = npt.NDArray[np.float64]

METRICS = ("accuracy", "ra", "en_co", "both_over_en", "jaccard", "same_answer", "parse_rate")
CONSISTENCY = ("en_co", "both_over_en", "jaccard", "same_answer")


@dataclass(frozen=True)
class Scorer:
    """Scores of one data set's cells under weights of items.

    Attributes:
        panel: the answers.
        weights: [1 + resamples, items] float32, how often each item counts; the first row is all ones, the data itself.
        strict: parse strictly (a lone letter) instead of as released.
    """

    panel: Panel
    dataset: DataSet
    weights: npt.NDArray[np.float32]
    strict: bool = False

    def accuracy(self, row: int) -> Draws:
        """[1 + resamples] the accuracy of one cell in percent; unparsed responses count as wrong."""
        answers, present = self._answers[row], self.panel.present[row]
        right = self.weights @ (present & (answers == self.panel.labels[row])).astype(np.float32)
        return _ratio(100 * right.astype(np.float64), (self.weights @ present.astype(np.float32)).astype(np.float64))

    def model(self, model: str) -> dict[str, Draws]:
        """[1 + resamples, languages] of every metric, in the order of `panel.rows_of(model)`; NaN where undefined.

        Consistency is over the items present in both languages: C_l and C_en are cut to them.
        """
        rows = self.panel.rows_of(model)
        answers, present = self._answers[rows], self.panel.present[rows]
        right = present & (answers == self.panel.labels[rows])
        parsed = present & (answers > 0)
        indicators = {"n": present, "right": right, "parsed": parsed}
        english = self.panel.english_of(model)
        if english is not None:
            here = self.panel.present[english]
            right_en = here & (self._answers[english] == self.panel.labels[english])
            same = parsed & here & (answers == self._answers[english])
            indicators |= {"both": right & right_en, "same": same}
            if present.all():
                # Nothing is missing, as nearly always: what is alike for all languages is counted once.
                indicators |= {"n": present[:1], "right_en": right_en[None]}
            else:
                indicators |= {"common": present & here, "right_here": right & here, "right_en": present & right_en}
        # Whole counts below 2**24: exact in float32.
        together = self.weights @ np.concatenate(list(indicators.values())).astype(np.float32).T
        ends = np.cumsum([len(one) for one in indicators.values()])
        counts = dict(zip(indicators, np.split(together.astype(np.float64), ends[:-1], axis=1), strict=True))
        draws = {
            "accuracy": _ratio(100 * counts["right"], counts["n"]),
            "parse_rate": _ratio(counts["parsed"], counts["n"]),
        }
        draws["ra"] = self.rescaled(draws["accuracy"])
        undefined = np.full_like(draws["ra"], np.nan)
        draws |= dict.fromkeys(CONSISTENCY, undefined)
        if english is not None:
            both, right_e = counts["both"], counts["right_en"]
            right_l = counts.get("right_here", counts["right"])
            draws |= {
                "en_co": _ratio(both, right_l),
                "both_over_en": _ratio(both, right_e),
                "jaccard": _ratio(both, right_l + right_e - both),
                "same_answer": _ratio(counts["same"], counts.get("common", counts["n"])),
            }
            for name in CONSISTENCY:
                draws[name][:, rows.index(english)] = np.nan
        return {name: draws[name] for name in METRICS}

    def rescaled(self, accuracy: Draws) -> Draws:
        """[1 + resamples, languages] re-scaled accuracy of accuracies in percent.

        Raises:
            DataError: the model that is to give the top has no English answers, or none above chance.
        """
        chance = self.dataset.chance_percent
        if self.dataset.top_model is None:
            assert self.dataset.top_percent is not None
            return np.maximum(0.0, (accuracy - chance) / (self.dataset.top_percent - chance))
        english = self.panel.english_of(self.dataset.top_model)
        if english is None:
            raise DataError(
                f"{self.dataset.top_model} has no English responses to {self.panel.dataset}.",
                "Its English accuracy is the top of the re-scaled accuracy.",
                "Add its responses, name another top_model, or set top_percent.",
            )
        top = self.accuracy(english)[:, None]
        if top[0, 0] <= chance:
            raise DataError(
                f"{self.dataset.top_model} reaches {top[0, 0]:.1f} % on {self.panel.dataset} in English, chance is {chance:g} %.",
                "A top that is not above chance gives no scale.",
                "Name a better top_model, or set top_percent.",
            )
        # A resample in which the top does not pass chance has no scale either.
        return np.maximum(0.0, _ratio(accuracy - chance, np.where(top > chance, top - chance, 0.0)))

    @property
    def _answers(self) -> npt.NDArray[np.uint8]:
        return self.panel.strict if self.strict else self.panel.released


def score_rows(panels: dict[str, Panel], protocol: Protocol, *, strict: bool = False) -> list[dict[str, Any]]:
    """One row per (data set, model, language): model, dataset, language, n, and the metrics; None where undefined.

    `accuracy` is in percent, all else are shares. `n` counts the rows, unparsed ones included.
    """
    rows = []
    for name, panel in panels.items():
        weights = np.ones((1, len(panel.items)), dtype=np.float32)
        scorer = Scorer(panel, protocol.dataset(name), weights, strict)
        for model in panel.models:
            draws = scorer.model(model)
            for column, row in enumerate(panel.rows_of(model)):
                cell = panel.cells[row]
                base = {"model": model, "dataset": name, "language": cell.language, "n": len(cell.items)}
                rows.append({**base, **{metric: number(draws[metric][0, column]) for metric in METRICS}})
    return rows


def parsing_rows(panels: dict[str, Panel], protocol: Protocol) -> list[dict[str, Any]]:
    """What the way of parsing changes, per cell: accuracy in percent and parse rate, released and strict, and the difference."""
    rows = []
    for one, other in zip(score_rows(panels, protocol), score_rows(panels, protocol, strict=True), strict=True):
        row = {name: one[name] for name in ("model", "dataset", "language", "n")}
        for name in ("accuracy", "parse_rate"):
            row |= {f"{name}_released": one[name], f"{name}_strict": other[name]}
            row[f"{name}_difference"] = other[name] - one[name]
        rows.append(row)
    return rows


def hardly_parsed(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of scores of which less than half of the responses name an option, the worst first."""
    return sorted((row for row in rows if row["parse_rate"] < 0.5), key=lambda row: float(row["parse_rate"]))


def number(value: float | np.floating) -> float | None:
    """A float for JSON; None where it is undefined."""
    return float(value) if np.isfinite(value) else None


def _ratio(tops: Draws, bottoms: Draws) -> Draws:
    result: Draws = np.full(np.broadcast_shapes(tops.shape, bottoms.shape), np.nan)
    np.divide(tops, bottoms, out=result, where=bottoms != 0)
    return result
