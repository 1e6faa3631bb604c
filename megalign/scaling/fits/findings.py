"""Sentences that follow from the numbers by stated rules; the first of them is what the data support.

A direction is named only where the interval excludes zero (for multipliers: one); a prediction only where both curves are
supported by the rules of series.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from megalign.scaling.fits.analysis import Analysis
from megalign.scaling.fits.bootstrap import Estimate
from megalign.scaling.fits.gain import Change, Gain, Multiplier
from megalign.scaling.fits.series import SeriesFit


@dataclass(frozen=True)
class Findings:
    """The sentence that the data support, what stands behind it, and what limits it."""

    supported: str
    details: tuple[str, ...]
    cautions: tuple[str, ...]


def size_name(parameters: float) -> str:
    """A size with three digits, e.g. 1.24 M."""
    for start, sign in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= start:
            return f"{parameters / start:.3g} {sign}"
    return f"{parameters:.3g}"


def interval(estimate: Estimate, digits: str = ".3f") -> str:
    """The number with its interval in brackets."""
    text = f"{estimate.value:{digits}}"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{estimate.low:{digits}}, {estimate.high:{digits}}]"


def direction(estimate: Estimate) -> int:
    """1 or -1 where the interval excludes zero, else 0."""
    if estimate.low is None or estimate.high is None:
        return 0
    return 1 if estimate.low > 0 else -1 if estimate.high < 0 else 0


def findings(found: Analysis) -> Findings:
    """The sentences of an analysis."""
    details: list[str] = []
    for language in (*found.targets, found.question.source_language):
        if language in found.gains:
            details += _gain(found, language, found.gains[language])
        if language in found.multipliers:
            details += _multipliers(found, language, found.multipliers[language])
    for (method, language), fit in found.knowledge.items():
        details.append(_knowledge(method, language, fit))
    details += [
        f"At {size_name(one.parameters)} parameters the two curves predict a gain on {one.language} of "
        f"{interval(one.gain)} nats a token, if their forms hold so far out."
        for one in found.predictions
    ]
    return Findings(_supported(found), tuple(details), tuple(_cautions(found)))


def _supported(found: Analysis) -> str:
    """One sentence: for each target language the gain at the largest size and its trend, then what lies beyond."""
    languages = [language for language in found.targets if language in found.gains]
    if not languages:
        return "No size was run with both methods on a target language: there is no gain to speak of."
    beyond: dict[str, list[str]] = {}
    for language in languages:
        beyond.setdefault(_beyond(found, language), []).append(language)
    parts = [_of_language(found, language) for language in languages]
    if len(beyond) == 1:
        parts += list(beyond)
    else:
        parts += [f"on {', '.join(some)} {text}" for text, some in beyond.items()]
    text = "; ".join(parts) + "."
    return text[0].upper() + text[1:]


def _of_language(found: Analysis, language: str) -> str:
    baseline, method = found.methods
    gain = found.gains[language]
    largest = gain.sizes[-1]
    estimate, where = largest.estimate, f"{size_name(largest.parameters)} parameters"
    better = "better" if estimate.value > 0 else "worse"
    amount = Estimate(abs(estimate.value))
    if estimate.low is not None and estimate.high is not None:
        ends = sorted((abs(estimate.low), abs(estimate.high)))
        amount = Estimate(abs(estimate.value), *ends)
    if estimate.low is not None and not direction(estimate):
        first = (
            f"on {language} {method} and {baseline} cannot be told apart at {where} ({interval(estimate)} nats a token)"
        )
    else:
        first = (
            f"on {language} {method} is {better} than {baseline} at {where} by {interval(amount)} nats a token (perplexity "
            f"times {math.exp(-estimate.value):.2f}{'' if estimate.low is not None else ', one run each'})"
        )
    return f"{first}, and {_trend(gain)}"


def _trend(gain: Gain) -> str:
    change, last = gain.overall, gain.last
    if change is None:
        return "one size shows no trend"
    words = f"from {size_name(change.smaller)} to {size_name(change.larger)} the gain {_moved(change)}"
    if last is not None and direction(last.estimate) != direction(change.estimate):
        words += f", but over the last step, from {size_name(last.smaller)}, it {_moved(last)}"
    return words


def _moved(change: Change) -> str:
    sign = direction(change.estimate)
    amount = interval(change.estimate)
    if change.estimate.low is None:
        return f"changes by {amount}, one run each"
    return f"{'grows' if sign > 0 else 'shrinks'} by {amount}" if sign else f"does not change measurably ({amount})"


def _beyond(found: Analysis, language: str) -> str:
    largest = size_name(found.sizes[-1][1])
    predicted = [one for one in found.predictions if one.language == language]
    if predicted:
        one = predicted[0]
        return (
            f"both curves are supported, and at {size_name(one.parameters)} they put the gain at {interval(one.gain)}"
        )
    fits = [found.losses.get((method, language)) for method in found.methods]
    if any(fit is None for fit in fits):
        return f"with fewer than three sizes the data say nothing beyond {largest}"
    unsupported = [fit.series.name[0] for fit in fits if fit is not None and not fit.supported]
    curves = f"the curve{'s' if len(unsupported) > 1 else ''} of {' and '.join(unsupported)}"
    verb = "are" if len(unsupported) > 1 else "is"
    return f"beyond {largest} the data support no statement, because {curves} {verb} not supported (see below)"


def _gain(found: Analysis, language: str, gain: Gain) -> list[str]:
    best = max(gain.sizes, key=lambda size: size.estimate.value)
    parts = [f"{size_name(size.parameters)} {interval(size.estimate)}" for size in gain.sizes]
    return [
        f"Gain of {found.methods[1]} over {found.methods[0]} on {language}, nats a token, by size: {'; '.join(parts)}. "
        f"Largest at {size_name(best.parameters)}."
    ]


def _multipliers(found: Analysis, language: str, some: tuple[Multiplier, ...]) -> list[str]:
    baseline, method = found.methods
    parts = []
    for one in some:
        size = size_name(one.parameters)
        if one.below_one:
            parts.append(f"{size} at most 1")
        elif one.estimate is None:
            parts.append(f"{size} at least {one.at_least:.2g}")
        else:
            parts.append(f"{size} {interval(one.estimate, '.2f')}")
    return [
        f"For {method}'s loss on {language} {baseline} would need so many times its text of {language} "
        f"(effective-data multiplier): {'; '.join(parts)}."
    ]


def _knowledge(method: str, language: str, fit: SeriesFit) -> str:
    series = fit.series
    ends = ", ".join(
        f"{100 * series.mean(size):.0f} % at {size_name(size)}" for size in (series.sizes[0], series.sizes[-1])
    )
    slope = fit.estimates["slope"]
    if fit.supported:
        middle = fit.estimates["midpoint"]
        between = f"{size_name(middle.low)} to {size_name(middle.high)}" if middle.low and middle.high else "n/a"
        return (
            f"CLKA of {method} on {language} ({ends}) follows a logistic with slope {interval(slope, '.2f')} per factor e of "
            f"size, half way from chance to 100 % at {size_name(middle.value)} [{between}]."
        )
    return f"CLKA of {method} on {language} ({ends}): a logistic is not supported; {'; '.join(fit.reasons)}."


def _cautions(found: Analysis) -> list[str]:
    cautions = []
    for (method, language), fit in found.losses.items():
        if fit.reasons:
            cautions.append(f"The power law of {method} on {language} is not supported: {'; '.join(fit.reasons)}.")
        cautions += [f"{method} on {language}: {text}." for text in fit.cautions]
    if found.num_seeds > 1:
        cautions.append(
            f"Intervals are over {found.num_seeds} seeds: they say how runs of the same settings differ, not what other "
            "settings would give."
        )
    if found.predictions:
        sizes = [size for _, size in found.sizes]
        tested, asked = sizes[-1] / sizes[-2], max(one.parameters for one in found.predictions) / sizes[-1]
        if asked > tested:
            cautions.append(
                f"Holding out the largest size tests the curves {tested:.2g} times beyond the sizes they are fitted to; the "
                f"predictions lie {asked:.2g} times beyond: so far out the forms are assumed, not tested."
            )
    source = found.question.source_language
    gain = found.gains.get(source)
    if gain is not None and direction(gain.sizes[-1].estimate) < 0:
        cautions.append(
            f"At the largest size {found.methods[1]} is worse than {found.methods[0]} on {source} by "
            f"{interval(gain.sizes[-1].estimate)} nats: part of what the targets gain, {source} pays."
        )
    return cautions
