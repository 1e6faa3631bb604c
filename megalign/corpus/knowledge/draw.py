"""Drawing facts: entities of the right kind, and groups in which every object is true and a distractor equally often."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from megalign.corpus.facts import NUM_DISTRACTORS
from megalign.corpus.knowledge import content
from megalign.corpus.knowledge.facts import KnownFact
from megalign.corpus.knowledge.names import Names, draw_roots, spell
from megalign.errors import ConfigError


def check(
    languages: Sequence[str], sources: Sequence[str], relations: Sequence[str], objects_per_relation: int
) -> None:
    """Refuse languages without sentences and objects that are too few or too many.

    Raises:
        ConfigError: see above.
    """
    if not languages:
        raise ConfigError("No language is named.", fix=f"Choose among {', '.join(content.LANGUAGES)}.")
    for named in (languages, sources):
        if len(set(named)) < len(named):
            raise ConfigError(f"A language is named twice in {', '.join(named)}.", fix="Name each once.")
    for language in (*languages, *sources):
        if language not in content.LANGUAGES:
            raise ConfigError(
                f"There are no facts in {language!r}.",
                "Their sentences are hand-written.",
                f"Choose among {', '.join(content.LANGUAGES)}.",
            )
        if language not in languages:
            raise ConfigError(f"Facts are to be stated in {language!r}, which is not among {', '.join(languages)}.")
    if objects_per_relation <= NUM_DISTRACTORS:
        raise ConfigError(
            f"objects_per_relation is {objects_per_relation}.",
            f"A fact needs {NUM_DISTRACTORS} distractors from its own relation.",
            f"Set it to {NUM_DISTRACTORS + 1} or more.",
        )
    for relation in relations:
        kind = content.templates()[relation].object
        listed = content.objects().get(kind)
        if listed is not None and len(listed) < objects_per_relation:
            raise ConfigError(
                f"The relation {relation} has {len(listed)} objects ({kind}), objects_per_relation is "
                f"{objects_per_relation}.",
                fix="Lower objects_per_relation, or leave the relation out.",
            )


def object_pools(
    rng: np.random.Generator, relations: Sequence[str], count: int, languages: Sequence[str]
) -> dict[str, list[Names]]:
    """The objects of each relation: drawn from those of its type, or invented and its own."""
    pools: dict[str, list[Names]] = {}
    taken = latin_words(languages)
    for relation in relations:
        listed = content.objects().get(content.templates()[relation].object)
        if listed is None:
            roots = draw_roots(rng, count, taken)
            taken |= set(roots)
            pools[relation] = [spell(root, languages) for root in roots]
        else:
            chosen = rng.choice(len(listed), size=count, replace=False)
            pools[relation] = [{language: listed[int(i)][language] for language in languages} for i in chosen]
    return pools


def latin_words(languages: Sequence[str]) -> set[str]:
    """Words of Latin script that a name must not be."""
    said = [
        wording
        for relation in content.templates().values()
        for language in languages
        for wording in relation.wordings(language)
    ]
    listed = [name for pool in content.objects().values() for entry in pool for name in entry.values()]
    return {word.strip(".,:").lower() for text in (*said, *listed) for word in text.split()}


def group_of_facts(
    rng: np.random.Generator, subjects: Sequence[Names], relation: str, pool: Sequence[Names], **stated: Any
) -> list[KnownFact]:
    """A fact for each subject; every object of the pool is true once and a distractor equally often."""
    order = [pool[int(i)] for i in rng.permutation(len(pool))]
    return [
        KnownFact(
            relation,
            subject,
            order[place],
            tuple(order[(place + step) % len(order)] for step in range(1, NUM_DISTRACTORS + 1)),
            **stated,
        )
        for place, subject in enumerate(subjects)
    ]
