"""The whole protocol on tiny models: from a set of knowledge to the report, continued, refused, through the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
from safetensors.torch import load_file, save_file

from megalign.clika.conductivity import conductivity
from megalign.clika.knowledge import Knowledge
from megalign.conductivity import MeasureSettings, TuneSettings, measure
from megalign.errors import ConfigError, DataError

SETTINGS = MeasureSettings(
    tune=TuneSettings(epochs=60, batch_size=4, micro_batch_size=4, lr=1e-2, method="full"),
    max_new_tokens=40,
    device="cpu",
    num_resamples=100,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("measure")


@pytest.fixture(scope="module")
def content(folder: Path) -> Knowledge:
    return tiny.knowledge(folder / "knowledge", "fr", "de")


def texts(path: Path) -> list[str]:
    return [json.loads(line)["res"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_model_that_learned_everything_passes_all_gates(tiny_llama: Path, folder: Path, content: Knowledge) -> None:
    """Memorised knowledge passes; what is reported is what the answers say; a second call computes nothing."""
    out = folder / "llama"
    settings = MeasureSettings(**{**vars(SETTINGS), "languages": ("de",)})
    settings = MeasureSettings(**{**vars(settings), "tune": SETTINGS.tune.model_copy(update={"lr": 3e-3})})
    (result,) = measure(str(tiny_llama), folder / "knowledge", out, settings)
    answers = {name: texts(out / "de" / "answers" / f"{name}.jsonl") for name in ("translation", "en", "de")}
    assert result == conductivity(content, answers, num_resamples=100)
    assert result.failed == ()
    assert 0 <= result.xrr <= 1  # type: ignore[operator]
    line = json.loads((out / "conductivity.jsonl").read_text())
    assert (line["model"], line["language"], line["xrr"]) == (tiny_llama.name, "de", result.xrr)
    assert not (out / "de" / "model" / "training").exists(), "the optimizer's state is not needed any more"
    before = {path: path.stat().st_mtime_ns for path in (out / "de" / "model").rglob("*")}
    told: list[str] = []
    assert measure(str(tiny_llama), folder / "knowledge", out, settings, told.append) == [result]
    assert told[0] == "de: taught before"
    assert {path: path.stat().st_mtime_ns for path in (out / "de" / "model").rglob("*")} == before
    changed = MeasureSettings(**{**vars(settings), "tune": settings.tune.model_copy(update={"epochs": 2})})
    with pytest.raises(ConfigError, match=r"holds a model that was taught otherwise: settings.epochs was 60, is 2\."):
        measure(str(tiny_llama), folder / "knowledge", out, changed)


def test_a_model_whose_weights_changed_is_not_taken_for_the_taught_one(
    tiny_llama: Path, folder: Path, content: Knowledge, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    tune = TuneSettings(epochs=1, batch_size=4, micro_batch_size=4, lora_rank=4)
    settings = MeasureSettings(tune=tune, languages=("de",), max_new_tokens=4, device="cpu", num_resamples=20)
    measure(str(model), folder / "knowledge", tmp_path / "out", settings)
    weights = load_file(model / "model.safetensors")
    save_file({name: one * 2 for name, one in weights.items()}, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="was taught otherwise: weights was"):
        measure(str(model), folder / "knowledge", tmp_path / "out", settings)


def test_a_run_that_was_hardly_taught_has_no_xrr(tiny_run: Path, folder: Path, content: Knowledge) -> None:
    done = tiny.megalign(
        "clika",
        "conductivity",
        tiny_run,
        folder / "knowledge",
        "--out",
        folder / "run",
        "--language",
        "de",
        "--epochs",
        1,
        "--max-new-tokens",
        8,
    )
    assert done.returncode == 0, done.stderr
    assert "de: no XRR: not above 90%: translation of names" in done.stdout
    line = json.loads((folder / "run" / "conductivity.jsonl").read_text())
    assert (line["model"], line["xrr"]) == ("tiny", None)
    assert "translation" in line["failed_gates"]
    assert "gate failed" in (folder / "run" / "report.html").read_text(encoding="utf-8")


def test_every_language_of_the_knowledge_is_measured(tiny_llama: Path, folder: Path, content: Knowledge) -> None:
    tune = TuneSettings(epochs=1, batch_size=4, micro_batch_size=4, lora_rank=4)
    settings = MeasureSettings(tune=tune, max_new_tokens=8, device="cpu", num_resamples=20)
    results = measure(str(tiny_llama), folder / "knowledge", folder / "both", settings)
    assert [result.language for result in results] == ["de", "fr"]
    assert (folder / "both" / "fr" / "model" / "adapter_config.json").is_file()


def test_knowledge_that_is_not_what_is_asked_is_not_taught(tiny_llama: Path, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "knowledge", tmp_path / "knowledge")
    path = tmp_path / "knowledge" / "train" / "DE.json"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row["input"]), encoding="utf-8")
    with pytest.raises(DataError, match="2 findings make a score meaningless"):
        measure(str(tiny_llama), tmp_path / "knowledge", tmp_path / "out", MeasureSettings(languages=("de",)))
    assert not (tmp_path / "out").exists()


def test_a_model_or_language_that_is_not_there_is_named(tiny_llama: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent is no folder, and no model of that name"):
        measure("absent", folder / "knowledge", tmp_path / "out", MeasureSettings(languages=("de",), device="cpu"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="There is no knowledge in ru"):
        measure(str(tiny_llama), folder / "knowledge", tmp_path, MeasureSettings(languages=("ru",)))


def test_wrong_options_end_with_code_2(tiny_llama: Path, folder: Path, tmp_path: Path) -> None:
    arguments = ("clika", "conductivity", tiny_llama, folder / "knowledge", "--out", tmp_path)
    done = tiny.megalign(*arguments, "--method", "prompt")
    assert done.returncode == 2
    assert "method" in done.stderr


@pytest.mark.reference_data
def test_the_check_command_finds_the_released_fault(reference_data: Path, folder: Path, content: Knowledge) -> None:
    done = tiny.megalign("clika", "check", reference_data / "clika" / "fictional", "--language", "zh")
    assert done.returncode == 3
    assert "train/ZH.json:1: other_continent: 6000 of 6000 statements" in done.stdout
    assert "2 of 6 findings make a conductivity score meaningless" in done.stderr
    sound = tiny.megalign("clika", "check", folder / "knowledge")
    assert sound.returncode == 0
    assert "0 finding(s), none of which forbids a score" in sound.stdout
