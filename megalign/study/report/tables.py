"""The tables of scores as plain values, drawn alike on the page and on the console."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from megalign.study.report import compare
from megalign.study.report.metrics import CLKA_FROM, display_unit, info, interval_text, number, shown, shown_interval
from megalign.study.report.results import Aggregate, Report, sort_key

NOTHING = "–"
ALIGNMENT_COLUMNS = {"aligned_cosine": "aligned", "random_cosine": "random", "retrieval_at_1": "top 1, %"}
# By metric and by whether it is tied to a language; what is not here goes into the table of further metrics.
SENTENCE_COLUMNS = {
    "sentence_retrieval_into": "into",
    "sentence_retrieval_from": "from",
    "sentence_retrieval_into_centred": "into, centred",
    "sentence_retrieval_from_centred": "from, centred",
}
SEEN_METRICS = ("perplexity_seen", "perplexity_unseen")
LIKELIHOOD_METRICS = ("clka", "clka_per_token", "clka_margin", "clka_margin_per_token")
TABLED = frozenset(
    {"perplexity", "bits_per_byte", "clka_control", "target_mass", "nli_accuracy", "clka_before"}
    | {*ALIGNMENT_COLUMNS, *SENTENCE_COLUMNS, *SEEN_METRICS, *LIKELIHOOD_METRICS}
)

SAME_BRACKETS = "Means and brackets as in the first table."
# What a run reads besides the languages' text: its fields in run.json, which are columns.
BESIDES = ("injection", "words")


@dataclass(frozen=True, slots=True)
class Column:
    """`group` stands above neighbouring columns that share it; `text` columns are not aligned as numbers."""

    title: str
    group: str = ""
    text: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """A value as text, and its interval as text where it is shown."""

    text: str
    interval: str = ""


@dataclass(frozen=True)
class Table:
    """The first column names the row."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    footnote: str = ""


# A column, and what stands in it for a method.
MethodColumn = tuple[Column, Callable[[str], Cell]]


def main_table(report: Report) -> Table:
    """The shape of the paper's Table 1: language modelling and knowledge, with what each method has read."""
    languages, targets = report.study.languages, report.study.targets
    ordered = (report.study.reference_language, *targets)
    planned = len(report.study.seeds)
    columns: list[MethodColumn] = [(Column("seeds"), lambda m: Cell(f"{len(report.finished(m))}/{planned}"))]
    columns += _token_columns(report, (*languages, *BESIDES)) + _compute_column(report)
    columns += _metric_columns(report, "perplexity", ordered)
    columns += _metric_columns(report, "bits_per_byte", ordered, False)
    columns += _metric_columns(report, "clka", ordered) + _metric_columns(report, "clka_control", targets)
    columns += _metric_columns(report, "nli_accuracy", ordered)
    footnote = f"Means over the finished seeds. {interval_words(report)} {_besides_words(report)}".strip()
    if any(report.has("clka", language) for language in ordered):
        footnote += " Chance is 25 % for CLKA and for control facts."
    if any(report.has("nli_accuracy", language) for language in ordered):
        footnote += f" Chance is 33.3 % for ZS-CLT, which was fine-tuned in {report.study.reference_language}."
    return _by_method(report, "Language modelling and knowledge", columns, footnote)


def comparison_table(report: Report) -> Table | None:
    """Every method against the baseline, paired by seed; None where there is nothing to compare."""
    baseline = report.baseline
    if baseline is None or len(report.methods_with_results) < 2:
        return None
    languages = (report.study.reference_language, *report.study.targets)
    clka = [language for language in languages if report.has("clka", language)]
    columns = [Column("Method", text=True), Column("common seeds")]
    columns += [Column(language, "Perplexity, ratio") for language in languages]
    columns += [Column(language, "CLKA, difference in points") for language in clka]
    rows = []
    for method in report.methods_with_results:
        if method.name == baseline.name:
            continue
        found = [compare.ratio(report, method.name, "perplexity", language) for language in languages]
        found += [compare.difference(report, method.name, "clka", language) for language in clka]
        seeds = max((item.num_seeds for item in found if item is not None), default=0)
        rows.append((Cell(method.label), Cell(str(seeds)), *map(_comparison_cell, found)))
    return Table(
        f"Each method against {baseline.label}",
        tuple(columns),
        tuple(rows),
        "Paired by seed: geometric mean of the ratios, mean of the differences. In brackets the 95 % interval over seeds, where at "
        "least two seeds are common; not corrected for the number of comparisons.",
    )


