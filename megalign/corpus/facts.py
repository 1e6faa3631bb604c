"""Invented facts for testing cross-lingual knowledge application (CLKA; PreAlign, arXiv 2407.16222, section 5.2).

A fact is "subject relation object" about pseudo-names. Each object is the true one of exactly one fact of its relation, and
distractors come from the same relation, so knowing which names a relation takes gives 25 % and no more. Control facts join
known subjects to a relation in which they were never stated; whatever is scored on them must stay at chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from megalign import files
from megalign.corpus.keyed_random import generator
from megalign.corpus.procedural import word_types
from megalign.errors import ConfigError, DataError

RELATIONS = {
    "home": "{subject} lives in {object}.",
    "employer": "{subject} works for {object}.",
    "language": "{subject} speaks {object}.",
    "birthplace": "{subject} was born in {object}.",
    "spouse": "{subject} is married to {object}.",
    "teacher": "{subject} learned from {object}.",
    "team": "{subject} plays for {object}.",
    "instrument": "{subject} owns a {object}.",
    "rival": "{subject} fights against {object}.",
    "school": "{subject} studied at {object}.",
    "river": "{subject} fishes at {object}.",
    "friend": "{subject} writes to {object}.",
}
CHATTER = ("Nobody saw {first} or {second}.", "People know {first} and {second}.", "{first} came before {second}.")
NUM_DISTRACTORS = 3
_ONSETS = (*"bdfghjklmnprstvz", "br", "dr", "gr", "kl", "kr", "pl", "st", "tr")
_NUCLEI = tuple("aeiou")
_CODAS = ("", "", "", *"nlrsm")


@dataclass(frozen=True, slots=True)
class Fact:
    """A true statement and the objects of its relation that would make it false."""

    subject: str
    relation: str
    object: str
    distractors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FactSet:
    """Facts to state in training and control facts never stated.

    Attributes:
        facts: one per subject.
        control_facts: one per subject, in another relation.
        relations: relation -> template with {subject} and {object}, as it is asked.
        wordings: relation -> more templates, in which it is stated besides.
    """

    facts: tuple[Fact, ...]
    control_facts: tuple[Fact, ...]
    relations: dict[str, str]
    wordings: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def statement_parts(self, fact: Fact, object: str | None = None, wording: int = 0) -> tuple[str, str, str]:
        """A statement as (prefix, " object", suffix): "X lives in", " Y", "."; the object's space is there where the text has one.

        Args:
            fact: subject and relation.
            object: another object than the true one.
            wording: number of the template, counted round.
        """
        templates = (self.relations[fact.relation], *self.wordings.get(fact.relation, ()))
        template = templates[wording % len(templates)]
        prefix, suffix = template.format(subject=fact.subject, object="\0").split("\0")
        named = fact.object if object is None else object
        if not prefix:
            named = named[0].upper() + named[1:]
        space = " " if prefix.endswith(" ") else ""
        return prefix.removesuffix(" "), space + named, suffix

    def statement(self, fact: Fact, object: str | None = None, wording: int = 0) -> str:
        """The sentence that states a fact, or that claims it of another object."""
        return "".join(self.statement_parts(fact, object, wording))

    @property
    def entities(self) -> tuple[str, ...]:
        """Names of all subjects, then of all objects."""
        return tuple(f.subject for f in self.facts) + tuple(f.object for f in self.facts)

    def save(self, path: Path) -> None:
        """Write the set as JSON."""
        files.write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> FactSet:
        """Read what `save` wrote.

        Raises:
            DataError: the file is missing or is no set of facts.
        """
        content = files.read_json(path)
        try:
            facts, controls = (
                tuple(Fact(f["subject"], f["relation"], f["object"], tuple(f["distractors"])) for f in content[key])
                for key in ("facts", "control_facts")
            )
            wordings = {name: tuple(texts) for name, texts in content.get("wordings", {}).items()}
            return cls(facts, controls, dict(content["relations"]), wordings)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} is not a set of facts: {type(error).__name__} {error}.") from None


def make_facts(seed: int, num_relations: int = 10, objects_per_relation: int = 6) -> FactSet:
    """Facts about fresh pseudo-names: `num_relations` x `objects_per_relation` of them, and as many control facts.

    Raises:
        ConfigError: more relations than there are templates, fewer than 2, or too few objects for 3 distractors.
    """
    if not 2 <= num_relations <= len(RELATIONS):
        raise ConfigError(f"num_relations is {num_relations}.", fix=f"Set it from 2 to {len(RELATIONS)}.")
    if objects_per_relation <= NUM_DISTRACTORS:
        raise ConfigError(
            f"objects_per_relation is {objects_per_relation}.",
            f"A fact needs {NUM_DISTRACTORS} distractors from its own relation.",
            f"Set it to {NUM_DISTRACTORS + 1} or more.",
        )
    rng = generator(seed, "facts")
    names = pseudo_names(rng, 2 * num_relations * objects_per_relation)
    shape = (2, num_relations, objects_per_relation)
    subjects, objects = np.array(names).reshape(shape).tolist()
    relations = dict(list(RELATIONS.items())[:num_relations])
    order = rng.permutation(num_relations).tolist()
    facts: list[Fact] = []
    controls: list[Fact] = []
    for place, index in enumerate(order):
        # Control facts of a relation's subjects are in the next relation of a random cycle: never the same, each once.
        other = order[(place + 1) % num_relations]
        for target, of_relation in ((facts, index), (controls, other)):
            pool = rng.permutation(objects[of_relation]).tolist()
            for i, subject in enumerate(subjects[index]):
                following = [pool[(i + step) % len(pool)] for step in range(1, NUM_DISTRACTORS + 1)]
                target.append(Fact(subject, list(relations)[of_relation], pool[i], tuple(following)))
    return FactSet(tuple(facts), tuple(controls), relations)


def pseudo_names(rng: np.random.Generator, count: int) -> list[str]:
    """Pronounceable capitalised names, all different, none a word of the procedural corpus."""
    taken = set(word_types()) | {word.strip(".").lower() for t in RELATIONS.values() for word in t.split()}
    names: list[str] = []
    while len(names) < count:
        parts = [_pick(rng, _ONSETS) + _pick(rng, _NUCLEI) + _pick(rng, _CODAS) for _ in range(int(rng.integers(2, 4)))]
        name = "".join(parts)
        if name not in taken:
            taken.add(name)
            names.append(name.capitalize())
    return names


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def weave_facts(
    documents: Iterator[str], facts: FactSet, *, repetitions: int, num_documents: int, seed: int
) -> Iterator[str]:
    """State every fact `repetitions` times within a stream of documents.

    Half of the statements (rounded down) stand as documents of their own, so that a fact is also read right after the
    end-of-text token; the others end ordinary documents. The k-th of a fact's n statements of a kind falls at random into
    the k-th n-th of the stream. Wordings of a relation take turns.

    Args:
        documents: ordinary documents; the first `num_documents` are used.
        facts: what to state.
        repetitions: statements per fact.
        num_documents: ordinary documents in the stream.
        seed: fixes the places.

    Yields:
        `num_documents` ordinary documents and, between them, the facts that stand alone.

    Raises:
        ConfigError: there is no document to weave into, or `repetitions` is negative.
        DataError: `documents` ends early.
    """
    if num_documents < 1 or repetitions < 0:
        raise ConfigError(f"Cannot state facts {repetitions} times over {num_documents} documents.")
    rng = generator(seed, "weave-facts")
    count = [0] * len(facts.facts)

    def statement(number: int) -> str:
        count[number] += 1
        return facts.statement(facts.facts[number], wording=count[number] - 1)

    alone = _places(rng, len(facts.facts), repetitions // 2, num_documents)
    appended = _places(rng, len(facts.facts), repetitions - repetitions // 2, num_documents)
    for index in range(num_documents):
        try:
            document = next(documents)
        except StopIteration:
            raise DataError(f"The documents end after {index} of {num_documents}.") from None
        for fact in alone[index]:
            yield statement(fact)
        yield " ".join([document, *(statement(fact) for fact in appended[index])])


def _places(rng: np.random.Generator, num_facts: int, repetitions: int, num_documents: int) -> list[list[int]]:
    """For each document the facts that go there, in random order."""
    strata = np.arange(repetitions)[:, None] + rng.random((repetitions, num_facts))
    position = np.minimum((strata * num_documents / max(repetitions, 1)).astype(np.int64), num_documents - 1)
    places: list[list[int]] = [[] for _ in range(num_documents)]
    for flat in rng.permutation(position.size).tolist():
        places[int(position.flat[flat])].append(flat % num_facts)
    return places


def weave_chatter(
    documents: Iterator[str], facts: FactSet, *, share: float = 0.12, seed: int, templates: Sequence[str] = CHATTER
) -> Iterator[str]:
    """End a share of the documents with a sentence that names two entities and states no fact about them.

    A subject never meets an object of a relation it is scored in, true or distractor, so that the sentence says nothing
    about any answer.

    Args:
        documents: ordinary documents.
        facts: whose entities are named.
        share: probability that a document gets a sentence, from 0 to 1.
        seed: fixes the documents and the names.
        templates: sentences with {first} and {second}, in the documents' language.

    Raises:
        ConfigError: `share` is outside 0 to 1.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"The share of documents with chatter is {share}.", fix="Set it from 0 to 1.")
    rng = generator(seed, "weave-chatter")
    scored: dict[str, set[str]] = {}
    for fact in (*facts.facts, *facts.control_facts):
        scored.setdefault(fact.subject, set()).add(fact.relation)
    relations_of: dict[str, set[str]] = {}
    for fact in facts.facts:
        relations_of.setdefault(fact.object, set()).add(fact.relation)
    entities = facts.entities
    for document in documents:
        if rng.random() >= share:
            yield document
            continue
        while True:
            first, second = (entities[int(i)] for i in rng.choice(len(entities), size=2, replace=False))
            meets = relations_of.get(first, set()) | relations_of.get(second, set())
            if not meets & (scored.get(first, set()) | scored.get(second, set())):
                break
        template = templates[int(rng.integers(len(templates)))]
        yield f"{document} {template.format(first=first, second=second)}"
