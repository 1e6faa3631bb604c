"""Answers of our own checkpoints against the raw logits of the Megatron model, under several layouts."""

from __future__ import annotations

import shutil
from pathlib import Path

import engine_answers
import numpy as np
import pytest
import ranks
import small_study
from small_models import texts

from megalign.answers import open_model
from megalign.answers.trained_run import RunModel
from megalign.corpus.tokenizer import train_tokenizer
from megalign.errors import ConfigError, DataError

PROMPTS = engine_answers.prefixes(texts())


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(texts(), 400, path)
    return path


@pytest.fixture(scope="module")
def reference(tokenizer: Path) -> tuple[list[str], list[list[float]]]:
    (found,) = ranks.run(engine_answers.brute_force, ranks.layout_of(), tokenizer, PROMPTS)
    assert len(set(found[0])) > 4, "alike answers would not show a mix-up"
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a finished run."""
    folder = tmp_path_factory.mktemp("answers") / "run"
    shutil.copytree(small_study.finished(tmp_path_factory.getbasetemp()).run("prealign", small_study.SEED), folder)
    return folder


@pytest.mark.parametrize(
    ("parallel", "batch_size"),
    [({}, 1), ({}, 4), ({"tensor": 2}, 4), ({"pipeline": 2}, 3), ({"tensor": 2, "sequence_parallel": True}, 8)],
    ids=str,
)
def test_every_layout_and_batch_answers_as_the_raw_logits(
    tokenizer: Path, reference: tuple[list[str], list[list[float]]], parallel: dict[str, int], batch_size: int
) -> None:
    layout = ranks.layout_of(**parallel)
    for generated, totals in ranks.run(engine_answers.answers, layout, tokenizer, PROMPTS, batch_size, []):
        assert generated == reference[0]
        assert np.allclose(totals, reference[1], atol=2e-4)


def test_stop_texts_end_answers(tokenizer: Path, reference: tuple[list[str], list[list[float]]]) -> None:
    stop = [reference[0][0][1:3], reference[0][3][2:5]]
    ((generated, _),) = ranks.run(engine_answers.answers, ranks.layout_of(), tokenizer, PROMPTS, 4, stop)
    ends = [[text.find(one) for one in stop if one in text] for text in reference[0]]
    assert generated == [text[: min(at)] if at else text for text, at in zip(reference[0], ends, strict=True)]


def test_the_language_of_the_prompts_decides_their_ids(tokenizer: Path) -> None:
    own, clone = (
        ranks.run(engine_answers.in_a_language, ranks.layout_of(), tokenizer, PROMPTS, language)[0]
        for language in ("en", "en-clone")
    )
    assert np.abs(np.array(own) - np.array(clone)).min() > 1e-3


def test_a_finished_run_answers_in_this_process(run: Path) -> None:
    pairs = [(text[:20].rstrip(), option) for text in texts(4) for option in (" the house", "s are", "!")]
    with open_model(str(run), batch_size=5) as model:
        assert isinstance(model, RunModel)
        got = model.option_log_likelihoods([prompt for prompt, _ in pairs], [[option] for _, option in pairs])
        generated = model.generate(PROMPTS, max_new_tokens=4)
        with pytest.raises(DataError, match=r"Prompt 0 has \d+ tokens and 4 new ones"):
            model.generate([" ".join(texts(3))], max_new_tokens=4)
    (expected,) = ranks.run(engine_answers.scored_by_engine, ranks.layout_of(), run, pairs)
    assert np.allclose([one[0] for one in got], expected, atol=1e-4)
    with open_model(str(run), batch_size=1) as model:
        assert model.generate(PROMPTS, max_new_tokens=4) == generated
        assert model.name == "small/prealign/seed3"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "cuda"}, "the engine computes on cpu here"),
        ({"dtype": "float16"}, "a run computes in float32 or bfloat16"),
        ({"language": "xx"}, "The language xx is unknown"),
    ],
)
def test_wrong_settings_are_named_and_leave_no_process_group(run: Path, settings: dict[str, str], message: str) -> None:
    import torch.distributed as dist

    if settings.get("device") == "cuda" and __import__("torch").cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=message):
        open_model(str(run), **settings)  # type: ignore[arg-type]
    assert not dist.is_initialized()


def test_a_launcher_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="2 processes were started to answer; one does"):
        open_model(str(run))


def test_a_run_without_a_checkpoint_says_so(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "empty", ignore=shutil.ignore_patterns("pretrain"))
    with pytest.raises(DataError, match="has no checkpoint of pretraining"):
        open_model(str(tmp_path / "empty"))
