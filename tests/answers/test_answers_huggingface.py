"""Answers of Hugging Face models against the raw logits, one prompt and one token at a time."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from small_models import CHAT_TEMPLATE, KINDS, MAX_LENGTH, prompts, write_model

from megalign.answers import AnswerModel, open_model
from megalign.answers.huggingface import HuggingFaceModel
from megalign.errors import ConfigError, DataError

OPTIONS = ["A", "B", " the house of the", " a", "s"]


def opened(path: Path, batch_size: int = 4, **settings: Any) -> HuggingFaceModel:
    model = open_model(str(path), device="cpu", batch_size=batch_size, **settings)
    assert isinstance(model, HuggingFaceModel)
    return model


def logits_of(model: HuggingFaceModel, ids: list[int]) -> np.ndarray:
    """float64 [length, vocabulary] of one sequence alone, without mask, padding or cache."""
    with torch.inference_mode():
        return model.model(torch.tensor([ids]), use_cache=False).logits[0].double().numpy()


def greedy(model: HuggingFaceModel, prompt: str, max_new_tokens: int) -> list[int]:
    ids = model.tokenizer(prompt)["input_ids"] or [0]
    new: list[int] = []
    while len(new) < max_new_tokens:
        best = int(logits_of(model, ids + new)[-1].argmax())
        if best == model.tokenizer.eos_token_id:
            break
        new.append(best)
    return new


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_text_is_that_of_the_raw_logits_whatever_the_batch(models: dict[str, Path], kind: str) -> None:
    asked = [*prompts(), ""]
    answers = {size: opened(models[kind], size).generate(asked, max_new_tokens=12) for size in (1, 4, 16)}
    model = opened(models[kind])
    expected = [model.tokenizer.decode(greedy(model, prompt, 12)) for prompt in asked]
    assert len(set(expected)) > 5, "alike answers would not show a mix-up"
    assert answers[1] == answers[4] == answers[16] == expected


@pytest.mark.parametrize("kind", KINDS)
def test_option_likelihoods_are_those_of_the_raw_logits_whatever_the_batch(models: dict[str, Path], kind: str) -> None:
    asked = prompts()
    options = [OPTIONS[: 2 + number % 4] for number in range(len(asked))]
    model = opened(models[kind], 3)
    scores = model.score_options(asked, options)
    for prompt, texts, got in zip(asked, options, scores, strict=True):
        context = model.tokenizer(prompt.rstrip())["input_ids"]
        for text, value, count in zip(texts, got.log_likelihoods, got.num_tokens, strict=True):
            whole = model.tokenizer(prompt + text)["input_ids"]
            logp = log_softmax(logits_of(model, context + whole[len(context) :]), axis=-1)
            target = whole[len(context) :]
            at = len(context) - 1 + np.arange(len(target))
            assert value == pytest.approx(logp[at, target].sum(), abs=2e-4)
            assert count == len(target) >= 1
    single = opened(models[kind], 1).option_log_likelihoods(asked, options)
    assert np.allclose(np.concatenate(single), np.concatenate([one.log_likelihoods for one in scores]), atol=2e-5)


def test_the_boundary_is_that_of_lm_evaluation_harness(models: dict[str, Path]) -> None:
    lm_eval = pytest.importorskip("lm_eval.models.huggingface")
    model = opened(models["llama"], 3)
    theirs = lm_eval.HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=1)
    asked = ["The house", "The house ", "The ho", "In the town  ", "a\n", ""]
    options = [[" is", "s are", "use of", "x", "\nno"]] * len(asked)
    from lm_eval.api.instance import Instance

    requests = [
        Instance("loglikelihood", {}, (prompt, text), 0)
        for prompt, texts in zip(asked, options, strict=True)
        for text in texts
    ]
    expected = [value for value, _ in theirs.loglikelihood(requests, disable_tqdm=True)]
    got = np.concatenate(model.option_log_likelihoods(asked, options))
    assert np.allclose(got, expected, atol=1e-4)


def test_letters_cost_one_row(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened(models["gpt2"], 16)
    rows = []
    score = model._score

    def counted(inputs: Any) -> list[list[float]]:
        rows.append(len(inputs))
        return score(inputs)

    monkeypatch.setattr(model, "_score", counted)
    model.score_options(["Is it\nAnswer:"] * 2 + ["Or\nAnswer:"], [["A", "B", "C"]] * 3)
    assert rows == [2]


def test_answers_end_before_stop_texts(models: dict[str, Path]) -> None:
    model = opened(models["llama"], 4)
    asked = prompts()
    free = model.generate(asked, max_new_tokens=12)
    stop = (free[0][2:4], free[5][4:7])
    assert all(stop)
    stopped = model.generate(asked, max_new_tokens=12, stop=stop)
    for whole, cut in zip(free, stopped, strict=True):
        ends = [whole.find(text) for text in stop if text in whole]
        assert cut == (whole[: min(ends)] if ends else whole)
    assert stopped != free


def test_stopped_rows_cost_no_more_tokens(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened(models["gpt2"], 4)
    (free,) = model.generate(["The "], max_new_tokens=20)
    lengths = []
    decode = model._until_eos
    monkeypatch.setattr(model, "_until_eos", lambda ids: lengths.append(len(ids)) or decode(ids))
    model.generate(["The "], max_new_tokens=20, stop=[free[:3]])
    assert lengths[0] < 20


def test_penalties_and_sampling_of_the_files_are_not_used(models: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(models["llama"], tmp_path / "sampling")
    settings = {"do_sample": True, "temperature": 5.0, "top_k": 50, "repetition_penalty": 3.0, "eos_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    asked = prompts()
    assert opened(folder).generate(asked, max_new_tokens=10) == opened(models["llama"]).generate(
        asked, max_new_tokens=10
    )


def test_the_start_token_stands_once(tmp_path: Path) -> None:
    model = opened(write_model(tmp_path / "chat", "llama", chat_template=CHAT_TEMPLATE))
    prompt = model.chat_prompt("Where?", system="Be brief.")
    assert prompt == "<|endoftext|>[system]Be brief.\n[user]Where?\n[assistant]"
    assert model._encode(prompt).count(0) == 1
    assert model.generate([prompt], max_new_tokens=4)


def test_a_model_without_a_template_says_so(models: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="llama has no chat template"):
        opened(models["llama"]).chat_prompt("Where?")


def test_an_adapter_is_read_over_its_base(models: dict[str, Path], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = opened(models["llama"])
    torch.manual_seed(1)
    tuned = peft.get_peft_model(base.model, peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "adapter")
    model = opened(tmp_path / "adapter")
    asked = prompts()
    texts = model.generate(asked, max_new_tokens=8)
    assert texts == [model.tokenizer.decode(greedy(model, prompt, 8)) for prompt in asked]
    plain = opened(models["llama"])
    assert texts != plain.generate(asked, max_new_tokens=8)
    assert model.fingerprint != plain.fingerprint
    assert model.max_length_tokens == MAX_LENGTH["llama"]
    assert np.isfinite(model.option_log_likelihoods(asked[:1], [["A", "B"]])).all()


def test_an_adapter_with_pickled_weights_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(models["llama"])}))
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(DataError, match=r"has no adapter_model\.safetensors"):
        opened(tmp_path)


def test_a_model_with_pickled_weights_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(models["gpt2"], tmp_path / "pickled")
    state = open_model(str(folder), device="cpu").model.state_dict()  # type: ignore[attr-defined]
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(DataError, match="cannot be opened as a causal language model"):
        opened(folder)


def test_code_that_comes_with_a_model_is_not_run(models: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(models["gpt2"], tmp_path / "own-code")
    content = json.loads((folder / "config.json").read_text())
    content |= {"model_type": "unheard", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(DataError, match="code that comes with a model is never run"):
        opened(folder)
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Hosts that were looked up; none is found."""
    asked: list[Any] = []

    def nowhere(host: Any, *_: Any, **__: Any) -> Any:
        asked.append(host)
        raise socket.gaierror("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    return asked


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no-such-model", "not/a/name"])
def test_the_network_is_asked_only_where_allowed(network: list[Any], name: str) -> None:
    with pytest.raises(DataError, match="Models are read from local files unless a download is allowed"):
        open_model(name, device="cpu")
    assert network == []
    if name == "nobody/no-such-model":
        with mock.patch("time.sleep"), pytest.raises(DataError, match="cannot be opened as a causal language model"):
            open_model(name, device="cpu", allow_download=True)
        assert "huggingface.co" in network


def test_a_model_that_was_downloaded_before_is_opened_without_the_network(
    models: dict[str, Path], network: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    kept, revision = tmp_path / "models--somebody--small", "0" * 40
    shutil.copytree(models["gpt2"], kept / "snapshots" / revision)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(revision)
    model = open_model("somebody/small", device="cpu")
    assert (model.name, network) == ("small", [])
    assert model.fingerprint == opened(models["gpt2"]).fingerprint
    assert model.generate(prompts(), max_new_tokens=4) == opened(models["gpt2"]).generate(prompts(), max_new_tokens=4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"dtype": "int4"}, "dtype is int4"), ({"device": "abacus"}, "device abacus cannot be used")],
)
def test_wrong_settings_are_named(models: dict[str, Path], settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_model(str(models["gpt2"]), **settings)  # type: ignore[arg-type]


def test_a_folder_without_a_model_says_what_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no model"):
        open_model(str(tmp_path))
    with pytest.raises(DataError, match="does not exist"):
        open_model(str(tmp_path / "absent"))


def test_what_does_not_fit_is_refused_or_cut(models: dict[str, Path]) -> None:
    long = " ".join(prompts())
    model = opened(models["gpt2"])
    with pytest.raises(DataError, match=r"Prompt 1 has \d+ tokens and 6 new ones; gpt2 takes 64"):
        model.generate(["a", long], max_new_tokens=6)
    with pytest.raises(DataError, match=r"Prompt 0 has \d+ tokens; gpt2 takes 64"):
        model.score_options([long], [["A", "B"]])
    cutting = opened(models["gpt2"], truncate=True)
    ids = cutting.tokenizer(long)["input_ids"]
    assert cutting.generate([long], max_new_tokens=6) == [cutting.tokenizer.decode(greedy_ids(cutting, ids[-58:], 6))]
    (scores,) = cutting.score_options([long], [[" A"]])
    whole = [*ids, *cutting.tokenizer(long + " A")["input_ids"][len(ids) :]][-65:]
    logp = log_softmax(logits_of(cutting, whole[:-1]), axis=-1)
    targets = whole[-scores.num_tokens[0] :]
    expected = logp[np.arange(-len(targets), 0), targets].sum()
    assert scores.log_likelihoods == [pytest.approx(expected, abs=1e-4)]


def greedy_ids(model: HuggingFaceModel, ids: list[int], count: int) -> list[int]:
    new: list[int] = []
    for _ in range(count):
        best = int(logits_of(model, ids + new)[-1].argmax())
        if best == 0:
            break
        new.append(best)
    return new


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.generate(["a"], max_new_tokens=0), ConfigError, "max_new_tokens is 0"),
        (lambda m: m.generate(["a"], max_new_tokens=2, stop=[""]), ConfigError, "A stop text is empty"),
        (
            lambda m: m.score_options(["a"], [["b", ""]]),
            DataError,
            "Prompt 0 has the option '', which has no likelihood",
        ),
    ],
)
def test_senseless_questions_are_refused(models: dict[str, Path], call: Any, error: type, message: str) -> None:
    model: AnswerModel = opened(models["gpt2"])
    with pytest.raises(error, match=message):
        call(model)


def test_the_fingerprint_is_of_the_weights(models: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(models["gpt2"], tmp_path / "copy")
    other = write_model(tmp_path / "other", "gpt2", seed=1)
    assert opened(copy).fingerprint == opened(models["gpt2"]).fingerprint != opened(other).fingerprint
