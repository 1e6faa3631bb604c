"""Exports against the run they come from: logits, likelihoods, greedy ids, files; and every refusal."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import saved_runs

from megalign.answers import open_model
from megalign.answers.trained_run import RunModel
from megalign.config.sections import ModelConfig
from megalign.corpus.store import TokenStore
from megalign.errors import ConfigError, DataError, EnvironmentProblem
from megalign.evaluation.huggingface import Exported, export_run
from megalign.evaluation.huggingface import files as model_files
from megalign.evaluation.huggingface.architectures import architecture_of
from megalign.evaluation.huggingface.parity import tolerance
from megalign.evaluation.huggingface.tokenizer_files import read_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from safetensors.torch import load_file  # noqa: E402

CLASSES = {"learned": "GPT2LMHeadModel", "rotary": "GPTNeoXForCausalLM", "llama": "LlamaForCausalLM"}
PROMPTS = ["the house", "a dog runs", "she", ""]
OPTIONS = [" and", "s of the", " a b", "!"]


@pytest.fixture(scope="session")
def exports(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    folder = tmp_path_factory.mktemp("exports")
    return {kind: export_run(run, folder / kind) for kind, run in runs.items()}


@pytest.mark.parametrize("kind", CLASSES)
def test_an_export_answers_as_the_run(kind: str, runs: dict[str, Path], exports: dict[str, Exported]) -> None:
    done = exports[kind]
    assert done.parity.max_difference <= done.parity.tolerance < 1e-4 * done.parity.max_logit
    assert done.parity.max_logit > 1.0, "small logits would hide a mistake"
    with open_model(str(runs[kind])) as ours, open_model(str(done.folder), device="cpu") as theirs:
        assert isinstance(ours, RunModel)
        expected = ours.option_log_likelihoods(PROMPTS, [OPTIONS] * len(PROMPTS))
        found = theirs.option_log_likelihoods(PROMPTS, [OPTIONS] * len(PROMPTS))
        for one, other in zip(expected, found, strict=True):
            assert one == pytest.approx(other, abs=2e-4)
        assert len({tuple(round(x, 2) for x in row) for row in expected}) == len(PROMPTS)
        rows = [ours.encode(prompt) for prompt in PROMPTS]
        greedy = ours._continue([list(row) for row in rows], 8, ())
    tokenizer = transformers.AutoTokenizer.from_pretrained(done.folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(done.folder)
    assert type(model).__name__ == CLASSES[kind] == done.model_class
    for prompt, row, ids in zip(PROMPTS, rows, greedy, strict=True):
        encoded = tokenizer(prompt, return_tensors="pt")
        assert encoded.input_ids[0].tolist() == row
        generated = model.generate(**encoded, max_new_tokens=8)[0, len(row) :].tolist()
        assert generated[: len(ids)] == ids
        assert generated[len(ids) :] in ([], [0])


@pytest.mark.parametrize("kind", CLASSES)
def test_the_vocabulary_has_no_padding_and_covers_clones(
    kind: str, runs: dict[str, Path], files: Path, exports: dict[str, Exported]
) -> None:
    folder = exports[kind].folder
    vocabulary = TokenStore.open(files / "store").vocabulary
    assert vocabulary.size == 800
    assert ModelConfig(**saved_runs.MODEL).padded_vocab_size(800) == 832
    tensors = load_file(folder / "model.safetensors")
    rows = [tuple(t.shape) for name, t in tensors.items() if any(p in name for p in ("wte", "embed", "lm_head"))]
    assert rows == [(800, 32)] * (2 if kind == "llama" else 1), "tied embeddings are written once"
    config = json.loads((folder / "config.json").read_text())
    assert config["vocab_size"] == 800
    assert config["tie_word_embeddings"] is (kind != "llama")
    assert (config["bos_token_id"], config["eos_token_id"]) == (0, 0)
    assert config["megalign"]["clone_of"] == {"en-clone": "en"}
    assert config["megalign"]["tokenizer_vocab_size"] == 400
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 0
    card = (folder / "README.md").read_text()
    for text in (
        "en-clone is a clone of en.",
        "800 ids",
        "| trained on en-clone | weight 1 |",
        CLASSES[kind],
        "step 7",
    ):
        assert text in card
    assert not list(folder.parent.glob(".tmp-*"))


def test_the_tokenizer_starts_a_text_once_and_comes_back_as_it_was(files: Path, exports: dict[str, Exported]) -> None:
    vocabulary = TokenStore.open(files / "store").vocabulary
    folder = exports["learned"].folder
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = "The house, a dog; naïve 你好"
    assert tokenizer(text).input_ids == [0, *vocabulary.tokenizer.encode(text).tolist()]
    assert tokenizer(text, add_special_tokens=False).input_ids == vocabulary.tokenizer.encode(text).tolist()
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert read_tokenizer(folder, None).fingerprint == vocabulary.tokenizer.fingerprint


def test_another_tokenizer_in_an_export_is_noticed(exports: dict[str, Exported], tmp_path: Path) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(exports["learned"].folder, folder)
    content = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(content.replace('"use_regex": true', '"use_regex": false'))
    with pytest.raises(DataError, match="is not the tokenizer that was exported"):
        read_tokenizer(folder, None)


@pytest.mark.parametrize(("tied", "dtype"), [(False, "float32"), (True, "bfloat16")])
def test_other_forms_of_gpt(tied: bool, dtype: str, files: Path, tmp_path: Path) -> None:
    model = {"activation": "gelu_tanh", "norm_epsilon": 1e-4, "tied_embeddings": tied}
    run = saved_runs.write_run(files, tmp_path / "run", {"pipeline": 2}, dtype, **model)
    done = export_run(run / "checkpoints" / "pretrain" / "step_00000007", tmp_path / "out")
    tensors = load_file(done.folder / "model.safetensors")
    assert {str(t.dtype) for t in tensors.values()} == {f"torch.{dtype}"}
    assert ("lm_head.weight" in tensors) is not tied
    assert transformers.AutoModelForCausalLM.from_pretrained(done.folder).dtype is getattr(torch, dtype)
    config = json.loads((done.folder / "config.json").read_text())
    assert (config["activation_function"], config["layer_norm_epsilon"]) == ("gelu_new", 1e-4)


@pytest.mark.parametrize(
    ("changed", "key", "value"),
    [
        ("activation_function", "activation_function", "gelu_new"),
        ("epsilon", "layer_norm_epsilon", 1e-6),
        ("weight", None, None),
    ],
)
def test_logits_that_differ_leave_nothing(
    changed: str, key: str | None, value: Any, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = model_files.read_model

    def wrong(folder: Path, dtype: str = "auto") -> Any:
        if key:
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps({**config, key: value}))
        model = read(folder, dtype)
        if not key:
            with torch.no_grad():
                model.transformer.h[1].attn.c_attn.bias[3] += 1e-3
        return model

    monkeypatch.setattr("megalign.evaluation.huggingface.export.read_model", wrong)
    with pytest.raises(DataError, match=r"do not compute the same: largest difference of logits .* on 4 windows"):
        export_run(runs["learned"], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_settings_without_an_architecture_are_named(files: Path, tmp_path: Path) -> None:
    model = {"normalization": "RMSNorm", "activation": "gelu", "num_query_groups": 2}
    run = saved_runs.write_run(files, tmp_path / "run", **model)
    with pytest.raises(ConfigError, match="No Hugging Face architecture") as told:
        export_run(run, tmp_path / "out")
    assert "GPT2LMHeadModel: normalization is RMSNorm, not LayerNorm, num_query_groups is 2" in told.value.what
    assert "LlamaForCausalLM: position_embedding is learned, not rotary, activation is gelu" in told.value.what
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changed",
    [{"linear_bias": False}, {"activation": "swiglu"}, {"num_query_groups": 1}, {"normalization": "RMSNorm"}],
    ids=str,
)
def test_every_mix_that_no_architecture_has_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="No Hugging Face architecture"):
        architecture_of(ModelConfig(**{**saved_runs.MODEL, **changed}))


def test_what_cannot_be_exported(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled = tmp_path / "filled"
    filled.mkdir()
    (filled / "a").touch()
    with pytest.raises(ConfigError, match="exists already"):
        export_run(runs["learned"], filled)
    with pytest.raises(DataError, match="holds no weights to read"):
        export_run(filled, tmp_path / "out")
    damaged = tmp_path / "damaged"
    shutil.copytree(runs["learned"], damaged)
    shard = next((damaged / "checkpoints" / "pretrain" / "step_00000007" / "shards").glob("*.distcp"))
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"is damaged: .*its content changed"):
        export_run(damaged, tmp_path / "out")
    with pytest.raises(DataError, match="store"):
        export_run(runs["learned"], tmp_path / "out", store=tmp_path / "nowhere")

    def lacking(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", lacking)
    with pytest.raises(EnvironmentProblem, match="transformers cannot be used") as told:
        export_run(runs["learned"], tmp_path / "out")
    assert told.value.fix == "pip install megalign[hf]"
    assert not (tmp_path / "out").exists()


def test_the_tolerance_is_near_what_float32_is_off_by() -> None:
    small = ModelConfig(**saved_runs.MODEL)
    large = small.model_copy(update={"num_layers": 32, "ffn_hidden_size": 16384})
    assert 1e-6 < tolerance(small, 1.0) < 1e-5
    assert 1e-4 < tolerance(large, 1.0) < 1e-3
