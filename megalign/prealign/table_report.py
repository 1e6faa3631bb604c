"""What an alignment table covers, and what about it is suspect."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from megalign.prealign.table import AlignmentTable, Coverage, case_variants
from megalign.translation.languages import is_written_in, known_language

_NUM_EXAMPLES = 8
# The first so many words of a corpus, by falling frequency: where coverage is lost matters more than how much.
_BANDS = (1_000, 10_000, 100_000)


@dataclass(frozen=True)
class LanguageReport:
    """A target language of a table.

    Attributes:
        language: its code.
        num_words: words of the source language that have a translation.
        num_translations: pairs (word, translation).
        num_multiword: translations with a space in them.
        num_identical: translations written like their word but for case: names, loans, or words left untranslated.
        num_other_script: translations without a letter of the language's scripts that are not written like their word; None for
            a language whose scripts are not known.
        num_different: different translations.
        num_collisions: different translations that belong to more than one word.
        num_words_colliding: words with such a translation.
        worst_collisions: the translations with most words, and the number of these.
        source_coverage: of the source corpus, by the words that have a translation; None without counts.
        target_coverage: of the target corpus, by the translations; None without counts of the language.
        band_coverage: share of the running words among the most frequent 1000, 10000 ... types of the source corpus.
        examples_identical, examples_other_script: the most frequent ones.
        sources: translations by where they come from.
    """

    language: str
    num_words: int
    num_translations: int
    num_multiword: int
    num_identical: int
    num_other_script: int | None
    num_different: int
    num_collisions: int
    num_words_colliding: int
    worst_collisions: tuple[tuple[str, int], ...]
    source_coverage: Coverage | None
    target_coverage: Coverage | None
    band_coverage: Mapping[int, float]
    examples_identical: tuple[str, ...]
    examples_other_script: tuple[tuple[str, str], ...]
    sources: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """All of it as a JSON value."""
        return asdict(self)


def report_on(table: AlignmentTable, counts: Mapping[str, Mapping[str, int]] | None = None) -> list[LanguageReport]:
    """A report for each target language, in the table's order.

    Args:
        table: the table.
        counts: word counts of corpora by language; coverage is measured where they are there.
    """
    return [_language_report(table, language, counts or {}) for language in table.languages]


def coverage_of(words: set[str], counts: Mapping[str, int]) -> Coverage:
    """How many of a corpus' words are among `words` in any of `case_variants`."""
    forms = {form for word in words for form in case_variants(word)}
    covered = [count for word, count in counts.items() if word in forms]
    return Coverage(len(counts), len(covered), sum(counts.values()), sum(covered))


def as_text(table: AlignmentTable, reports: list[LanguageReport]) -> str:
    """The reports as lines for a terminal."""
    lines = [
        f"source language {table.source_language}: {len(table):,} words, {table.num_rows:,} translations into "
        f"{', '.join(table.languages)}",
        *(f"  {what.replace('_', ' ')}: {count:,}" for what, count in sorted(table.build_counts.items()) if count),
    ]
    for report in reports:
        lines += ["", *_language_lines(report)]
    return "\n".join(lines)


def _language_report(table: AlignmentTable, language: str, counts: Mapping[str, Mapping[str, int]]) -> LanguageReport:
    pairs = [(entry.word, t) for entry in table.entries for t in entry.translations if t.language == language]
    words_of: dict[str, set[str]] = defaultdict(set)
    for word, translation in pairs:
        words_of[translation.text].add(word)
    shared = {text: words for text, words in words_of.items() if len(words) > 1}
    copies = [(word, t.text) for word, t in pairs if t.text.lower() == word.lower()]
    known = known_language(language)
    copied = set(copies)
    other = [(w, t.text) for w, t in pairs if known and (w, t.text) not in copied and not is_written_in(t.text, known)]
    words = {word for word, _ in pairs}
    source = counts.get(table.source_language)
    ranked = sorted(source.items(), key=lambda item: (-item[1], item[0])) if source else []
    return LanguageReport(
        language=language,
        num_words=len(words),
        num_translations=len(pairs),
        num_multiword=sum(" " in t.text for _, t in pairs),
        num_identical=len(copies),
        num_other_script=len(other) if known else None,
        num_different=len(words_of),
        num_collisions=len(shared),
        num_words_colliding=len(set().union(*shared.values())) if shared else 0,
        worst_collisions=tuple(
            sorted(((text, len(of)) for text, of in shared.items()), key=lambda item: (-item[1], item[0]))[
                :_NUM_EXAMPLES
            ]
        ),
        source_coverage=coverage_of(words, source) if source else None,
        target_coverage=coverage_of(set(words_of), counts[language]) if language in counts else None,
        band_coverage={n: coverage_of(words, dict(ranked[:n])).tokens for n in _BANDS if len(ranked) > n},
        examples_identical=tuple(word for word, _ in copies[:_NUM_EXAMPLES]),
        examples_other_script=tuple(other[:_NUM_EXAMPLES]),
        sources=dict(Counter(t.source for _, t in pairs).most_common()),
    )


def _language_lines(report: LanguageReport) -> list[str]:
    pairs = max(report.num_translations, 1)
    lines = [
        f"{report.language}: {report.num_words:,} words, {report.num_translations:,} translations "
        f"({report.num_translations / max(report.num_words, 1):.2f} a word), {report.num_multiword:,} of several words",
        f"  from: {', '.join(f'{source} {count:,}' for source, count in report.sources.items())}",
    ]
    for name, coverage in (("source", report.source_coverage), ("target", report.target_coverage)):
        if coverage:
            lines.append(
                f"  covers of the {name} corpus: {coverage.tokens:.1%} of {coverage.num_tokens:,} running words, "
                f"{coverage.types:.1%} of {coverage.num_types:,} types"
            )
    if report.band_coverage:
        bands = ", ".join(f"{n:,}: {share:.1%}" for n, share in report.band_coverage.items())
        lines.append(f"  running words covered among the most frequent source types: {bands}")
    worst = ", ".join(f"{text} ({count})" for text, count in report.worst_collisions)
    lines += [
        f"  collisions: {report.num_collisions:,} of {report.num_different:,} different translations belong to several words, "
        f"{report.num_words_colliding:,} words have one" + (f"; most words: {worst}" if worst else ""),
        f"  written like the word: {report.num_identical:,} ({report.num_identical / pairs:.1%})"
        + (f", such as {', '.join(report.examples_identical)}" if report.examples_identical else ""),
    ]
    if report.num_other_script is None:
        lines.append("  scripts: not known for this language")
    else:
        examples = ", ".join(f"{word} -> {text}" for word, text in report.examples_other_script)
        lines.append(
            f"  in another script: {report.num_other_script:,} ({report.num_other_script / pairs:.1%})"
            + (f", such as {examples}" if examples else "")
        )
    return lines
