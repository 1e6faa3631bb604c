"""Scoring with planted log-likelihoods: what must be 100 %, chance, and nothing; and files of scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small_study import json_lines

from megalign.config.sections import ParallelConfig
from megalign.corpus.facts import FactSet, make_facts
from megalign.corpus.knowledge.periods import make_periods
from megalign.corpus.knowledge.wikidata import make_knowledge
from megalign.corpus.tokenizer import train_tokenizer
from megalign.corpus.vocabulary import Vocabulary
from megalign.evaluation import alignment, clka, scores
from megalign.evaluation.scores import Score
from megalign.intervals import bootstrap_mean, wilson_interval
from megalign.prealign.encoded import EncodedTable
from megalign.prealign.table import AlignmentTable, Entry, Translation

FACTS = make_facts(5, num_relations=4, objects_per_relation=4)
ENGINE: Any = SimpleNamespace(layout=SimpleNamespace(parallel=ParallelConfig()))


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    text = " ".join(FACTS.statement(fact) for fact in FACTS.facts)
    tokenizer = train_tokenizer([text] * 5, 400, tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")
    return Vocabulary(tokenizer, ("en", "en-clone"), {"en-clone": "en"})


def planted(monkeypatch: pytest.MonkeyPatch, vocabulary: Vocabulary, surprise: Callable[[str, int], float]) -> None:
    """Let every statement cost `surprise(statement, first token's id)` nats."""

    def score_rows(
        engine: Any, tokens: np.ndarray, labels: np.ndarray, *, batch_size: int
    ) -> tuple[np.ndarray, dict[str, Any]]:
        assert (tokens[:, 0] == vocabulary.eos_id).all()
        assert (tokens[:, 1:] == labels[:, :-1]).all()
        nll = np.full(labels.shape, 1e6, dtype=np.float32)  # what stands on padding must not count
        for row, ids in zip(nll, labels, strict=True):
            length = int((ids != vocabulary.eos_id).sum())
            row[0], row[1:length] = surprise(vocabulary.decode(ids[:length]), int(ids[0])), 0.0
        return nll, {}

    monkeypatch.setattr(clka, "score_rows", score_rows)


def measured(vocabulary: Vocabulary, language: str = "en", facts: FactSet = FACTS) -> dict[str, Score]:
    found = clka.clka_scores(ENGINE, vocabulary, facts, language, batch_size=4, step=7)
    return {score.metric: score for score in found}


def test_a_model_that_knows_the_facts_has_all_and_no_control(
    monkeypatch: pytest.MonkeyPatch, vocabulary: Vocabulary
) -> None:
    known = {FACTS.statement(fact) for fact in FACTS.facts}
    planted(monkeypatch, vocabulary, lambda text, _: 3.0 if text in known else 5.0 + len(text) / 100)
    found = measured(vocabulary)
    assert found["clka"].value == 1.0
    assert (found["clka"].low, found["clka"].high) == wilson_interval(16, 16)
    assert found["clka_control"].value < 1.0
    margins = [
        5.0 + min(len(FACTS.statement(fact, other)) for other in fact.distractors) / 100 - 3.0 for fact in FACTS.facts
    ]
    assert found["clka_margin"].value == pytest.approx(np.mean(margins), rel=1e-5)
    low, high = bootstrap_mean(margins, seed=20240722)
    assert (found["clka_margin"].low, found["clka_margin"].high) == pytest.approx((low, high), rel=1e-4)


def test_per_token_and_total_can_disagree(monkeypatch: pytest.MonkeyPatch, vocabulary: Vocabulary) -> None:
    """Every statement costs as much as it has letters, and true ones a little more: by the token the longest text wins."""
    known = {FACTS.statement(fact) for fact in FACTS.facts}
    planted(monkeypatch, vocabulary, lambda text, _: 10.0 + (0.01 if text in known else 0.0))
    found = measured(vocabulary)
    assert found["clka"].value == 0.0, "all others are likelier in total"
    lengths = [
        [len(vocabulary.encode(FACTS.statement(fact, choice), "en")) for choice in (fact.object, *fact.distractors)]
        for fact in FACTS.facts
    ]
    expected = np.mean([-10.01 / own > max(-10.0 / other for other in others) for own, *others in lengths])
    assert 0 < expected < 1
    assert found["clka_per_token"].value == expected
    margins = [-10.01 / own - max(-10.0 / other for other in others) for own, *others in lengths]
    assert found["clka_margin_per_token"].value == pytest.approx(np.mean(margins), rel=1e-4)


def test_pairs_of_languages_are_kept_apart(monkeypatch: pytest.MonkeyPatch, vocabulary: Vocabulary) -> None:
    """A model that knows what the clone stated, when asked in the clone, and nothing else."""
    knowledge = make_periods(
        1, ["en"], clone_of={"en-clone": "en"}, num_periods=2, period_steps=5, frequencies=[1, 3], facts_per_cell=6
    )
    known = knowledge.in_language("en", knowledge.select("en-clone", period=0, times=3))
    true = {known.statement(fact) for fact in known.facts}
    first = vocabulary.tokenizer.vocab_size
    planted(
        monkeypatch, vocabulary, lambda text, token: 1.0 if text in true and token >= first else 5.0 + len(text) / 100
    )
    found = list(clka.period_scores(ENGINE, vocabulary, knowledge, 0, batch_size=4, step=5))
    shares = {(score.metric, score.language, score.level): score.value for score in found}
    cells = [(f"clka_from_{a}", b, n) for b in ("en", "en-clone") for a in ("en", "en-clone") for n in (1, 3)]
    assert [key for key in shares if key[0] != "clka_before"] == cells
    assert shares["clka_from_en-clone", "en-clone", 3] == 1.0
    assert all(value < 0.7 for key, value in shares.items() if key != ("clka_from_en-clone", "en-clone", 3))
    assert {score.n for score in found} == {6, 24}
    assert ("clka_before", "en", None) in shares
    last = clka.period_scores(ENGINE, vocabulary, knowledge, 1, batch_size=4, step=10)
    assert not [score for score in last if score.metric == "clka_before"], "no period follows"


def test_facts_of_several_languages_are_asked_in_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A model that knows what German stated, however it is asked; the headline is of what English stated."""
    knowledge = make_knowledge(0, ["en", "de"], relations=["P19", "P27", "P22"], objects_per_relation=4)
    sides = {language: knowledge.in_language(language, knowledge.select("de")) for language in ("en", "de")}
    true = {said.statement(fact) for said in sides.values() for fact in said.facts}
    tokenizer = train_tokenizer([*true] * 5, 500, tmp_path / "tokenizer.json")
    both = Vocabulary(tokenizer, ("en", "de"))
    planted(monkeypatch, both, lambda text, _: 1.0 if text in true else 5.0 + len(text) / 100)
    found = list(clka.knowledge_scores(ENGINE, both, knowledge, "en", batch_size=8, step=3))
    shares = {(score.metric, score.language): score.value for score in found}
    assert shares["clka_from_de", "en"] == shares["clka_from_de", "de"] == 1.0
    for language in ("en", "de"):
        assert shares["clka", language] == shares["clka_from_en", language] < 0.7
        assert shares["clka_control", language] < 0.7
    assert {score.n for score in found if score.metric == "clka_control"} == {24}


