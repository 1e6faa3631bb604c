"""The scores of a trained run against references computed from its logits, one text or word at a time, in float64."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import ranks
import reading
from scipy.special import log_softmax
from small_study import SEED, json_lines

from megalign.config import RunConfig
from megalign.corpus.facts import FactSet
from megalign.corpus.store import TokenStore
from megalign.errors import DataError
from megalign.evaluation.perplexity import validation_windows
from megalign.evaluation.scores import Score
from megalign.prealign.table import AlignmentTable
from megalign.study.expand import StudyFolder

SINGLE = ranks.layout_of()
LANGUAGES = ("en", "en-clone")


@pytest.fixture(scope="module")
def config(finished_study: StudyFolder, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A copy of the finished run of prealign."""
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    shutil.copytree(finished_study.run("prealign", SEED), folder)
    return reading.run_config(folder, folder)


@pytest.fixture(scope="module")
def store(config: RunConfig) -> TokenStore:
    return TokenStore.open(Path(config.data.store))


@pytest.fixture(scope="module")
def scores(config: RunConfig) -> list[Score]:
    """What `evaluate` measures in one process."""
    (measured,) = ranks.run(reading.scores_of, SINGLE, config)
    return measured


def the(scores: list[Score], metric: str, language: str, level: int | None = None) -> Score:
    (found,) = [s for s in scores if (s.metric, s.language, s.level) == (metric, language, level)]
    return found


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    return log_softmax(logits.astype(np.float64), axis=-1)


def test_text_scores_are_those_of_the_raw_logits(config: RunConfig, store: TokenStore, scores: list[Score]) -> None:
    length, vocabulary = config.model.sequence_length, store.vocabulary
    windows = {}
    for language in LANGUAGES:
        num_windows = (store.num_tokens(language, "valid") - 1) // length
        starts = np.round(np.linspace(0, num_windows - 1, config.evaluate.max_windows)).astype(int) * length
        windows[language] = [store.window(language, int(s), length + 1, "valid").astype(np.int64) for s in starts]
    (logits,) = ranks.run(reading.logits_of, SINGLE, config, [w[:-1] for name in LANGUAGES for w in windows[name]])
    for number, language in enumerate(LANGUAGES):
        total, num_bytes, clone_mass = 0.0, 0, []
        for place, window in enumerate(windows[language]):
            logp = log_probabilities(logits[number * len(windows["en"]) + place])
            total -= logp[np.arange(length), window[1:]].sum()
            num_bytes += len(vocabulary.decode_bytes(window[1:][window[1:] != vocabulary.eos_id]))
            clone_mass.append(np.exp(logp[:, 600:1200]).sum(-1).mean())
        num_tokens = length * len(windows[language])
        perplexity = the(scores, "perplexity", language)
        assert perplexity.value == pytest.approx(math.exp(total / num_tokens), rel=1e-5)
        assert perplexity.n == num_tokens
        assert the(scores, "nll_per_token", language).value == pytest.approx(total / num_tokens, rel=1e-6)
        bits = the(scores, "bits_per_byte", language)
        assert bits.value == pytest.approx(total / math.log(2) / num_bytes, rel=1e-6)
        assert bits.n == num_bytes
        if language == "en":
            assert the(scores, "target_mass", "en").value == pytest.approx(np.mean(clone_mass), rel=1e-5)
    assert [s.language for s in scores if s.metric == "target_mass"] == ["en"]


