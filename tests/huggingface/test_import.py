"""Imports against transformers: the way there and back, runs that start from them, and every refusal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
import saved_runs
import yaml

from megalign.cluster.ranks import Rank
from megalign.config import RunConfig
from megalign.config.layout import Layout
from megalign.corpus.store import TokenStore
from megalign.corpus.tokenizer import Tokenizer
from megalign.errors import DataError, MegalignError
from megalign.evaluation.huggingface import export_run, import_model
from megalign.training.dry_run import dry_run
from megalign.training.initial import find_weights
from megalign.training.samples import Samples

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ALONE = Rank(0, 1, 0, "", "single")
SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2Config",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "activation_function": "gelu_new"},
    ),
    "neox": ("GPTNeoXConfig", {**SMALL, "use_parallel_residual": False, "rotary_pct": 1.0, "hidden_act": "gelu"}),
    "llama": (
        "LlamaConfig",
        {**SMALL, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 500000.0, "tie_word_embeddings": True},
    ),
}


def write_model(files: Path, folder: Path, kind: str, rows: int = 400, **changed: Any) -> Path:
    """A Hugging Face model with large random weights, whose tokenizer is the store's."""
    name, settings = MODELS[kind]
    config = getattr(transformers, name)(
        **{
            "vocab_size": rows,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "max_position_embeddings": 32,
            **settings,
            **changed,
        }
    )
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    shutil.copy(files / "tokenizer.json", folder)
    return folder


