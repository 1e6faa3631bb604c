"""Faults of users and machines: kills while a state is saved, losses that are no numbers, tests without scores."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from safetensors.torch import load_file, save_file

from megalign.clika.knowledge import test_path as path_of_test
from megalign.conductivity import MeasureSettings, TuneSettings, measure
from megalign.conductivity.log import TuningLog
from megalign.conductivity.tune_huggingface import tune_huggingface
from megalign.errors import ConfigError, DataError, EnvironmentProblem, TrainingProblem
from megalign.files import only_process

TUNE = TuneSettings(epochs=1, batch_size=4, micro_batch_size=4, lora_rank=2, lora_alpha=4)
SETTINGS = MeasureSettings(tune=TUNE, max_new_tokens=8, device="cpu", num_resamples=20)


@pytest.fixture
def knowledge(tmp_path: Path) -> Path:
    tiny.knowledge(tmp_path / "knowledge", "de")
    return tmp_path / "knowledge"


def rewrite(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(change(lines)), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], "There are 4 questions in en and 3 in de"),
        (lambda lines: [line.replace("type:1", "type:0") for line in lines], "There are no questions of type 1 in de"),
        (lambda lines: [line.replace("[[", "[") for line in lines], "has no usable row"),
        (lambda lines: [line.split("[[")[0] + '[[continent:]][[city:x]][[type:1]]"}\n' for line in lines], "no usable"),
    ],
)
def test_tests_that_cannot_be_scored_are_refused_before_anything_is_taught(
    change: Callable[[list[str]], list[str]], message: str, tiny_llama: Path, knowledge: Path, tmp_path: Path
) -> None:
    rewrite(path_of_test(knowledge, "de"), change)
    settings = MeasureSettings(**{**vars(SETTINGS), "accept_findings": True})
    with pytest.raises(DataError, match=message):
        measure(str(tiny_llama), knowledge, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


def test_a_description_that_says_nothing_is_refused_before_anything_is_taught(
    tiny_llama: Path, knowledge: Path, tmp_path: Path
) -> None:
    (knowledge / "knowledge.json").write_text("{}")
    with pytest.raises(DataError, match=r"knowledge\.json does not say places, continents and roots"):
        measure(str(tiny_llama), knowledge, tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()


def test_a_language_is_measured_once_by_one_process(tiny_llama: Path, knowledge: Path, tmp_path: Path) -> None:
    settings = MeasureSettings(**{**vars(SETTINGS), "languages": ("de", "de")})
    assert len(measure(str(tiny_llama), knowledge, tmp_path / "out", settings)) == 1
    assert len((tmp_path / "out" / "conductivity.jsonl").read_text().splitlines()) == 1
    with (
        only_process(tmp_path / "out" / ".lock"),
        pytest.raises(EnvironmentProblem, match="Another process works in"),
    ):
        measure(str(tiny_llama), knowledge, tmp_path / "out", settings)


def test_a_kill_while_a_state_was_saved_costs_that_state_alone(
    tiny_llama: Path, knowledge: Path, tmp_path: Path
) -> None:
    content = tiny.knowledge(knowledge, "de")
    settings = TUNE.model_copy(update={"save_steps": 3})
    for name in ("whole", "killed"):
        tune_huggingface(
            str(tiny_llama), content.train, tmp_path / name, settings, tmp_path / f"{name}.jsonl", device="cpu"
        )
    states = tmp_path / "killed" / "training"
    (newest,) = states.glob("checkpoint-*")
    # As a kill leaves it: some files of the next state, whose last one is not there yet.
    half = states / "checkpoint-99"
    shutil.copytree(newest, half)
    (half / "trainer_state.json").write_text('{"global_step": 99, ')
    (half / "optimizer.pt").write_bytes(b"")
    tune_huggingface(
        str(tiny_llama), content.train, tmp_path / "killed", settings, tmp_path / "killed.jsonl", device="cpu"
    )
    assert not half.exists()
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "killed"))
    assert all(bool((one[name] == two[name]).all()) for name in one)


def test_a_loss_that_is_no_number_ends_teaching(tiny_llama: Path, knowledge: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(tiny_llama, tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"].fill_(float("nan"))
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingProblem, match=r"The loss of step \d+ is nan"):
        measure(str(broken), knowledge, tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out" / "de" / "taught.json").exists()


def test_losses_of_steps_that_are_taken_again_are_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "tuning.jsonl"
    first = TuningLog(path, 100)
    for step in range(1, 66):
        first.write(step, 1.0, 0.1)
    with path.open("a") as stream:
        stream.write('{"step": 6')
    again = TuningLog(path, 100)
    for step in range(31, 101):
        again.write(step, 2.0, 0.1)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(20, 1.0), (40, 2.0), (60, 2.0), (80, 2.0), (100, 2.0)]
    with pytest.raises(TrainingProblem, match="The loss of step 7 is inf"):
        again.write(7, float("inf"), 0.1)


def test_a_seed_that_no_generator_takes_is_refused() -> None:
    with pytest.raises(ValueError, match="seed"):
        TuneSettings(seed=2**32)


def test_the_way_out_of_a_batch_that_is_not_divided_is_said(tiny_llama: Path, tmp_path: Path) -> None:
    settings = TUNE.model_copy(update={"batch_size": 6})
    with pytest.raises(ConfigError, match="Set --micro-batch-size to a divisor of --train-batch-size"):
        tune_huggingface(str(tiny_llama), (), tmp_path, settings, tmp_path / "log.jsonl")


def test_a_full_disk_is_told_and_teaching_goes_on(tiny_llama: Path, knowledge: Path, tmp_path: Path) -> None:
    import resource

    settings = MeasureSettings(**{**vars(SETTINGS), "tune": TUNE.model_copy(update={"save_steps": 2})})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16384, limits[1]))
    try:
        with pytest.raises(EnvironmentProblem, match="cannot be written"):
            measure(str(tiny_llama), knowledge, tmp_path / "out", settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(measure(str(tiny_llama), knowledge, tmp_path / "out", settings)) == 1