def test_seen_and_unseen_words_are_those_of_the_text(config: RunConfig, store: TokenStore, scores: list[Score]) -> None:
    """The split read from the text itself: words by a regular expression, in the table or not."""
    length, vocabulary = config.model.sequence_length, store.vocabulary
    table = AlignmentTable.load(Path(str(config.data.table)))
    known = {entry.word.lower() for entry in table.entries}
    num_windows = (store.num_tokens("en-clone", "valid") - 1) // length
    starts = np.round(np.linspace(0, num_windows - 1, config.evaluate.max_windows)).astype(int) * length
    windows = [store.window("en-clone", int(s), length + 1, "valid").astype(np.int64) for s in starts]
    (logits,) = ranks.run(reading.logits_of, SINGLE, config, [window[:-1] for window in windows])
    nll: dict[bool, list[float]] = {True: [], False: []}
    for window, logit in zip(windows, logits, strict=True):
        logp = log_probabilities(logit)
        tokens = [vocabulary.decode([int(one)]) if one != vocabulary.eos_id else "\n" for one in window]
        ends = np.cumsum([len(token) for token in tokens])
        for word in re.finditer(r" ?[A-Za-z]+", "".join(tokens)):
            # Its tokens, if it has whole ones, and neither starts nor ends at the window's edge.
            first, last = (int(np.searchsorted(ends, at, side="right")) for at in (word.start(), word.end() - 1))
            if first > 0 and last < length and ends[first - 1] == word.start() and ends[last] == word.end():
                is_known = word[0].strip().lower() in known
                nll[is_known] += [-float(logp[at - 1, window[at]]) for at in range(first, last + 1)]
    assert min(map(len, nll.values())) > 20
    for name, is_known in (("seen", True), ("unseen", False)):
        score = the(scores, f"perplexity_{name}", "en-clone")
        assert score.n == len(nll[is_known])
        assert score.value == pytest.approx(math.exp(np.mean(nll[is_known])), rel=1e-5)
    assert [s.language for s in scores if s.metric == "perplexity_seen"] == ["en-clone"]


def test_alignment_is_that_of_words_encoded_one_at_a_time(
    config: RunConfig, store: TokenStore, scores: list[Score]
) -> None:
    table = AlignmentTable.load(Path(str(config.data.table)))
    entries = table.entries[: config.evaluate.alignment_entries]
    forms = [store.vocabulary.encode(f" {entry.word}", language) for language in LANGUAGES for entry in entries]
    (vectors,) = ranks.run(reading.word_vectors, SINGLE, config, forms)
    assert len(vectors) == config.model.num_layers + 2
    for level, states in enumerate(vectors):
        aligned, random, hits = [], [], []
        for i in range(len(entries)):
            cosines = [cosine(states[i], states[len(entries) + j]) for j in range(len(entries))]
            aligned.append(cosines[i])
            random.append(sum(cosines[:i] + cosines[i + 1 :]) / (len(entries) - 1))
            hits.append(cosines[i] == max(cosines))
        for metric, values in (("aligned_cosine", aligned), ("random_cosine", random), ("retrieval_at_1", hits)):
            score = the(scores, metric, "en-clone", level)
            assert score.value == pytest.approx(np.mean(values), abs=2e-6), (metric, level)
            assert score.n == len(entries)
        assert level or np.std(aligned) > 0.05, "words alike would not show which vector belongs to which word"


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def test_clka_is_that_of_statements_scored_one_by_one(
    config: RunConfig, store: TokenStore, scores: list[Score]
) -> None:
    facts, vocabulary = FactSet.load(Path(str(config.data.facts))), store.vocabulary
    items = [(name, language) for name in ("clka", "clka_control") for language in LANGUAGES]
    rows = [
        np.concatenate([[vocabulary.eos_id], vocabulary.encode(facts.statement(fact, choice), language)]).astype(int)
        for name, language in items
        for fact in (facts.facts if name == "clka" else facts.control_facts)
        for choice in (fact.object, *fact.distractors)
    ]
    assert len({len(row) for row in rows}) > 1, "statements of one length would not show what padding does"
    (logits,) = ranks.run(reading.logits_of, SINGLE, config, [row[:-1] for row in rows])
    totals = [
        float(log_probabilities(logit)[np.arange(len(row) - 1), row[1:]].sum())
        for logit, row in zip(logits, rows, strict=True)
    ]
    means = [total / (len(row) - 1) for total, row in zip(totals, rows, strict=True)]
    margins, per_token = (
        choices[..., 0] - choices[..., 1:].max(-1)
        for choices in (np.array(values).reshape(len(items), len(facts.facts), 4) for values in (totals, means))
    )
    for (name, language), own, mean in zip(items, margins, per_token, strict=True):
        score = the(scores, name, language)
        assert abs(own).min() > 1e-4, "a margin within rounding could fall on either side"
        assert score.value == float((own > 0).mean())
        assert score.n == len(facts.facts)
        if name == "clka":
            assert the(scores, "clka_margin", language).value == pytest.approx(own.mean(), abs=2e-5)
            assert abs(mean).min() > 1e-5
            assert the(scores, "clka_per_token", language).value == float((mean > 0).mean())
            assert the(scores, "clka_margin_per_token", language).value == pytest.approx(mean.mean(), abs=2e-6)


