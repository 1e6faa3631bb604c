"""An alignment table from several sources at once: dictionaries, a clone, a model that translates words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from megalign.errors import ConfigError, DataError
from megalign.prealign.muse import muse_table
from megalign.prealign.scripts import script_converter
from megalign.prealign.table import AlignmentTable, Entry, Translation, golden_table
from megalign.prealign.word_translator import WordTranslator
from megalign.translation.languages import language_of

_NUM_FAILURES_SHOWN = 5


@dataclass(frozen=True)
class TableOptions:
    """What goes into a table.

    Attributes:
        word_counts: how often each word occurs in the source corpus.
        source_language: language of these words.
        dictionaries: target language to file in the MUSE format.
        clone_language: the clone whose words are the source's; None for none.
        translated_languages: target languages for which a model is asked, for all words that have no translation yet.
        min_count: words that occur more often than this are taken; the paper takes those above 20.
        max_words: ask the model for the most frequent words alone, so many; None for all.
        max_translations: of a word in a language; the paper has 5.
        fraction: most frequent share of the entries that is kept (PreAlign, section 5.5, has 0.25 to 1).
        scripts: language to "simplified" or "traditional".
        case_counts: language to its word counts: its words are written in the case the corpus mostly has.

    Raises:
        ConfigError: a number is out of range, or the clone has the name of another of the languages.
    """

    word_counts: Mapping[str, int]
    source_language: str = "en"
    dictionaries: Mapping[str, Path] = field(default_factory=dict)
    clone_language: str | None = None
    translated_languages: Sequence[str] = ()
    min_count: int = 20
    max_words: int | None = None
    max_translations: int = 5
    fraction: float = 1.0
    scripts: Mapping[str, str] = field(default_factory=dict)
    case_counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lowest = {"min_count": 0, "max_words": 1, "max_translations": 1}
        for name, least in lowest.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}.", fix=f"Set it to {least} or more.")
        if not 0.0 < self.fraction <= 1.0:
            raise ConfigError(
                f"fraction is {self.fraction}.", fix="Set it above 0 and at most 1: 0.25 keeps the most frequent 25 %."
            )
        targets = (*self.dictionaries, *self.translated_languages)
        for language in (*targets, self.clone_language):
            if language == self.source_language:
                raise ConfigError(f"{language} is the source language and cannot be a target.", fix="Name another one.")
        if self.clone_language in targets:
            raise ConfigError(
                f"{self.clone_language} cannot be a clone and have other words too.", fix="Rename the clone."
            )


def build_table(
    options: TableOptions, translator: WordTranslator | None = None, say: Callable[[str], None] = lambda line: None
) -> AlignmentTable:
    """The table.

    Args:
        options: what goes in.
        translator: the model; needed where there are `translated_languages`.
        say: gets a line per source, and the first words a model failed for.

    Raises:
        ConfigError: nothing is to go in, or there is no translator.
        DataError: a file is missing or damaged, or no word is left.
    """
    table = AlignmentTable((), options.source_language)
    if options.dictionaries:
        found = muse_table(
            options.dictionaries,
            options.word_counts,
            source_language=options.source_language,
            min_count=options.min_count,
            max_translations=options.max_translations,
        )
        table = _joined(table, found, f"dictionaries ({', '.join(options.dictionaries)})", say)
    if options.clone_language:
        clone = golden_table(
            options.word_counts,
            source_language=options.source_language,
            clone_language=options.clone_language,
            min_count=options.min_count,
        )
        table = _joined(table, clone, options.clone_language, say)
    for language in options.translated_languages:
        if translator is None:
            raise ConfigError("There is no model to translate with.", fix="Name a translator.")
        table = _joined(table, _translated(table, options, translator, language, say), language, say)
    if not len(table):
        raise DataError(
            "No word entered the alignment table.",
            f"Words must occur more than {options.min_count} times, and a dictionary or model must know them.",
            "Lower the minimum count, or give counts of more text.",
        )
    table = _rewritten(table, options)
    return table.top_fraction(options.fraction) if options.fraction < 1 else table


def case_forms(word_counts: Mapping[str, int]) -> dict[str, tuple[str, int]]:
    """By word in lower case: its most frequent form, the first in the order of code points of equals, and the count of all."""
    best: dict[str, str] = {}
    total: Counter[str] = Counter()
    for word, count in word_counts.items():
        key = word.lower()
        total[key] += count
        if key not in best or (-count, word) < (-word_counts[best[key]], best[key]):
            best[key] = word
    return {key: (form, total[key]) for key, form in best.items()}


def _joined(table: AlignmentTable, new: AlignmentTable, name: str, say: Callable[[str], None]) -> AlignmentTable:
    counted = "".join(f", {count:,} {what.replace('_', ' ')}" for what, count in new.build_counts.items() if count)
    say(f"{name}: {len(new):,} words, {new.num_rows:,} translations{counted}")
    return table.merge(new)


def _translated(
    table: AlignmentTable,
    options: TableOptions,
    translator: WordTranslator,
    language: str,
    say: Callable[[str], None],
) -> AlignmentTable:
    """The model's translations of the words that have none in a language, most frequent words first."""
    known = {entry.word.lower() for entry in table.entries if any(t.language == language for t in entry.translations)}
    wanted = [
        (form, count)
        for key, (form, count) in case_forms(options.word_counts).items()
        if count > options.min_count and key not in known and any(character.isalpha() for character in form)
    ]
    # A word that the table already has keeps its way of writing, or it would become an entry of its own.
    written = {entry.word.lower(): entry.word for entry in table.entries}
    words = {written.get(form.lower(), form): count for form, count in wanted}
    ordered = sorted(words, key=lambda word: (-words[word], word))[: options.max_words]
    failures: dict[str, str] = {}
    found = translator.translate(ordered, language_of(language), failures.__setitem__)
    for word, reason in list(failures.items())[:_NUM_FAILURES_SHOWN]:
        say(f"{language}: {word!r} was not translated: {reason}")
    entries = [
        Entry(
            word,
            words[word],
            tuple(Translation(language, text, translator.source) for text in texts[: options.max_translations]),
        )
        for word, texts in found.items()
    ]
    return AlignmentTable(
        entries, options.source_language, {"words_asked": len(ordered), "words_failed": len(failures)}
    )


