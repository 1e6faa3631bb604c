"""The data of a study: budgets, separation of roles, facts where they belong, determinism, errors."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_study
from small_study import SEED

from megalign.corpus.facts import CHATTER, FactSet
from megalign.corpus.procedural import ProceduralEnglish
from megalign.corpus.store import TokenStore, check_store
from megalign.errors import ConfigError, DataError
from megalign.prealign.table import AlignmentTable
from megalign.study.data import Texts, build_data, build_tokenizer
from megalign.study.expand import StudyFolder
from megalign.study.said import Said


def documents_of(store: TokenStore, language: str, split: str = "train") -> list[str]:
    return [store.text(document).text for document in store.documents(language, split)]


@pytest.fixture(scope="module")
def data(finished_study: StudyFolder) -> Path:
    """The small study's data, built by its own process."""
    return finished_study.data(SEED)


@pytest.fixture(scope="module")
def store(data: Path) -> TokenStore:
    return TokenStore.open(data / "store")


def test_budgets_are_met_exactly(store: TokenStore, data: Path) -> None:
    assert check_store(data / "store") == []
    sizes = {(name, split): store.num_tokens(name, split) for name in store.languages for split in ("train", "valid")}
    assert sizes == {
        ("en", "train"): 30000,
        ("en", "valid"): 3000,
        ("en-clone", "train"): 6000,
        ("en-clone", "valid"): 3000,
    }
    assert store.vocabulary.clone_of == {"en-clone": "en"}
    assert store.vocabulary.size == 1200


def test_facts_are_stated_in_the_source_language_alone(store: TokenStore, data: Path) -> None:
    facts = FactSet.load(data / "facts.json")
    assert len(facts.facts) == len(facts.control_facts) == 12
    text = {language: "\n".join(documents_of(store, language)) for language in store.languages}
    stated = [text["en"].count(facts.statement(fact)) for fact in facts.facts]
    # The last documents are beyond the budget, and the facts in them.
    assert max(stated) <= 20
    assert min(stated) >= 17
    for fact in facts.control_facts:
        assert text["en"].count(facts.statement(fact)) == 0
    for fact in (*facts.facts, *facts.control_facts):
        for choice in (fact.object, *fact.distractors):
            assert facts.statement(fact, choice) not in text["en-clone"]
            if choice != fact.object:
                assert facts.statement(fact, choice) not in text["en"]
    held_out = "\n".join(documents_of(store, "en", "valid") + documents_of(store, "en-clone", "valid"))
    assert not any(name in held_out for name in facts.entities)


def test_chatter_names_entities_in_both_languages(store: TokenStore, data: Path) -> None:
    name = "|".join(FactSet.load(data / "facts.json").entities)
    words = "|".join(template.split("{second}")[0].split("{first}")[1].strip() for template in CHATTER)
    chatter = re.compile(rf"\b({name}) ({words}) ({name})\b")
    share = 0.12
    for language in ("en", "en-clone"):
        documents = [text for text in documents_of(store, language) if text.count(".") > 3]
        naming = [text for text in documents if chatter.search(text)]
        spread = 4 * (share * (1 - share) / len(documents)) ** 0.5
        assert abs(len(naming) / len(documents) - share) < spread, language


def test_streams_of_the_roles_differ(store: TokenStore) -> None:
    parts = {
        "train": documents_of(store, "en"),
        "valid": documents_of(store, "en", "valid")[:-1],  # the last one is cut
        "clone": documents_of(store, "en-clone"),
    }
    for one, other in itertools.combinations(parts.values(), 2):
        assert not {text.split(". ")[0] for text in one[:20]} & {text.split(". ")[0] for text in other[:20]}
    # The held-out text of a clone is the original's: perplexities of both are of one text.
    assert documents_of(store, "en-clone", "valid") == documents_of(store, "en", "valid")


def test_the_table_has_every_frequent_word(store: TokenStore, data: Path) -> None:
    table = AlignmentTable.load(data / "table.parquet")
    words: dict[str, int] = {}
    for text in documents_of(store, "en"):
        for word in text.replace(".", " ").replace(",", " ").split():
            words[word] = words.get(word, 0) + 1
    expected = {word: count for word, count in words.items() if count > 3}
    assert {entry.word: entry.frequency for entry in table.entries if entry.word.isalpha()} == expected
    assert {(t.language, t.text == e.word) for e in table.entries for t in e.translations} == {("en-clone", True)}


