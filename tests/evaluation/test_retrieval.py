"""Sentence retrieval against vectors of sentences computed alone and loops in float64; files of parallel sentences."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import ranks
import reading
from small_study import SEED

from megalign.config import RunConfig
from megalign.corpus.store import TokenStore
from megalign.errors import DataError
from megalign.evaluation.retrieval import hits, read_sentences
from megalign.evaluation.run import build_probe
from megalign.evaluation.scores import Score
from megalign.intervals import wilson_interval
from megalign.study.expand import StudyFolder

SINGLE = ranks.layout_of()
NUM_SENTENCES = 24
DIRECTIONS = ("into", "from")


def write_sentences(folder: Path, language: str, sentences: dict[str, str]) -> None:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"id": key, "text": text}) for key, text in sentences.items()]
    (folder / f"{language}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def config(finished_study: StudyFolder, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A copy of the finished run of prealign, with sentences of its held-out text; the last one exceeds a window."""
    folder = tmp_path_factory.mktemp("retrieval")
    shutil.copytree(finished_study.run("prealign", SEED), folder / "run")
    config = reading.run_config(folder / "run", folder / "run")
    store = TokenStore.open(Path(config.data.store))
    words = " ".join(store.text(document).text for document in islice(store.documents("en"), 5)).split()
    assert len(words) > NUM_SENTENCES + 6
    texts = {f"s{n}": " ".join(words[n : n + 2 + n % 5]) for n in range(NUM_SENTENCES - 1)}
    write_sentences(folder / "sentences", "en", {**texts, "long": " ".join(words * 20)})
    settings = config.evaluate.model_copy(
        update={"parallel_sentences": str(folder / "sentences"), "batch_size": 2, "max_windows": 1}
    )
    return config.model_copy(update={"evaluate": settings})


@pytest.fixture(scope="module")
def scores(config: RunConfig) -> dict[tuple[str, int | None], Score]:
    (measured,) = ranks.run(reading.scores_of, SINGLE, config)
    return of_sentences(measured)


def of_sentences(measured: Sequence[Score]) -> dict[tuple[str, int | None], Score]:
    return {(s.metric, s.level): s for s in measured if s.metric.startswith("sentence")}


def hits_by_loops(left: np.ndarray, right: np.ndarray) -> int:
    found = 0
    for i in range(len(left)):
        cosines = [left[i] @ right[j] / np.linalg.norm(left[i]) / np.linalg.norm(right[j]) for j in range(len(right))]
        found += all(cosines[i] > cosines[j] for j in range(len(right)) if j != i)
    return found


def test_retrieval_is_that_of_sentences_computed_alone(
    config: RunConfig, scores: dict[tuple[str, int | None], Score]
) -> None:
    vocabulary = TokenStore.open(Path(config.data.store)).vocabulary
    folder = Path(str(config.evaluate.parallel_sentences))
    english = [json.loads(line)["text"] for line in (folder / "en.jsonl").read_text().splitlines()]
    ids = [
        vocabulary.encode(text, language)[: config.model.sequence_length]
        for language in ("en", "en-clone")
        for text in english
    ]
    (vectors,) = ranks.run(reading.word_vectors, SINGLE, config, ids)
    num_levels = config.model.num_layers + 2
    assert vectors.shape[:2] == (num_levels, 2 * NUM_SENTENCES)
    assert len(scores) == 1 + 4 * num_levels
    for level in range(num_levels):
        sides = vectors[level, :NUM_SENTENCES], vectors[level, NUM_SENTENCES:]
        for suffix, (mine, theirs) in (("", sides), ("_centred", [side - side.mean(0) for side in sides])):
            for direction, found in zip(
                DIRECTIONS, (hits_by_loops(mine, theirs), hits_by_loops(theirs, mine)), strict=True
            ):
                score = scores[f"sentence_retrieval_{direction}{suffix}", level]
                # A difference of float32 may turn the nearest of two that are almost as near.
                assert abs(score.value * NUM_SENTENCES - found) <= 1
                assert (score.language, score.n, score.unit) == ("en-clone", NUM_SENTENCES, "share")
                assert (score.low, score.high) == wilson_interval(round(score.value * NUM_SENTENCES), NUM_SENTENCES)
    assert any(0 < score.value < 1 for score in scores.values()), "nothing was to be told apart"
    assert scores["sentences_cut", None].value == 1 / NUM_SENTENCES


