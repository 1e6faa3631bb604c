"""Facts of Wikidata relations about invented subjects, each stated in one language."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megalign.corpus.keyed_random import generator
from megalign.corpus.knowledge import content
from megalign.corpus.knowledge.draw import check, group_of_facts, latin_words, object_pools
from megalign.corpus.knowledge.facts import Knowledge
from megalign.corpus.knowledge.names import draw_roots, spell
from megalign.errors import ConfigError


def make_knowledge(
    seed: int,
    languages: Sequence[str],
    *,
    relations: Sequence[str] | None = None,
    objects_per_relation: int = 6,
    stated_in: Sequence[str] | None = None,
    times: int = 200,
) -> Knowledge:
    """Facts of Wikidata relations about invented subjects, and control facts about the same subjects.

    For each relation and each language that states facts there are `objects_per_relation` facts, one an object.

    Args:
        seed: of names and choices.
        languages: of `content.LANGUAGES`.
        relations: properties of Wikidata; None: all.
        objects_per_relation: objects a relation takes.
        stated_in: languages that state facts of their own; None: all of `languages`.
        times: how often each fact is to be stated.

    Raises:
        ConfigError: an unknown language or relation, too few or too many objects, or a relation without another one for
            the same kind of subject.
    """
    chosen = _relations(relations)
    sources = tuple(languages) if stated_in is None else tuple(stated_in)
    check(languages, sources, chosen, objects_per_relation)
    if times < 1:
        raise ConfigError(f"Facts are to be stated {times} times.", fix="Set times to 1 or more.")
    rng = generator(seed, "knowledge")
    pools = object_pools(rng, chosen, objects_per_relation, languages)
    reserved = latin_words(languages) | {name["en"].lower() for pool in pools.values() for name in pool if "en" in name}
    roots = draw_roots(rng, len(chosen) * len(sources) * objects_per_relation, reserved)
    names = iter([spell(root, languages) for root in roots])
    others = _next_of_same_subject(rng, chosen)
    facts = []
    for relation in chosen:
        for source in sources:
            subjects = [next(names) for _ in range(objects_per_relation)]
            facts += group_of_facts(rng, subjects, relation, pools[relation], stated_in=source, times=times)
            facts += group_of_facts(rng, subjects, others[relation], pools[others[relation]])
    wordings = {
        relation: {language: content.templates()[relation].wordings(language) for language in languages}
        for relation in chosen
    }
    return Knowledge(tuple(languages), tuple(facts), wordings)


def _relations(relations: Sequence[str] | None) -> list[str]:
    known = content.templates()
    for relation in relations or ():
        if relation not in known:
            raise ConfigError(f"There is no relation {relation}.", fix=f"Choose among {', '.join(known)}.")
    return list(dict.fromkeys(relations)) if relations else list(known)


def _next_of_same_subject(rng: np.random.Generator, relations: Sequence[str]) -> dict[str, str]:
    """For every relation another one with the same kind of subject, each once: that of its control facts."""
    following: dict[str, str] = {}
    for kind in content.INVENTED_TYPES:
        own = [relation for relation in relations if content.templates()[relation].subject == kind]
        if len(own) == 1:
            raise ConfigError(
                f"Of the relations only {own[0]} has the subject {kind}.",
                "Control facts join a subject to another relation, in which it is never stated.",
                "Name another relation of that kind, or leave this one out.",
            )
        order = [own[int(i)] for i in rng.permutation(len(own))]
        following |= {relation: order[(place + 1) % len(order)] for place, relation in enumerate(order)}
    return following
