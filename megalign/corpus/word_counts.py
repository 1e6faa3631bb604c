"""How often each word occurs in a language: the first step towards an alignment table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from megalign import files
from megalign.corpus.preprocess.parallel import Workers
from megalign.corpus.preprocess.plan import Task, make_tasks, read_task
from megalign.corpus.preprocess.select import Selection, say_bad_rows
from megalign.corpus.preprocess.settings import PreprocessSettings
from megalign.corpus.words import segment
from megalign.errors import DataError

# What a table's column of 64 bits holds.
_MAX_DIGITS = 18


def words_of(text: str, language: str) -> Iterator[str]:
    """The words of a text, without the space before them."""
    segments, content = segment(text, language), text.encode()
    bounds = [*segments.starts.tolist(), segments.num_bytes]
    for index in segments.is_word.nonzero()[0].tolist():
        yield content[bounds[index] : bounds[index + 1]].decode().removeprefix(" ")


def count_task(settings: PreprocessSettings, task: Task, lowercase: bool) -> tuple[str, Counter[str], Counter[str]]:
    """The language of a task, the words of its documents, and what became of its rows."""
    selection = Selection(settings)
    counts: Counter[str] = Counter()
    for _, document in selection.keep(enumerate(read_task(task, settings))):
        counts.update(words_of(document.text.lower() if lowercase else document.text, task.language))
    return task.language, counts, selection.counts


def count_words(
    settings: PreprocessSettings,
    workers: Workers,
    lowercase: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Counter[str]]:
    """Words of every language of the input; the settings' filters apply, its budgets and tokenizer do not.

    Args:
        settings: input, languages and filters.
        workers: where the input is read.
        lowercase: count words in lower case.
        say: gets a line for each language of which bad rows were left out.

    Raises:
        DataError: the input cannot be used, or has no document of a language.
    """
    totals: dict[str, Counter[str]] = {budget.language: Counter() for budget in settings.languages}
    rows: dict[str, Counter[str]] = {budget.language: Counter() for budget in settings.languages}
    calls = ((settings, task, lowercase) for task in make_tasks(settings))
    for language, counts, selected in workers.unordered(count_task, calls):
        totals[language].update(counts)
        rows[language].update(selected)
    for language, selected in rows.items():
        say_bad_rows(language, selected, say)
    return totals


def write_counts(path: Path, counts: Counter[str], minimum: int = 1) -> int:
    """Write "word TAB count" lines, the most frequent first, equal ones in the order of their code points; how many."""
    ordered = sorted(((-count, word) for word, count in counts.items() if count >= minimum))
    files.write_text(path, "".join(f"{word}\t{-count}\n" for count, word in ordered))
    return len(ordered)


def read_counts(paths: Iterable[Path]) -> Counter[str]:
    """The sum of files that `write_counts` wrote.

    Raises:
        DataError: a file is missing or a line has no count.
    """
    total: Counter[str] = Counter()
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"The word counts {path} cannot be read: {error}.") from None
        for number, line in enumerate(lines, start=1):
            word, _, count = line.rpartition("\t")
            if not word or not count.isdecimal() or len(count) > _MAX_DIGITS:
                raise DataError(f"{path}, line {number} is not a word, a tab and a count: {line!r}.")
            total[word] += int(count)
    return total