def ablation_table(report: Report) -> Table | None:
    """The shape of the paper's Table 3: which part of the method is there, and what it gives; None without traits."""
    given = {method.name: method.traits for method in report.study.methods}
    traits = list(dict.fromkeys(trait for own in given.values() for trait in own or ()))
    if not traits:
        return None
    traits.sort(key=lambda trait: {"injection": 0, "codeswitch": 1}.get(trait, 2))

    def trait_column(trait: str) -> MethodColumn:
        def cell(method: str) -> Cell:
            own = given[method]
            return Cell(NOTHING if own is None else "✓" if trait in own else "no")

        return Column(trait, text=True), cell

    columns = [trait_column(trait) for trait in traits]
    columns += _metric_columns(report, "perplexity", report.study.targets)
    columns += _metric_columns(report, "clka", report.study.targets)
    return _by_method(report, "What each part gives", columns, SAME_BRACKETS)


def alignment_table(report: Report, language: str) -> Table | None:
    """Cosines and retrieval at every level of every method at the end of training."""
    return _by_level(
        report,
        language,
        ALIGNMENT_COLUMNS,
        f"{report.study.reference_language} and {language} words by level",
        "Mean cosine of aligned words beside that of random pairs, after the last step; top 1: share of words whose nearest neighbour "
        "in the other language is their translation. Means over the finished seeds.",
    )


def sentence_table(report: Report, language: str) -> Table | None:
    """Retrieval of parallel sentences at every level of every method; None where it was not measured."""
    scores = [score for run in report.runs for score in run.final_scores]
    measured = [score.n for score in scores if score.metric in SENTENCE_COLUMNS and score.language == language]
    number_of = max((count for count in measured if count), default=0)
    return _by_level(
        report,
        language,
        SENTENCE_COLUMNS,
        f"{report.study.reference_language} and {language} sentences by level, %",
        f"Share of sentences whose translation is the nearest of {number_of:,} by the cosine of mean-pooled states; chance is "
        f"{100 / max(number_of, 1):.1f} %. Into: asked with {report.study.reference_language} sentences; from: with {language} "
        "ones; centred: after each language's mean is subtracted. Means over the finished seeds.",
    )


def _by_level(report: Report, language: str, titles: Mapping[str, str], caption: str, footnote: str) -> Table | None:
    """Levels as rows, the metrics of every method as columns; None where none was measured."""
    metrics = [metric for metric in titles if report.levels(metric, language)]
    levels = report.levels(metrics[0], language) if metrics else []
    if not levels:
        return None
    pairs = [(method, metric) for method in report.methods_with_results for metric in metrics]
    columns = [Column("Level", text=True), *(Column(titles[metric], m.label) for m, metric in pairs)]
    rows = tuple(
        (
            Cell(level_name(level, levels[-1])),
            *(value_cell(report.get(m.name, metric, language, level), interval=False) for m, metric in pairs),
        )
        for level in levels
    )
    return Table(caption, tuple(columns), rows, footnote)


def level_name(level: int, last: int) -> str:
    """Level 0 is the input embedding, 1..L the layers, L + 1 the output embedding."""
    return "0 embedding" if level == 0 else f"{level} output" if level == last else f"{level} layer"


