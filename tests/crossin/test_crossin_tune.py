"""Tuning: labels, losses, packing, adapters on every module asked for, resume, several processes; each against a plain reference."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from crossin_samples import lines_of, task_rows, write_lines

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402

from megalign.crossin.prompts import Template  # noqa: E402
from megalign.crossin.tuning.examples import Example, batches, encode, read_rows  # noqa: E402
from megalign.crossin.tuning.lora import adapted, described_adapter, linear_modules, load_model  # noqa: E402
from megalign.crossin.tuning.settings import LoraSettings, TuneConfig, load_tune  # noqa: E402
from megalign.crossin.tuning.train import collate, learning_rate, tune, weighted_loss  # noqa: E402
from megalign.errors import ConfigError, DataError, EnvironmentProblem  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"rank": 4, "alpha": 8, "dropout": 0.0}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "data.jsonl", task_rows("en", 3) + task_rows("es", 3))


def config_for(model: Path, data: Path, **changed: Any) -> TuneConfig:
    lora = SMALL | changed.pop("lora", {})
    settings: dict[str, Any] = {
        "base_model": str(model), "data": str(data), "batch_size": 8, "micro_batch": 4, "context_tokens": 96,
        "dtype": "float32", "device": "cpu", "learning_rate": 0.01, "lora": lora,
    }  # fmt: skip
    return TuneConfig.model_validate(settings | changed)


def plain_loss(model: Any, examples: list[Example], per: str) -> float:
    """The loss of a batch, one example and one token at a time, in float64."""
    losses = []
    for example in examples:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([example.ids])).logits[0].double().log_softmax(-1)
        tokens = range(example.num_prompt_tokens, len(example.ids))
        losses.append([-float(logits[place - 1, example.ids[place]]) for place in tokens])
    if per == "token":
        return sum(map(sum, losses)) / sum(map(len, losses))
    return sum(sum(one) / len(one) for one in losses) / len(losses)


def loss_of(model: Any, tensors: dict[str, Any]) -> float:
    with torch.no_grad():
        return float(weighted_loss(model, tensors))


def encoded(model: Path, data: Path, **changed: Any) -> tuple[Any, list[Example]]:
    loaded, tokenizer = load_model(config_for(model, data, **changed))
    return loaded, encode(read_rows(data), tokenizer, Template.of("plain"), 96, "error").examples


def test_the_answer_is_learned_and_the_prompt_is_read(tiny_models: dict[str, Path], data: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_models["llama"])
    rows = read_rows(data)
    (example, *_) = encode(rows, tokenizer, Template.of("plain"), 96, "error").examples
    assert tokenizer.decode(example.ids[: example.num_prompt_tokens]) == rows[0]["instruction"] + "\n"
    assert tokenizer.decode(example.ids[example.num_prompt_tokens :]) == rows[0]["output"] + "<|end|>"


def test_a_chat_template_writes_its_own_tokens(tiny_models: dict[str, Path], data: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_models["chat"])
    template = Template.of("tokenizer", tokenizer)
    (example, *_) = encode(read_rows(data), tokenizer, template, 96, "error").examples
    row = read_rows(data)[0]
    whole = tokenizer.decode(example.ids)
    assert whole == f"<|user|>{row['instruction']}<|end|><|assistant|>{row['output']}<|end|>"
    assert tokenizer.decode(example.ids[: example.num_prompt_tokens]).endswith("<|assistant|>")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("loss", ["token", "example"])
def test_the_first_loss_is_that_of_a_plain_loop(
    kind: str, packing: bool, loss: str, tiny_models: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    config = config_for(tiny_models[kind], data, packing=packing, loss=loss, batch_size=5, micro_batch=2, max_steps=2)
    tune(config, tmp_path / "out")
    model, examples = encoded(tiny_models[kind], data)
    from megalign.corpus.keyed_random import generator

    order = generator(0, "crossin", "tune", 0).permutation(len(examples)).tolist()
    first = next(batches(examples, order, 5, 96 if packing else None))
    assert max(map(len, first)) > 1 if packing else {len(one) for one in first} == {1}
    places = [place for sequence in first for place in sequence]
    line = lines_of(tmp_path / "out" / "metrics.jsonl")[0]
    # A new adapter changes nothing: its second matrix is 0.
    assert line["loss"] == pytest.approx(plain_loss(model.eval(), [examples[at] for at in places], loss), rel=1e-5)
    assert line["num_examples"] == len(places)
    assert line["num_labels"] == sum(examples[at].num_labels for at in places)


def test_micro_batches_change_nothing_but_rounding(tiny_models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    weights = []
    for micro_batch in (1, 3, 8):
        out = tmp_path / str(micro_batch)
        tune(config_for(tiny_models["llama"], data, micro_batch=micro_batch, max_steps=3, loss="example"), out)
        weights.append(load_file(out / "adapter" / "adapter_model.safetensors"))
    for other in weights[1:]:
        for name, tensor in weights[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=2e-3, atol=2e-5)


def test_packed_examples_do_not_see_each_other(tiny_models: dict[str, Path], data: Path) -> None:
    model, examples = encoded(tiny_models["llama"], data)
    one, two, three = examples[:3]
    weights = [[1.0, 1.0, 1.0]]
    packed = loss_of(model, collate([[one, two, three]], weights, packed=True))
    apart = sum(loss_of(model, collate([[x]], [[1.0]], packed=False)) for x in (one, two, three))
    assert packed == pytest.approx(apart, rel=1e-5)
    joined = Example(one.ids + two.ids + three.ids, 1)
    mixed = collate([[joined]], [[1.0]], packed=False)
    mixed["weights"] = collate([[one, two, three]], weights, packed=True)["weights"]
    assert loss_of(model, mixed) != pytest.approx(apart, rel=1e-3)


def test_a_model_that_cannot_keep_packed_examples_apart_is_refused(
    tiny_models: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EnvironmentProblem, match="takes no position_ids"):
        tune(config_for(tiny_models["bloom"], data, packing=True), tmp_path / "out")
    forward = transformers.LlamaModel.forward

    def blind(self: Any, *args: Any, position_ids: Any = None, **more: Any) -> Any:
        return forward(self, *args, **more)

    monkeypatch.setattr(transformers.LlamaModel, "forward", blind)
    with pytest.raises(EnvironmentProblem, match="an example's outputs change by"):
        tune(config_for(tiny_models["llama"], data, packing=True), tmp_path / "out")


@pytest.mark.parametrize("packing", [False, True])
def test_a_continued_run_is_the_uninterrupted_one(
    packing: bool, tiny_models: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    """Bit for bit, with dropout, over an epoch's end."""
    changed = {
        "packing": packing,
        "epochs": 3,
        "batch_size": 4,
        "save_steps": 2,
        "lora": {"dropout": 0.2, "embeddings": True},
    }
    config = config_for(tiny_models["llama"], data, **changed)
    said: list[str] = []
    steps: list[tuple[int, int]] = []
    whole = tune(config, tmp_path / "whole", say=said.append, progress=lambda *done: steps.append(done))
    assert whole is not None
    assert steps == [(step, whole.num_steps) for step in range(1, whole.num_steps + 1)]
    assert said[1].startswith("LoRA on 2 q_proj, 2 k_proj, ")
    assert said[1].endswith(" parameters tuned")
    stop = whole.num_steps // 2 + 1
    assert tune(config, tmp_path / "parts", stop_after=stop) is None
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({"step": stop + 1, "loss": 0}) + "\n" + '{"step": ')
    assert tune(config, tmp_path / "parts") is not None
    for name in (
        "adapter/adapter_model.safetensors",
        "adapter/tune.json",
        "state/weights.safetensors",
        "state/moments.safetensors",
    ):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    lines = [lines_of(tmp_path / name / "metrics.jsonl") for name in ("parts", "whole")]
    one, other = ([{**line, "seconds": 0} for line in read] for read in lines)
    assert one == other
    assert [line["step"] for line in lines[0]] == list(range(1, whole.num_steps + 1))
    with pytest.raises(ConfigError, match=r"state of a run with other settings: learning_rate was 0\.01, is 0\.02"):
        tune(config_for(tiny_models["llama"], data, **changed, learning_rate=0.02), tmp_path / "parts")


