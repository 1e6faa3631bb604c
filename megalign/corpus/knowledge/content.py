"""The relations, their wordings and their objects, hand-written in five languages (templates.yaml, objects.yaml)."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from megalign.config.load import read_yaml, validate
from megalign.config.sections import Section
from megalign.corpus.knowledge.names import Names

LANGUAGES = ("en", "zh", "de", "ru", "ar")
INVENTED_TYPES = ("person", "organisation", "place")

Wordings = Annotated[list[str], Field(min_length=1)]


class Relation(Section):
    """A relation of Wikidata: its subjects, its objects and how it is said."""

    name: str = Field(description="Its English label in Wikidata.")
    subject: Literal["person", "organisation", "place"] = Field(description="What the invented subjects are.")
    object: str = Field(description="Type of the objects: of objects.yaml, or invented.")
    en: Wordings
    zh: Wordings
    de: Wordings
    ru: Wordings
    ar: Wordings

    @model_validator(mode="after")
    def _slots(self) -> Relation:
        for language in LANGUAGES:
            for wording in self.wordings(language):
                if sorted(re.findall(r"\{(\w*)\}", wording)) != ["object", "subject"]:
                    raise ValueError(f"{language}: {wording!r} must have {{subject}} and {{object}} once each")
        if len({len(self.wordings(language)) for language in LANGUAGES}) > 1:
            raise ValueError("the languages have different numbers of wordings")
        return self

    def wordings(self, language: str) -> tuple[str, ...]:
        """Sentences with {subject} and {object}; the first one is asked."""
        found: list[str] = getattr(self, language)
        return tuple(found)


class _Templates(Section):
    chatter: dict[str, Wordings]
    relations: dict[str, Relation]


@cache
def templates() -> dict[str, Relation]:
    """Property of Wikidata -> relation, in the order of the file."""
    return _read().relations


def chatter(language: str) -> tuple[str, ...]:
    """Sentences with {first} and {second} that state nothing of them."""
    return tuple(_read().chatter[language])


@cache
def objects() -> dict[str, tuple[Names, ...]]:
    """Type -> the objects of that type, each named in every language."""
    path = Path(__file__).with_name("objects.yaml")
    return {kind: tuple(entries) for kind, entries in read_yaml(path).items()}


@cache
def _read() -> _Templates:
    path = Path(__file__).with_name("templates.yaml")
    return validate(_Templates, read_yaml(path), str(path))
