"""Everything that the measurements of a ladder say, as numbers: what the report and fits.json show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from megalign.errors import ConfigError, DataError
from megalign.scaling.fits.bootstrap import Estimate, FitSettings, Series
from megalign.scaling.fits.gain import Gain, Multiplier, gain_of, multipliers
from megalign.scaling.fits.measurements import Measurement
from megalign.scaling.fits.series import SeriesFit, fit_logistic, fit_power_law

LOSS, KNOWLEDGE = "nll_per_token", "clka"
CHANCE = 0.25  # a true statement among four
MAX_PREDICTED = 1e18  # parameters


@dataclass(frozen=True)
class Question:
    """What is asked of the measurements.

    Attributes:
        baseline, method: names in the table.
        source_language: the language with most text; the others are targets.
        target_ratio: source tokens for one of a target language; None: the largest at which both methods were run.
        total_parameters: sizes count embeddings.
        predict: sizes (parameters) at which curves are read; empty: ten times the largest.
        fit: of the curves.

    Raises:
        ConfigError: a size to predict that is none.
    """

    baseline: str = "joint"
    method: str = "prealign"
    source_language: str = "en"
    target_ratio: float | None = None
    total_parameters: bool = False
    predict: tuple[float, ...] = ()
    fit: FitSettings = field(default_factory=FitSettings)

    def __post_init__(self) -> None:
        for size in self.predict:
            if not 0 < size <= MAX_PREDICTED:
                raise ConfigError(
                    f"A prediction is asked for at {size:g} parameters.",
                    fix=f"Set more than 0, up to {MAX_PREDICTED:g}.",
                )


@dataclass(frozen=True)
class Prediction:
    """The gain at a size that was not run, from both curves; nats a token."""

    language: str
    parameters: float
    baseline: Estimate
    method: Estimate
    gain: Estimate


@dataclass(frozen=True)
class Analysis:
    """What the measurements say.

    Attributes:
        rows: the measurements at the chosen target ratio.
        all_rows: those of the other ratios too.
        languages: targets first, the source last.
        losses: (method, language) -> power law; where there are fewer than three sizes: missing.
        knowledge: (method, language) -> logistic, target languages only.
        gains: by language.
        multipliers: by target language.
        predictions: where both curves of a language are supported.
    """

    question: Question
    rows: tuple[Measurement, ...]
    all_rows: tuple[Measurement, ...]
    target_ratio: float | None
    languages: tuple[str, ...]
    losses: dict[tuple[str, str], SeriesFit]
    knowledge: dict[tuple[str, str], SeriesFit]
    gains: dict[str, Gain]
    multipliers: dict[str, tuple[Multiplier, ...]]
    predictions: tuple[Prediction, ...]

    @property
    def targets(self) -> tuple[str, ...]:
        """All languages but the source."""
        return tuple(language for language in self.languages if language != self.question.source_language)

    @property
    def methods(self) -> tuple[str, str]:
        """Baseline and method."""
        return self.question.baseline, self.question.method

    @property
    def sizes(self) -> tuple[tuple[str, float], ...]:
        """(name, parameters) of the sizes, smallest first."""
        found = {row.parameters: row.size for row in self.rows}
        return tuple((found[size], size) for size in sorted(found))

    @property
    def num_seeds(self) -> int:
        """Seeds among the runs."""
        return len({row.seed for row in self.rows})

    def select(self, method: str, language: str, metric: str, *, all_ratios: bool = False) -> list[Measurement]:
        """Rows of a method, language and metric."""
        rows = self.all_rows if all_ratios else self.rows
        return [row for row in rows if (row.method, row.language, row.metric) == (method, language, metric)]


def analyse(measurements: Sequence[Measurement], question: Question) -> Analysis:
    """Fit, compare, predict.

    Raises:
        DataError: a method is missing, a run stands twice, or sizes cannot be counted as asked.
    """
    rows = [_sized(row, question.total_parameters) for row in measurements]
    rows = [row for row in rows if row.method in (question.baseline, question.method)]
    for name in (question.baseline, question.method):
        if not any(row.method == name for row in rows):
            known = sorted({row.method for row in measurements})
            raise DataError(
                f"No measurement is of the method {name!r}; there are: {', '.join(known)}.",
                fix="Name them with --baseline and --method.",
            )
    _check_once(rows)
    ratio = question.target_ratio if question.target_ratio is not None else _common_ratio(rows, question)
    chosen = [row for row in rows if row.target_ratio == ratio]
    if not chosen:
        raise DataError(f"No measurement has the target ratio {ratio:g}.", fix="Leave --target-ratio out to see which.")
    languages = sorted({row.language for row in chosen}, key=lambda name: (name == question.source_language, name))
    losses: dict[tuple[str, str], SeriesFit] = {}
    knowledge: dict[tuple[str, str], SeriesFit] = {}
    for method in (question.baseline, question.method):
        for language in languages:
            loss = _fit(chosen, (method, language, LOSS), lambda series: fit_power_law(series, question.fit))
            if loss is not None:
                losses[method, language] = loss
            if language == question.source_language:
                continue
            known_facts = _fit(
                chosen, (method, language, KNOWLEDGE), lambda series: fit_logistic(series, CHANCE, question.fit)
            )
            if known_facts is not None:
                knowledge[method, language] = known_facts
    found = Analysis(question, tuple(chosen), tuple(rows), ratio, tuple(languages), losses, knowledge, {}, {}, ())
    confidence = question.fit.confidence
    for language in languages:
        pair = [found.select(method, language, LOSS) for method in found.methods]
        gain = gain_of(language, pair[0], pair[1], confidence)
        if gain is not None:
            found.gains[language] = gain
        if language != question.source_language:
            curves = multipliers(found.select(question.baseline, language, LOSS, all_ratios=True), pair[1], confidence)
            if curves:
                found.multipliers[language] = curves
    return Analysis(**{**vars(found), "predictions": tuple(_predictions(found))})


def _sized(row: Measurement, total: bool) -> Measurement:
    if not total:
        return row
    if row.total_parameters is None:
        raise DataError(
            f"The measurement of {row.method} at {row.size} has no total_parameters.",
            fix="Leave out --total-parameters.",
        )
    return Measurement(**{**vars(row), "parameters": row.total_parameters})


def _check_once(rows: Sequence[Measurement]) -> None:
    seen: set[tuple[object, ...]] = set()
    for row in rows:
        key = (row.method, row.parameters, row.language, row.metric, row.seed, row.target_ratio)
        if key in seen:
            raise DataError(
                f"{row.metric} of {row.method} at {row.size}, {row.language}, seed {row.seed} stands twice.",
                "A run counted twice narrows every interval.",
                "Give repeated runs seeds of their own.",
            )
        seen.add(key)


def _common_ratio(rows: Sequence[Measurement], question: Question) -> float | None:
    """The largest target ratio (least target text) at which both methods were run; None where it is not varied."""
    ratios = [{row.target_ratio for row in rows if row.method == name} for name in (question.baseline, question.method)]
    common = [ratio for ratio in ratios[0] & ratios[1] if ratio is not None]
    if not common and None not in ratios[0] & ratios[1]:
        raise DataError(
            f"{question.baseline} and {question.method} were never run at the same target ratio.",
            "A gain compares them at one.",
        )
    return max(common) if common else None


def _fit(
    rows: Sequence[Measurement], name: tuple[str, str, str], fit: Callable[[Series], SeriesFit | None]
) -> SeriesFit | None:
    mine = [row for row in rows if (row.method, row.language, row.metric) == name]
    if not mine:
        return None
    columns = [
        np.array([getattr(row, key) for row in mine], dtype=np.float64) for key in ("parameters", "seed", "value")
    ]
    return fit(Series(name, *columns))


def _predictions(found: Analysis) -> list[Prediction]:
    """Both curves and their difference beyond the sizes, where both are supported."""
    question, result = found.question, []
    for language in found.languages:
        pair = [found.losses.get((method, language)) for method in found.methods]
        if pair[0] is None or pair[1] is None or not (pair[0].supported and pair[1].supported):
            continue
        for size in question.predict or (10 * found.sizes[-1][1],):
            ends = [fit.curve.at(size) for fit in pair if fit is not None]
            draws = [fit.curve.draws(size) for fit in pair if fit is not None]
            assert draws[0] is not None
            assert draws[1] is not None
            gain = question.fit.estimate(ends[0].value - ends[1].value, draws[0] - draws[1])
            result.append(Prediction(language, size, ends[0], ends[1], gain))
    return result


def to_json(found: Analysis) -> dict[str, Any]:
    """The numbers for fits.json; losses in nats a token."""

    def number(estimate: Estimate | None) -> dict[str, float | None] | None:
        return None if estimate is None else {"value": estimate.value, "low": estimate.low, "high": estimate.high}

    def curve(fit: SeriesFit) -> dict[str, Any]:
        method, language, metric = fit.series.name
        held = fit.held_out
        return {
            "method": method,
            "language": language,
            "metric": metric,
            "form": fit.kind,
            "supported": fit.supported,
            "reasons": list(fit.reasons),
            "cautions": list(fit.cautions),
            "estimates": {name: number(value) for name, value in fit.estimates.items()},
            "lack_of_fit_p": fit.lack_of_fit,
            "held_out": held
            and {"parameters": held.parameters, "measured": held.measured, "predicted": number(held.predicted)},
        }

    return {
        "confidence": found.question.fit.confidence,
        "num_resamples": found.question.fit.num_resamples,
        "target_ratio": found.target_ratio,
        "parameters": "total" if found.question.total_parameters else "without embeddings",
        "curves": [curve(fit) for fit in (*found.losses.values(), *found.knowledge.values())],
        "gains": [
            {"language": language, "parameters": size.parameters, "nats": number(size.estimate)}
            for language, gain in found.gains.items()
            for size in gain.sizes
        ],
        "changes_of_the_gain": [
            {"language": language, "from": one.smaller, "to": one.larger, "nats": number(one.estimate)}
            for language, gain in found.gains.items()
            for one in (gain.overall, gain.last)
            if one is not None
        ],
        "effective_data_multipliers": [
            {
                "language": language,
                "parameters": one.parameters,
                "multiplier": number(one.estimate),
                "at_least": one.at_least,
                "not_above_one": one.below_one,
            }
            for language, some in found.multipliers.items()
            for one in some
        ],
        "predictions": [
            {
                "language": one.language,
                "parameters": one.parameters,
                found.question.baseline: number(one.baseline),
                found.question.method: number(one.method),
                "gain": number(one.gain),
            }
            for one in found.predictions
        ],
    }
