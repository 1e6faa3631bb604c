"""Continuations drawn from a trained model, and what of them is in another language."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import generating
import numpy as np
import pytest
import ranks
import reading
from scipy.special import softmax
from scipy.stats import chisquare
from small_study import SEED

from megalign.config import RunConfig
from megalign.corpus.keyed_random import generator
from megalign.corpus.store import TokenStore
from megalign.corpus.tokenizer import train_tokenizer
from megalign.corpus.vocabulary import Vocabulary
from megalign.evaluation import mixed_script
from megalign.evaluation.mixed_script import foreign_counts
from megalign.evaluation.scores import Score
from megalign.intervals import bootstrap_ratio
from megalign.study.expand import StudyFolder

SINGLE = ranks.layout_of()
NUM_IDS = 1200  # of 1280 rows


@pytest.fixture(scope="module")
def config(finished_study: StudyFolder, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A copy of the finished run of prealign."""
    folder = tmp_path_factory.mktemp("mixed") / "run"
    shutil.copytree(finished_study.run("prealign", SEED), folder)
    return reading.run_config(folder, folder)


@pytest.fixture(scope="module")
def prompts(config: RunConfig) -> np.ndarray:
    store = TokenStore.open(Path(config.data.store))
    return np.stack([store.window("en", 50 * number, 6, "valid") for number in range(7)]).astype(np.int64)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("parallel", [{}, {"tensor": 2}, {"data": 2}], ids=str)
def test_every_token_is_the_one_drawn_from_the_logits(
    config: RunConfig, prompts: np.ndarray, parallel: dict[str, int], temperature: float
) -> None:
    """Argmax of each prefix's own logits plus the noise of (seed, prompt, position), computed one sequence at a time."""
    results = ranks.run(generating.generations_of, ranks.layout_of(**parallel), config, prompts, 4, temperature)
    for other in results[1:]:
        assert np.array_equal(results[0], other)
    whole = np.concatenate([prompts, results[0]], axis=1)
    (logits,) = ranks.run(reading.logits_of, SINGLE, config, list(whole))
    for number, row in enumerate(logits):
        for step in range(4):
            noise = generator(7, "generate", number, step).gumbel(size=NUM_IDS)
            scores = row[5 + step, :NUM_IDS].astype(np.float64) + temperature * noise
            drawn = results[0][number, step]
            # Layouts round differently: what is drawn may be the second of two that are as good as equal.
            assert scores[drawn] >= scores.max() - 1e-4


def test_draws_follow_the_model_s_probabilities(config: RunConfig, prompts: np.ndarray) -> None:
    count = 4000
    (drawn,) = ranks.run(generating.many_first_tokens, SINGLE, config, prompts[0], count)
    (logits,) = ranks.run(reading.logits_of, SINGLE, config, [prompts[0]])
    probability = softmax(logits[0][-1, :NUM_IDS].astype(np.float64))
    likely = np.flatnonzero(probability * count >= 10)
    observed = np.append(np.bincount(drawn, minlength=NUM_IDS)[likely], 0)
    observed[-1] = count - observed.sum()
    expected = np.append(probability[likely], 1 - probability[likely].sum()) * count
    assert len(likely) > 10
    assert chisquare(observed, expected).pvalue > 1e-3


def test_scores_are_the_shares_of_the_generations(config: RunConfig) -> None:
    (scores,) = ranks.run(generating.mixed_scores_of, SINGLE, config)
    assert [(s.metric, s.language, s.unit) for s in scores] == [
        ("mixed_script_generations", "en-clone", "share"),
        ("mixed_script_share", "en-clone", "share of tokens"),
    ]
    assert scores[0].n == 24
    assert scores[1].n <= 240
    for score in scores:
        assert score.low is not None
        assert score.high is not None
        assert 0 <= score.low <= score.value <= score.high <= 1  # type: ignore[operator]
    # An undertrained model mixes: were nothing found, nothing would be tested.
    assert 0 < scores[1].value <= scores[0].value  # type: ignore[operator]