def seen_table(report: Report) -> Table | None:
    """The shape of the paper's Figure 6: target perplexity told apart by words of the table; None where it was not."""
    columns = [column for metric in SEEN_METRICS for column in _metric_columns(report, metric, report.study.targets)]
    if not columns:
        return None
    footnote = (
        "Per token of words that the alignment table in use has, and of other words; punctuation counts in neither. "
        f"{SAME_BRACKETS}"
    )
    return _by_method(report, "Perplexity of words in the table and of others", columns, footnote)


def likelihood_table(report: Report) -> Table | None:
    """CLKA by total likelihood and per token, with the margins; None without facts."""
    languages = (report.study.reference_language, *report.study.targets)
    columns = [column for metric in LIKELIHOOD_METRICS for column in _metric_columns(report, metric, languages)]
    if not columns:
        return None
    footnote = (
        "A statement's likelihood in total and per token: the total favours objects of few tokens, the mean per token those of many. "
        f"Margins are to the best distractor, in nats. {SAME_BRACKETS}"
    )
    return _by_method(report, "Knowledge by total likelihood and per token", columns, footnote)


def pairs_table(report: Report) -> Table | None:
    """CLKA by the language that stated and the language that asks; None where only the reference language stated facts."""
    asked = {key[1:3] for key in report.aggregates if key[1].startswith(CLKA_FROM) and key[3] is None}
    languages = (report.study.reference_language, *report.study.targets)
    columns = [
        column
        for metric in sorted({metric for metric, _ in asked})
        for column in _metric_columns(report, metric, [name for name in languages if (metric, name) in asked])
    ]
    return _by_method(report, "Knowledge by pair of languages", columns, SAME_BRACKETS) if columns else None


def mass_table(report: Report) -> Table | None:
    """How much probability is lost to the target language within reference-language text."""
    columns = _metric_columns(report, "target_mass", (*report.study.languages, None))
    if not columns:
        return None
    footnote = (
        "Mean share of the next-token probability that goes to target-language tokens, in text of the column's language. "
        f"{SAME_BRACKETS}"
    )
    return _by_method(report, "Probability lost to the target language", columns, footnote)


def other_table(report: Report) -> Table | None:
    """The metrics that no other table shows."""
    languages = {*report.study.languages, None}
    keys = {
        key[1:]
        for key in report.aggregates
        if (key[1] not in TABLED and not key[1].startswith(CLKA_FROM)) or key[2] not in languages
    }
    if not keys:
        return None
    methods = report.methods_with_results
    names = [Column(title, text=True) for title in ("Metric", "language", "level", "unit")]
    rows = []
    for metric, language, level in sorted(keys, key=lambda key: sort_key(*key)):
        unit = display_unit(report.unit(metric))
        named = (info(metric).title, language or "", "" if level is None else str(level), unit)
        cells = [value_cell(report.get(method.name, metric, language, level), interval=True) for method in methods]
        rows.append((*map(Cell, named), *cells))
    columns = (*names, *(Column(method.label) for method in methods))
    return Table("Metrics without a table of their own", columns, tuple(rows), SAME_BRACKETS)


def value_cell(item: Aggregate | None, interval: bool) -> Cell:
    """The mean of an aggregate, with its interval where asked."""
    if item is None:
        return Cell(NOTHING)
    text = shown(item.metric, item.mean, item.unit)
    if not interval or item.low is None or item.high is None:
        return Cell(text)
    return Cell(text, shown_interval(item.metric, item.low, item.high, item.unit))


def interval_words(report: Report) -> str:
    """What the brackets in this report's tables are."""
    words = {
        "seeds": "Student's 95 % interval of the mean over seeds, where two or more finished, never narrower than the test items allow",
        "items": "the run's own 95 % interval over its test items, where one seed finished; it does not tell how seeds differ",
    }
    kinds = {item.interval_over for item in report.aggregates.values()}
    said = "; ".join(words[kind] for kind in words if kind in kinds)
    return f"In brackets: {said}." if said else ""


def _by_method(report: Report, caption: str, columns: list[MethodColumn], footnote: str) -> Table:
    rows = tuple((Cell(m.label), *(cell(m.name) for _, cell in columns)) for m in report.study.methods)
    return Table(caption, (Column("Method", text=True), *(column for column, _ in columns)), rows, footnote)