def _rewritten(table: AlignmentTable, options: TableOptions) -> AlignmentTable:
    """The table with scripts converted and case restored; entries and translations that become equal are united."""
    for language in (*options.scripts, *options.case_counts):
        if language not in (table.source_language, *table.languages):
            raise ConfigError(
                f"The alignment table has no {language!r} words whose writing could be changed.",
                fix=f"It has {', '.join((table.source_language, *table.languages))}.",
            )
    convert = {language: script_converter(script) for language, script in options.scripts.items()}
    forms = {language: case_forms(counts) for language, counts in options.case_counts.items()}
    if not convert and not forms:
        return table

    def rewrite(text: str, language: str) -> str:
        # A clone is written like its original.
        language = table.source_language if language == options.clone_language else language
        if language in convert:
            text = convert[language](text)
        form, _ = forms.get(language, {}).get(text.lower(), (text, 0))
        return form

    by_word: dict[str, Entry] = {}
    for entry in table.entries:
        word = rewrite(entry.word, table.source_language)
        texts = [replace(t, text=rewrite(t.text, t.language)) for t in entry.translations]
        if word in by_word:
            texts = [*by_word[word].translations, *texts]
        unique = {(t.language, t.text): t for t in reversed(texts)}
        kept = tuple(dict.fromkeys(unique[t.language, t.text] for t in texts))
        frequency = max(entry.frequency, by_word[word].frequency if word in by_word else 0)
        by_word[word] = Entry(word, frequency, kept)
    return AlignmentTable(by_word.values(), table.source_language, table.build_counts)
