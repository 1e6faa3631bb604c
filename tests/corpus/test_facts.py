"""Facts: nothing but a stated fact can tell which object is true."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from itertools import islice, repeat
from pathlib import Path

import pytest

from megalign.corpus.facts import FactSet, make_facts, weave_chatter, weave_facts
from megalign.corpus.procedural import ProceduralEnglish, word_types
from megalign.errors import ConfigError, DataError


@pytest.mark.parametrize("seed", range(5))
def test_facts_are_balanced(seed: int) -> None:
    facts = make_facts(seed)
    assert len(facts.facts) == len(facts.control_facts) == 60
    assert len(facts.relations) == 10
    assert len(set(facts.entities)) == 120
    for group in (facts.facts, facts.control_facts):
        assert len({f.subject for f in group}) == 60
        objects: dict[str, set[str]] = defaultdict(set)
        for fact in group:
            objects[fact.relation].add(fact.object)
        assert {len(o) for o in objects.values()} == {6}
        for fact in group:
            assert len(set(fact.distractors)) == 3
            assert set(fact.distractors) < objects[fact.relation] - {fact.object}
        assert set(Counter(d for f in group for d in f.distractors).values()) == {3}
    relation = {f.subject: f.relation for f in facts.facts}
    assert all(relation[f.subject] != f.relation for f in facts.control_facts)
    assert {f.object for f in facts.facts} == {f.object for f in facts.control_facts}


def test_a_fixed_taste_for_objects_scores_at_chance() -> None:
    """A model that only ranks a relation's names gets 25 % on facts and controls, averaged over seeds."""
    hits: Counter[str] = Counter()
    for seed in range(200):
        facts = make_facts(seed)
        for name, group in (("facts", facts.facts), ("controls", facts.control_facts)):
            hits[name] += sum(f.object < min(f.distractors) for f in group)
    for name in ("facts", "controls"):
        assert abs(hits[name] / (200 * 60) - 0.25) < 0.016  # four standard errors


def test_names_are_fresh_words() -> None:
    facts = make_facts(0)
    assert all(re.fullmatch(r"[A-Z][a-z]{3,11}", name) for name in facts.entities)
    assert not {name.lower() for name in facts.entities} & word_types()
    assert make_facts(0) == facts
    assert not set(make_facts(1).entities) & set(facts.entities)


def test_statement_parts_join_to_the_statement() -> None:
    facts = make_facts(0)
    for fact in facts.facts:
        prefix, continuation, suffix = facts.statement_parts(fact)
        assert prefix + continuation + suffix == facts.statement(fact)
        assert prefix.startswith(fact.subject)
        assert continuation == " " + fact.object
        assert suffix == "."
        assert facts.statement_parts(fact, "Xo")[1] == " Xo"
        assert facts.statement(fact, "Xo") == facts.statement(fact).replace(fact.object, "Xo")


def test_save_and_load(tmp_path: Path) -> None:
    facts = make_facts(7, 3, 5)
    facts.save(tmp_path / "facts.json")
    assert FactSet.load(tmp_path / "facts.json") == facts
    (tmp_path / "facts.json").write_text('{"facts": [{}]}')
    with pytest.raises(DataError, match="is not a set of facts: KeyError"):
        FactSet.load(tmp_path / "facts.json")


@pytest.mark.parametrize("repetitions", [0, 1, 7, 20])
def test_every_fact_is_stated_as_often_as_asked(repetitions: int) -> None:
    facts = make_facts(0)
    plain = list(islice(ProceduralEnglish(0).documents("train"), 100))
    woven = list(weave_facts(iter(plain), facts, repetitions=repetitions, num_documents=100, seed=1))
    statements = {facts.statement(fact) for fact in facts.facts}
    alone = Counter(text for text in woven if text in statements)
    appended: Counter[str] = Counter()
    rest = []
    for text in woven:
        if text in statements:
            continue
        while any(text.endswith(" " + (hit := s)) for s in statements):
            appended[hit] += 1
            text = text.removesuffix(" " + hit)
        rest.append(text)
    assert rest == plain
    assert set(alone.values()) | {repetitions // 2} == {repetitions // 2}
    assert all(alone[s] == repetitions // 2 and appended[s] == repetitions - repetitions // 2 for s in statements)
    assert list(weave_facts(iter(plain), facts, repetitions=repetitions, num_documents=100, seed=1)) == woven


def test_statements_are_spread_over_the_stream() -> None:
    facts = make_facts(0)
    woven = list(weave_facts(repeat("x"), facts, repetitions=40, num_documents=1000, seed=1))
    for fact in facts.facts:
        ordinary, places = 0, []
        for text in woven:
            if text == facts.statement(fact):
                places.append(ordinary)
            ordinary += text.startswith("x")
        # The k-th of 20 lies in the k-th twentieth.
        assert [place // 50 for place in places] == list(range(20))


def test_weave_errors() -> None:
    facts = make_facts(0)
    with pytest.raises(DataError, match="The documents end after 2 of 3"):
        list(weave_facts(iter(["a", "b"]), facts, repetitions=1, num_documents=3, seed=0))
    with pytest.raises(ConfigError, match="over 0 documents"):
        list(weave_facts(iter([]), facts, repetitions=1, num_documents=0, seed=0))
    with pytest.raises(ConfigError, match=r"share of documents with chatter is 1.2"):
        list(weave_chatter(iter(["a"]), facts, share=1.2, seed=0))
    with pytest.raises(ConfigError, match="objects_per_relation is 3"):
        make_facts(0, objects_per_relation=3)
    with pytest.raises(ConfigError, match="num_relations is 99"):
        make_facts(0, num_relations=99)


def test_chatter_names_every_entity_and_hints_at_no_answer() -> None:
    facts = make_facts(0)
    texts = list(weave_chatter(islice(repeat("x"), 20000), facts, share=0.12, seed=5))
    said = [text[2:] for text in texts if text != "x"]
    assert abs(len(said) / 20000 - 0.12) < 0.01
    named = Counter(name for text in said for name in re.findall(r"[A-Z][a-z]+", text) if name in facts.entities)
    assert set(named) == set(facts.entities)
    assert min(named.values()) > max(named.values()) / 4
    relations = defaultdict(set)
    for fact in (*facts.facts, *facts.control_facts):
        relations[fact.subject].add(fact.relation)
    objects = {fact.object: fact.relation for fact in facts.facts}
    for text in said:
        names = [name for name in re.findall(r"[A-Z][a-z]+", text) if name in facts.entities]
        assert len(names) == 2
        for subject in names:
            assert not any(objects.get(other) in relations[subject] for other in names)