def _metric_columns(
    report: Report, metric: str, languages: Iterable[str | None], interval: bool = True
) -> list[MethodColumn]:
    """A column for every language in which the metric was measured."""
    unit = display_unit(report.unit(metric))
    title = info(metric).title + (", %" if unit == "%" else "")

    def column(language: str | None) -> MethodColumn:
        def cell(method: str) -> Cell:
            return value_cell(report.get(method, metric, language), interval)

        return Column(language or "all", title), cell

    return [column(language) for language in languages if report.has(metric, language)]


def mean_tokens(report: Report, method: str, source: str) -> float | None:
    """Tokens that a finished run of the method read on average from a language, or besides (see BESIDES)."""
    seen = [run.record.tokens_seen for run in report.finished(method) if run.record is not None]
    counts = [getattr(item, source) if source in BESIDES else item.pretrain.get(source) for item in seen]
    known = [count for count in counts if count is not None]
    return sum(known) / len(known) if known else None


def token_scale(report: Report) -> tuple[float, str, int]:
    """One divisor for all token counts, its sign (k, M, B or nothing) and the decimals, so that they compare at sight."""
    sources = (*report.study.languages, *BESIDES)
    largest = max(
        (mean_tokens(report, m.name, source) or 0 for m in report.study.methods for source in sources), default=0
    )
    scales = ((1e9, "B", 2), (1e6, "M", 2), (1e3, "k", 1), (1.0, "", 0))
    return next((item for item in scales if largest >= item[0]), scales[-1])


def tokens_cell(report: Report, method: str, source: str) -> Cell:
    """`mean_tokens` in the scale of `token_scale`."""
    scale, _, decimals = token_scale(report)
    tokens = mean_tokens(report, method, source)
    return Cell(NOTHING if tokens is None else number(tokens / scale, decimals))


def _token_columns(report: Report, sources: Iterable[str]) -> list[MethodColumn]:
    suffix = token_scale(report)[1]

    def column(source: str) -> MethodColumn:
        def cell(method: str) -> Cell:
            return tokens_cell(report, method, source)

        return Column(source, "Tokens read" + (f", {suffix}" if suffix else "")), cell

    methods = report.study.methods
    return [column(s) for s in sources if any(mean_tokens(report, m.name, s) is not None for m in methods)]


def _mean_flops(report: Report, method: str) -> float | None:
    records = [run.record for run in report.finished(method) if run.record is not None]
    known = [record.training_flops for record in records if record.training_flops is not None]
    return sum(known) / len(known) if known else None


def _compute_column(report: Report) -> list[MethodColumn]:
    """Training compute as a ratio to the baseline's; no column where it is not known or there is no baseline."""
    baseline = report.baseline and _mean_flops(report, report.baseline.name)
    if not baseline:
        return []

    def cell(method: str) -> Cell:
        flops = _mean_flops(report, method)
        return Cell(NOTHING if flops is None else number(flops / baseline, 2))

    return [(Column("compute"), cell)]


def _besides_words(report: Report) -> str:
    """What the columns besides the languages are."""
    read = {name for name in BESIDES for m in report.study.methods if mean_tokens(report, m.name, name)}
    said = []
    if "injection" in read:
        said.append("injection is text that the injection reads besides")
    if "words" in read:
        said.append("words are tokens of the alignment table's words, repetitions counted")
    if report.baseline and _compute_column(report):
        said.append(f"compute is training FLOPs as a ratio to {report.baseline.label}'s")
    return f"Of the columns, {'; '.join(said)}." if said else ""


def _comparison_cell(item: compare.Comparison | None) -> Cell:
    if item is None:
        return Cell(NOTHING)
    decimals = 2 if item.neutral else 1
    text = number(item.value, decimals)
    if item.low is None or item.high is None:
        return Cell(text)
    return Cell(text, interval_text(item.low, item.high, decimals))