def test_tokens_of_a_clone_count_up_to_the_end_of_text(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["some text"], 260, tmp_path / "tokenizer.json")
    vocabulary = Vocabulary(tokenizer, ("en", "en-clone"), {"en-clone": "en"})
    size, eos = tokenizer.vocab_size, vocabulary.eos_id
    ids = np.array([[5, size + 5, 7, size], [5, eos, size + 5, 5], [eos, 5, 5, 5]])
    found = foreign_counts(ids, vocabulary, "en", "en-clone")
    assert found is not None
    assert found.tolist() == [[2, 4], [0, 1], [0, 0]]


def test_generations_that_end_at_once_have_no_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = train_tokenizer(["some text"], 260, tmp_path / "tokenizer.json")
    vocabulary = Vocabulary(tokenizer, ("en", "en-clone"), {"en-clone": "en"})
    size, eos = tokenizer.vocab_size, vocabulary.eos_id
    drawn = np.array([[eos, 5, 5], [size + 5, 5, 5], [5, 5, eos], [eos, size + 5, eos]])

    def measured(ids: np.ndarray) -> dict[str, Score]:
        monkeypatch.setattr(mixed_script, "validation_windows", lambda *_: np.zeros((len(ids), 2), dtype=np.int64))
        monkeypatch.setattr(mixed_script, "generate", lambda *_, **__: ids)
        store: Any = SimpleNamespace(vocabulary=vocabulary)
        limits = {"num_generations": len(ids), "num_tokens": 3, "prompt_tokens": 1, "batch_size": 2, "step": 7}
        return {s.metric: s for s in mixed_script.mixed_script_scores(store, store, "en", **limits)}

    found = measured(drawn)
    assert (found["mixed_script_generations"].value, found["mixed_script_generations"].n) == (0.25, 4)
    share = found["mixed_script_share"]
    assert (share.value, share.n) == (1 / 5, 5)
    assert (share.low, share.high) == bootstrap_ratio([1.0, 0.0], [3.0, 2.0], seed=20240722)
    assert list(measured(drawn[[0, 3]])) == ["mixed_script_generations"]


def test_letters_count_where_scripts_differ(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["some text"], 260, tmp_path / "tokenizer.json")
    vocabulary = Vocabulary(tokenizer, ("en", "de", "ru", "zh", "en-clone"), {"en-clone": "en"})
    texts = ["The bank, банк 12!", "Bank über", "река 银行", "99 ..."]
    width = max(len(vocabulary.encode(text, "en")) for text in texts) + 1
    ids = np.full((len(texts), width), vocabulary.eos_id, dtype=np.int64)
    for row, text in zip(ids, texts, strict=True):
        row[: len(vocabulary.encode(text, "en"))] = vocabulary.encode(text, "en")
    russian, chinese = (foreign_counts(ids, vocabulary, "en", language) for language in ("ru", "zh"))
    assert russian is not None
    assert chinese is not None
    assert russian.tolist() == [[4, 11], [0, 8], [4, 6], [0, 0]]
    assert chinese.tolist() == [[0, 11], [0, 8], [2, 6], [0, 0]]
    assert foreign_counts(ids, vocabulary, "en", "de") is None


def test_evaluate_scores_generations_where_asked(config: RunConfig) -> None:
    evaluate = config.evaluate.model_copy(update={"mixed_script_generations": 6, "mixed_script_tokens": 4})
    (scores,) = ranks.run(reading.scores_of, SINGLE, config.model_copy(update={"evaluate": evaluate}))
    (found,) = [score for score in scores if score.metric == "mixed_script_generations"]
    assert (found.language, found.n) == ("en-clone", 6)
    (usual,) = ranks.run(reading.scores_of, SINGLE, config)
    assert [score for score in scores if not score.metric.startswith("mixed_script")] == usual
