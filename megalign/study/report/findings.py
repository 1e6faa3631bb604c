"""What the numbers of a study show, in sentences computed from them, with what they do not show beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megalign.study.report import compare
from megalign.study.report.compare import Comparison
from megalign.study.report.metrics import (
    CLKA_CHANCE_PERCENT,
    display_scale,
    interval_text,
    number,
    shown,
    shown_interval,
)
from megalign.study.report.results import Aggregate, Report

# Languages are compared at equal reference-language quality; beyond this the reader is warned.
EQUAL_REFERENCE_RATIO = 1.10
# Passes over the same text are called different beyond this factor.
EQUAL_EPOCHS_RATIO = 1.05


@dataclass(frozen=True, slots=True)
class Finding:
    """A sentence; `caution` marks what limits the others."""

    text: str
    caution: bool = False


def findings(report: Report) -> list[Finding]:
    """The sentences, results first."""
    if not report.methods_with_results:
        return [Finding("No run has finished: there is nothing to show yet.", caution=True)]
    found: list[Finding] = []
    for language in report.study.targets:
        found += _perplexity(report, language)
    for language in report.study.targets:
        found += _knowledge(report, language)
    cautions = [*_reference(report), *_epochs(report), *_seeds(report)]
    return [item for item in found if not item.caution] + [item for item in found if item.caution] + cautions


def _perplexity(report: Report, language: str) -> list[Finding]:
    scored = [
        (item.mean, method.label)
        for method in report.methods_with_results
        if (item := report.get(method.name, "perplexity", language)) is not None and item.mean is not None
    ]
    if not scored:
        return []
    ranked = [f"{label} ({number(mean, 1)})" for mean, label in sorted(scored)]
    found = [Finding(f"Perplexity on {language}, lowest first: {', '.join(ranked)}.")]
    baseline = report.baseline
    if baseline is None:
        return found
    compared = _compared(report, [m.name for m in report.methods_with_results if m.name != baseline.name], language)
    parts = []
    for direction, words in ((-1, "lower for"), (1, "higher for")):
        some = [_ratio_words(report, item) for item in compared if item.direction == direction]
        if some:
            parts.append(f"{words} {', '.join(some)}")
    unclear = [_ratio_words(report, item) for item in compared if item.direction == 0 and item.num_seeds > 1]
    if unclear:
        parts.append(f"not told apart by these seeds: {', '.join(unclear)}")
    single = [_ratio_words(report, item) for item in compared if item.num_seeds == 1]
    if single:
        parts.append(f"on one seed only, so without an interval over seeds: {', '.join(single)}")
    if parts:
        found.append(
            Finding(f"Perplexity on {language} as a ratio to {baseline.label}'s, seed by seed: {'; '.join(parts)}.")
        )
    return found


def _compared(report: Report, methods: Sequence[str], language: str) -> list[Comparison]:
    items = (compare.ratio(report, method, "perplexity", language) for method in methods)
    return [item for item in items if item is not None]


def _ratio_words(report: Report, item: Comparison) -> str:
    label = next(method.label for method in report.study.methods if method.name == item.method)
    interval = "" if item.low is None or item.high is None else f" {interval_text(item.low, item.high, 2)}"
    return f"{label} {number(item.value, 2 if item.value < 100 else 0)}{interval}"


def _knowledge(report: Report, language: str) -> list[Finding]:
    groups: dict[str, list[str]] = {"above": [], "unclear": [], "below": [], "none": []}
    for method in report.methods_with_results:
        item = report.get(method.name, "clka", language)
        if item is not None and item.mean is not None:
            groups[_against_chance(item)].append(f"{method.label} {_percent_words(item)}")
    words = {
        "above": "above chance",
        "unclear": "not told apart from chance",
        "below": "below chance",
        "none": "without an interval",
    }
    parts = [f"{words[group]}: {', '.join(some)}" for group, some in groups.items() if some]
    found = (
        [Finding(f"CLKA on {language}, in % (chance is {CLKA_CHANCE_PERCENT:.0f}): {'; '.join(parts)}.")]
        if parts
        else []
    )
    if not parts:
        return found
    controls = [
        (method.label, item)
        for method in report.methods_with_results
        if (item := report.get(method.name, "clka_control", language)) is not None and item.mean is not None
    ]
    if not controls:
        return [*found, Finding(f"No control facts were scored on {language}: CLKA may partly show frequencies.", True)]
    off = [f"{label} {_percent_words(item)}" for label, item in controls if _against_chance(item) in ("above", "below")]
    if off:
        found.append(
            Finding(
                f"Control facts on {language} are not at chance for {', '.join(off)}: CLKA there is not knowledge alone.",
                True,
            )
        )
    return found


def _against_chance(item: Aggregate) -> str:
    if item.low is None or item.high is None:
        return "none"
    scale = display_scale(item.unit)
    if item.low * scale > CLKA_CHANCE_PERCENT:
        return "above"
    return "below" if item.high * scale < CLKA_CHANCE_PERCENT else "unclear"


def _percent_words(item: Aggregate) -> str:
    text = shown(item.metric, item.mean, item.unit)
    if item.low is None or item.high is None:
        return text
    return f"{text} {shown_interval(item.metric, item.low, item.high, item.unit)}"


def _reference(report: Report) -> list[Finding]:
    """Target languages are fairly compared only where the reference language is learned equally well."""
    baseline, language = report.baseline, report.study.reference_language
    if baseline is None:
        return []
    others = [method.name for method in report.methods_with_results if method.name != baseline.name]
    compared = _compared(report, others, language)
    away = [item for item in compared if not 1 / EQUAL_REFERENCE_RATIO <= item.value <= EQUAL_REFERENCE_RATIO]
    if away:
        said = ", ".join(_ratio_words(report, item) for item in away)
        return [
            Finding(
                f"The methods are not equal on {language}: as a ratio to {baseline.label}'s, the perplexity there is {said}. Read the other "
                "languages with this in mind.",
                True,
            )
        ]
    return [Finding(f"{language} perplexities are all within 10 % of {baseline.label}'s.")] if compared else []


def _epochs(report: Report) -> list[Finding]:
    """A method that reads the same text more often is another experiment, so it is said."""
    found = []
    for language in report.study.targets:
        passes: dict[str, float] = {}
        for method in report.methods_with_results:
            epochs = [
                r.record.epochs[language]
                for r in report.finished(method.name)
                if r.record and language in r.record.epochs
            ]
            if epochs:
                passes[method.label] = sum(epochs) / len(epochs)
        positive = [value for value in passes.values() if value > 0]
        if positive and max(positive) > EQUAL_EPOCHS_RATIO * min(positive):
            said = ", ".join(f"{label} {number(value, 1)}" for label, value in passes.items())
            found.append(Finding(f"Passes over the {language} text differ between methods: {said}.", True))
    return found


def _seeds(report: Report) -> list[Finding]:
    planned, done = len(report.runs), sum(run.finished for run in report.runs)
    found = []
    if done < planned:
        found.append(Finding(f"{done} of {planned} runs have finished; the others count in no table of scores.", True))
    single = [method.label for method in report.methods_with_results if len(report.finished(method.name)) == 1]
    if single:
        found.append(Finding(f"One seed only, which tells nothing about other seeds: {', '.join(single)}.", True))
    return found