@pytest.mark.parametrize("kind", ["learned", "rotary", "llama"])
def test_there_and_back_every_byte_is_the_same(kind: str, runs: dict[str, Path], files: Path, tmp_path: Path) -> None:
    first, start, second = (tmp_path / name for name in ("first", "start", "second"))
    export_run(runs[kind], first)
    done = import_model(str(first), start)
    assert done.parity.max_difference <= done.parity.tolerance
    export_run(start, second)
    assert (second / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert json.loads((second / name).read_text()) == json.loads((first / name).read_text())
    found = find_weights(start)
    vocabulary = TokenStore.open(files / "store").vocabulary
    assert (found.vocabulary.fingerprint, found.vocabulary.size) == (vocabulary.fingerprint, 800)
    before = yaml.safe_load((runs[kind] / "config.yaml").read_text())["model"]
    after = found.model.model_dump(mode="json")
    for name in ("vocab_size_multiple", "init_std"):  # 800 = 25 x 32 needs no padding
        before.pop(name), after.pop(name)
    assert after == before


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_that_transformers_made(kind: str, files: Path, tmp_path: Path) -> None:
    done = import_model(str(write_model(files, tmp_path / "hf", kind)), tmp_path / "start", languages=("en", "de"))
    assert done.parity.max_difference <= done.parity.tolerance
    assert done.parity.max_logit > 1.0
    found = find_weights(tmp_path / "start")
    assert found.vocabulary.languages == ("en", "de")
    assert found.vocabulary.tokenizer.fingerprint == Tokenizer.load(files / "tokenizer.json").fingerprint
    model = found.model
    expected = {"gpt2": ("gelu_tanh", 1e-5, 10000), "neox": ("gelu", 1e-5, 10000), "llama": ("swiglu", 1e-6, 500000)}
    assert (model.activation, model.norm_epsilon, model.rotary_base) == expected[kind]
    assert model.tied_embeddings is (kind != "neox")


def test_rows_beyond_the_tokenizer_and_rows_of_padding(files: Path, tmp_path: Path) -> None:
    hf = write_model(files, tmp_path / "hf", "llama", rows=420)
    done = import_model(str(hf), tmp_path / "plain")
    assert (done.vocab_size, done.num_dropped_rows, done.padding_mass) == (400, 20, 0.0)
    padded = import_model(str(hf), tmp_path / "padded", vocab_size_multiple=128)
    assert padded.num_dropped_rows == 0
    assert padded.model.padded_vocab_size(400) == 512
    assert 0.0 < padded.padding_mass < 0.2
    from megalign.engine.checkpoint import read_weights

    rows = read_weights(find_weights(tmp_path / "padded").checkpoint)["embedding.word_embeddings.weight"]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(hf).get_input_embeddings().weight.detach()
    assert torch.equal(rows[:420], theirs)
    assert len({tuple(row) for row in rows[420:].tolist()}) == 1, "copies of one row"


def losses_of_start(layout: Layout, config: RunConfig) -> list[float]:
    """Train on every rank; the loss of each step."""
    import torch.distributed as dist

    from megalign.training.run import train

    train(config, Rank(dist.get_rank(), dist.get_world_size(), dist.get_rank(), "", "torchrun"))
    lines = [json.loads(line) for line in (Path(config.folder) / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines]


def started(files: Path, folder: Path, start: Path, **changed: Any) -> RunConfig:
    """A run over the small store whose model and weights are those of an imported folder."""
    model = yaml.safe_load((start / "model.yaml").read_text())["model"]
    config = saved_runs.config_of(files, folder)
    content = {**config.model_dump(mode="json"), "model": model, "initial_weights": str(start)}
    return RunConfig.model_validate({**content, **changed})


@pytest.mark.parametrize(("kind", "parallel"), [("rotary", {"tensor": 2}), ("llama", {"pipeline": 2})])
def test_the_first_loss_is_that_of_transformers(
    kind: str, parallel: dict[str, int], runs: dict[str, Path], files: Path, tmp_path: Path
) -> None:
    exported = export_run(runs[kind], tmp_path / "hf").folder
    import_model(str(exported), tmp_path / "start")
    layout = ranks.layout_of(**parallel)
    config = started(files, tmp_path / "run", tmp_path / "start", parallel=layout.parallel.model_dump())
    losses = ranks.run(losses_of_start, layout, config)[0]
    samples = Samples(TokenStore.open(files / "store"), config.data, config.model.sequence_length, config.seed)
    (batch,) = samples.micro_batches(0, 4, rank=0, world=1, size=4)
    model = transformers.AutoModelForCausalLM.from_pretrained(exported).eval()
    with torch.no_grad():
        logp = model(torch.from_numpy(batch.tokens)).logits.double().log_softmax(-1)
    picked = logp.gather(-1, torch.from_numpy(batch.labels)[..., None])[..., 0]
    mask = torch.from_numpy(batch.loss_mask)
    assert losses[0] == pytest.approx(-float((picked * mask).sum() / mask.sum()), rel=1e-5)
    assert losses[1] != losses[0]
    # The weights are another's: the run says so, and does not go on from other ones.
    other = tmp_path / "other"
    import_model(str(exported), other, vocab_size_multiple=config.model.vocab_size_multiple)
    _change_weights(files, other)
    (Path(config.folder) / "checkpoints" / "pretrain" / "latest").unlink()
    (Path(config.folder) / "checkpoints" / "pretrain" / "latest").write_text("step_00000002\n")
    longer = config.model_copy(
        update={"initial_weights": str(other), "train": config.train.model_copy(update={"steps": 2})}
    )
    _forget_the_end(Path(config.folder))
    with pytest.raises(ranks.RanksFailed, match=r"was written with initial_weights '[0-9a-f]{16}', this run has"):
        ranks.run(losses_of_start, layout, longer)


def _forget_the_end(folder: Path) -> None:
    """As if the run had been stopped at its first checkpoint."""
    path = folder / "checkpoints" / "pretrain"
    from megalign.engine.checkpoint.folder import read_marker, write_marker

    state, facts = read_marker(path / "step_00000002")
    (path / "step_00000002").rename(path / "step_00000001")
    write_marker(path / "step_00000001", {**state, "step": 1, "samples": 4}, facts)
    (path / "latest").write_text("step_00000001\n")


def _change_weights(files: Path, imported: Path) -> None:
    """Other weights in an imported folder."""
    config = saved_runs.config_of(files, imported).model_copy(update={"model": find_weights(imported).model})
    shutil.rmtree(imported / "checkpoints")
    ranks.run(saved_runs.save, ranks.layout_of(), config, 99, 0)
    (imported / "checkpoints" / "pretrain").rename(imported / "checkpoints" / "import")


@pytest.fixture(scope="module")
def start(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    export_run(runs["rotary"], folder / "hf")
    import_model(str(folder / "hf"), folder / "start")
    return folder / "start"


def test_an_injection_starts_from_the_weights_too(start: Path, files: Path, tmp_path: Path) -> None:
    data = {**started(files, tmp_path, start).data.model_dump(mode="json"), "table": str(files / "table.parquet")}
    inject = {"steps": 1, "entries_per_step": 8, "row_width_tokens": 16}
    config = started(files, tmp_path / "run", start, inject=inject, data=data)
    ranks.run(losses_of_start, ranks.layout_of(), config)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    random = ranks.run(losses_of_start, ranks.layout_of(), config.model_copy(
        update={"initial_weights": None, "folder": str(tmp_path / "random")}
    ))[0]  # fmt: skip
    assert [line["stage"] for line in lines] == ["inject", "pretrain", "pretrain"]
    assert abs(lines[0]["loss"] - random[0]) > 0.1
    state = json.loads((tmp_path / "run/checkpoints/inject/step_00000001/state.json").read_text())
    assert state["initial_weights"] == find_weights(start).identity


def test_weights_that_do_not_fit_are_named(start: Path, runs: dict[str, Path], files: Path, tmp_path: Path) -> None:
    def refused(message: str, **changed: Any) -> None:
        config = started(files, tmp_path / "run", start, **changed)
        with pytest.raises(ranks.RanksFailed, match=message):
            ranks.run(losses_of_start, ranks.layout_of(), config)
        with pytest.raises(MegalignError, match=message):
            dry_run(config)
        assert not (tmp_path / "run").exists()

    model = yaml.safe_load((start / "model.yaml").read_text())["model"]
    refused(r"ffn_hidden_size is 64, theirs 48", model={**model, "ffn_hidden_size": 64})
    refused(r"position_embedding is learned, theirs rotary", model={**model, "position_embedding": "learned"})
    refused(r"rows of the padded vocabulary is 896, theirs 800", model={**model, "vocab_size_multiple": 128})
    refused(r"num_attention_heads is 2, theirs 4", model={**model, "num_attention_heads": 2})
    refused(r"holds no weights to read", initial_weights=str(files))
    refused(r"in the run's own folder", initial_weights=str(tmp_path / "run" / "checkpoints"))
    with pytest.raises(ValueError, match="golden_embeddings sets rows of random weights"):
        started(files, tmp_path / "run", start, golden_embeddings=True)
    facts = json.loads((start / "import.json").read_text())
    other = tmp_path / "other"
    shutil.copytree(start, other)
    (other / "import.json").write_text(
        json.dumps({**facts, "vocabulary": {**facts["vocabulary"], "languages": ["en"], "clone_of": {}}})
    )
    refused(r"know 400 ids \(clones: none\), the store .* has 800 \(clones: en-clone\)", initial_weights=str(other))


def load_into(layout: Layout, model: Any, path: Path) -> None:
    from megalign.config.sections import PrecisionConfig
    from megalign.engine.checkpoint import load_weights
    from megalign.engine.engine import Engine

    load_weights(Engine(model, layout, PrecisionConfig(), vocab_size=800, seed=0), path)


def test_tensors_that_do_not_fit_are_named_on_all_ranks(runs: dict[str, Path]) -> None:
    source = find_weights(runs["rotary"])
    changed = {"ffn_hidden_size": 64, "position_embedding": "learned", "vocab_size_multiple": 128}
    model = source.model.model_copy(update=changed)
    with pytest.raises(ranks.RanksFailed) as told:
        ranks.run(load_into, ranks.layout_of(pipeline=2), model, source.checkpoint)
    for text in (
        "embedding.position_embeddings.weight is missing",
        "embedding.word_embeddings.weight is 832 x 32, the model's is 896 x 32",
        "decoder.layers.mlp.linear_fc1.bias is 4 x 48, the model's is 4 x 64",
    ):
        assert str(told.value).count(text) == 2


def test_weights_of_another_run_are_a_beginning_too(runs: dict[str, Path], files: Path, tmp_path: Path) -> None:
    source = find_weights(runs["rotary"])
    config = saved_runs.config_of(files, tmp_path / "run", position_embedding="rotary")
    found = [
        ranks.run(losses_of_start, ranks.layout_of(), config.model_copy(update={"initial_weights": w, "folder": str(tmp_path / n)}))[0][0]
        for n, w in (("a", str(runs["rotary"])), ("b", str(source.checkpoint)), ("c", None))
    ]  # fmt: skip
    assert found[0] == found[1]
    assert abs(found[0] - found[2]) > 0.1


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    [
        ("neox", {"use_parallel_residual": True}, "use_parallel_residual is True, not False"),
        ("neox", {"rotary_pct": 0.25}, "rotary positions enter 0.25 of each head"),
        ("gpt2", {"activation_function": "relu"}, "its activation is relu, not gelu or gelu_new"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ("gpt2", {"embd_pdrop": 0.3}, "resid_pdrop 0.1 and embd_pdrop 0.3 differ"),
        ("llama", {"attention_bias": True}, "attention_bias is True"),
        ("llama", {"head_dim": 16}, "head_dim 16 x num_attention_heads 4 is not hidden_size 32"),
        ("llama", {"rope_theta": 10000.5}, "no whole number"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
            r"its rotary positions are scaled \(linear\)",
        ),
        ("llama", {"rows": 300}, "has 300 rows of embeddings, the tokenizer with its clones 400 ids"),
    ],
)
def test_models_that_compute_something_else(
    kind: str, changed: dict[str, Any], message: str, files: Path, tmp_path: Path
) -> None:
    hf = write_model(files, tmp_path / "hf", kind, **changed)
    with pytest.raises(DataError, match=message):
        import_model(str(hf), tmp_path / "start")
    assert not (tmp_path / "start").exists()


def test_folders_that_cannot_be_read(files: Path, tmp_path: Path) -> None:
    hf = write_model(files, tmp_path / "hf", "gpt2")

    def refused(message: str, change: Any) -> None:
        folder = tmp_path / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(hf, folder)
        change(folder)
        with pytest.raises(DataError, match=message):
            import_model(str(folder), tmp_path / "start")
        assert not (tmp_path / "start").exists()

    def of_type(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "bloom"}))

    def without_a_tensor(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        del tensors["transformer.h.1.ln_2.weight"]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    def pickled(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        torch.save({}, folder / "pytorch_model.bin")

    refused("is a bloom model", of_type)
    refused("has neither tokenizer.json nor tokenizer.model", lambda folder: (folder / "tokenizer.json").unlink())
    refused("has no config.json", lambda folder: (folder / "config.json").unlink())
    refused(r"has no tensors for transformer.h.1.ln_2.weight \(1 in all\)", without_a_tensor)
    refused("cannot be opened as a causal language model", pickled)
    with pytest.raises(DataError, match="is no folder"):
        import_model("nobody/nothing", tmp_path / "start")


def test_float16_becomes_float32_and_bfloat16_stays(files: Path, tmp_path: Path) -> None:
    from megalign.engine.checkpoint import read_weights

    for dtype, kept in (("float16", "float32"), ("bfloat16", "bfloat16")):
        hf = write_model(files, tmp_path / dtype, "llama")
        model = transformers.AutoModelForCausalLM.from_pretrained(hf).to(getattr(torch, dtype))
        model.save_pretrained(hf)
        import_model(str(hf), tmp_path / f"start-{dtype}")
        weights = read_weights(find_weights(tmp_path / f"start-{dtype}").checkpoint)
        assert {tensor.dtype for tensor in weights.values()} == {getattr(torch, kept)}
        rows = weights["embedding.word_embeddings.weight"]
        assert np.array_equal(rows.float().numpy(), model.get_input_embeddings().weight.detach().float().numpy())
