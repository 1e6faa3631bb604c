"""Bilingual dictionaries in the MUSE format (Lample et al. 2018, "Word translation without parallel data")."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from megalign.errors import ConfigError, DataError
from megalign.prealign.table import AlignmentTable, Entry, Translation

# A dictionary has a few broken lines at most; a file with more than this share is something else.
_MAX_BAD_SHARE = 0.1


def muse_table(
    path_by_language: Mapping[str, Path],
    word_counts: Mapping[str, int],
    *,
    source_language: str = "en",
    min_count: int = 20,
    max_translations: int = 5,
) -> AlignmentTable:
    """A table from dictionaries with one "source target" pair a line, in the order of preference of the targets.

    The two words are separated by a tab (then either may contain spaces) or by white space. The source word is matched
    without regard to case, since MUSE is lower case: its frequency is the sum over all case forms in the corpus.
    A translation written like its word is kept; `AlignmentTable.num_identical` counts them.

    Args:
        path_by_language: target language to dictionary file.
        word_counts: how often each word occurs in the source corpus.
        source_language: language of the first word of a line.
        min_count: words that occur more often than this are taken.
        max_translations: at most so many translations per word and language, the first ones of the file.

    Returns:
        The table; its `build_counts` say how many lines were read, bad, repeated, over the limit of translations, or
        about words that are not in the corpus often enough.

    Raises:
        DataError: a file is missing, is not UTF-8, or is no such dictionary, with file and line.
        ConfigError: `max_translations` is not positive.
    """
    if max_translations < 1:
        raise ConfigError(f"max_translations is {max_translations}; a table needs at least one translation per word.")
    frequency: Counter[str] = Counter()
    for word, count in word_counts.items():
        frequency[word.lower()] += count
    counts: Counter[str] = Counter()
    found: dict[str, dict[str, list[str]]] = {}
    for language, path in path_by_language.items():
        for source, target in _read_pairs(path, counts):
            word = source.lower()
            if frequency[word] <= min_count:
                counts["words_too_rare"] += 1
                continue
            translations = found.setdefault(word, {}).setdefault(language, [])
            if target in translations:
                counts["repeated"] += 1
            elif len(translations) == max_translations:
                counts["over_limit"] += 1
            else:
                translations.append(target)
    entries = [
        Entry(
            word, frequency[word], tuple(Translation(lang, t, "muse") for lang, ts in by_language.items() for t in ts)
        )
        for word, by_language in found.items()
    ]
    return AlignmentTable(entries, source_language, counts)


def _read_pairs(path: Path, counts: Counter[str]) -> Iterator[tuple[str, str]]:
    """The (source, target) pairs of one file; adds the lines and the bad lines to `counts`."""
    lines = _read_lines(path)
    pairs: list[tuple[str, str]] = []
    bad: list[tuple[int, str]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split("\t")] if "\t" in line else line.split()
        if len(fields) == 2 and all(fields):
            pairs.append((fields[0], fields[1]))
        else:
            bad.append((number, line))
    counts["lines"] += len(pairs) + len(bad)
    counts["bad_lines"] += len(bad)
    if bad and len(bad) > _MAX_BAD_SHARE * (len(pairs) + len(bad)):
        number, line = bad[0]
        raise DataError(
            f"{path}:{number}: not a dictionary line: {line[:80]!r} ({len(bad)} of {len(pairs) + len(bad)} lines are bad).",
            fix='A dictionary in the MUSE format has one "source target" pair a line.',
        )
    if not pairs:
        raise DataError(f"{path} has no dictionary line.", fix='Give a file with one "source target" pair a line.')
    yield from pairs


def _read_lines(path: Path) -> list[str]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"The dictionary {path} cannot be read: {error.strerror}.", fix="Correct the path.") from None
    try:
        # "\n" alone: str.splitlines knows more separators, and its line numbers would not be an editor's.
        return content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{number}: not UTF-8 text.", fix="Convert the dictionary to UTF-8.") from None
