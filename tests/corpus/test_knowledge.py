"""Facts of Wikidata relations: sentences and names in five languages, balanced facts, periods."""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from megalign.config import validate
from megalign.config.tasks import FACT_LANGUAGES
from megalign.corpus.facts import FactSet, make_facts, weave_chatter
from megalign.corpus.knowledge import content, names
from megalign.corpus.knowledge.export import statements, write_facts
from megalign.corpus.knowledge.facts import Knowledge, load_facts
from megalign.corpus.knowledge.periods import make_periods
from megalign.corpus.knowledge.wikidata import make_knowledge
from megalign.errors import ConfigError, DataError

LANGUAGES = content.LANGUAGES
SCRIPTS = {"en": "LATIN", "de": "LATIN", "zh": "CJK", "ru": "CYRILLIC", "ar": "ARABIC"}
FULL_STOPS = {"zh": "。"}


def scripts_of(text: str) -> set[str]:
    return {unicodedata.name(letter).split()[0] for letter in text if letter.isalpha()}


def test_there_are_relations_enough_in_every_language() -> None:
    assert LANGUAGES == FACT_LANGUAGES
    assert len(content.templates()) >= 30
    for wanted in ("P19", "P27", "P106", "P69", "P108", "P26", "P103", "P159", "P36"):
        assert wanted in content.templates()
    assert all(re.fullmatch(r"P\d+", relation) for relation in content.templates())


@pytest.mark.parametrize("language", LANGUAGES)
def test_sentences_are_whole_and_in_their_script(language: str) -> None:
    seen: Counter[str] = Counter()
    for relation, one in content.templates().items():
        wordings = one.wordings(language)
        assert len(wordings) >= 3
        for wording in wordings:
            assert (wording.count("{subject}"), wording.count("{object}")) == (1, 1), (relation, wording)
            words = wording.format(subject="", object="")
            assert scripts_of(words) == {SCRIPTS[language]}, (relation, wording)
            assert wording.endswith(FULL_STOPS.get(language, "."))
            assert "  " not in words.replace("  ", " ", 2).strip() or language == "zh"
            # Slots stand free, but for Chinese, which has no spaces, and Arabic "and", which is written with the word.
            if language != "zh":
                for before, after in re.findall(r"(\S?)\{\w+\}(\S?)", wording):
                    assert before in ("", "و"), wording
                    assert after in ("", ".", ",", ":"), wording
            else:
                assert " " not in wording
        seen.update(wordings)
    assert max(seen.values()) == 1, "two relations must not say the same"
    for text in content.chatter(language):
        assert (text.count("{first}"), text.count("{second}")) == (1, 1)
        assert scripts_of(text.format(first="", second="")) == {SCRIPTS[language]}


@pytest.mark.parametrize("language", ["en", "de", "ru", "ar"])
def test_sentences_agree_with_no_subject(language: str) -> None:
    """Words whose form tells the subject's gender must not stand in a sentence; nor a pronoun for it."""
    forbidden = {
        "en": r"\b(he|she|his|her|him)\b",
        "de": r"\b(er|ihr|ihre|sein|seine|seiner|ihrer)\b",
        # Past tenses end in -л, -ла, -лся, -лась. Names of places that do not follow the case of "в городе" are also out.
        "ru": r"\b\w+(л|ла|лся|лась)\b|\bв (городе|стране) *\.|\b(он|она|его|её|ему|ей)\b",
        # Verbs of the third person that would stand for the subject: was born, lives, studied, married, died.
        "ar": r"\b(كتبت|ولد|ولدت|يعيش|تعيش|درس|درست|تزوج|تزوجت|مات|ماتت)\b",
    }[language]
    allowed = {"ru": {"могила"}}.get(language, set())  # a noun: grave
    for relation, one in content.templates().items():
        for wording in one.wordings(language):
            found = re.search(forbidden, wording.format(subject="", object="").lower())
            assert found is None or found[0] in allowed, (relation, wording, found)


def test_objects_are_named_and_differ_in_every_language() -> None:
    for kind, entries in content.objects().items():
        assert len(entries) >= 6, kind
        for language in LANGUAGES:
            found = [entry[language] for entry in entries]
            assert all(name.strip() == name and name for name in found)
            assert len(set(found)) == len(found), (kind, language)
            assert set().union(*map(scripts_of, found)) == {SCRIPTS[language]}, (kind, language)
        assert all(set(entry) == set(LANGUAGES) for entry in entries)
    asked = {one.object for one in content.templates().values()} - set(content.INVENTED_TYPES)
    assert asked == set(content.objects())