def test_the_loss_falls_and_the_adapter_opens(tiny_models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    config = config_for(
        tiny_models["untied"], data, epochs=25, lora={"rank": 8, "alpha": 16, "embeddings": True}, merge=True
    )
    tuned = tune(config, tmp_path / "out")
    assert tuned is not None
    losses = [line["loss"] for line in lines_of(tmp_path / "out" / "metrics.jsonl")]
    assert losses[-1] < 0.3 * losses[0]
    from megalign.answers import open_model

    model, examples = encoded(tiny_models["untied"], data)
    row = read_rows(data)[0]
    answers = {}
    for name in ("adapter", "merged"):
        with open_model(str(tmp_path / "out" / name), device="cpu") as opened:
            answers[name] = opened.option_log_likelihoods(
                [row["instruction"] + "\n"], [[row["output"], "I do not know."]]
            )[0]
    assert answers["adapter"] == pytest.approx(answers["merged"], abs=1e-2)
    before = -plain_loss(model.eval(), [examples[0]], "token") * examples[0].num_labels
    assert answers["adapter"][0] > before + 5
    described = json.loads((tmp_path / "out" / "adapter" / "tune.json").read_text(encoding="utf-8"))
    assert described["template"] == "plain"
    assert set(described["modules"]) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_every_module_has_an_adapter(tiny_models: dict[str, Path], data: Path) -> None:
    for kind in ("llama", "gpt2"):
        model, _ = load_model(config_for(tiny_models[kind], data))
        there = linear_modules(model)
        assert "lm_head" not in there
        tuned, found = adapted(model, LoraSettings.model_validate(SMALL))
        assert found == there
        trained = {name for name, one in tuned.named_parameters() if one.requires_grad}
        assert len(trained) == 2 * sum(there.values())
        assert all("lora_" in name for name in trained)
        assert "no adapter" not in described_adapter(tuned, found)
    model, _ = load_model(config_for(tiny_models["llama"], data, dtype="bfloat16"))
    tuned, found = adapted(
        model, LoraSettings.model_validate(SMALL | {"modules": ["q_proj", "v_proj"], "embeddings": True})
    )
    assert found == {"q_proj": 2, "v_proj": 2}
    assert "; 10 matrices of the model have no adapter, such as model.layers.0." in described_adapter(tuned, found)
    trained = {name: one.dtype for name, one in tuned.named_parameters() if one.requires_grad}
    assert set(trained.values()) == {torch.float32}
    assert sum("lora_" in name for name in trained) == 8
    assert any("embed_tokens" in name for name in trained)


def test_a_module_that_is_not_there_is_an_error(tiny_models: dict[str, Path], data: Path) -> None:
    """CrossIn's released script named q_proj wrongly, and tuned without it."""
    model, _ = load_model(config_for(tiny_models["llama"], data))
    wanted = ["qproj", "k_proj", "v_proj", "o_proj"]
    with pytest.raises(
        ConfigError, match=r"asks for qproj, and the model has no linear module of that name.*Is q_proj meant\?"
    ):
        adapted(model, LoraSettings.model_validate(SMALL | {"modules": wanted}))


def test_embeddings_of_tied_and_untied_models(tiny_models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    for kind, num_saved in (("llama", 1), ("untied", 2)):
        config = config_for(tiny_models[kind], data, max_steps=2, lora={"embeddings": True})
        tune(config, tmp_path / kind)
        saved = load_file(tmp_path / kind / "adapter" / "adapter_model.safetensors")
        names = [name for name in saved if "lora_" not in name]
        assert len(names) >= num_saved
        base = load_file(tiny_models[kind] / "model.safetensors")
        assert any(not torch.equal(saved[name], base["model.embed_tokens.weight"]) for name in names if "embed" in name)


def test_too_long_rows(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    rows = task_rows("en", 1)
    rows[2]["output"] = "blue " * 60
    rows[4]["instruction"] = "frog " * 60
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_models["llama"])
    plain = Template.of("plain")

    def run(rows: list[dict[str, str]], too_long: str) -> Any:
        return encode(rows, tokenizer, plain, 60, too_long)

    with pytest.raises(DataError, match=r"row 2 has \d+ tokens, and a sequence has 60\. too_long is error"):
        run(rows, "error")
    assert (run(rows, "drop").num_dropped, len(run(rows, "drop").examples)) == (2, 4)
    with pytest.raises(
        DataError, match=r"row 4: the prompt alone has \d+ tokens, and a sequence has 60\. No label would be left"
    ):
        run(rows, "cut")
    cut = run(rows[:4], "cut")
    assert (cut.num_cut, len(cut.examples[2].ids), cut.examples[2].num_labels > 0) == (1, 60, True)
    with pytest.raises(DataError, match="All 2 rows are longer than 60 tokens"):
        run([rows[2], rows[4]], "drop")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "x", "output": " "}, "row 0 has an empty answer"),
        ({"instruction": " ", "output": "x"}, "row 0 has an empty question"),
        ([1], "row 0 is no object"),
        ({"instruction": "x", "output": 7}, "row 0: question and answer are to be texts"),
        ({"messages": [{"role": "user", "content": ["x"]}, {"role": "assistant", "content": "x"}]}, "are to be texts"),
        ({"messages": "x"}, "row 0 is no question with one answer"),
        ({"text": "x"}, "row 0 has neither messages nor instruction and output"),
        ({"id": "m", "messages": [{"role": "user", "content": "x"}]}, "m is no question with one answer"),
    ],
)
def test_rows_without_a_label(row: Any, message: str, tiny_models: dict[str, Path]) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_models["llama"])
    with pytest.raises(DataError, match=message):
        encode([row], tokenizer, Template.of("plain"), 60, "error")
    with pytest.raises(DataError, match=r"has no prompt and completion|is no object"):
        encode([row], tokenizer, None, 60, "error")


