"""Procedural English ("mini"): endless, licence-free, deterministic text with known structure.

A seed fixes a language: which words are frequent in which topic (Zipf), which nouns a verb prefers (selectional preferences),
which adjectives go with a noun. A stream name then fixes one endless sequence of documents in that language. A document keeps
to one topic, one tense and a small cast of nouns, so that context lowers the entropy of what follows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from megalign.corpus.keyed_random import generator
from megalign.corpus.lexicon import (
    ADJECTIVES,
    ADVERBS,
    FRAMES,
    FUNCTION_WORDS,
    MASS_NOUN_CLASSES,
    MODALS,
    NOUNS,
    PREPOSITIONS,
    VERBS,
    past,
    plural,
    third_person,
)

Weights = npt.NDArray[np.float64]

NUM_TOPICS = 20
CLASS_ZIPF, NOUN_ZIPF, VERB_ZIPF, TOPIC_ZIPF = 0.6, 0.7, 0.4, 0.5
# Standard deviation of log preferences: a verb's liked and disliked nouns typically differ by a factor of exp(2).
PREFERENCE = 1.0
# In each document a few nouns of its topic are this much likelier than the topic alone makes them.
CAST_SIZE, CAST_FACTOR = 8, 3.0
# How likely the subject or the last object is to be the next object, against what its weight alone says.
REPEAT_FACTOR = 0.05
SENTENCES = (6, 15)
PATTERNS = ("simple", "place", "relative", "and", "when", "because", "copula", "modal", "adverb")
PATTERN_WEIGHTS = (0.24, 0.16, 0.10, 0.12, 0.10, 0.06, 0.08, 0.08, 0.06)
SUBJECT_CLASSES = ("person", "animal", "vehicle")

_NOUN_NAMES = tuple(noun for nouns in NOUNS.values() for noun in nouns)
_NOUN_CLASS = tuple(name for name, nouns in NOUNS.items() for _ in nouns)
_ADJECTIVE_NAMES = tuple(word for words in ADJECTIVES.values() for word in words)


def word_types() -> frozenset[str]:
    """Every word form the corpus can contain, in lower case."""
    singular = set(_NOUN_NAMES)
    plurals = {plural(n) for n, c in zip(_NOUN_NAMES, _NOUN_CLASS, strict=True) if c not in MASS_NOUN_CLASSES}
    verbs = {form(verb) for verb in VERBS for form in (str, third_person, past)}
    return frozenset(singular | plurals | verbs | {*_ADJECTIVE_NAMES, *FUNCTION_WORDS})


def _zipf(rng: np.random.Generator, size: int, exponent: float) -> Weights:
    ranks = rng.permutation(size) + 1
    return np.asarray(ranks ** -float(exponent) / np.sum(np.arange(1, size + 1) ** -float(exponent)))


def _class_mask(classes: tuple[str, ...]) -> Weights:
    return np.array([name in classes for name in _NOUN_CLASS], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class _NounPhrase:
    words: str
    noun: int
    plural: bool


@dataclass(slots=True)
class _Scene:
    """What holds within one document."""

    rng: np.random.Generator
    nouns: Weights
    verbs: Weights
    in_past: bool
    mentioned: set[int] = field(default_factory=set)
    recent: tuple[int, ...] = ()

    def pick(self, weights: Weights) -> int:
        cumulative = np.cumsum(weights)
        return int(np.searchsorted(cumulative, self.rng.random() * cumulative[-1], side="right"))


class ProceduralEnglish:
    """The language of a seed.

    Args:
        seed: fixes Zipf orders, preferences and topics.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        rng = generator(seed, "procedural-english", "language")
        num_nouns, num_verbs = len(_NOUN_NAMES), len(VERBS)
        self._topic_weights = _zipf(rng, NUM_TOPICS, TOPIC_ZIPF)
        self._topic_nouns = [self._noun_weights(rng) for _ in range(NUM_TOPICS)]
        self._topic_verbs = [_zipf(rng, num_verbs, VERB_ZIPF) for _ in range(NUM_TOPICS)]
        frames = [frame for frame in FRAMES for _ in frame.verbs]
        self._object_preference = np.exp(PREFERENCE * rng.standard_normal((num_verbs, num_nouns)))
        self._object_preference *= np.stack([_class_mask(frame.objects) for frame in frames])
        self._subject_preference = np.exp(PREFERENCE * rng.standard_normal((num_nouns, num_verbs)))
        self._subject_preference *= np.stack([_class_mask(frame.subjects) for frame in frames], axis=1)
        of_class = [classes.split() for classes, words in ADJECTIVES.items() for _ in words]
        allowed = np.array([[name in classes for classes in of_class] for name in _NOUN_CLASS], dtype=np.float64)
        self._adjective_preference = allowed * np.exp(PREFERENCE * rng.standard_normal(allowed.shape))
        self._preposition_preference = np.exp(PREFERENCE * rng.standard_normal((num_nouns, len(PREPOSITIONS))))
        self._is_she = rng.random(num_nouns) < 0.5
        self._subjects, self._places = _class_mask(SUBJECT_CLASSES), _class_mask(("place",))

    @staticmethod
    def _noun_weights(rng: np.random.Generator) -> Weights:
        classes = _zipf(rng, len(NOUNS), CLASS_ZIPF)
        return np.concatenate([w * _zipf(rng, len(n), NOUN_ZIPF) for w, n in zip(classes, NOUNS.values(), strict=True)])

    def documents(self, stream: str) -> Iterator[str]:
        """Documents of 6 to 14 sentences, without end; the same (seed, stream) gives the same documents."""
        rng = generator(self.seed, "procedural-english", "stream", stream)
        while True:
            yield self._document(rng)

    def _document(self, rng: np.random.Generator) -> str:
        topic = int(rng.choice(NUM_TOPICS, p=self._topic_weights))
        nouns = self._topic_nouns[topic].copy()
        nouns[rng.choice(nouns.size, size=CAST_SIZE, replace=False, p=nouns / nouns.sum())] *= CAST_FACTOR
        scene = _Scene(rng, nouns, self._topic_verbs[topic], in_past=bool(rng.random() < 0.5))
        sentences: list[str] = []
        subject: _NounPhrase | None = None
        for _ in range(int(rng.integers(*SENTENCES))):
            sentence, subject = self._sentence(scene, subject)
            sentences.append(sentence[0].upper() + sentence[1:] + ".")
        return " ".join(sentences)

    def _sentence(self, scene: _Scene, previous: _NounPhrase | None) -> tuple[str, _NounPhrase]:
        """One sentence and its subject; a subject carried over from the last sentence becomes a pronoun."""
        pattern = PATTERNS[int(scene.rng.choice(len(PATTERNS), p=PATTERN_WEIGHTS))]
        if previous is not None and scene.rng.random() < 0.3:
            subject = _NounPhrase(self._pronoun(previous), previous.noun, previous.plural)
        else:
            subject = self._noun_phrase(scene, scene.nouns * self._subjects)
        pronoun = _NounPhrase(self._pronoun(subject), subject.noun, subject.plural)
        start = subject.words
        if pattern == "copula":
            return f"{start} {self._be(scene, subject)} {self._adjective(scene, subject.noun)}", subject
        if pattern == "modal":
            modal = MODALS[int(scene.rng.integers(len(MODALS)))]
            return f"{start} {modal} {self._predicate(scene, subject, form='base')}", subject
        if pattern == "relative" and start == pronoun.words:
            pattern = "simple"
        predicate = self._predicate(scene, subject)
        if pattern == "place":
            return f"{start} {predicate} {self._place(scene)}", subject
        if pattern == "relative":
            return f"{start} that {predicate} {self._predicate(scene, subject)}", subject
        if pattern == "and":
            return f"{start} {predicate} and {self._predicate(scene, subject)}", subject
        if pattern == "when":
            return f"when {start} {predicate}, {pronoun.words} {self._predicate(scene, subject)}", subject
        if pattern == "because":
            return f"{start} {predicate} because {pronoun.words} {self._predicate(scene, subject)}", subject
        if pattern == "adverb":
            return f"{ADVERBS[int(scene.rng.integers(len(ADVERBS)))]} {start} {predicate}", subject
        return f"{start} {predicate}", subject

    def _predicate(self, scene: _Scene, subject: _NounPhrase, form: str = "finite") -> str:
        reachable = self._object_preference @ scene.nouns
        verb = scene.pick(scene.verbs * self._subject_preference[subject.noun] * reachable)
        weights = scene.nouns * self._object_preference[verb]
        weights[[subject.noun, *scene.recent]] *= REPEAT_FACTOR
        patient = self._noun_phrase(scene, weights)
        scene.recent = (patient.noun,)
        if form == "base" or (subject.plural and not scene.in_past):
            return f"{VERBS[verb]} {patient.words}"
        return f"{(past if scene.in_past else third_person)(VERBS[verb])} {patient.words}"

    def _noun_phrase(self, scene: _Scene, weights: Weights) -> _NounPhrase:
        noun = scene.pick(weights)
        mass = _NOUN_CLASS[noun] in MASS_NOUN_CLASSES
        is_plural = not mass and bool(scene.rng.random() < 0.2)
        words = plural(_NOUN_NAMES[noun]) if is_plural else _NOUN_NAMES[noun]
        if scene.rng.random() < 0.2:
            words = f"{self._adjective(scene, noun)} {words}"
        if noun in scene.mentioned:
            determiner = "the"
        elif mass or is_plural:
            determiner = "some"
        else:
            determiner = "an" if words[0] in "aeio" or words.startswith("ug") else "a"
        scene.mentioned.add(noun)
        return _NounPhrase(f"{determiner} {words}", noun, is_plural)

    def _adjective(self, scene: _Scene, noun: int) -> str:
        return _ADJECTIVE_NAMES[scene.pick(self._adjective_preference[noun])]

    def _place(self, scene: _Scene) -> str:
        place = scene.pick(scene.nouns * self._places)
        preposition = PREPOSITIONS[scene.pick(self._preposition_preference[place])]
        scene.mentioned.add(place)
        return f"{preposition} the {_NOUN_NAMES[place]}"

    def _pronoun(self, phrase: _NounPhrase) -> str:
        if phrase.plural:
            return "they"
        if _NOUN_CLASS[phrase.noun] != "person":
            return "it"
        return "she" if self._is_she[phrase.noun] else "he"

    def _be(self, scene: _Scene, subject: _NounPhrase) -> str:
        if scene.in_past:
            return "were" if subject.plural else "was"
        return "are" if subject.plural else "is"
