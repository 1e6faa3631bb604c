"""Language inference on a trained run: encoding, learning, layouts, where the scores go."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import inferring
import numpy as np
import pytest
import ranks
import reading
from small_study import SEED, json_lines, megalign

from megalign.config import RunConfig
from megalign.config.tasks import NliConfig
from megalign.corpus.entailment import LABELS, Pair, make_pairs
from megalign.corpus.inference_files import write_pairs
from megalign.corpus.store import TokenStore
from megalign.errors import ConfigError
from megalign.evaluation.inference import batch_of, encode_pairs
from megalign.evaluation.scores import Score
from megalign.study.expand import StudyFolder

SINGLE = ranks.layout_of()


@pytest.fixture(scope="module")
def config(finished_study: StudyFolder, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A copy of the finished run of prealign."""
    folder = tmp_path_factory.mktemp("inference") / "run"
    shutil.copytree(finished_study.run("prealign", SEED), folder)
    return reading.run_config(folder, folder)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> NliConfig:
    """Few pairs, tested on themselves: a model that learns at all knows them by heart."""
    folder = tmp_path_factory.mktemp("pairs")
    pairs, _ = make_pairs(0, 24, 3)
    write_pairs(folder / "pairs.jsonl", pairs, "en")
    file = str(folder / "pairs.jsonl")
    return NliConfig(
        kind="files",
        train=file,
        test={"en": file, "en-clone": file},
        epochs=40,
        batch_size=8,
        lr=5e-3,
        weight_decay=0.0,
    )


def moved(config: RunConfig, folder: Path) -> RunConfig:
    shutil.copytree(config.folder, folder)
    return reading.run_config(folder, folder)


@pytest.fixture(scope="module")
def tuned(config: RunConfig, settings: NliConfig) -> list[Score]:
    (scores,) = ranks.run(inferring.inference_of, SINGLE, config, settings)
    return scores


def test_pairs_are_learned_in_one_language_and_asked_in_both(config: RunConfig, tuned: list[Score]) -> None:
    assert [(score.metric, score.language, score.n) for score in tuned] == [
        ("nli_accuracy", "en", 24),
        ("nli_accuracy", "en-clone", 24),
    ]
    english, clone = tuned
    assert english.value is not None
    assert english.value >= 0.9
    assert english.low < english.value <= english.high
    assert clone.value < english.value, "twelve steps of pretraining carry nothing over"
    assert english.step == config.train.steps


def test_scores_stand_beside_the_others_and_stay(config: RunConfig, tuned: list[Score]) -> None:
    lines = json_lines(Path(config.folder) / "scores.jsonl")
    assert [Score(**line) for line in lines if line["metric"] == "nli_accuracy"] == tuned
    assert sum(line["metric"] == "perplexity" and line["step"] == 12 for line in lines) == 2
    # Evaluated again, or tested again, every score stands there once.
    ranks.run(reading.scores_of, SINGLE, config)
    again = json_lines(Path(config.folder) / "scores.jsonl")
    assert sorted(map(str, again)) == sorted(map(str, lines))


def test_a_finished_tuning_is_only_tested(config: RunConfig, settings: NliConfig, tuned: list[Score]) -> None:
    (marker,) = (Path(config.folder) / "nli/checkpoints").glob("step_*/state.json")
    before = marker.stat().st_mtime_ns
    (again,) = ranks.run(inferring.inference_of, SINGLE, config, settings)
    assert again == tuned
    assert marker.stat().st_mtime_ns == before
    with pytest.raises(ranks.RanksFailed, match=r"was begun otherwise: settings\.lr was 0\.005, is 0\.01"):
        ranks.run(inferring.inference_of, SINGLE, config, settings.model_copy(update={"lr": 0.01}))