def test_gradient_checkpointing_gives_the_same_steps(tiny_models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    losses = []
    for checkpointing in (False, True):
        out = tmp_path / str(checkpointing)
        changed = {"gradient_checkpointing": checkpointing, "max_steps": 3, "lora": {"dropout": 0.1}}
        tune(config_for(tiny_models["llama"], data, **changed), out)
        losses.append([line["loss"] for line in lines_of(out / "metrics.jsonl")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_bfloat16_is_near_float32(tiny_models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    losses = []
    for dtype in ("float32", "bfloat16"):
        tune(config_for(tiny_models["llama"], data, dtype=dtype, max_steps=4), tmp_path / dtype)
        losses.append([line["loss"] for line in lines_of(tmp_path / dtype / "metrics.jsonl")])
    assert losses[1] == pytest.approx(losses[0], rel=0.03)
    assert losses[1] != losses[0]


def test_the_learning_rate_rises_and_falls(tiny_models: dict[str, Path], data: Path) -> None:
    config = config_for(tiny_models["llama"], data, learning_rate=1.0, warmup=0.1)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[99] < 1e-3


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(
    tiny_models: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "broken"
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_models["llama"])
    with torch.no_grad():
        model.model.norm.weight.fill_(float("inf"))
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tiny_models["llama"]).save_pretrained(folder)
    with pytest.raises(DataError, match="The loss of step 1 is nan"):
        tune(config_for(folder, data), tmp_path / "out")
    assert not (tmp_path / "out" / "adapter").exists()


def test_two_processes_do_what_one_does(tiny_models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    settings = tmp_path / "tune.json"
    config = config_for(tiny_models["llama"], data, max_steps=4, batch_size=5, micro_batch=2)
    settings.write_text(config.model_dump_json())
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
               "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
               "-m", "megalign", "crossin", "tune", str(settings), "--out", str(tmp_path / "two")]  # fmt: skip
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    tune(config, tmp_path / "one")
    assert done.stdout.count("4 steps, last loss") == 1  # the first process alone speaks
    one, two = (lines_of(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert len(two) == 4
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-4)
    weights = [load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("one", "two")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=2e-3, atol=2e-5)


def test_settings(tmp_path: Path) -> None:
    path = tmp_path / "tune.yml"
    path.write_text("base_model: m\ndata: d\n")
    config = load_tune(path, ["lora.rank=8", "learning_rate=2e-4"])
    assert (config.lora.rank, config.lora.alpha, config.lora.dropout, config.learning_rate) == (8, 128, 0.05, 2e-4)
    released = load_tune(path)
    assert (released.lora.rank, released.learning_rate, released.warmup, released.weight_decay) == (
        64,
        1e-4,
        0.03,
        0.01,
    )
    assert (released.context_tokens, released.batch_size, released.epochs) == (4096, 16, 1)
    for override, message in (
        ("lora.modules=some", "modules is 'some'; write all-linear, or a list of names"),
        ("lora.modules=[a, a]", "names a module twice"),
        ("lora.rnk=3", "unknown key lora.rnk: did you mean lora.rank?"),
        ("too_long=hide", "too_long"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            load_tune(path, [override])


def test_models_and_data_that_cannot_be_used(tiny_models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none is no folder, and no model of that name was downloaded before"):
        load_model(config_for(tmp_path / "none", data))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="cannot be opened as a causal language model"):
        load_model(config_for(tmp_path / "empty", data))
    with pytest.raises(ConfigError, match=r"context_tokens is 4096; .* has 256 positions"):
        load_model(config_for(tiny_models["llama"], data, context_tokens=4096))
    with pytest.raises(DataError, match="does not exist"):
        read_rows(tmp_path / "none")
    (tmp_path / "bad.jsonl").write_text('{"a"')
    with pytest.raises(DataError, match=r"bad\.jsonl:1 is not JSON"):
        read_rows(tmp_path / "bad.jsonl")
    with pytest.raises(DataError, match="holds no rows"):
        read_rows(write_lines(tmp_path / "empty.jsonl", []))
    with pytest.raises(ConfigError, match="has no chat template"):
        tune(config_for(tiny_models["llama"], data, template="tokenizer"), tmp_path / "out")