def test_knowing_popular_objects_alone_is_chance(monkeypatch: pytest.MonkeyPatch, vocabulary: Vocabulary) -> None:
    order = np.random.default_rng(1).permutation(len(FACTS.facts))
    popularity = {fact.object: float(rank) for fact, rank in zip(FACTS.facts, order, strict=True)}
    planted(monkeypatch, vocabulary, lambda text, _: 9.0 - popularity[text.rstrip(".").split(" ")[-1]] / 8)
    found = measured(vocabulary)
    assert found["clka"].value == 0.25
    assert found["clka_control"].value == 0.25


def test_a_model_that_knows_nothing_has_nothing(monkeypatch: pytest.MonkeyPatch, vocabulary: Vocabulary) -> None:
    planted(monkeypatch, vocabulary, lambda text, _: 4.0)
    found = measured(vocabulary)
    assert found["clka"].value == 0.0, "four equally likely statements are no answer"
    assert found["clka_margin"].value == pytest.approx(0.0, abs=1e-5)


def test_the_statement_is_asked_in_the_language(monkeypatch: pytest.MonkeyPatch, vocabulary: Vocabulary) -> None:
    known = {FACTS.statement(fact) for fact in FACTS.facts}
    size = vocabulary.tokenizer.vocab_size

    def english_only(text: str, first_id: int) -> float:
        return 3.0 if text in known and first_id < size else 5.0

    planted(monkeypatch, vocabulary, english_only)
    assert measured(vocabulary, "en")["clka"].value == 1.0
    assert measured(vocabulary, "en-clone")["clka"].value == 0.0