def test_intervals_hold_their_values(scores: list[Score]) -> None:
    # Text in two languages, the clone's mass, its seen and unseen words; CLKA; alignment by level.
    assert len(scores) == 7 + 2 + 10 + 12
    for score in scores:
        assert score.value is not None
        assert score.low is not None
        assert score.high is not None
        assert score.low <= score.value <= score.high
        assert score.low < score.high


def test_final_scores_replace_those_of_the_same_step(config: RunConfig, scores: list[Score]) -> None:
    lines = json_lines(Path(config.folder) / "scores.jsonl")
    final = [line for line in lines if line["step"] == config.train.steps]
    assert [Score(**line) for line in final] == scores
    assert {line["step"] for line in lines} == {0, 6, 12}


LAYOUTS = {
    "data": {"data": 2},
    "tensor": {"tensor": 2},
    "sequence": {"tensor": 2, "sequence_parallel": True},
    "pipeline": {"pipeline": 2},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layout_does_not_enter(name: str, config: RunConfig, scores: list[Score], tmp_path: Path) -> None:
    shutil.copytree(config.folder, tmp_path / "run")
    moved = reading.run_config(tmp_path / "run", tmp_path / "run")
    everyone = ranks.run(reading.scores_of, ranks.layout_of(**LAYOUTS[name]), moved)
    assert everyone[0] == everyone[1], "every rank returns the same scores"
    for alone, cut in zip(scores, everyone[0], strict=True):
        assert (alone.metric, alone.language, alone.level, alone.n) == (cut.metric, cut.language, cut.level, cut.n)
        assert cut.value == pytest.approx(alone.value, rel=1e-5, abs=1e-6), alone
    assert json_lines(tmp_path / "run" / "scores.jsonl")[-1]["value"] == everyone[0][-1].value


def test_windows_spread_over_the_text(store: TokenStore) -> None:
    total, length = store.num_tokens("en", "valid"), 64
    text = store.window("en", 0, total, "valid").astype(np.int64)
    windows = validation_windows(store, "en", length, 10)
    starts = [next(i for i in range(0, total, length) if (text[i : i + 65] == window).all()) for window in windows]
    assert len(starts) == 10
    assert (starts[0], starts[-1]) == (0, ((total - 1) // length - 1) * length)
    assert max(np.diff(starts)) - min(np.diff(starts)) <= length
    everything = validation_windows(store, "en", length, 10**6)
    assert (everything[:, :-1].ravel() == text[: everything[:, :-1].size]).all()


def test_text_shorter_than_a_window_is_refused(store: TokenStore) -> None:
    with pytest.raises(DataError, match=r"has 3000 held-out tokens of 'en', less than one window of 3001"):
        validation_windows(store, "en", 3000, 8)
    assert validation_windows(store, "en", 2999, 8).shape == (1, 3000)
    with pytest.raises(DataError, match=r"has 0 held-out tokens of 'de'"):
        validation_windows(store, "de", 64, 8)


def test_a_run_without_checkpoint_is_refused(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ranks.RanksFailed, match=r"has no checkpoint of pretraining\. There is nothing to measure"):
        ranks.run(reading.scores_of, SINGLE, config.model_copy(update={"folder": str(tmp_path)}))