@pytest.mark.parametrize("parallel", [{"tensor": 2}, {"pipeline": 2}, {"data": 2}], ids=["TP2", "PP2", "DP2"])
def test_layouts_retrieve_alike(
    config: RunConfig, scores: dict[tuple[str, int | None], Score], parallel: dict[str, int]
) -> None:
    measured = ranks.run(reading.scores_of, ranks.layout_of(**parallel), config)
    assert of_sentences(measured[0]) == of_sentences(measured[1])
    found = of_sentences(measured[0])
    assert found.keys() == scores.keys()
    assert all(abs(found[key].value - score.value) <= 1 / NUM_SENTENCES for key, score in scores.items())


def test_hits_are_those_of_loops_and_a_tie_is_none() -> None:
    rng = np.random.default_rng(0)
    left = rng.normal(size=(40, 3)).astype(np.float32)
    right = (left + rng.normal(size=(40, 3)) * 0.3).astype(np.float32)
    into, back = hits(left, right)
    wide = left.astype(np.float64), right.astype(np.float64)
    assert (into, back) == (hits_by_loops(*wide), hits_by_loops(*wide[::-1]))
    assert into != back
    assert hits(left, left) == (40, 40)
    assert hits(np.ones((5, 3)), np.ones((5, 3))) == (0, 0)
    assert hits(np.concatenate([left[:1], left]), np.concatenate([left[:1], left])) == (39, 39)


ENGLISH = {"a": "One.", "b": "Two.", "c": "Three."}


def test_sentences_come_in_the_first_language_s_order(tmp_path: Path) -> None:
    write_sentences(tmp_path, "en", ENGLISH)
    write_sentences(tmp_path, "de", {"c": "Drei.", "a": "Eins.", "b": "Zwei."})
    found = read_sentences(tmp_path, ["en", "de", "en-clone"], {"en-clone": "en"}, 2)
    assert found == {"en": ["One.", "Two."], "de": ["Eins.", "Zwei."], "en-clone": ["One.", "Two."]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"There is no file .*de\.jsonl of parallel sentences\. .* or leave evaluate\.parallel_sentences out\."),
        ('{"id": "a", "text": "Eins."}\n{', r"de\.jsonl:2 is not JSON"),
        ('{"id": "a", "text": "Eins."}\n{"id": 2, "text": "Zwei."}', r"de\.jsonl:2 is not of the form"),
        ('["a", "Eins."]', r"de\.jsonl:1 is not of the form"),
        ('{"id": "a", "text": " "}', r"de\.jsonl:1 is not of the form"),
        ('{"id": "a", "text": "Eins."}\n{"id": "a", "text": "Zwei."}', r"de\.jsonl:2 has the id 'a' a second time"),
        ('{"id": "a", "text": "Eins."}', r"de\.jsonl has 1 sentences"),
        (
            '{"id": "a", "text": "Eins."}\n{"id": "b", "text": "Zwei."}',
            r"de\.jsonl and .*en\.jsonl are not parallel: the id 'c' stands in one of them",
        ),
    ],
)
def test_broken_sentences_are_told(tmp_path: Path, content: str | None, message: str) -> None:
    write_sentences(tmp_path, "en", ENGLISH)
    if content is not None:
        (tmp_path / "de.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        read_sentences(tmp_path, ["en", "de"], {}, 1000)
    assert caught.value.exit_code == 3


def test_missing_sentences_are_told_before_training(config: RunConfig, tmp_path: Path) -> None:
    """The measurement is at the end; its file is looked at in the beginning."""
    from megalign.cluster.ranks import Rank

    settings = config.evaluate.model_copy(update={"parallel_sentences": str(tmp_path)})
    with pytest.raises(DataError, match=r"There is no file .*en\.jsonl"):
        build_probe(config.model_copy(update={"evaluate": settings}), Rank(0, 1, 0, "", "single"))