def test_names_are_spelled_so_that_it_can_be_undone() -> None:
    syllables = [consonant + vowel for consonant, vowel in itertools.product(names.CONSONANTS, names.VOWELS)]
    for language in LANGUAGES:
        spelled = [names.spell(one, [language])[language].lower() for one in syllables]
        assert len(set(spelled)) == len(syllables), language
        # All syllables have one length, and spelling joins them: a text has one reading.
        assert len({len(text) for text in spelled}) == 1
        root = "".join(syllables[at] for at in (3, 17, 29))
        assert names.spell(root, [language])[language].lower() == "".join(spelled[at] for at in (3, 17, 29))
        assert scripts_of(names.spell(root, [language])[language]) == {SCRIPTS[language]}
    assert names.spell("kalibu", LANGUAGES) == {
        "en": "Kalibu", "zh": "卡利布", "de": "Kalibu", "ru": "Калибу", "ar": "كاليبو",
    }  # fmt: skip


def test_facts_are_balanced_in_every_group() -> None:
    knowledge = make_knowledge(7, LANGUAGES, objects_per_relation=6)
    assert make_knowledge(7, LANGUAGES, objects_per_relation=6) == knowledge
    groups = defaultdict(list)
    for fact in knowledge.facts:
        groups[fact.relation, fact.stated_in].append(fact)
    stated = {key for key in groups if key[1] is not None}
    assert stated == set(itertools.product(content.templates(), LANGUAGES))
    for (relation, stated_in), facts in groups.items():
        objects = Counter(fact.object["ru"] for fact in facts)
        assert len(objects) == 6
        assert set(objects.values()) == ({1} if stated_in else {5})
        wrong = Counter(other["ru"] for fact in facts for other in fact.distractors)
        assert len(set(wrong.values())) == 1, "every object is a distractor equally often"
        for fact in facts:
            names_of = {fact.object["zh"], *(other["zh"] for other in fact.distractors)}
            assert len(names_of) == 4
            assert fact.relation == relation
    truths = {(fact.subject["en"], fact.relation) for fact in knowledge.facts if fact.stated_in}
    controls = {(fact.subject["en"], fact.relation) for fact in knowledge.facts if fact.stated_in is None}
    assert len(truths) == len(controls) == 36 * 6 * 5
    assert not truths & controls, "a control fact is never stated"
    for language in LANGUAGES:
        subjects = [fact.subject[language] for fact in knowledge.facts if fact.stated_in]
        assert len(set(subjects)) == len(subjects), "each subject has one fact"


