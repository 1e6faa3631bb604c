"""Teaching: what is learned of each row, the order of rows, that it is learned, that a stopped run ends as an undisturbed one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from megalign.answers import AnswerModel, open_model
from megalign.clika.knowledge import Row
from megalign.conductivity import log
from megalign.conductivity import tune_run as tuning
from megalign.conductivity.rows import Example, batches, examples_of, prompt_of
from megalign.conductivity.settings import TuneSettings
from megalign.conductivity.tune_huggingface import IGNORED, collated, tune_huggingface
from megalign.errors import ConfigError, DataError

EXAMPLES = [Example((5, 6, 7, 8, 0), 3), Example((5, 6, 0), 1), Example((9, 9, 9, 9, 4, 3, 0), 6)]
SETTINGS = TuneSettings(
    epochs=30, batch_size=4, micro_batch_size=4, lr=1e-2, lora_rank=16, lora_alpha=32, lora_dropout=0.0
)


def likelihood(model: AnswerModel, rows: tuple[Row, ...]) -> float:
    """Mean log-likelihood of a token of the rows' answers."""
    prompts = [prompt_of(row, model, "plain") for row in rows]
    scores = model.score_options(prompts, [[f" {row.answer}"] for row in rows])
    return sum(one.log_likelihoods[0] for one in scores) / sum(one.num_tokens[0] for one in scores)


def test_only_answers_are_learned() -> None:
    for size in (1, 2, 3, 4):
        made = tuning.micro_batches(EXAMPLES, 1, size)
        assert len({part.tokens.shape for part in made}) == 1
        tokens, labels, mask = (
            np.concatenate([getattr(p, n) for p in made]) for n in ("tokens", "labels", "loss_mask")
        )
        assert tokens.shape[1] % 2 == 0
        for number, one in enumerate(EXAMPLES):
            length = len(one.ids) - 1
            assert tuple(tokens[number, :length]) == one.ids[:-1]
            assert [int(label) for label in labels[number][mask[number] > 0]] == list(one.ids[one.num_context :])
        assert mask[len(EXAMPLES) :].sum() == 0
    batch = collated(EXAMPLES, 1)
    for number, one in enumerate(EXAMPLES):
        length = len(one.ids)
        assert batch["input_ids"][number, :length].tolist() == list(one.ids)
        assert batch["attention_mask"][number].tolist() == [1] * length + [0] * (7 - length)
        learned = batch["labels"][number]
        assert learned[learned != IGNORED].tolist() == list(one.ids[one.num_context :])
        assert (learned[: one.num_context] == IGNORED).all()


def test_every_epoch_has_all_rows_in_an_order_of_its_own() -> None:
    steps = list(batches(10, 4, 3, seed=1))
    flat = [at for step in steps for at in step]
    epochs = [flat[start : start + 10] for start in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert [len(step) for step in steps] == [4] * 7 + [2]
    assert steps == list(batches(10, 4, 3, seed=1)) != list(batches(10, 4, 3, seed=2))


def test_rows_end_with_the_end_of_text_token_and_start_as_they_are_asked(tiny_llama: Path) -> None:
    model = open_model(str(tiny_llama), device="cpu")
    row = Row("Say this name in German:", "Lume Bay", "Lume-Bucht")
    (example,) = examples_of([row], model, "plain")
    text = "Question: Say this name in German: Lume Bay\nAnswer:"
    assert model._decode(example.ids[: example.num_context]) == text == prompt_of(row, model, "plain")
    assert model._decode(example.ids[example.num_context : -1]) == " Lume-Bucht"
    assert example.ids[-1] == model.end_id == 0
    with pytest.raises(DataError, match=r"Training row 1 has \d+ tokens; .* takes 128"):
        examples_of([Row("Say " * 130, "", "No.")], model, "plain")


def test_a_run_learns_what_it_is_taught_and_keeps_the_original(tiny_run: Path, tmp_path: Path) -> None:
    content = tiny.knowledge(tmp_path / "knowledge", "de")
    before = {path: path.read_bytes() for path in tiny_run.rglob("*") if path.is_file()}
    tuning.tune_run(tiny_run, content.train, tmp_path / "taught", SETTINGS, tmp_path / "log.jsonl")
    with open_model(str(tiny_run)) as model:
        untaught = likelihood(model, content.train)
    with open_model(str(tmp_path / "taught")) as model:
        assert likelihood(model, content.train) > untaught / 4 > -2
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] / 2
    assert {path: path.read_bytes() for path in tiny_run.rglob("*") if path.is_file()} == before


class Killed(Exception):
    pass