def test_alignment_over_entries_with_several_and_equal_translations(vocabulary: Vocabulary) -> None:
    entries = [
        Entry("river", 9, (Translation("de", "fluss", "t"), Translation("de", "strom", "t"))),
        Entry("power", 8, (Translation("de", "strom", "t"),)),
        Entry("house", 7, (Translation("de", "haus", "t"), Translation("fr", "maison", "t"))),
        Entry("rare", 1, (Translation("de", "selten", "t"),)),
    ]
    several = Vocabulary(vocabulary.tokenizer, ("en", "de", "fr"))
    encoded = EncodedTable(AlignmentTable(entries, "en"), several)
    rng = np.random.default_rng(2)
    vector_of = {text: rng.normal(size=(2, 5)) for e in entries for text in (e.word, *(t.text for t in e.translations))}
    order = [text for e in entries[:3] for text in (e.word, *(t.text for t in e.translations))]

    def represent(batches: list[Any]) -> list[np.ndarray]:
        (batch,) = batches
        assert batch.num_words == len(order)
        return [np.stack([vector_of[text] for text in order], axis=1).astype(np.float32)]

    engine: Any = SimpleNamespace(represent=represent, interrupt=lambda: None)
    found = {
        (s.metric, s.language, s.level): s for s in alignment.alignment_scores(engine, encoded, num_entries=3, step=1)
    }

    def cosine(a: str, b: str, level: int) -> float:
        x, y = vector_of[a][level], vector_of[b][level]
        return float(x @ y / np.sqrt((x @ x) * (y @ y)))

    german = ["fluss", "strom", "strom", "haus"]
    for level in range(2):
        near = {word: [cosine(word, text, level) for text in german] for word in ("river", "power", "house")}
        aligned = [(near["river"][0] + near["river"][1]) / 2, near["power"][2], near["house"][3]]
        assert found["aligned_cosine", "de", level].value == pytest.approx(np.mean(aligned), abs=1e-6)
        # "strom" stands in two entries: to find either is right, and neither is a random pair of the other's word.
        others = [[3], [0, 3], [0, 1, 2]]
        random = [np.mean([row[i] for i in places]) for row, places in zip(near.values(), others, strict=True)]
        assert found["random_cosine", "de", level].value == pytest.approx(np.mean(random), abs=1e-6)
        best = [german[int(np.argmax(row))] for row in near.values()]
        hits = np.mean([best[0] in ("fluss", "strom"), best[1] == "strom", best[2] == "haus"])
        assert found["retrieval_at_1", "de", level].value == pytest.approx(hits)
        # One entry alone has a French word: a value, and no interval over a single unit.
        french = found["aligned_cosine", "fr", level]
        assert french.value == pytest.approx(cosine("house", "maison", level), abs=1e-6)
        assert (french.low, french.high, french.n) == (None, None, 1)
        assert ("random_cosine", "fr", level) not in found


def score(step: int, value: float, metric: str = "perplexity") -> Score:
    return Score(metric, "en", None, step, value, None, None, 8, "perplexity")


def test_every_step_stands_once_in_a_file_of_scores(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    scores.append(path, [score(0, 9.0), score(0, 1.0, "clka")])
    scores.append(path, [score(6, 8.0)])
    scores.append(path, [score(6, 7.5)])  # a resumed run measures a step again
    scores.replace_final(path, [score(12, 5.0)], 12)
    scores.replace_final(path, [score(12, 4.0)], 12)
    assert [(line["step"], line["value"]) for line in json_lines(path)] == [(0, 9.0), (0, 1.0), (6, 7.5), (12, 4.0)]
    scores.drop_from(path, 6)
    assert [line["step"] for line in json_lines(path)] == [0, 0]
    scores.replace_final(path, [score(3, 2.0)], 3)
    assert [line["step"] for line in json_lines(path)] == [0, 0, 3]
    assert set(json_lines(path)[0]) == {"metric", "language", "level", "step", "value", "low", "high", "n", "unit"}


def test_a_half_written_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    scores.append(path, [score(0, 9.0)])
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"step": 6})[:-3])
    scores.append(path, [score(6, 8.0)])
    assert [line["step"] for line in json_lines(path)] == [0, 6]


def test_final_scores_make_the_file(tmp_path: Path) -> None:
    scores.replace_final(tmp_path / "scores.jsonl", [score(4, 3.0)], 4)
    assert [line["value"] for line in json_lines(tmp_path / "scores.jsonl")] == [3.0]