def test_all_language_pairs_can_be_asked() -> None:
    knowledge = make_knowledge(0, ["en", "zh"], relations=["P19", "P27", "P36", "P37"], objects_per_relation=4, times=3)
    for stated_in, asked_in in itertools.product(("en", "zh"), repeat=2):
        facts = knowledge.in_language(asked_in, knowledge.select(stated_in))
        assert len(facts.facts) == 16
        for fact in facts.facts:
            for wording in range(3):
                text = facts.statement(fact, wording=wording)
                assert fact.subject in text
                assert fact.object in text
                assert "".join(facts.statement_parts(fact, wording=wording)) == text
    texts = list(statements(knowledge, knowledge.select("zh"), "zh", 1))
    assert len(texts) == 48
    # Three statements of a fact are its three wordings, one in each third of the stream.
    assert len(set(texts)) == 48
    said = knowledge.in_language("zh", knowledge.select("zh"))
    for fact in said.facts:
        places = [texts.index(said.statement(fact, wording=wording)) for wording in range(3)]
        assert [place // 16 for place in places] == [0, 1, 2]


def test_chatter_joins_no_subject_with_an_object_it_is_asked_about() -> None:
    """Cities are objects of several relations: a subject must meet none of those of its own."""
    knowledge = make_knowledge(2, ["en", "de"], relations=["P19", "P20", "P551", "P937"], stated_in=["en"])
    facts = knowledge.in_language("de", knowledge.select("en"), knowledge.select(None))
    own = {}
    for fact in (*facts.facts, *facts.control_facts):
        own.setdefault(fact.subject, set()).update((fact.object, *fact.distractors))
    assert max(len(objects) for objects in own.values()) > 4
    texts = weave_chatter(iter(["Text."] * 3000), facts, share=1.0, seed=0, templates=content.chatter("de"))
    met = 0
    for text in texts:
        named = [word for word in re.findall(r"\w+", text) if word in own]
        met += bool(named)
        for subject in named:
            assert not own[subject] & set(re.findall(r"\w+", text))
    assert met > 1000


def test_objects_are_capitalised_where_they_begin_a_sentence() -> None:
    knowledge = make_knowledge(0, ["en", "ru"], relations=["P103", "P101"])
    for language, pattern in (("en", r"[A-Z]"), ("ru", r"[А-ЯЁ]")):
        facts = knowledge.in_language(language, knowledge.select("en"))
        for fact, wording in itertools.product(facts.facts, range(3)):
            assert re.match(pattern, facts.statement(fact, wording=wording))


def test_files_hold_what_was_made(tmp_path: Path) -> None:
    knowledge = make_knowledge(0, ["en", "de"], relations=["P19", "P20"], objects_per_relation=4, times=2)
    write_facts(knowledge, tmp_path / "facts", 0)
    assert load_facts(tmp_path / "facts/knowledge.json") == knowledge
    lines = [json.loads(line) for line in (tmp_path / "facts/facts.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == list(range(32))
    for line in lines:
        assert line["control"] == (line["stated_in"] is None)
        for language, said in line["statements"].items():
            assert line["object"][language] in said["true"]
            assert len({said["true"], *said["false"]}) == 4
    stated = [json.loads(line)["text"] for line in (tmp_path / "facts/train/de.jsonl").read_text().splitlines()]
    assert len(stated) == 16
    own = make_facts(0, 2, 4)
    own.save(tmp_path / "own.json")
    assert isinstance(load_facts(tmp_path / "own.json"), FactSet)
    (tmp_path / "own.json").write_text(json.dumps({"languages": ["en"], "facts": [{}]}))
    with pytest.raises(DataError, match=r"own\.json is not a set of facts in several languages"):
        load_facts(tmp_path / "own.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"languages": ["en", "fr"]}, "There are no facts in 'fr'"),
        ({"relations": ["P1"]}, "There is no relation P1"),
        (
            {"relations": ["P30", "P17"], "objects_per_relation": 7},
            "P30 has 6 objects .continent., objects_per_relation is 7",
        ),
        ({"objects_per_relation": 3}, "A fact needs 3 distractors"),
        ({"relations": ["P19", "P36"]}, "only P19 has the subject person"),
        ({"stated_in": ["ru"]}, "to be stated in 'ru', which is not among en, de"),
    ],
)
def test_what_cannot_be_made_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_knowledge(0, **{"languages": ["en", "de"], **changes})


def test_a_wording_without_its_slots_is_refused() -> None:
    one = content.templates()["P19"].model_dump()
    one["ru"] = ["Место рождения {subject}.", *one["ru"][1:]]
    with pytest.raises(ConfigError, match=r"ru: 'Место рождения \{subject\}\.' must have \{subject\} and \{object\}"):
        validate(content.Relation, one, "templates.yaml")
    one["ru"] = one["de"][:2]
    with pytest.raises(ConfigError, match="different numbers of wordings"):
        validate(content.Relation, one, "templates.yaml")


@pytest.mark.parametrize("languages", [("en",), ("en", "zh")])
def test_periods_state_new_facts_of_the_same_subjects(languages: tuple[str, ...]) -> None:
    clones = {"en-clone": "en"} if languages == ("en",) else None
    knowledge = make_periods(
        3, languages, clone_of=clones, num_periods=8, period_steps=50, frequencies=[1, 4], facts_per_cell=12
    )
    both = (*languages, *(clones or {}))
    assert (knowledge.num_periods, knowledge.stated_in) == (8, both)
    asked: set[tuple[str, str]] = set()
    for period in range(8):
        subjects = set()
        for language, times in itertools.product(both, (1, 4)):
            cell = knowledge.select(language, period=period, times=times)
            assert len(cell) == 12
            by_relation = defaultdict(list)
            for fact in cell:
                by_relation[fact.relation].append(fact.object["en"])
            assert all(Counter(objects).most_common(1)[0][1] == len(objects) // 6 for objects in by_relation.values())
            subjects |= {fact.subject["en"] for fact in cell}
            facts = {(fact.subject["en"], fact.relation) for fact in cell}
            assert not facts & asked, "no fact is stated in two periods, and none contradicts another"
            asked |= facts
        assert len(subjects) == 48
    # Each name is stated about equally often in each language over the run.
    counts: dict[str, Counter[str]] = {language: Counter() for language in both}
    for fact in knowledge.facts:
        counts[str(fact.stated_in)][fact.subject["en"]] += fact.times
    for count in counts.values():
        assert len(count) == 48
        assert max(count.values()) <= 2.6 * min(count.values())
    relations = [{fact.relation for fact in knowledge.select("en", period=period, times=4)} for period in range(8)]
    assert len(set().union(*relations)) >= 4, "a cell has other relations in other periods"


def test_periods_that_cannot_be_made_are_refused() -> None:
    settings = {"num_periods": 13, "period_steps": 5, "frequencies": [1], "facts_per_cell": 12}
    with pytest.raises(ConfigError, match="There are 13 periods and 12 relations"):
        make_periods(0, ["en"], clone_of={"en-clone": "en"}, **settings)
    with pytest.raises(ConfigError, match="facts_per_cell is 13, objects_per_relation 6"):
        make_periods(0, ["en", "de"], **{**settings, "facts_per_cell": 13})


def test_a_set_of_periods_is_saved_whole(tmp_path: Path) -> None:
    knowledge = make_periods(0, ["en", "ar"], num_periods=2, period_steps=5, frequencies=[2], facts_per_cell=6)
    knowledge.save(tmp_path / "periods.json")
    assert Knowledge.load(tmp_path / "periods.json") == knowledge


@pytest.mark.parametrize(
    ("languages", "times", "message"),
    [
        ([], 1, "No language is named"),
        (["en", "en"], 1, "A language is named twice in en, en"),
        (["en"], 0, "Facts are to be stated 0 times"),
    ],
)
def test_facts_of_nothing_are_refused(languages: list[str], times: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_knowledge(0, languages, times=times)
