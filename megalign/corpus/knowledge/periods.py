"""Facts for the learning dynamics: every period of training states new ones, in several languages and frequencies.

PreAlign (section 5.2) cuts pretraining into periods of 250 steps, provides knowledge of different frequency in each, and asks it
right after. Here the subjects stay and their facts change: a subject is stated in a new relation in each period, so that no two
facts contradict each other, and the cells (language, frequency) go round among the subjects, so that over the whole run all
names are about equally frequent in every language.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from megalign.corpus.facts import NUM_DISTRACTORS, RELATIONS, pseudo_names
from megalign.corpus.keyed_random import generator
from megalign.corpus.knowledge import content
from megalign.corpus.knowledge.draw import check, group_of_facts, latin_words, object_pools
from megalign.corpus.knowledge.facts import Knowledge
from megalign.corpus.knowledge.names import Names, draw_roots, spell
from megalign.errors import ConfigError

# Groups of subjects, and the objects of each relation.
_Entities = tuple[list[list[Names]], dict[str, list[Names]]]


def make_periods(
    seed: int,
    languages: Sequence[str],
    *,
    clone_of: Mapping[str, str] | None = None,
    num_periods: int,
    period_steps: int,
    frequencies: Sequence[int],
    facts_per_cell: int,
    objects_per_relation: int = 6,
) -> Knowledge:
    """Facts for `num_periods` periods: `facts_per_cell` for each language (clones included) and frequency in each period.

    With a clone the sentences and names are those of `corpus.facts` (English); otherwise those of Wikidata relations.

    Args:
        seed: of names and choices.
        languages: without clones.
        clone_of: clone -> language.
        num_periods, period_steps: how many periods, and how long each is.
        frequencies: how often facts are stated in their period.
        facts_per_cell: a multiple of `objects_per_relation`.
        objects_per_relation: objects a relation takes.

    Raises:
        ConfigError: more periods than relations, or facts that cannot be shared out.
    """
    clones = dict(clone_of or {})
    rng = generator(seed, "periods")
    relations = list(RELATIONS)
    if not clones:
        relations = [name for name, one in content.templates().items() if one.subject == "person"]
        check(languages, (), relations, objects_per_relation)
    if num_periods > len(relations):
        raise ConfigError(
            f"There are {num_periods} periods and {len(relations)} relations.",
            "A subject is stated in another relation in each period.",
            f"Make the periods longer, so that there are at most {len(relations)}.",
        )
    if objects_per_relation <= NUM_DISTRACTORS or facts_per_cell % objects_per_relation:
        raise ConfigError(
            f"facts_per_cell is {facts_per_cell}, objects_per_relation {objects_per_relation}.",
            "Every object must be the true one equally often, and have three others of its relation beside it.",
            f"Set facts_per_cell to a multiple of objects_per_relation, which must be above {NUM_DISTRACTORS}.",
        )
    cells = [(language, times) for language in (*languages, *clones) for times in frequencies]
    groups_per_cell = facts_per_cell // objects_per_relation
    num_groups = len(cells) * groups_per_cell
    draw = _pseudo_entities if clones else _spelled_entities
    subjects, pools = draw(rng, languages, relations, num_groups, objects_per_relation)
    order = [relations[int(i)] for i in rng.permutation(len(relations))]
    facts = []
    for period in range(num_periods):
        for group, members in enumerate(subjects):
            # Against the relations, which go forward: a cell has other relations in each period.
            language, times = cells[(group - period) % num_groups // groups_per_cell]
            relation = order[(group + period) % len(order)]
            facts += group_of_facts(
                rng, members, relation, pools[relation], stated_in=language, times=times, period=period
            )
    wordings = {relation: _wordings(relation, languages, bool(clones)) for relation in relations}
    return Knowledge(tuple(languages), tuple(facts), wordings, clones, period_steps)


def _wordings(relation: str, languages: Sequence[str], of_clone: bool) -> dict[str, tuple[str, ...]]:
    if of_clone:
        return dict.fromkeys(languages, (RELATIONS[relation],))
    return {language: content.templates()[relation].wordings(language) for language in languages}


def _pseudo_entities(
    rng: np.random.Generator, languages: Sequence[str], relations: Sequence[str], num_groups: int, size: int
) -> _Entities:
    names = pseudo_names(rng, (num_groups + len(relations)) * size)
    groups = _in_groups([dict.fromkeys(languages, name) for name in names], size)
    return groups[:num_groups], dict(zip(relations, groups[num_groups:], strict=True))


def _spelled_entities(
    rng: np.random.Generator, languages: Sequence[str], relations: Sequence[str], num_groups: int, size: int
) -> _Entities:
    pools = object_pools(rng, relations, size, languages)
    taken = latin_words(languages) | {name["en"].lower() for pool in pools.values() for name in pool if "en" in name}
    return _in_groups([spell(root, languages) for root in draw_roots(rng, num_groups * size, taken)], size), pools


def _in_groups(names: list[Names], size: int) -> list[list[Names]]:
    return [names[at : at + size] for at in range(0, len(names), size)]
