"""What is known of each metric: its title, its meaning, how it is written, and where its values must lie."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Shares are shown as percentages, as the paper does; the CSV files keep the unit of the scores.
SHARE_UNITS = frozenset({"share", "fraction", "probability", "accuracy"})
PERCENT_UNITS = frozenset({"%", "percent"})
# A fact is told from three distractors.
CLKA_CHANCE_PERCENT = 25.0
NLI_CHANCE_PERCENT = 100 / 3
# Behind it stands the language that stated the facts.
CLKA_FROM = "clka_from_"


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """How a metric is named, explained, written and bounded. `bounds` are in its own unit unless that is a share."""

    title: str
    meaning: str = ""
    decimals: int | None = None
    lower: float | None = None
    upper: float | None = None


METRICS: dict[str, MetricInfo] = {
    "perplexity": MetricInfo(
        "Perplexity", "exp of the mean negative log-likelihood per token of held-out text; lower is better.", 1, 1.0
    ),
    "bits_per_byte": MetricInfo(
        "Bits per byte",
        "The same likelihood in bits per UTF-8 byte of text: comparable over tokenizers; lower is better.",
        3,
        0.0,
    ),
    "nll_per_token": MetricInfo(
        "NLL per token", "Mean negative log-likelihood per token, in nats; lower is better.", 3, 0.0
    ),
    "clka": MetricInfo(
        "CLKA",
        "Cross-lingual knowledge application: share of facts, stated in the reference language in training, whose true statement "
        "is the most likely of four when asked in the named language; chance is 25 %.",
        1,
    ),
    "clka_control": MetricInfo(
        "Control facts",
        "The same question for facts that were never stated; it must stay near 25 %, or CLKA measures something else.",
        1,
    ),
    "clka_per_token": MetricInfo(
        "CLKA per token", "The same with the likelihoods divided by the statements' tokens before they are compared.", 1
    ),
    "clka_margin": MetricInfo(
        "CLKA margin", "Mean log-likelihood of the true statement minus that of the best distractor.", 3
    ),
    "clka_margin_per_token": MetricInfo(
        "CLKA margin per token", "The same with the likelihoods divided by the statements' tokens.", 3
    ),
    "clka_before": MetricInfo(
        "Facts to come", "CLKA of the next period's facts, which were not stated yet; it must stay near 25 %.", 1
    ),
    "nli_accuracy": MetricInfo(
        "ZS-CLT",
        "Zero-shot cross-lingual transfer: accuracy of natural-language inference in the named language after fine-tuning all "
        "weights and a classification head in the reference language; chance is 33.3 %.",
        1,
    ),
    "perplexity_seen": MetricInfo(
        "Perplexity, seen words", "Perplexity per token of words that the alignment table in use has.", 1, 1.0
    ),
    "perplexity_unseen": MetricInfo("Perplexity, unseen words", "The same for words that it does not have.", 1, 1.0),
    "aligned_cosine": MetricInfo(
        "Aligned cosine", "Mean cosine of a word and its translation at one level of the model.", 2, -1.0, 1.0
    ),
    "random_cosine": MetricInfo(
        "Random cosine", "The same for random pairs of words: what is above it is alignment.", 2, -1.0, 1.0
    ),
    "retrieval_at_1": MetricInfo(
        "Retrieval at 1", "Share of words whose nearest neighbour in the other language is their translation.", 1
    ),
    "sentence_retrieval_into": MetricInfo(
        "Sentence retrieval into",
        "Share of reference-language sentences whose nearest neighbour by mean-pooled states, among the named language's sentences, "
        "is their translation.",
        1,
    ),
    "sentence_retrieval_from": MetricInfo(
        "Sentence retrieval from", "The same asked with the named language's sentences.", 1
    ),
    "sentence_retrieval_into_centred": MetricInfo(
        "Sentence retrieval into, centred", "The same after each language's mean is subtracted.", 1
    ),
    "sentence_retrieval_from_centred": MetricInfo(
        "Sentence retrieval from, centred", "The same asked with the named language's sentences.", 1
    ),
    "sentences_cut": MetricInfo("Sentences cut", "Share of those sentences that are longer than a window.", 1),
    "target_mass": MetricInfo(
        "Target mass", "Probability given to target-language tokens at positions of reference-language text.", 2
    ),
}


def info(metric: str) -> MetricInfo:
    """What is known of the metric; a metric not listed is shown under its own name."""
    if metric.startswith(CLKA_FROM):
        stated_in = metric.removeprefix(CLKA_FROM)
        return MetricInfo(f"CLKA, stated in {stated_in}", f"CLKA of facts that {stated_in} text stated.", 1)
    return METRICS.get(metric) or MetricInfo(metric.replace("_", " "))


def display_unit(unit: str) -> str:
    """The unit as a reader sees it."""
    return "%" if unit in SHARE_UNITS | PERCENT_UNITS else unit


def display_scale(unit: str) -> float:
    """What a value of this unit is multiplied by before it is shown."""
    return 100.0 if unit in SHARE_UNITS else 1.0


def bounds(metric: str, unit: str) -> tuple[float, float]:
    """Where values of the metric must lie, in the unit of the scores."""
    known = info(metric)
    if known.lower is None and known.upper is None:
        if unit in SHARE_UNITS:
            return 0.0, 1.0
        if unit in PERCENT_UNITS:
            return 0.0, 100.0
    return (-math.inf if known.lower is None else known.lower), (math.inf if known.upper is None else known.upper)


def number(value: float | None, decimals: int | None) -> str:
    """A number for a reader: fixed decimals with thousands separated, or four significant digits; "n/a" for None."""
    if value is None or math.isnan(value):
        return "n/a"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    text = f"{value:.4g}" if decimals is None else f"{value:,.{decimals}f}"
    # -0.00 reads as a sign where there is none.
    return text[1:] if text.startswith("-") and not any(digit in "123456789" for digit in text) else text


def interval_text(low: float, high: float, decimals: int | None) -> str:
    """Both ends in brackets; large ends without decimals, which would only be long."""
    return f"[{', '.join(number(end, 0 if decimals and abs(end) >= 1000 else decimals) for end in (low, high))}]"


def shown_interval(metric: str, low: float, high: float, unit: str) -> str:
    """An interval of a metric for a reader, in the display unit."""
    scale = display_scale(unit)
    return interval_text(low * scale, high * scale, info(metric).decimals)


def shown(metric: str, value: float | None, unit: str) -> str:
    """A value of a metric for a reader, in the display unit."""
    return number(None if value is None else value * display_scale(unit), info(metric).decimals)
