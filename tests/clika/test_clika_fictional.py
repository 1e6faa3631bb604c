"""Invented knowledge: the same for a seed, unambiguous, in the right script, consistent over languages; files round trip."""

from __future__ import annotations

import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from megalign.clika import fictional
from megalign.clika.fictional import ENGLISH, World, WorldSettings, invent, knowledge_of, words
from megalign.clika.knowledge import read_knowledge, write_knowledge
from megalign.clika.knowledge_checks import check_folder, check_knowledge
from megalign.config.load import validate
from megalign.errors import ConfigError

OTHERS = [code for code in words().languages if code != ENGLISH]
ROOTS = ("shared", "own")
SCRIPTS = {
    "ru": {"CYRILLIC"},
    "ar": {"ARABIC"},
    "he": {"HEBREW"},
    "ja": {"KATAKANA", "KATAKANA-HIRAGANA", "CJK", "HIRAGANA"},
    "zh": {"CJK"},
}


def world(**changes: Any) -> World:
    content = {"places": 80, "continents": 4, "variants": 3, "seed": 7} | changes
    return invent(validate(WorldSettings, content, "test"))


def test_there_are_the_paper_s_languages() -> None:
    assert set(OTHERS) == {"ar", "de", "fr", "he", "it", "ja", "pl", "ru", "zh"}


@pytest.mark.parametrize("roots", ROOTS)
def test_a_seed_gives_the_same_names_and_another_seed_others(roots: str) -> None:
    assert world(roots=roots) == world(roots=roots)
    names = {one[ENGLISH] for one in world(roots=roots).places}
    others = {one[ENGLISH] for one in world(roots=roots, seed=8).places}
    assert len(names & others) < 4


def test_names_do_not_depend_on_the_languages_written(tmp_path: Path) -> None:
    one = world()
    for folder, languages in (("all", OTHERS), ("one", ["ru"])):
        for code in languages:
            write_knowledge(knowledge_of(one, code), tmp_path / folder)
    for path in (tmp_path / "one").rglob("*.json*"):
        assert path.read_bytes() == (tmp_path / "all" / path.relative_to(tmp_path / "one")).read_bytes()


@pytest.mark.parametrize("roots", ROOTS)
def test_names_are_unambiguous_in_every_language(roots: str) -> None:
    one = world(roots=roots, places=400, continents=20)
    for code in words().languages:
        places, continents = [p[code] for p in one.places], [c[code] for c in one.continents]
        assert len(set(places)) == 400
        assert len(set(continents)) == 20
        names = [*places, *continents]
        for continent in continents:
            assert sum(continent in name for name in names) == 1, (code, continent)


@pytest.mark.parametrize("code", sorted(SCRIPTS))
def test_names_are_in_the_script_of_the_language(code: str) -> None:
    one = world(places=400, continents=20)
    letters = {letter for name in (*one.places, *one.continents) for letter in name[code] if letter.isalpha()}
    assert {unicodedata.name(letter).split()[0] for letter in letters} <= SCRIPTS[code]


def test_each_continent_has_as_many_places_of_either_type() -> None:
    one = world(places=400, continents=20)
    counts = Counter((place % 20, kind) for place, kind in enumerate(one.types))
    assert set(counts.values()) == {10}
    assert len(counts) == 40


def test_names_mean_the_same_in_all_languages() -> None:
    one = world()
    sets = {code: knowledge_of(one, code) for code in OTHERS}
    english = [(t.place, t.continent, t.type) for t in sets["de"].tests[ENGLISH]]
    for code, content in sets.items():
        assert [(t.place, t.continent, t.type) for t in content.tests[ENGLISH]] == english
        meaning = {name.translated: name.english for name in content.names}
        assert [(meaning[t.place], meaning[t.continent], t.type) for t in content.tests[code]] == english


def test_own_roots_share_nothing_and_shared_ones_are_spelled_alike() -> None:
    def roots_of(one: World, code: str) -> list[str]:
        return [place[code].replace("-", " ").split()[0] for place in one.places]

    shared, own = world(), world(roots="own")
    same = [
        a == b.replace("W", "V").replace("w", "v")
        for a, b in zip(roots_of(shared, "en"), roots_of(shared, "de"), strict=True)
    ]
    assert all(same)
    assert not set(roots_of(own, "en")) & set(roots_of(own, "de"))


@pytest.mark.parametrize("directions", [["to_english"], ["to_english", "from_english"]])
def test_training_rows_are_those_of_the_protocol(directions: list[str]) -> None:
    content = knowledge_of(world(directions=directions), "fr")
    statements = [row for row in content.train if not row.input]
    translations = [row for row in content.train if row.input]
    assert len(statements) == 3 * (80 + 40)
    assert len(translations) == 3 * 84 * len(directions)
    taught = {name: sum(name in row.prompt for row in statements) for name in (t.place for t in content.tests["fr"])}
    assert {t.type: taught[t.place] for t in content.tests["fr"]} == {0: 3, 1: 0}
    assert Counter(t.type for t in content.tests["fr"]) == {0: 40, 1: 40}
    assert len({(row.prompt, row.input, row.answer) for row in content.train}) == len(content.train)
    first = {row.prompt: row.answer for row in statements}
    assert all(first[t.row.prompt] == t.row.answer for t in content.tests[ENGLISH])


def test_twenty_five_wordings_differ() -> None:
    content = knowledge_of(world(places=8, continents=2, variants=25), "ja")
    place = content.tests["en"][0].place
    rows = [row for row in content.train if place in row.prompt and not row.input]
    assert len({(row.prompt, row.answer) for row in rows}) == 25


@pytest.mark.parametrize("roots", ROOTS)
def test_nothing_is_found_wrong_with_what_is_written(tmp_path: Path, roots: str) -> None:
    one = world(roots=roots)
    for code in OTHERS:
        write_knowledge(knowledge_of(one, code), tmp_path)
        content, findings = read_knowledge(tmp_path, code)
        assert (content, findings) == (knowledge_of(one, code), [])
    assert check_folder(tmp_path, OTHERS) == []


def test_translations_taught_as_released_are_reported() -> None:
    findings = check_knowledge(knowledge_of(world(directions=["to_english"]), "ru"))
    assert [finding.kind for finding in findings] == ["translation_direction"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: world(places=90), "90 places cannot be shared out over 4 continents and two types"),
        (lambda: world(places=40, continents=2, variants=26), "variants"),
        (lambda: world(roots="none"), "roots"),
        (lambda: knowledge_of(world(), "en"), "There is no invented knowledge in 'en'"),
        (lambda: knowledge_of(world(), "xx"), "Languages are de, fr"),
    ],
)
def test_what_cannot_be_invented_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


def test_names_can_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fictional, "CONSONANTS", "bd")
    monkeypatch.setattr(fictional, "_MAX_TRIES", 1_000)
    with pytest.raises(ConfigError, match="There are not enough names for 4000 places"):
        world(places=4000, continents=2)
