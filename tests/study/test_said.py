"""What a study's texts say: facts in real languages, periods, sentences of inference; and the steps that follow from it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import small_study
from small_study import SEED

from megalign.config import StudyConfig
from megalign.corpus.entailment import NEW_WORDS
from megalign.corpus.facts import FactSet
from megalign.corpus.inference_files import read_pairs
from megalign.corpus.knowledge.facts import Knowledge
from megalign.corpus.store import TokenStore
from megalign.errors import ConfigError
from megalign.prealign.table import AlignmentTable
from megalign.study.data import build_data
from megalign.study.expand import StudyFolder, nli_settings, run_config
from megalign.study.graph import steps_of
from megalign.study.said import Said

DYNAMICS = {"period_steps": 6, "frequencies": [1, 4], "facts_per_cell": 4, "objects_per_relation": 4}
NLI = {"num_train": 60, "num_test": 30, "epochs": 1, "sentence_share": 0.3}


def real(**changes: Any) -> dict[str, Any]:
    """Changes that make the small study one of English and Russian."""
    return {
        "corpus": {
            "kind": "folder", "path": "unset", "target_languages": ["ru"], "source_tokens": 20000, "target_tokens": 4000,
            "validation_tokens": 1000, "vocab_size": 900, "tokenizer_characters": 60000,
        },
        "table": {"kind": "muse", "dictionaries": {"ru": "unset"}, "min_count": 1},
        "facts": {"kind": "wikidata", "num_relations": 3, "objects_per_relation": 4, "repetitions": 10},
        **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyConfig, Path]:
    """The data of a small clone study with periods and inference."""
    folder = tmp_path_factory.mktemp("said")
    study = small_study.study(folder, dynamics=DYNAMICS, nli=NLI, methods=["joint", "prealign"])
    build_data(study, SEED, folder / "data")
    return study, folder / "data"


def test_names_of_periods_are_words_of_the_table(made: tuple[StudyConfig, Path]) -> None:
    study, data = made
    periods = Knowledge.load(data / "periods.json")
    assert (periods.num_periods, periods.period_steps) == (2, 6)
    known = {entry.word for entry in AlignmentTable.load(data / "table.parquet").entries}
    stated = " ".join(Said.load(study, SEED, data).period_statements("en"))
    often = {fact.subject["en"] for fact in periods.facts if stated.count(fact.subject["en"]) > study.table.min_count}
    assert often
    assert often <= known
    store = TokenStore.open(data / "store")
    text = " ".join(store.text(document).text for document in store.documents("en"))
    assert not [name for name in often if name in text], "periods are stated while training, not in the text"


def test_sentences_of_inference_are_in_both_languages_texts(made: tuple[StudyConfig, Path]) -> None:
    _, data = made
    store = TokenStore.open(data / "store")
    for language in store.languages:
        words = re.findall(r"\w+", " ".join(store.text(one).text.lower() for one in store.documents(language)))
        assert {"every", "no", "not", "did"} <= set(words)
        assert len(set(NEW_WORDS) & set(words)) >= 5
        held_out = (store.text(one).text for one in store.documents(language, "valid"))
        assert "every" not in " ".join(held_out).lower().split(), "held-out text is that of every other study"
    train, test = (read_pairs(data / f"nli/{name}.jsonl", "en") for name in ("train", "test"))
    assert (len(train), len(test)) == (60, 30)


def test_runs_and_steps_follow(made: tuple[StudyConfig, Path], tmp_path: Path) -> None:
    study, _ = made
    folder = StudyFolder(tmp_path)
    config = run_config(study, folder, study.methods[0], SEED)
    assert config.data.periods == str(tmp_path / f"data/seed{SEED}/periods.json")
    steps = [step.name for step in steps_of(study, folder)]
    assert steps[-4:] == [f"{kind}-{name}-seed{SEED}" for kind in ("run", "nli") for name in ("joint", "prealign")]
    step = next(step for step in steps_of(study, folder) if step.name == f"nli-joint-seed{SEED}")
    assert step.needs == [f"run-joint-seed{SEED}"]
    settings = nli_settings(study, folder, SEED)
    assert set(settings.test) == {"en", "en-clone"}
    assert len({settings.test["en"], settings.test["en-clone"]}) == 1


def write_corpus(folder: Path) -> None:
    texts = {
        "en": "The old house stands near the river. Many people walk there every day, and the water is cold. ",
        "ru": "Старый дом стоит у реки. Многие люди гуляют там каждый день, и вода холодная. ",
    }
    for language, text in texts.items():
        (folder / language).mkdir(parents=True)
        rows = (json.dumps({"text": f"{text * 3} {number}."}) + "\n" for number in range(900))
        (folder / language / "a.jsonl").write_text("".join(rows), encoding="utf-8")


def test_facts_of_real_languages_are_stated_in_the_source_and_named_in_both(tmp_path: Path) -> None:
    write_corpus(tmp_path / "text")
    (tmp_path / "en-ru.txt").write_text("house дом\nriver реки\npeople люди\nwater вода\n", encoding="utf-8")
    changes = real()
    changes["corpus"]["path"], changes["table"]["dictionaries"] = (
        str(tmp_path / "text"),
        {"ru": str(tmp_path / "en-ru.txt")},
    )
    study = small_study.study(tmp_path, **changes)
    build_data(study, SEED, tmp_path / "data")
    said = Said.load(study, SEED, tmp_path / "data")
    assert isinstance(said.facts, Knowledge)
    store = TokenStore.open(tmp_path / "data/store")
    texts = {
        language: "\n".join(store.text(one).text for one in store.documents(language)) for language in ("en", "ru")
    }
    facts = {language: said.facts_in(language) for language in ("en", "ru")}
    assert facts["en"] is not None
    assert facts["ru"] is not None
    for english, russian in zip(facts["en"].facts, facts["ru"].facts, strict=True):
        stated = sum(texts["en"].count(facts["en"].statement(english, wording=wording)) for wording in range(3))
        assert 9 <= stated <= 10, "the budget may cut the last one off"
        assert not any(facts["ru"].statement(russian, wording=wording) in texts["ru"] for wording in range(3))
    assert re.search(r"Люди знают про [А-Я]|упоминаются [А-Я]|говорит про [А-Я]", texts["ru"]), "chatter names them"


def test_facts_made_before_are_of_one_language(tmp_path: Path) -> None:
    study = small_study.study(tmp_path)
    said = Said.make(study, SEED, tmp_path)
    assert isinstance(said.facts, FactSet)
    assert said.facts_in("en") is said.facts
    assert list(said.period_statements("en")) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"facts__kind": "wikidata"}, "facts of kind 'wikidata' are for real languages"),
        (real(facts={"num_relations": 3}), "facts of kind 'invented' are tested in a clone language"),
        (real(nli=NLI), r"nli\.kind 'generated' is for corpus\.kind 'procedural' with a clone"),
        ({"dynamics": {**DYNAMICS, "period_steps": 7}}, r"dynamics\.period_steps 7 must be a multiple of train\.evaluate_interval"),
        ({"dynamics": DYNAMICS, "train__batch_size_ramp": [{"until_tokens": 100, "global_batch_size": 2}]},
         "dynamics has periods of equal batches"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        small_study.study(tmp_path, **changes)


def test_facts_in_a_language_without_sentences_are_refused(tmp_path: Path) -> None:
    changes = real()
    changes["corpus"]["target_languages"], changes["table"]["dictionaries"] = ["fr"], {"fr": "x"}
    with pytest.raises(ConfigError, match="facts cannot be said in 'fr', only in en, zh, de, ru, ar"):
        small_study.study(tmp_path, **changes)
