"""Bootstrap intervals of every score, and paired comparisons of two models.

Items are resampled, and every model, language and metric of a data set is scored on the same resamples: a difference between two
models is therefore paired over items, and so is what consistency takes from two languages. Scores of a resample are counts
weighted by how often each item was drawn, so all resamples of a model's languages are one matrix product.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from megalign.clika.datasets import Protocol
from megalign.clika.panel import Panel
from megalign.clika.scores import METRICS, Draws, Scorer, number
from megalign.errors import ConfigError
from megalign.intervals import check_resampling

# An interval over resamples of which many are undefined would be of another score.
MAX_UNDEFINED_SHARE = 0.05


class Group(NamedTuple):
    """What a score is of: one data set, or the mean over the data sets of a type of knowledge."""

    level: str
    name: str


@dataclass(frozen=True)
class Scored:
    """A model's scores in one group: for each metric [1 + resamples, languages], the first row being the data itself."""

    languages: tuple[str, ...]
    num_items: tuple[int, ...]
    datasets: tuple[str, ...]
    draws: Mapping[str, Draws]

    def of(self, language: str, metric: str) -> Draws:
        """[1 + resamples] of one language."""
        return self.draws[metric][:, self.languages.index(language)]


@dataclass
class Bootstrap:
    """Scores on resampled items.

    Args:
        panels: the answers per data set.
        protocol: the data sets' constants.
        seed: of the resampling; resamples of a data set depend on it, on the data set's name and number of items alone.
        num_resamples: number of bootstrap samples.
        confidence: coverage aimed at, between 0 and 1.
        strict: parse strictly.

    Raises:
        ConfigError: no resamples or too many, or a confidence that is not between 0 and 1.
    """

    panels: dict[str, Panel]
    protocol: Protocol
    seed: int = 0
    num_resamples: int = 1000
    confidence: float = 0.95
    strict: bool = False
    _scorers: dict[str, Scorer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_resampling(self.num_resamples, self.confidence)

    @property
    def models(self) -> list[str]:
        """All models, ordered by name."""
        return sorted({model for panel in self.panels.values() for model in panel.models})

    def scored(self, model: str) -> dict[Group, Scored]:
        """A model's scores per data set, then per type of knowledge."""
        groups: dict[Group, Scored] = {}
        for name, panel in self.panels.items():
            if model in panel.models:
                cells = [panel.cells[row] for row in panel.rows_of(model)]
                languages = tuple(cell.language for cell in cells)
                sizes = tuple(len(cell.items) for cell in cells)
                groups[Group("dataset", name)] = Scored(languages, sizes, (name,), self._scorer(name).model(model))
        kinds = sorted({self.protocol.dataset(group.name).knowledge for group in groups})
        for kind in kinds:
            members = [one for group, one in groups.items() if self._is_of(group, kind)]
            mean = _mean(members)
            if mean.languages:
                groups[Group("knowledge", kind)] = mean
        return groups

    def interval(self, draws: Draws) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Percentile intervals (Efron and Tibshirani 1993, chapter 13) of [1 + resamples, columns]: (low, high), NaN for none.

        Resamples in which a score is undefined are left out; where they are more than 5 %, or where the score of the data is
        undefined, there is no interval.
        """
        # Undefined scores sort to the end; quantiles are interpolated linearly, as numpy.quantile does, which is slower here.
        resampled = np.sort(np.ascontiguousarray(draws[1:].T), axis=1)
        num_defined = np.count_nonzero(~np.isnan(resampled), axis=1)
        columns = np.arange(len(resampled))
        tail, bounds = (1 - self.confidence) / 2, []
        for share in (tail, 1 - tail):
            place = share * np.maximum(num_defined - 1, 0)
            below = place.astype(np.int64)
            above = np.minimum(below + 1, np.maximum(num_defined - 1, 0))
            low, high = resampled[columns, below], resampled[columns, above]
            bounds.append(low + (place - below) * (high - low))
        none = np.isnan(draws[0]) | (num_defined < (1 - MAX_UNDEFINED_SHARE) * self.num_resamples)
        return np.where(none, np.nan, bounds[0]), np.where(none, np.nan, bounds[1])

    def _is_of(self, group: Group, kind: str) -> bool:
        return group.level == "dataset" and self.protocol.dataset(group.name).knowledge == kind

    def _scorer(self, name: str) -> Scorer:
        if name not in self._scorers:
            weights = resampled_weights(name, len(self.panels[name].items), self.num_resamples, self.seed)
            self._scorers[name] = Scorer(self.panels[name], self.protocol.dataset(name), weights, self.strict)
        return self._scorers[name]


def resampled_weights(name: str, num_items: int, num_resamples: int, seed: int) -> npt.NDArray[np.float32]:
    """[1 + resamples, items] how often each item is drawn; the first row is all ones."""
    digest = hashlib.blake2b(f"clika {seed} {name}".encode(), digest_size=8).digest()
    generator = np.random.default_rng(int.from_bytes(digest, "little"))
    weights = np.ones((1 + num_resamples, num_items), dtype=np.float32)
    for row in weights[1:]:
        row[:] = np.bincount(generator.integers(0, num_items, size=num_items), minlength=num_items)
    return weights


def interval_rows(bootstrap: Bootstrap) -> Iterator[dict[str, Any]]:
    """Per model, group, language and metric: value and interval; None where undefined. One item alone has no interval."""
    for model in bootstrap.models:
        for group, scored in bootstrap.scored(model).items():
            low, high = bootstrap.interval(np.concatenate([scored.draws[metric] for metric in METRICS], axis=1))
            shape = (len(METRICS), len(scored.languages))
            low, high = low.reshape(shape), high.reshape(shape)
            for column, language in enumerate(scored.languages):
                single = scored.num_items[column] < 2
                for place, metric in enumerate(METRICS):
                    yield {
                        "model": model,
                        "level": group.level,
                        "name": group.name,
                        "datasets": list(scored.datasets),
                        "language": language,
                        "metric": metric,
                        "n": scored.num_items[column],
                        "value": number(scored.draws[metric][0, column]),
                        "low": None if single else number(low[place, column]),
                        "high": None if single else number(high[place, column]),
                    }


def compare_models(bootstrap: Bootstrap, base: str, other: str, name: str = "") -> list[dict[str, Any]]:
    """`other` minus `base` per group, language and metric, paired over items, with interval and two-sided p-value.

    The p-value is twice the smaller share of resampled differences on either side of zero, ties counting for both, with one
    added to the count and to the resamples; it is at most 1. Models that answered different data sets of a type of knowledge are
    not compared on its mean. Nothing is corrected for the number of comparisons.

    Raises:
        ConfigError: a model has no responses.
    """
    for model in (base, other):
        if model not in bootstrap.models:
            raise ConfigError(
                f"{model} is to be compared and has no responses.", fix=f"Models are {', '.join(bootstrap.models)}."
            )
    rows = []
    first, second = bootstrap.scored(base), bootstrap.scored(other)
    for group, ours in second.items():
        theirs = first.get(group)
        if theirs is None or theirs.datasets != ours.datasets:
            continue
        for language in ours.languages:
            if language not in theirs.languages:
                continue
            for metric in METRICS:
                difference = ours.of(language, metric) - theirs.of(language, metric)
                low, high = bootstrap.interval(difference[:, None])
                value = number(difference[0])
                defined = difference[1:][~np.isnan(difference[1:])]
                tail = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
                rows.append(
                    {
                        "comparison": name or f"{other} - {base}",
                        "base": base,
                        "other": other,
                        "level": group.level,
                        "name": group.name,
                        "language": language,
                        "metric": metric,
                        "difference": value,
                        "low": number(low[0]),
                        "high": number(high[0]),
                        "p_value": None if np.isnan(low[0]) else min(1.0, 2 * (tail + 1) / (len(defined) + 1)),
                    }
                )
    return rows


def _mean(members: list[Scored]) -> Scored:
    """The unweighted mean over data sets, for the languages all of them have; undefined where one is undefined."""
    languages = tuple(
        language for language in members[0].languages if all(language in one.languages for one in members)
    )
    draws = {
        metric: np.mean(
            [one.draws[metric][:, [one.languages.index(language) for language in languages]] for one in members], axis=0
        )
        for metric in METRICS
    }
    sizes = tuple(sum(one.num_items[one.languages.index(language)] for one in members) for language in languages)
    return Scored(languages, sizes, tuple(name for one in members for name in one.datasets), draws)