def test_a_stopped_teaching_of_a_run_ends_as_an_undisturbed_one(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = tiny.knowledge(tmp_path / "knowledge", "de")
    settings = SETTINGS.model_copy(update={"epochs": 2, "save_steps": 5})
    tuning.tune_run(tiny_run, content.train, tmp_path / "whole", settings, tmp_path / "a.jsonl")
    step = tuning.Engine.step

    def killed(engine: Any, parts: Any, number: int, **more: Any) -> Any:
        if number == 8:
            raise Killed
        return step(engine, parts, number, **more)

    with monkeypatch.context() as patch:
        patch.setattr(tuning.Engine, "step", killed)
        with pytest.raises(Killed):
            tuning.tune_run(tiny_run, content.train, tmp_path / "stopped", settings, tmp_path / "b.jsonl")
    with pytest.raises(DataError, match="was begun otherwise: taught was"):
        tuning.tune_run(tiny_run, content.train[1:], tmp_path / "stopped", settings, tmp_path / "b.jsonl")
    tuning.tune_run(tiny_run, content.train, tmp_path / "stopped", settings, tmp_path / "b.jsonl")
    values = []
    for name in ("whole", "stopped"):
        with open_model(str(tmp_path / name)) as model:
            values.append(likelihood(model, content.train))
    assert values[0] == values[1]


def test_a_run_has_no_chat_template(tiny_run: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"form": "chat"})
    with pytest.raises(ConfigError, match="A run of ours has no chat template"):
        tuning.tune_run(tiny_run, (), tmp_path, settings, tmp_path / "log.jsonl")


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_hugging_face_model_learns_what_it_is_taught(tiny_llama: Path, tmp_path: Path, method: str) -> None:
    content = tiny.knowledge(tmp_path / "knowledge", "de")
    settings = SETTINGS.model_copy(update={"method": method, "lr": 1e-2 if method == "lora" else 3e-3})
    out = tmp_path / "taught"
    tune_huggingface(str(tiny_llama), content.train, out, settings, tmp_path / "log.jsonl", device="cpu")
    untaught = likelihood(open_model(str(tiny_llama), device="cpu"), content.train)
    assert likelihood(open_model(str(out), device="cpu"), content.train) > untaught / 2
    assert (out / "adapter_model.safetensors").is_file() == (method == "lora")
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] / 2
    with pytest.raises(ConfigError, match="was begun otherwise: taught was"):
        tune_huggingface(str(tiny_llama), content.train[1:], out, settings, tmp_path / "log.jsonl", device="cpu")


def test_lora_trains_every_linear_layer(tiny_llama: Path, tmp_path: Path) -> None:
    content = tiny.knowledge(tmp_path / "knowledge", "de")
    settings = SETTINGS.model_copy(update={"epochs": 1})
    tune_huggingface(str(tiny_llama), content.train[:4], tmp_path / "taught", settings, tmp_path / "l", device="cpu")
    from safetensors import safe_open

    with safe_open(tmp_path / "taught" / "adapter_model.safetensors", "pt") as stored:
        trained = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in stored.keys()}  # noqa: SIM118
    assert trained == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_a_stopped_teaching_of_a_hugging_face_model_ends_as_an_undisturbed_one(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    content = tiny.knowledge(tmp_path / "knowledge", "de")
    settings = SETTINGS.model_copy(update={"epochs": 2, "save_steps": 5, "lora_dropout": 0.1})
    arguments = (str(tiny_llama), content.train)
    tune_huggingface(*arguments, tmp_path / "whole", settings, tmp_path / "a", device="cpu")
    step = transformers.Trainer.training_step
    counts = []

    def killed(trainer: Any, *inputs: Any, **more: Any) -> Any:
        counts.append(1)
        if len(counts) == 8:
            raise Killed
        return step(trainer, *inputs, **more)

    with monkeypatch.context() as patch:
        patch.setattr(transformers.Trainer, "training_step", killed)
        with pytest.raises(Killed):
            tune_huggingface(*arguments, tmp_path / "stopped", settings, tmp_path / "b", device="cpu")
    tune_huggingface(*arguments, tmp_path / "stopped", settings, tmp_path / "b", device="cpu")
    one, two = (
        open_model(str(tmp_path / name), device="cpu").model.state_dict()  # type: ignore[attr-defined]
        for name in ("whole", "stopped")
    )
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_an_adapter_is_not_taught(tiny_llama: Path, tmp_path: Path) -> None:
    import peft

    base = open_model(str(tiny_llama), device="cpu")
    adapted = peft.get_peft_model(base.model, peft.LoraConfig(r=2, target_modules="all-linear"))  # type: ignore[attr-defined]
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ConfigError, match="adapter is an adapter"):
        tune_huggingface(str(tmp_path / "adapter"), (), tmp_path / "out", SETTINGS, tmp_path / "l", device="cpu")
    assert not (tmp_path / "out").exists()


def test_time_left_is_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, told = [0.0], list[str]()
    monkeypatch.setattr(log.time, "monotonic", lambda: clock[0])
    countdown = log.Countdown(told.append, "row")
    for done in range(10, 51, 5):
        clock[0] += 3.0
        countdown(done, 50, ", well")
    # From row 10 on, five rows took three seconds.
    assert told == ["  row 25 of 50, well, 15 s left", "  row 45 of 50, well, 3 s left"]


def test_the_micro_batch_must_divide_the_batch(tiny_llama: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"batch_size": 6})
    with pytest.raises(ConfigError, match="batch_size 6 is not a multiple of micro_batch_size 4"):
        tune_huggingface(str(tiny_llama), (), tmp_path, settings, tmp_path / "log.jsonl")


def test_another_gpu_is_chosen_by_the_environment(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="device is cuda:1; the Trainer takes the first GPU it sees"):
        tune_huggingface(str(tiny_llama), (), tmp_path, SETTINGS, tmp_path / "log.jsonl", device="cuda:1")