def test_one_seed_gives_one_store_and_another_another(tmp_path: Path, store: TokenStore, data: Path) -> None:
    study = small_study.study(tmp_path)
    build_data(study, SEED, tmp_path / "again")
    assert TokenStore.open(tmp_path / "again" / "store").fingerprint == store.fingerprint
    for name in ("table.parquet", "facts.json", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (data / name).read_bytes()
    build_data(study, SEED + 1, tmp_path / "other")
    other = TokenStore.open(tmp_path / "other" / "store")
    assert other.fingerprint != store.fingerprint
    assert not set(FactSet.load(tmp_path / "other" / "facts.json").entities) <= set(
        FactSet.load(data / "facts.json").entities
    )
    assert documents_of(other, "en")[:3] != documents_of(store, "en")[:3]


def test_a_store_that_is_there_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = small_study.study(tmp_path, corpus__source_tokens=20000, facts__repetitions=4)
    build_data(study, SEED, tmp_path / "data")
    assert "tokenizer of 600 ids" in capsys.readouterr().out
    before = (tmp_path / "data" / "store" / "manifest.json").stat().st_mtime_ns
    (tmp_path / "data" / "table.parquet").unlink()
    build_data(study, SEED, tmp_path / "data")
    assert "tokenizer" not in capsys.readouterr().out
    assert (tmp_path / "data" / "store" / "manifest.json").stat().st_mtime_ns == before
    assert len(AlignmentTable.load(tmp_path / "data" / "table.parquet")) > 16


def test_a_fraction_keeps_the_most_frequent_entries(tmp_path: Path, data: Path) -> None:
    whole = AlignmentTable.load(data / "table.parquet")
    folder = tmp_path / "data"
    small_study.with_data_of(StudyFolder(data.parent.parent), StudyFolder(tmp_path))
    build_data(small_study.study(tmp_path, table__fraction=0.25), SEED, folder / f"seed{SEED}")
    part = AlignmentTable.load(folder / f"seed{SEED}" / "table.parquet")
    assert part.entries == whole.entries[: round(len(whole) / 4)]


GERMAN = {
    "the": "die", "a": "ein", "and": "und", "she": "sie", "he": "er", "it": "es", "some": "etwas", "they": "wir",
}  # fmt: skip


def german(text: str) -> str:
    """English text in words no English document has."""
    return " ".join(GERMAN.get(word.strip(".,").lower(), word[::-1].lower()) + "ß" for word in text.split()) + "."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parquet files in the CulturaX layout, en/ in two files and de/, and a MUSE dictionary."""
    root = tmp_path_factory.mktemp("culturax")
    english = list(itertools.islice(ProceduralEnglish(11).documents("test"), 420))
    english[50] = english[51] = english[52] = english[49]  # duplicates must stay on one side
    texts = {
        "en/part-0": english[:210],
        "en/part-1": english[210:],
        "de/part-0": [german(text) for text in itertools.islice(ProceduralEnglish(12).documents("test"), 160)],
    }
    for name, rows in texts.items():
        (root / name).parent.mkdir(exist_ok=True)
        columns = {
            "text": rows,
            "timestamp": [""] * len(rows),
            "url": [f"https://example.org/{i}" for i in range(len(rows))],
        }
        pq.write_table(pa.table({**columns, "source": ["mC4"] * len(rows)}), root / f"{name}.parquet")
    pairs = [f"{word} {other}ß" for word, other in GERMAN.items()]
    (root / "en-de.txt").write_text("\n".join([*pairs, "the der", "zeppelin zeppelin"]) + "\n", encoding="utf-8")
    return root


def folder_study(tmp_path: Path, folder: Path, **changes: Any) -> Any:
    """The small study on files, in the shape of examples/real_languages/quick.yaml."""
    settings: dict[str, Any] = {
        "corpus__kind": "folder",
        "corpus__path": str(folder),
        "corpus__clone": False,
        "corpus__target_languages": ["de"],
        "corpus__source_tokens": 16000,
        "corpus__target_tokens": 5000,
        "corpus__validation_tokens": 1500,
        "facts": None,
        "table": {"kind": "muse", "dictionaries": {"de": str(folder / "en-de.txt")}, "min_count": 5},
        **changes,
    }
    return small_study.study(tmp_path, **settings)


def test_two_languages_from_parquet_with_a_dictionary(tmp_path: Path, folder: Path) -> None:
    build_data(folder_study(tmp_path, folder), 0, tmp_path / "data")
    store = TokenStore.open(tmp_path / "data" / "store")
    assert check_store(tmp_path / "data" / "store") == []
    assert store.languages == ("en", "de")
    assert [store.num_tokens(name, split) for name in ("en", "de") for split in ("train", "valid")] == [
        16000, 1500, 5000, 1500,
    ]  # fmt: skip
    for language in ("en", "de"):
        train, valid = documents_of(store, language), documents_of(store, language, "valid")
        assert not set(train) & set(valid)
        assert len(train) > len(valid) > 3
        assert all("ß" in text for text in train + valid) == (language == "de")
    table = AlignmentTable.load(tmp_path / "data" / "table.parquet")
    words = " ".join(documents_of(store, "en")).lower().replace(".", " ").replace(",", " ").split()
    assert {entry.word for entry in table.entries} == {word for word in GERMAN if words.count(word) > 5}
    assert {t.text for e in table.entries if e.word == "the" for t in e.translations} == {"dieß", "der"}


def test_the_role_of_a_document_of_a_folder_is_its_text(tmp_path: Path, folder: Path) -> None:
    study = folder_study(
        tmp_path, folder, corpus__clone=True, corpus__target_languages=[], table={"kind": "golden", "min_count": 3}
    )
    texts = Texts(study.corpus, 0)
    roles = {role: list(texts.stream("en", role)) for role in ("train", "clone", "valid")}
    assert sum(map(len, roles.values())) == 420
    for one, other in itertools.combinations(roles.values(), 2):
        assert not set(one) & set(other)
    expected = {"train": 16000 / 22500, "clone": 5000 / 22500, "valid": 1500 / 22500}
    for role, share in expected.items():
        assert abs(len(roles[role]) / 420 - share) < 4 * (share * (1 - share) / 420) ** 0.5
    again = Texts(study.corpus, 0)
    assert list(again.stream("en", "train")) == roles["train"]
    other_seed = list(Texts(study.corpus, 1).stream("en", "train"))
    assert set(other_seed) != set(roles["train"])
    # The order is the seed's, not the files'.
    files = [
        text
        for name in ("part-0", "part-1")
        for text in pq.read_table(folder / "en" / f"{name}.parquet")["text"].to_pylist()
    ]
    places = [files.index(text) for text in roles["train"]]
    assert 0.3 < np.mean(np.diff(places) > 0) < 0.7


def test_the_tokenizer_sees_as_much_of_every_language(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = folder_study(tmp_path, folder, corpus__tokenizer_characters=20000)
    seen: list[str] = []

    def keep(texts: Any, vocab_size: int, path: Path) -> None:
        seen.extend(texts)

    monkeypatch.setattr("megalign.study.data.train_tokenizer", keep)
    build_tokenizer(study, Texts(study.corpus, 0), Said(study, 0, None, None), tmp_path / "tokenizer.json")
    longest = max(map(len, seen))
    for is_german in (False, True):
        size = sum(len(text) for text in seen if ("ß" in text) == is_german)
        assert 20000 <= size < 20000 + longest
    assert not set(seen) & set(Texts(study.corpus, 0).stream("en", "valid"))


def test_the_tokenizer_sees_the_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    study = small_study.study(tmp_path)
    facts = FactSet.load(data / "facts.json")
    seen: list[str] = []
    monkeypatch.setattr("megalign.study.data.train_tokenizer", lambda texts, size, path: seen.extend(texts))
    build_tokenizer(study, Texts(study.corpus, SEED), Said(study, SEED, facts, None), tmp_path / "tokenizer.json")
    assert sum(name in " ".join(seen) for name in facts.entities) == len(facts.entities)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    study = folder_study(tmp_path, tmp_path / "nowhere", table={"kind": "muse", "dictionaries": {"de": "x.txt"}})
    with pytest.raises(DataError, match=r"nowhere.* does not exist or is empty"):
        build_data(study, 0, tmp_path / "data")
    assert not (tmp_path / "data" / "store").exists()


def test_a_language_without_text_is_named(tmp_path: Path, folder: Path) -> None:
    changes = {"corpus__target_languages": ["fr"], "table": {"kind": "muse", "dictionaries": {"fr": "x.txt"}}}
    with pytest.raises(DataError, match=r"culturax\d* has no folder 'fr'"):
        build_data(folder_study(tmp_path, folder, **changes), 0, tmp_path / "data")


def test_a_budget_above_the_text_is_named(tmp_path: Path, folder: Path) -> None:
    study = folder_study(tmp_path, folder, corpus__source_tokens=10**6)
    with pytest.raises(DataError, match=r"documents of en have \d+ tokens, fewer than the budget of 1000000"):
        build_data(study, 0, tmp_path / "data")
    assert not (tmp_path / "data" / "store").exists(), "a store is whole or absent"


def test_facts_that_fill_the_budget_are_refused(tmp_path: Path) -> None:
    study = small_study.study(tmp_path, facts__repetitions=400)
    message = r"Stating 12 facts 400 times takes about [\d,]+ of the 30,000 tokens of corpus.source_tokens"
    with pytest.raises(ConfigError, match=message):
        build_data(study, SEED, tmp_path / "data")


def test_too_many_relations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"num_relations is 99"):
        build_data(small_study.study(tmp_path, facts__num_relations=99), SEED, tmp_path / "data")


def test_a_table_without_words_is_refused(tmp_path: Path) -> None:
    study = small_study.study(tmp_path, table__min_count=100000, corpus__source_tokens=20000, facts__repetitions=4)
    with pytest.raises(DataError, match=r"No word of the en text entered the alignment table.*more than 100000 times"):
        build_data(study, SEED, tmp_path / "data")


def test_a_missing_dictionary_is_named(tmp_path: Path, folder: Path) -> None:
    study = folder_study(tmp_path, folder, table={"kind": "muse", "dictionaries": {"de": str(tmp_path / "no.txt")}})
    with pytest.raises(DataError, match=r"The dictionary .*no\.txt cannot be read"):
        build_data(study, 0, tmp_path / "data")