def test_a_stopped_tuning_goes_on(config: RunConfig, settings: NliConfig, tuned: list[Score], tmp_path: Path) -> None:
    own = moved(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/nli")
    few = settings.model_copy(update={"epochs": 3})
    with pytest.raises(ranks.RanksFailed, match=r"StoppedOnRequest: Asked to stop: finetune is saved at step 4 of 9"):
        ranks.run(inferring.stopped_inference_of, SINGLE, own, few, 5)
    (marker,) = (tmp_path / "run/nli/checkpoints").glob("step_*/state.json")
    assert marker.parent.name.endswith("4"), "saved after the last step that was taken"
    (again,) = ranks.run(inferring.inference_of, SINGLE, own, few)
    shutil.rmtree(tmp_path / "run/nli")
    (whole,) = ranks.run(inferring.inference_of, SINGLE, own, few)
    assert again == whole


def test_a_tuning_that_was_taken_over_publishes_nothing(config: RunConfig, settings: NliConfig, tmp_path: Path) -> None:
    own = moved(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/nli", ignore_errors=True)
    before = (tmp_path / "run/scores.jsonl").read_text()
    few = settings.model_copy(update={"epochs": 1})
    with pytest.raises(ranks.RanksFailed, match="SupersededError"):
        ranks.run(inferring.superseded_inference_of, SINGLE, own, few)
    assert not list((tmp_path / "run/nli/checkpoints").glob("step_*"))
    assert (tmp_path / "run/scores.jsonl").read_text() == before


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [{"data": 2}, {"tensor": 2}, {"pipeline": 2}], ids=str)
def test_the_layout_does_not_enter(
    parallel: dict[str, Any], config: RunConfig, settings: NliConfig, tmp_path: Path
) -> None:
    few = settings.model_copy(update={"epochs": 2})
    found = []
    for number, layout in enumerate((SINGLE, ranks.layout_of(**parallel))):
        own = moved(config, tmp_path / f"run{number}")
        shutil.rmtree(tmp_path / f"run{number}/nli", ignore_errors=True)
        everyone = ranks.run(inferring.inference_of, layout, own, few)
        assert all(one == everyone[0] for one in everyone)
        found.append([score.value for score in everyone[0]])
    # After so few steps many pairs stand on the edge: roundings may move one of 24.
    assert found[0] == pytest.approx(found[1], abs=1.1 / 24)


def test_rows_are_texts_between_ends(config: RunConfig) -> None:
    vocabulary = TokenStore.open(Path(config.data.store)).vocabulary
    pair = Pair("A dog chased a cat.", "No animal chased a cat.", "contradiction")
    eos, low = vocabulary.eos_id, vocabulary.language_range("en-clone")[0]
    for language in ("en", "en-clone"):
        rows = encode_pairs(vocabulary, [pair], language, 64)
        (row,) = rows.rows
        assert (row[0], row[-1], (row == eos).sum()) == (eos, eos, 3)
        first, second = np.split(row[1:-1], np.flatnonzero(row[1:-1] == eos))
        assert (vocabulary.decode(first), vocabulary.decode(second[1:])) == (pair.premise, pair.hypothesis)
        assert ((row[row != eos] >= low) == (language == "en-clone")).all()
        assert rows.labels.tolist() == [LABELS.index("contradiction")]


@pytest.mark.parametrize(
    ("premise", "hypothesis", "kept"), [(30, 5, (12, 5)), (5, 30, (5, 12)), (30, 30, (8, 9)), (8, 9, (8, 9))]
)
def test_long_pairs_lose_their_ends(premise: int, hypothesis: int, kept: tuple[int, int]) -> None:
    class Words:
        eos_id = 0

        def encode(self, text: str, language: str) -> np.ndarray:
            return np.arange(1, 1 + int(text))

    found = encode_pairs(Words(), [Pair(str(premise), str(hypothesis), "neutral")], "en", 20)  # type: ignore[arg-type]
    expected = [0, *range(1, kept[0] + 1), 0, *range(1, kept[1] + 1), 0]
    assert found.rows[0].tolist() == expected
    assert found.num_cut == (premise + hypothesis > 17)


def test_a_batch_is_filled_up_without_weight(config: RunConfig) -> None:
    vocabulary = TokenStore.open(Path(config.data.store)).vocabulary
    pairs, _ = make_pairs(0, 9, 3)
    rows = encode_pairs(vocabulary, pairs, "en", 64)
    batch = batch_of(rows, [4, 2], 3, 4, vocabulary.eos_id)
    assert batch.tokens.shape[0] == 3
    assert batch.tokens.shape[1] % 4 == 0
    assert batch.weights.tolist() == [1, 1, 0]
    assert batch.labels[:2].tolist() == rows.labels[[4, 2]].tolist()
    for number, place in enumerate((4, 2)):
        assert batch.tokens[number, : len(rows.rows[place])].tolist() == rows.rows[place].tolist()
        assert batch.ends[number] == len(rows.rows[place]) - 1
    assert batch_of(rows, [], 2, 4, 0).weights.tolist() == [0, 0]


@pytest.mark.slow
def test_the_command_tunes_and_tells(config: RunConfig, settings: NliConfig, tmp_path: Path) -> None:
    own = moved(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/nli", ignore_errors=True)
    tests = ("--test", f"en={settings.train}", "--test", f"en-clone={settings.train}")
    done = megalign("nli", own.folder, "--train", str(settings.train), *tests, "--epochs", "2", "--lr", "1e-3")
    assert done.returncode == 0, done.stderr
    lines = json_lines(tmp_path / "run/scores.jsonl")
    assert [line["language"] for line in lines if line["metric"] == "nli_accuracy"] == ["en", "en-clone"]
    assert "nli step" in done.stdout


def test_the_command_wants_its_files(config: RunConfig) -> None:
    done = megalign("nli", config.folder)
    assert done.returncode == 2
    assert "Name them: --train FILE --test LANGUAGE=FILE" in done.stderr
    twice = megalign("nli", config.folder, "--train", "a", "--test", "en=a", "--test", "en=b")
    assert (twice.returncode, "A language has two --test files" in twice.stderr) == (2, True)


def test_pairs_may_not_be_longer_than_the_model_takes(config: RunConfig, settings: NliConfig, tmp_path: Path) -> None:
    own = moved(config, tmp_path / "run")
    with pytest.raises(ranks.RanksFailed, match="max_tokens is 65; the model was trained on 64 tokens"):
        ranks.run(inferring.inference_of, SINGLE, own, settings.model_copy(update={"max_tokens": 65}))


def test_settings_that_do_not_fit_are_refused() -> None:
    from megalign.config import validate

    for content, message in (
        ({"kind": "files"}, "kind 'files' needs train and test"),
        ({"kind": "generated", "train": "x"}, "kind 'generated' takes neither train nor test"),
        ({"kind": "generated", "num_test": 0}, "kind 'generated' needs num_train and num_test"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate(NliConfig, content, "nli")
