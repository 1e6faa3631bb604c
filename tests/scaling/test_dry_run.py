"""`megalign train --dry-run` against runs that were really made, starts that really fail, and counts by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import small_study
import yaml
from small_study import SEED, megalign

from megalign.config import MODELS, RunConfig, load_run, model_preset
from megalign.errors import ConfigError
from megalign.files import read_json
from megalign.scaling.devices import Device, load_devices
from megalign.scaling.flops import training_flops_per_token
from megalign.scaling.parameters import count_parameters
from megalign.study.expand import StudyFolder
from megalign.training.dry_run import DryRun, dry_run
from megalign.training.inputs import RunInputs


def written(content: dict[str, Any], tmp_path: Path, **changes: Any) -> Path:
    """The run's file; dotted keys, with two underscores for a dot, replace values."""
    for key, value in changes.items():
        at = content
        *sections, last = key.split("__")
        for section in sections:
            at = at.setdefault(section, {})
        at[last] = value
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content), "utf-8")
    return path


def planned(content: dict[str, Any], tmp_path: Path, *, device: Device | None = None, **changes: Any) -> DryRun:
    return dry_run(load_run(written(content, tmp_path, **changes)), device=device)


def test_a_finished_run_was_what_its_dry_run_says(finished_study: StudyFolder) -> None:
    run = finished_study.run("prealign", SEED)
    result, summary = dry_run(load_run(run / "config.yaml")), read_json(run / "run.json")
    assert {source.language: source.tokens for source in result.sources} == summary["tokens_seen"]["pretrain"]
    assert {source.language: source.epochs for source in result.sources} == summary["epochs"]
    assert result.tokens["inject"] == summary["tokens_seen"]["injection"]
    assert result.steps == summary["steps"] == result.steps_logged
    assert result.speed.tokens_per_second == summary["tokens_per_second"]
    assert result.remaining_seconds == 0.0
    saved = sorted(run.glob("checkpoints/*/step_*"))
    assert result.checkpoints["kept"] == len(saved)
    size = sum(path.stat().st_size for path in saved[-1].rglob("*") if path.is_file())
    assert result.checkpoints["bytes"] < size < result.checkpoints["bytes"] + 400_000


