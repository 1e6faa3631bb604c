"""Facts in several languages: which are stated, in which language and how often, and which never are.

PreAlign (arXiv 2407.16222, section 4.2) states invented facts of Wikidata relations in one language and asks them in another.
Within a group of facts that are stated alike (same language, same frequency) every object of a relation is the true one
equally often and a distractor equally often, so that neither a relation nor an object's frequency tells the answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megalign import files
from megalign.corpus.facts import Fact, FactSet
from megalign.corpus.knowledge.names import Names
from megalign.errors import DataError


@dataclass(frozen=True, slots=True)
class KnownFact:
    """A fact with the names of its entities in every language.

    Attributes:
        relation: property of Wikidata, or a key of the wordings.
        subject, object: language -> name.
        distractors: other objects of the relation.
        stated_in: language of the texts that state it; None: never stated, a control.
        times: how often it is stated.
        period: number of the period of training that states it; None: it is spread over all of it.
    """

    relation: str
    subject: Names
    object: Names
    distractors: tuple[Names, ...]
    stated_in: str | None = None
    times: int = 0
    period: int | None = None

    def named_in(self, language: str) -> Fact:
        """The fact with the names of one language."""
        others = tuple(other[language] for other in self.distractors)
        return Fact(self.subject[language], self.relation, self.object[language], others)


@dataclass(frozen=True)
class Knowledge:
    """Facts, and how they are said.

    Attributes:
        languages: languages that entities are named in; clones are not among them.
        facts: in no particular order.
        wordings: relation -> language -> sentences with {subject} and {object}; the first one is asked.
        clone_of: clone -> the language whose names and sentences it takes.
        period_steps: length of a period of training; None where there are none.
    """

    languages: tuple[str, ...]
    facts: tuple[KnownFact, ...]
    wordings: dict[str, dict[str, tuple[str, ...]]]
    clone_of: dict[str, str] = field(default_factory=dict)
    period_steps: int | None = None

    @property
    def all_languages(self) -> tuple[str, ...]:
        """Languages that facts can be stated and asked in, clones included."""
        return (*self.languages, *self.clone_of)

    @property
    def stated_in(self) -> tuple[str, ...]:
        """Languages that state facts, in the order of `all_languages`."""
        found = {fact.stated_in for fact in self.facts}
        return tuple(language for language in self.all_languages if language in found)

    @property
    def num_periods(self) -> int:
        """Periods of training that state facts."""
        return 1 + max((fact.period for fact in self.facts if fact.period is not None), default=-1)

    def select(
        self, stated_in: str | None, *, period: int | None = None, times: int | None = None
    ) -> tuple[KnownFact, ...]:
        """The facts of a language (None: controls) and period, of one frequency where it is given."""
        return tuple(
            fact
            for fact in self.facts
            if fact.stated_in == stated_in and fact.period == period and (times is None or fact.times == times)
        )

    def in_language(self, language: str, facts: Iterable[KnownFact], controls: Iterable[KnownFact] = ()) -> FactSet:
        """Facts as a language says them, for weaving into text and for the scorer.

        Args:
            language: of `all_languages`.
            facts, controls: of this set.
        """
        own = self.clone_of.get(language, language)
        said = {relation: wordings[own] for relation, wordings in self.wordings.items()}
        return FactSet(
            tuple(fact.named_in(own) for fact in facts),
            tuple(fact.named_in(own) for fact in controls),
            {relation: wordings[0] for relation, wordings in said.items()},
            {relation: wordings[1:] for relation, wordings in said.items()},
        )

    def lines(self) -> list[dict[str, Any]]:
        """A JSON value for each fact, with its true and false statements in every language."""
        told = []
        for number, fact in enumerate(self.facts):
            statements = {}
            for language in self.languages:
                one = self.in_language(language, [fact])
                named = one.facts[0]
                false = [one.statement(named, other) for other in named.distractors]
                statements[language] = {"true": one.statement(named), "false": false}
            told.append({"id": number, "control": fact.stated_in is None, **asdict(fact), "statements": statements})
        return told

    def save(self, path: Path) -> None:
        """Write the set as JSON."""
        files.write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Knowledge:
        """Read what `save` wrote.

        Raises:
            DataError: the file is missing or is no set of facts.
        """
        return cls.from_json(files.read_json(path), path)

    @classmethod
    def from_json(cls, value: dict[str, Any], path: Path) -> Knowledge:
        """A set from the value that `save` writes; `path` is for messages."""
        try:
            return cls(
                languages=tuple(value["languages"]),
                facts=tuple(
                    KnownFact(**{**fact, "distractors": tuple(fact["distractors"])}) for fact in value["facts"]
                ),
                wordings={
                    relation: {language: tuple(texts) for language, texts in said.items()}
                    for relation, said in value["wordings"].items()
                },
                clone_of=dict(value["clone_of"]),
                period_steps=value["period_steps"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path} is not a set of facts in several languages: {type(error).__name__} {error}.",
                fix="Make it with tools/make_facts.py, or let the study make it.",
            ) from None


def load_facts(path: Path) -> FactSet | Knowledge:
    """A set of facts in one language or in several, whichever the file holds.

    Raises:
        DataError: the file is missing or is no set of facts.
    """
    content = files.read_json(path)
    if isinstance(content, dict) and "languages" in content:
        return Knowledge.from_json(content, path)
    return FactSet.load(path)
