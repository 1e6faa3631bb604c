"""Translations of single words by a model: a chat model behind an endpoint, or an encoder-decoder of transformers.

PreAlign (arXiv 2407.16222, appendix A) asks a chat model for the five most common translations of a word, without a context.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from megalign.endpoint import BadAnswer, Cache, Client, Failure, Question, json_object
from megalign.errors import ConfigError, DataError
from megalign.translation.languages import Language, is_written_in, language_of
from megalign.translation.options import TranslatorOptions, open_translator

SYSTEM = (
    "You are a dictionary from {source} into {target}. The user gives a JSON list of {source} words without context. Answer with one "
    "JSON object and nothing else: each word of the list as a key, and as its value a list of its {num} most common {target} "
    "translations, the most common first, without explanations. Give fewer where there are fewer. A name that {target} writes as "
    "{source} does stays as it is."
)
MAX_CHARACTERS, MAX_WORDS = 60, 4
MAX_UNANSWERED_IN_A_ROW = 20

Translations = dict[str, tuple[str, ...]]


class WordTranslator(Protocol):
    """Translates words."""

    @property
    def source(self) -> str:
        """What the table says where the translations come from."""
        ...

    def translate(self, words: Sequence[str], target: Language, on_failure: Callable[[str, str], None]) -> Translations:
        """Translations by word, the best first; `on_failure` gets each word without any, and the reason."""
        ...


class BeamModel(Protocol):
    """What an encoder-decoder can do, see `megalign.translation.model.TranslationModel`."""

    name: str

    def choices(self, texts: Sequence[str], target: Language, num_choices: int) -> list[list[str]]:
        """Different translations of each text, the most likely first."""
        ...


@dataclass
class ChatWordTranslator:
    """Asks a chat model, several words in a question; words of a question without a good answer are asked again one by one.

    Attributes:
        client: of the endpoint.
        cache: of answers; a stopped run continues.
        source_language: of the words.
        num_translations: asked for per word and language.
        words_per_question: words in a question; the paper asks for one.
        max_failures: words without an answer that end the run; None for any number.
    """

    client: Client
    cache: Cache
    source_language: Language
    num_translations: int = 5
    words_per_question: int = 10
    max_failures: int | None = None

    def __post_init__(self) -> None:
        if self.words_per_question < 1 or self.num_translations < 1:
            raise ConfigError(
                f"A question has {self.words_per_question} words and {self.num_translations} translations.",
                fix="Set both to at least 1.",
            )

    @property
    def source(self) -> str:
        """What the table says where the translations come from."""
        return f"endpoint:{self.client.endpoint.model}"

    def translate(self, words: Sequence[str], target: Language, on_failure: Callable[[str, str], None]) -> Translations:
        """See WordTranslator.

        Raises:
            DataError, EnvironmentProblem: see Client.ask_all.
        """
        size = self.words_per_question
        groups = [list(words[start : start + size]) for start in range(0, len(words), size)]
        failed: list[Failure] = []
        found = self._ask(groups, target, failed.append, None if size > 1 else self.max_failures)
        if size > 1:
            rest = [[word] for group in groups if group[0] not in found for word in group]
            failed.clear()
            found |= self._ask(rest, target, failed.append, self.max_failures)
        for failure in failed:
            on_failure(failure.name, f"{failure.reason} (after {failure.attempts} attempts)")
        return {word: found[word] for word in words if word in found}

    def _ask(
        self,
        groups: Sequence[Sequence[str]],
        target: Language,
        on_failure: Callable[[Failure], None],
        max_failures: int | None,
    ) -> Translations:
        content = SYSTEM.format(source=self.source_language.name, target=target.name, num=self.num_translations)
        questions = [
            Question(
                [
                    {"role": "system", "content": content},
                    {"role": "user", "content": json.dumps(group, ensure_ascii=False)},
                ],
                _checked(group, target, self.num_translations),
                ", ".join(group),
            )
            for group in groups
        ]
        unanswered = 0

        def answered(_: int) -> None:
            nonlocal unanswered
            unanswered = 0

        def failed(failure: Failure) -> None:
            nonlocal unanswered
            # A model may give many bad answers; an endpoint that gives none is down.
            unanswered = 0 if failure.reason.startswith("the answer") else unanswered + 1
            if unanswered == MAX_UNANSWERED_IN_A_ROW:
                raise DataError(
                    f"{self.client.endpoint.base_url} gave no answer to {unanswered} questions in a row: {failure.reason}.",
                    "What was answered is cached.",
                    "Look at the endpoint, then start again to continue.",
                )
            on_failure(failure)

        answers = self.client.ask_all(
            questions, self.cache, on_failure=failed, on_answer=answered, max_failures=max_failures
        )
        return {word: tuple(texts) for answer in answers if answer is not None for word, texts in answer.items()}


@dataclass
class ModelWordTranslator:
    """Asks an encoder-decoder for the ends of its beams. Translates from English.

    Attributes:
        model: the encoder-decoder.
        cache: of translations; a stopped run continues.
        num_translations: beams, and translations at most.
        words_at_once: words between two writes to the cache.
    """

    model: BeamModel
    cache: Cache
    num_translations: int = 5
    words_at_once: int = 256

    @property
    def source(self) -> str:
        """What the table says where the translations come from."""
        return f"hf:{self.model.name.rstrip('/').rpartition('/')[2]}"

    def translate(self, words: Sequence[str], target: Language, on_failure: Callable[[str, str], None]) -> Translations:
        """See WordTranslator."""
        keys = {word: f"{self.model.name}\x1f{target.code}\x1f{self.num_translations}\x1f{word}" for word in words}
        todo = [word for word in keys if keys[word] not in self.cache]
        for start in range(0, len(todo), self.words_at_once):
            batch = todo[start : start + self.words_at_once]
            for word, texts in zip(batch, self.model.choices(batch, target, self.num_translations), strict=True):
                self.cache.put(keys[word], texts)
        found = {}
        for word, key in keys.items():
            texts = list(dict.fromkeys(_normal(text) for text in self.cache.get(key)))
            kept = [text for text in texts if _fault(text, word, target) is None]
            if kept:
                found[word] = tuple(kept)
            else:
                reason = _fault(texts[0], word, target) if texts else "the model gave no translation that ends"
                on_failure(word, str(reason))
        return found


def _checked(words: Sequence[str], target: Language, num_translations: int) -> Callable[[str], dict[str, list[str]]]:
    """The check of an answer: exactly the words asked for, each with 1 to `num_translations` translations that can be ones."""

    def check(answer: str) -> dict[str, list[str]]:
        value = json_object(answer, words)
        return {word: _translations(word, value[word], target, num_translations) for word in words}

    return check


def _translations(word: str, given: Any, target: Language, num_translations: int) -> list[str]:
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        raise BadAnswer(f"the answer for {word!r} is no list of texts")
    texts = list(dict.fromkeys(_normal(text) for text in given))
    if not 1 <= len(texts) <= num_translations:
        raise BadAnswer(f"the answer for {word!r} has {len(texts)} translations, not 1 to {num_translations}")
    for text in texts:
        fault = _fault(text, word, target)
        if fault:
            raise BadAnswer(f"the answer for {word!r}: {fault}")
    return texts


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", " ".join(text.split()))


def _fault(text: str, word: str, target: Language) -> str | None:
    """Why a text cannot be a translation of a word; None where it can."""
    if not text:
        return "a translation is empty"
    if text == word:
        return None
    if len(text) > MAX_CHARACTERS or len(text.split()) > MAX_WORDS:
        return f"{text[:MAX_CHARACTERS]!r} is longer than a word or a term"
    if not is_written_in(text, target):
        return f"{text!r} is not written in {' or '.join(target.scripts)} script"
    return None


def open_word_translator(
    options: TranslatorOptions,
    cache: Path,
    source_language: str = "en",
    num_translations: int = 5,
    words_per_question: int = 10,
) -> WordTranslator:
    """The translator that options name, with its cache in the file `cache`.

    Raises:
        ConfigError: an encoder-decoder is to translate from another language than English; see open_translator for the rest.
    """
    source = language_of(source_language)
    opened = open_translator(options)
    if isinstance(opened, Client):
        return ChatWordTranslator(opened, Cache(cache), source, num_translations, words_per_question)
    if source.code != "en":
        raise ConfigError(
            f"{options.name} is asked for translations from {source.name}.",
            "Encoder-decoders are set up to translate from English.",
            "Ask a chat model, or build the table from English.",
        )
    opened.max_new_tokens = MAX_CHARACTERS
    return ModelWordTranslator(opened, Cache(cache), num_translations)