@pytest.mark.parametrize("when", ["during", "after"])
def test_an_injection_during_or_after_pretraining_is_counted(
    content: dict[str, Any], tmp_path: Path, when: str
) -> None:
    before = planned(content, tmp_path)
    result = planned(content, tmp_path, inject__when=when)
    assert result.injection is not None
    assert (result.injection.when, result.injection.steps) == (when, 4)
    own_stage = when == "after"
    assert result.steps == {"inject": 4 if own_stage else 0, "pretrain": 12}
    assert result.tokens["inject"] == (4 * 2 * 64 if own_stage else 0)
    assert result.flops["pretrain"] == before.flops["pretrain"]
    text = 4 * 2 * 64 * result.flops["per_token"]
    assert result.flops["inject"] == pytest.approx(before.flops["inject"] - (0 if own_stage else text))
    assert result.checkpoints["written"] == before.checkpoints["written"] - (0 if own_stage else 1)
    done = megalign("train", tmp_path / "run.yaml", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert f"injection, {when} pretraining" in done.stdout
    assert ("of text during injection" in done.stdout) == own_stage


def test_nothing_in_the_run_s_folder_changes(finished_study: StudyFolder) -> None:
    run = finished_study.run("prealign", SEED)

    def state() -> dict[str, tuple[int, int]]:
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in run.rglob("*")}

    before = state()
    done = megalign("train", run / "config.yaml", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert state() == before


def test_tokens_of_sources_are_those_of_every_sample(content: dict[str, Any], tmp_path: Path) -> None:
    """With stages, left-out samples and a growing batch: each position's source, one by one."""
    path = written(
        content,
        tmp_path,
        codeswitch__ratio=0.0,
        train__batch_size_ramp=[{"until_tokens": 700, "global_batch_size": 2}],
        data__skip_samples=[[3, 5], [20, 20]],
        data__stages=[{"after_tokens": 1500, "sources": [{"language": "en", "weight": 1.0, "as_clone": "en-clone"}]}],
    )
    run = load_run(path)
    result, inputs = dry_run(run), RunInputs.open(run)
    assert [(p.first_step, p.last_step, p.global_batch_size) for p in result.batch_phases] == [(1, 6, 2), (7, 12, 4)]
    assert [p.num_micro_batches for p in result.batch_phases] == [1, 2]
    positions = 6 * 2 + 6 * 4
    order = inputs.samples.order
    read = Counter(order.place(order.sample_at(position)).source for position in range(positions))
    assert [source.tokens for source in result.sources] == [64 * read[0], 64 * read[1]]
    assert result.tokens["pretrain"] == positions * 64 == sum(source.tokens for source in result.sources)
    for source, planned_source in zip(order.sources, result.sources, strict=True):
        assert planned_source.available_tokens == source.num_windows * 64
        assert planned_source.epochs == pytest.approx(planned_source.tokens / planned_source.available_tokens)


@pytest.mark.parametrize("preset", MODELS)
def test_every_preset_has_a_dry_run(content: dict[str, Any], tmp_path: Path, preset: str) -> None:
    model = {"preset": preset, "sequence_length": 64}
    device = load_devices()["h100"]
    result = planned(content, tmp_path, device=device, model=model, precision__dtype="bfloat16")
    run = load_run(tmp_path / "run.yaml")
    assert result.parameters["total"] == count_parameters(run.model, result.vocab_size).total
    assert result.parameters["stages"] == [result.parameters["total"]]
    assert result.memory[0].total > 18 * result.parameters["total"]
    large = model_preset(preset)["hidden_size"] >= 4096
    assert any("needs" in text and "NVIDIA H100" in text for text in result.warnings) == large


def test_the_time_follows_from_the_share_of_the_peak(content: dict[str, Any], tmp_path: Path) -> None:
    run = load_run(written(content, tmp_path, precision__dtype="bfloat16", parallel__data=2, inject__steps=0))
    device = load_devices()["h100"]
    result = dry_run(run, device=device, mfu=0.4)
    per_token = training_flops_per_token(run.model, result.vocab_size)
    assert result.speed.tokens_per_second == pytest.approx(0.4 * 2 * 989.4e12 / per_token)
    assert result.remaining_seconds == pytest.approx(12 * 4 * 64 * per_token / (0.4 * 2 * 989.4e12))
    assert result.mfu == pytest.approx(0.4)
    given = dry_run(run, tokens_per_second=100.0)
    assert given.remaining_seconds == pytest.approx(12 * 4 * 64 / 100)
    assert given.mfu is None
    unknown = dry_run(run)
    assert unknown.remaining_seconds is None
    assert unknown.speed.origin == "unknown: give --tokens-per-second, or --device and --mfu"
    with pytest.raises(ConfigError, match="no device is known"):
        dry_run(run, mfu=0.4)
    with pytest.raises(ConfigError, match=r"the peak of Mine in bfloat16 is known|Mine"):
        dry_run(run, device=Device(title="Mine"), mfu=0.4)


def test_injection_adds_its_work_and_its_words(content: dict[str, Any], tmp_path: Path) -> None:
    with_words = planned(content, tmp_path)
    use = with_words.injection
    assert use is not None
    run = load_run(tmp_path / "run.yaml")
    from megalign.prealign.words import WordBatches

    batches = WordBatches(RunInputs.open(run).encoded, entries_per_batch=16, seed=run.seed)
    batch = batches.batch(0)
    assert (use.words_per_step, use.word_tokens_per_step) == (batch.num_words, batch.tokens.size)
    assert with_words.tokens["inject"] == 4 * 2 * 64
    assert with_words.flops["inject"] > 4 * 2 * 64 * with_words.flops["per_token"]
    assert with_words.memory[0].total >= planned(content, tmp_path, inject__steps=0).memory[0].total


def test_what_deserves_a_look_is_said(content: dict[str, Any], tmp_path: Path) -> None:
    result = planned(
        content,
        tmp_path,
        device=Device(title="Small", memory_bytes=1e6),
        inject__steps=0,
        train__steps=2000,
        parallel__pipeline=2,
        precision__fp8="delayed",
        train__batch_size_ramp=[{"until_tokens": 10**9, "global_batch_size": 2}],
    )
    told = "\n".join(result.warnings)
    assert "Small has 0.000931 GiB" in told
    assert "en is read " in told
    assert "pipeline stages wait 100%" in told
    assert "batch_size_ramp does not reach" in told
    assert "precision.fp8 needs TransformerEngine and a GPU" in told
    shorter = planned(content, tmp_path, train__max_epochs=1.0, train__batch_size_ramp=[], parallel__pipeline=1)
    assert any("train.max_epochs ends pretraining at step" in text for text in shorter.warnings)


def test_the_command_prints_all_and_writes_json(content: dict[str, Any], tmp_path: Path) -> None:
    path = written(content, tmp_path, parallel__pipeline=2, train__checkpoint_interval=5)
    numbers = tmp_path / "out" / "numbers.json"
    done = megalign("train", path, "train.steps=13", "--dry-run", "--tokens-per-second", "64", "--json", numbers)
    assert done.returncode == 0, done.stderr
    for text in (
        "layers 1; 1",
        "steps 1 to 13: 4 windows of 64 = 256 tokens a step",
        "2 micro-batches of 2 a rank",
        "4 of ",  # checkpoints: 5, 10, 13, and that of injection
        "en-clone",
        "stage 0",
        "stage 1",
        "64 tokens/s (as given)",
        "together",
    ):
        assert text in done.stdout
    values = json.loads(numbers.read_text("utf-8"))
    assert values["steps"] == {"inject": 4, "pretrain": 13}
    assert values["checkpoints"]["written"] == 4
    assert values["checkpoints"]["kept"] == 3
    assert [memory["total"] > 0 for memory in values["memory"]] == [True, True]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        (3, {"data__store": "/nowhere/store"}),
        (3, {"data__table": "/nowhere/table.parquet"}),
        (3, {"data__sources": [{"language": "xx", "weight": 1.0}], "codeswitch__ratio": 0.0}),
        (2, {"parallel__tensor": 3}),
        (2, {"inject__entries_per_step": 100_000}),
        (2, {"parallel__pipeline": 2, "parallel__virtual_pipeline": 1}),
        (
            2,
            {
                "train__micro_batch_size": 4,
                "model__num_layers": 4,
                "inject__steps": 0,
                "parallel__pipeline": 2,
                "parallel__virtual_pipeline": 2,
            },
        ),
    ],
    ids=lambda value: "" if isinstance(value, int) else next(iter(value)),
)
def test_errors_are_those_of_a_start(
    content: dict[str, Any], tmp_path: Path, code: int, changes: dict[str, Any]
) -> None:
    path = written(content, tmp_path, **changes)
    dry, real = megalign("train", path, "--dry-run"), megalign("train", path)
    assert (dry.returncode, real.returncode) == (code, code)
    errors = [line for line in real.stderr.splitlines() if line.startswith(("error: ", "  "))]
    assert [line for line in dry.stderr.splitlines() if line.startswith(("error: ", "  "))] == errors[:3]


