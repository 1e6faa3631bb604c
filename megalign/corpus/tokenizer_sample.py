"""A language-balanced sample of an input, to train a tokenizer on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest

from megalign.corpus.keyed_random import generator
from megalign.corpus.preprocess.plan import Task, make_tasks, read_task
from megalign.corpus.preprocess.select import Selection, say_bad_rows
from megalign.corpus.preprocess.settings import LanguageBudget, PreprocessSettings
from megalign.corpus.readers import Document
from megalign.errors import ConfigError


def balanced_sample(
    settings: PreprocessSettings, bytes_per_language: int, say: Callable[[str], None] = lambda line: None
) -> Iterator[str]:
    """Texts of all languages in turn, about equally many bytes of each, from parts of the input drawn by the seed.

    A language with less text gives all it has. The settings' filters apply; budgets do not.

    Args:
        settings: input, languages, seed and filters.
        bytes_per_language: UTF-8 bytes; the text that reaches it is the language's last.
        say: gets a line for each language of which bad rows were left out.

    Raises:
        ConfigError: `bytes_per_language` is not positive.
        DataError: the input cannot be used, or has no text of a language.
    """
    if bytes_per_language < 1:
        raise ConfigError(f"A sample of {bytes_per_language} bytes of each language is empty.", fix="Ask for more.")
    unlimited = tuple(LanguageBudget(budget.language) for budget in settings.languages)
    tasks = make_tasks(replace(settings, languages=unlimited))
    streams = [
        _language_sample(settings, budget.language, tasks, bytes_per_language, say) for budget in settings.languages
    ]
    for texts in zip_longest(*streams):
        yield from (text for text in texts if text is not None)


def _language_sample(
    settings: PreprocessSettings, language: str, tasks: Sequence[Task], room_bytes: int, say: Callable[[str], None]
) -> Iterator[str]:
    own = [task for task in tasks if task.language == language]
    selection = Selection(settings)
    for document in _shuffled_tasks(settings, language, own, selection):
        yield document.text
        room_bytes -= len(document.text.encode("utf-8", errors="surrogatepass"))
        if room_bytes <= 0:
            break
    say_bad_rows(language, selection.counts, say)


def _shuffled_tasks(
    settings: PreprocessSettings, language: str, tasks: Sequence[Task], selection: Selection
) -> Iterator[Document]:
    order = generator(settings.seed, "tokenizer-sample", language).permutation(len(tasks))
    for index in order.tolist():
        for _, document in selection.keep(enumerate(read_task(tasks[index], settings))):
            yield document
