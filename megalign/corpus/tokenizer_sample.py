"""A language-balanced sample of an input, to train a tokenizer on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import zip_longest

from megalign.corpus.keyed_random import generator
from megalign.corpus.preprocess.plan import make_tasks, read_task
from megalign.corpus.preprocess.select import Selection
from megalign.corpus.preprocess.settings import LanguageBudget, PreprocessSettings


def balanced_sample(settings: PreprocessSettings, bytes_per_language: int) -> Iterator[str]:
    """Texts of all languages in turn, about equally many bytes of each, from parts of the input drawn by the seed.

    A language with less text gives all it has. The settings' filters apply; budgets do not.

    Args:
        settings: input, languages, seed and filters.
        bytes_per_language: UTF-8 bytes; the text that reaches it is the language's last.
    """
    streams = [_language_sample(settings, budget, bytes_per_language) for budget in settings.languages]
    for texts in zip_longest(*streams):
        yield from (text for text in texts if text is not None)


def _language_sample(settings: PreprocessSettings, budget: LanguageBudget, room_bytes: int) -> Iterator[str]:
    tasks = make_tasks(replace(settings, languages=(LanguageBudget(budget.language),)))
    order = generator(settings.seed, "tokenizer-sample", budget.language).permutation(len(tasks))
    for index in order.tolist():
        for _, document in Selection(settings).keep(enumerate(read_task(tasks[index], settings))):
            yield document.text
            room_bytes -= len(document.text.encode("utf-8", errors="surrogatepass"))
            if room_bytes <= 0:
                return