def test_a_folder_begun_with_other_settings_is_refused(finished_study: StudyFolder) -> None:
    config = finished_study.run("prealign", SEED) / "config.yaml"
    done = megalign("train", config, "train.optimizer.lr=0.5", "--dry-run")
    assert done.returncode == 2
    assert "was started with other settings: train.optimizer.lr was 0.003, is 0.5." in done.stderr


def test_a_study_is_told_what_to_do(tmp_path: Path) -> None:
    done = megalign("train", small_study.write(tmp_path / "small.yaml"), "--dry-run")
    assert done.returncode == 2
    assert "is a study, not a run." in done.stderr
    assert "megalign study run" in done.stderr


def test_assumptions_need_a_dry_run(content: dict[str, Any], tmp_path: Path) -> None:
    done = megalign("train", written(content, tmp_path), "--mfu", "0.4")
    assert done.returncode == 2
    assert "belong to --dry-run" in done.stderr


def test_a_dry_run_imports_no_torch(content: dict[str, Any], tmp_path: Path) -> None:
    path = written(content, tmp_path)
    code = (
        "import sys; from pathlib import Path; from rich.console import Console;"
        "from megalign.cli.dry_run import Assumptions, show;"
        f"show(Path({str(path)!r}), [], Assumptions(device='h100'), Console());"
        "heavy = {'torch', 'megatron', 'transformers'} & {name.split('.')[0] for name in sys.modules};"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=400)


def test_the_configuration_is_not_changed(content: dict[str, Any], tmp_path: Path) -> None:
    run: RunConfig = load_run(written(content, tmp_path))
    before = run.model_dump()
    dry_run(run)
    assert run.model_dump() == before
