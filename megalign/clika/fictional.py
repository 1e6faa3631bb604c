"""Invented knowledge for the conductivity test: places, the continents they lie on, and their names in every language.

Nothing of it can have been learned before. Half of the places (type 0) are taught in English and in the language under test, the
others (type 1) in English alone; translations of all names are taught for both (Gao et al. 2024, arXiv:2404.04659, section 3.3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from megalign.clika.knowledge import Knowledge, Name, Row, Stated
from megalign.config.load import read_yaml, validate
from megalign.config.sections import Section
from megalign.errors import ConfigError

WORDS = Path(__file__).with_name("fictional.yaml")
ENGLISH = "en"
VOWELS = "aeiou"
CONSONANTS = "bdgklmnrstvz"
_MAX_TRIES = 100_000


class Language(Section):
    """How invented names and statements are written in a language; see fictional.yaml."""

    name: str
    script: str
    ending: str
    place: str
    features: list[str]
    questions: list[str]
    answers: list[str]
    consonants: dict[str, str] = Field(default_factory=dict)
    vowels: list[str] = Field(default_factory=list)
    syllables: dict[str, list[str]] = Field(default_factory=dict)

    def spell(self, root: str) -> str:
        """A root of syllables such as `vemora` in this language's script."""
        parts = []
        for at in range(0, len(root), 2):
            consonant, vowel = root[at], VOWELS.index(root[at + 1])
            table = self.syllables.get(consonant)
            parts.append(table[vowel] if table else self.consonants[consonant] + self.vowels[vowel])
        return "".join(parts)

    def place_name(self, root: str, feature: int) -> str:
        """The name of a place."""
        return self.place.format(root=self.spell(root).capitalize(), feature=self.features[feature])

    def continent_name(self, root: str) -> str:
        """The name of a continent; the root ends in i."""
        return (self.spell(root) + self.ending).capitalize()


class Words(Section):
    """The content of fictional.yaml."""

    features: list[str]
    languages: dict[str, Language]
    translation: list[str]


@cache
def words() -> Words:
    """The words of all languages."""
    return validate(Words, read_yaml(WORDS), str(WORDS))


class WorldSettings(Section):
    """What is invented.

    Attributes:
        places: number of places, a multiple of twice the continents: each continent has as many of either type.
        continents: number of continents.
        variants: wordings of each statement and translation in the training files.
        roots: "shared", the same root spelled in every language, as names of places mostly are; "own", roots of its own in
            every language, so that only the taught translations connect the names.
        directions: translations that are taught. The released set teaches "to_english" alone and tests the other.
        seed: of the names.
    """

    places: int = Field(400, ge=4)
    continents: int = Field(20, ge=2)
    variants: int = Field(10, ge=1, le=25)
    roots: Literal["shared", "own"] = "shared"
    directions: list[Literal["to_english", "from_english"]] = Field(
        default=["to_english", "from_english"], min_length=1
    )
    seed: int = Field(0, ge=0)


@dataclass(frozen=True)
class World:
    """Names of everything invented, in all languages.

    Attributes:
        continents: [continents] names by language.
        places: [places] names by language; place n lies on continent n modulo their number.
        types: [places] 0 or 1.
    """

    settings: WorldSettings
    continents: tuple[dict[str, str], ...]
    places: tuple[dict[str, str], ...]
    types: tuple[int, ...]

    def continent_of(self, place: int, language: str) -> str:
        """The name of a place's continent."""
        return self.continents[place % len(self.continents)][language]


def invent(settings: WorldSettings) -> World:
    """Invent a world: the same settings give the same names, whatever languages are written later.

    In no language do two things share a name, and no continent's name is a part of another name, so that a response can be
    searched for it.

    Raises:
        ConfigError: the places cannot be shared out evenly, or there are not enough names.
    """
    if settings.places % (2 * settings.continents):
        raise ConfigError(
            f"{settings.places} places cannot be shared out over {settings.continents} continents and two types.",
            "Every continent needs as many places of either type.",
            f"Set places to a multiple of {2 * settings.continents}.",
        )
    generator = _generator(settings.seed, "world")
    own = {code: _generator(settings.seed, f"roots {code}") for code in words().languages}
    continents: list[dict[str, str]] = []
    places: list[dict[str, str]] = []
    taken: dict[str, set[str]] = {code: set() for code in words().languages}
    for _ in range(_MAX_TRIES):
        if len(places) == settings.places:
            break
        is_place = len(continents) == settings.continents
        roots = _roots(generator, own, settings, is_place)
        feature = int(generator.integers(len(words().features)))
        names = {
            code: language.place_name(roots[code], feature) if is_place else language.continent_name(roots[code])
            for code, language in words().languages.items()
        }
        if any(_clashes(names[code], taken[code], [one[code] for one in continents], is_place) for code in names):
            continue
        (places if is_place else continents).append(names)
        for code, name in names.items():
            taken[code].add(name)
    else:
        raise ConfigError(f"There are not enough names for {settings.places} places.", fix="Ask for fewer.")
    types = tuple(number // settings.continents % 2 for number in range(settings.places))
    return World(settings, tuple(continents), tuple(places), types)


def knowledge_of(world: World, language: str) -> Knowledge:
    """The training rows and tests of a language.

    Raises:
        ConfigError: English, or a language without words.
    """
    if language == ENGLISH or language not in words().languages:
        known = ", ".join(code for code in words().languages if code != ENGLISH)
        raise ConfigError(f"There is no invented knowledge in {language!r}.", fix=f"Languages are {known}.")
    return Knowledge(
        language=language,
        train=tuple(_training(world, language)),
        tests={code: tuple(_tests(world, code)) for code in (ENGLISH, language)},
        names=tuple(
            Name(english=one[ENGLISH], translated=one[language], row=Row(*_asked(one, ENGLISH, language, 0)))
            for one in (*world.continents, *world.places)
        ),
    )


def _training(world: World, language: str) -> Iterator[Row]:
    directions = {"to_english": (language, ENGLISH), "from_english": (ENGLISH, language)}
    for variant in range(world.settings.variants):
        for code in (ENGLISH, language):
            for place, kind in enumerate(world.types):
                if code == ENGLISH or kind == 0:
                    yield _statement(world, place, code, variant)
        for direction in world.settings.directions:
            source, target = directions[direction]
            for one in (*world.continents, *world.places):
                yield Row(*_asked(one, source, target, variant))


def _tests(world: World, language: str) -> Iterator[Stated]:
    for place, kind in enumerate(world.types):
        row = _statement(world, place, language, 0)
        yield Stated(row, world.places[place][language], world.continent_of(place, language), kind)


def _statement(world: World, place: int, language: str, variant: int) -> Row:
    spoken = words().languages[language]
    name, continent = world.places[place][language], world.continent_of(place, language)
    question = spoken.questions[variant % len(spoken.questions)]
    # From the sixth wording on, the same questions with other answers.
    answer = spoken.answers[(variant + variant // len(spoken.questions)) % len(spoken.answers)]
    return Row(question.format(place=name), "", answer.format(place=name, continent=continent))


def _asked(names: dict[str, str], source: str, target: str, variant: int) -> tuple[str, str, str]:
    known = words()
    prompt = known.translation[variant % len(known.translation)]
    texts = {"source": known.languages[source].name, "target": known.languages[target].name}
    return prompt.format(**texts), names[source], names[target]


def _roots(
    generator: np.random.Generator, own: dict[str, np.random.Generator], settings: WorldSettings, is_place: bool
) -> dict[str, str]:
    if settings.roots == "shared":
        return dict.fromkeys(own, _root(generator, is_place))
    return {code: _root(one, is_place) for code, one in own.items()}


def _root(generator: np.random.Generator, is_place: bool) -> str:
    syllables = [CONSONANTS[generator.integers(len(CONSONANTS))] + VOWELS[generator.integers(5)] for _ in range(3)]
    return "".join(syllables) if is_place else "".join(syllables)[:5] + "i"


def _clashes(name: str, taken: set[str], continents: list[str], is_place: bool) -> bool:
    if name in taken or any(one in name for one in continents):
        return True
    return not is_place and any(name in one for one in taken)


def _generator(seed: int, name: str) -> np.random.Generator:
    digest = hashlib.blake2b(f"fictional {seed} {name}".encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))
