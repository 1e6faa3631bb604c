"""Whole runs on the real engine, in one process: repeated, stopped, killed and resumed, they are the same to the bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_data import SEQUENCE_LENGTH, build_files, run_config

from megalign.cluster.ranks import Rank
from megalign.config import RunConfig
from megalign.config.layout import Layout
from megalign.engine import checkpoint
from megalign.engine.device import device_name
from megalign.engine.engine import Engine, StepResult
from megalign.engine.model import unwrapped
from megalign.errors import ConfigError, DataError, StoppedOnRequest
from megalign.training.run import RunFolder, RunInputs, train

pytestmark = pytest.mark.usefixtures("world_of_one")

ALONE = Rank(0, 1, 0, "", "single")
INJECT_STEPS, STEPS = 6, 12
ALL_STEPS = [("inject", n) for n in range(1, INJECT_STEPS + 1)] + [("pretrain", n) for n in range(1, STEPS + 1)]


@pytest.fixture(scope="module")
def uninterrupted(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, that others are compared with; read-only."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(run_config(files, folder), ALONE)
    return folder


class Interruption(Exception):
    """The process is gone."""


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None], *, before: bool = False) -> None:
    """Do something before or after the `number`-th optimizer step from now."""
    step, taken = Engine.step, 0

    def counted(self: Engine, *arguments: Any, **named: Any) -> StepResult:
        nonlocal taken
        taken += 1
        if before and taken == number:
            act()
        result = step(self, *arguments, **named)
        if not before and taken == number:
            act()
        return result

    monkeypatch.setattr(Engine, "step", counted)


def after(function: Callable[..., Any], act: Callable[[], None]) -> Callable[..., Any]:
    def both(*arguments: Any, **named: Any) -> Any:
        result = function(*arguments, **named)
        act()
        return result

    return both


def send_sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def crash() -> None:
    raise Interruption


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def steps_of(folder: Path) -> list[tuple[str, int]]:
    return [(line["stage"], line["step"]) for line in metrics_of(folder)]


def last_steps(folder: Path) -> tuple[int, ...]:
    """Steps of the newest checkpoints of injection and pretraining; 0 without one."""
    paths = [checkpoint.latest(RunFolder(folder).checkpoints(stage)) for stage in ("inject", "pretrain")]
    return tuple(int(path.name.removeprefix("step_")) if path else 0 for path in paths)


def numbers_of(folder: Path) -> list[tuple[Any, ...]]:
    names = ("stage", "step", "loss", "grad_norm", "lr", "samples", "tokens", "contrastive_by_level")
    return [tuple(json.dumps(line.get(name)) for name in names) for line in metrics_of(folder)]


def tensors_of(config: RunConfig, stage: str) -> dict[str, torch.Tensor]:
    """Weights and Adam's moments of the stage's last checkpoint."""
    path = checkpoint.latest(RunFolder(Path(config.folder)).checkpoints(stage))
    assert path is not None
    engine = RunInputs.open(config).engine(Layout(config.parallel), stage)
    checkpoint.load(engine, path)
    parameters = dict(unwrapped(engine.chunks[0]).named_parameters())
    tensors = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    inner = (
        engine.optimizer.chained_optimizers[0] if hasattr(engine.optimizer, "chained_optimizers") else engine.optimizer
    )
    for index, state in enumerate(inner.optimizer.state.values()):
        tensors |= {f"moment{index}.{name}": state[name].clone() for name in ("exp_avg", "exp_avg_sq")}
    assert sum(name.startswith("moment") for name in tensors) == 2 * len(parameters)
    return tensors


def assert_equal_runs(files: Path, folder: Path, reference: Path) -> None:
    assert steps_of(folder) == ALL_STEPS
    assert numbers_of(folder) == numbers_of(reference)
    for stage in ("inject", "pretrain"):
        ours, theirs = (tensors_of(run_config(files, path), stage) for path in (folder, reference))
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    ours_summary, summary = (json.loads((path / "run.json").read_text()) for path in (folder, reference))
    for name in ("tokens_seen", "epochs", "steps", "codeswitch_rate", "seed", "status"):
        assert ours_summary[name] == summary[name]


def test_a_run_trains(files: Path, uninterrupted: Path) -> None:
    lines = metrics_of(uninterrupted)
    assert steps_of(uninterrupted) == ALL_STEPS
    inject, pretrain = lines[:INJECT_STEPS], lines[INJECT_STEPS:]
    assert inject[-1]["contrastive"] < inject[0]["contrastive"]
    assert pretrain[-1]["loss"] < pretrain[0]["loss"] - 0.3
    assert [line["samples"] for line in pretrain] == [4 * step for step in range(1, STEPS + 1)]
    assert pretrain[-1]["tokens"] == 4 * STEPS * SEQUENCE_LENGTH
    assert all(len(line["contrastive_by_level"]) == 4 for line in inject)
    # Injection's weights are where pretraining starts, not fresh ones.
    begun = tensors_of(run_config(files, uninterrupted), "inject")
    name = "embedding.word_embeddings.weight"
    fresh = RunInputs.open(run_config(files, uninterrupted)).engine(Layout(run_config(files, Path("x")).parallel), None)
    assert not torch.equal(begun[name], dict(unwrapped(fresh.chunks[0]).named_parameters())[name])


def test_the_summary_says_what_was_seen(files: Path, uninterrupted: Path) -> None:
    summary = json.loads((uninterrupted / "run.json").read_text())
    inputs = RunInputs.open(run_config(files, uninterrupted))
    samples = [inputs.samples.order.place(number).source for number in range(4 * STEPS)]
    english, clone = samples.count(0), samples.count(1)
    batches = [inputs.word_batches().batch(step) for step in range(INJECT_STEPS)]
    assert summary["tokens_seen"] == {
        "injection": INJECT_STEPS * 2 * SEQUENCE_LENGTH,
        "pretrain": {"en": english * SEQUENCE_LENGTH, "en-clone": clone * SEQUENCE_LENGTH},
        "words": sum(int((batch.word_of_token >= 0).sum()) for batch in batches),
    }
    assert summary["words_seen"] == sum(batch.num_words for batch in batches)
    windows = [source.num_windows for source in inputs.samples.order.sources]
    assert summary["epochs"] == {"en": english / windows[0], "en-clone": clone / windows[1]}
    for number in range(4 * STEPS):
        inputs.samples.sample(number)
    assert summary["codeswitch_rate"] == inputs.samples.counts.rate > 0.1
    assert summary["status"] == "trained"
    assert summary["device"] == device_name()
    assert summary["versions"]["torch"] == torch.__version__
    assert summary["tokens_per_second"] > 0


def test_the_engine_has_as_many_parameters_as_the_formula_says(files: Path, tmp_path: Path) -> None:
    config = run_config(files, tmp_path)
    inputs = RunInputs.open(config)
    model = config.model
    h, ffn = model.hidden_size, model.ffn_hidden_size
    matrices, biases, norms = 4 * h * h + 2 * h * ffn, 4 * h + ffn + h, 2 * 2 * h
    rows = model.padded_vocab_size(inputs.store.vocabulary.size)
    engine = inputs.engine(Layout(config.parallel), None)
    assert engine.num_parameters == model.num_layers * (matrices + biases + norms) + 2 * h + rows * h


def test_two_runs_are_equal_to_the_bit(files: Path, uninterrupted: Path, tmp_path: Path) -> None:
    train(run_config(files, tmp_path), ALONE)
    assert_equal_runs(files, tmp_path, uninterrupted)


def test_another_seed_is_another_run(files: Path, uninterrupted: Path, tmp_path: Path) -> None:
    train(run_config(files, tmp_path, seed=6), ALONE)
    assert steps_of(tmp_path) == ALL_STEPS
    assert not set(numbers_of(tmp_path)) & set(numbers_of(uninterrupted))


@pytest.mark.parametrize(
    ("taken", "message"),
    [
        (0, "Asked to stop: inject is saved at step 0 of 6."),
        (
            1,
            "Asked to stop: inject is saved at step 1 of 6. Rank 0 received SIGTERM. Run the same command again to continue.",
        ),
        (
            4,
            "Asked to stop: inject is saved at step 4 of 6. Rank 0 received SIGTERM. Run the same command again to continue.",
        ),
        # The request came with the last step of the injection: it holds for the pretraining.
        (INJECT_STEPS, "Asked to stop: pretrain is saved at step 0 of 12."),
        (INJECT_STEPS + 1, "Asked to stop: pretrain is saved at step 1 of 12."),
        (INJECT_STEPS + 5, "Asked to stop: pretrain is saved at step 5 of 12."),
    ],
)
def test_a_run_that_is_stopped_and_started_again_is_the_uninterrupted_one(
    files: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int, message: str
) -> None:
    config = run_config(files, tmp_path)
    with monkeypatch.context() as patch:
        if taken:
            at_step(patch, taken, send_sigterm)
        else:
            patch.setattr(RunInputs, "engine", after(RunInputs.engine, send_sigterm))
        with pytest.raises(StoppedOnRequest) as caught:
            train(config, ALONE)
    assert str(caught.value).startswith(message)
    assert caught.value.exit_code == 75
    assert steps_of(tmp_path) == ALL_STEPS[:taken]
    # What was computed is saved: started again, only the steps that remain are taken.
    assert last_steps(tmp_path) == (min(taken, INJECT_STEPS), max(taken - INJECT_STEPS, 0))
    train(config, ALONE)
    assert_equal_runs(files, tmp_path, uninterrupted)


def test_a_run_stopped_at_every_other_step_is_the_uninterrupted_one(
    files: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(files, tmp_path)
    num_stops = 0
    while True:
        with monkeypatch.context() as patch:
            at_step(patch, 2, send_sigterm)
            try:
                train(config, ALONE)
                break
            except StoppedOnRequest:
                num_stops += 1
    assert num_stops == 8
    assert_equal_runs(files, tmp_path, uninterrupted)


@pytest.mark.parametrize("taken", [3, INJECT_STEPS + 7])
def test_a_run_that_is_killed_goes_on_from_its_last_checkpoint(
    files: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    """Steps after the checkpoint are taken, and logged, once more; a line cut by the kill goes."""
    config = run_config(files, tmp_path, train__checkpoint_interval=2)
    with monkeypatch.context() as patch:
        at_step(patch, taken, crash, before=True)
        with pytest.raises(Interruption):
            train(config, ALONE)
    assert steps_of(tmp_path) == ALL_STEPS[: taken - 1]
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"stage": "pretra')
    train(config, ALONE)
    assert_equal_runs(files, tmp_path, uninterrupted)


def test_a_stop_at_the_last_step_is_no_stop(
    files: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(monkeypatch, INJECT_STEPS + STEPS, send_sigterm)
    train(run_config(files, tmp_path), ALONE)
    assert_equal_runs(files, tmp_path, uninterrupted)


def test_a_finished_run_does_nothing_when_started_again(
    files: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted, folder)
    before = (folder / "run.json").read_bytes()
    at_step(monkeypatch, 1, crash, before=True)
    train(run_config(files, folder), ALONE)
    assert (folder / "run.json").read_bytes() == before
    assert steps_of(folder) == ALL_STEPS


def test_another_micro_batch_gives_the_same_losses_up_to_rounding(
    files: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    train(run_config(files, tmp_path, train__micro_batch_size=4), ALONE)
    losses, reference = ([line["loss"] for line in metrics_of(path)] for path in (tmp_path, uninterrupted))
    # Sums over 4 windows in another order: float32 rounding (6e-8), grown over 12 steps of Adam.
    assert losses == pytest.approx(reference, rel=1e-4)


def stopped(config: RunConfig, taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        at_step(patch, taken, send_sigterm)
        with pytest.raises(StoppedOnRequest):
            train(config, ALONE)


@pytest.mark.parametrize("taken", [2, INJECT_STEPS + 2])
@pytest.mark.parametrize(("what", "source"), [("store", "store"), ("table", "table.parquet")])
def test_data_that_changed_between_is_refused(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int, what: str, source: str
) -> None:
    stopped(run_config(files, tmp_path / "run"), taken, monkeypatch)
    if what == "store":
        # The same sizes and vocabulary, other text: the order's fingerprint alone would not see it.
        other = build_files(tmp_path / "other", seed=1)
        (other / "table.parquet").unlink()
        changed = run_config(files, tmp_path / "run", data__store=str(other / source))
    else:
        table = RunInputs.open(run_config(files, tmp_path)).encoded.table
        table.top_fraction(0.9).save(tmp_path / source)
        changed = run_config(files, tmp_path / "run", data__table=str(tmp_path / source))
    with pytest.raises(DataError) as caught:
        train(changed, ALONE)
    stage = "inject" if taken < INJECT_STEPS else "pretrain"
    folder = tmp_path / "run" / "checkpoints" / stage
    step = taken if stage == "inject" else taken - INJECT_STEPS
    assert str(caught.value).startswith(f"The checkpoint {folder / f'step_{step:08d}'} was written with {what} '")
    assert str(caught.value).endswith(
        "Its samples would not be continued but others read. Restore the data and settings it was started with, or "
        f"remove {folder} to start over. train.accept_changed_data=true continues all the same: samples may then be read "
        "twice or never, and the run cannot be repeated."
    )


def test_settings_that_changed_between_are_refused_before_anything_is_computed(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(run_config(files, tmp_path), 1, monkeypatch)
    with pytest.raises(ConfigError, match="was started with other settings: seed was 5, is 6"):
        train(run_config(files, tmp_path, seed=6), ALONE)


def test_a_layout_of_more_processes_is_refused(files: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^1 processes were started for a layout of 2 \(tensor 1 x context 1 x data 2"
    ):
        train(run_config(files, tmp_path, parallel__data=2), ALONE)
    assert not (tmp_path / "config.yaml").exists()


def test_the_probe_is_called_before_the_first_step_and_at_its_interval(files: Path, tmp_path: Path) -> None:
    calls: list[int] = []
    config = run_config(files, tmp_path, train__evaluate_interval=5, inject__steps=0)
    train(config, ALONE, lambda engine, step: calls.append(step))
    assert calls == [0, 5, 10]


def test_metrics_are_logged_at_the_first_and_last_step_and_the_interval(files: Path, tmp_path: Path) -> None:
    train(run_config(files, tmp_path, train__log_interval=5), ALONE)
    assert steps_of(tmp_path) == [
        *[("inject", step) for step in (1, 5, 6)],
        *[("pretrain", step) for step in (1, 5, 10, 12)],
    ]


def test_old_checkpoints_go_once_newer_ones_are_complete(files: Path, tmp_path: Path) -> None:
    train(run_config(files, tmp_path, train__checkpoint_interval=5, train__keep_checkpoints=2), ALONE)
    kept = {s: sorted(p.name for p in (tmp_path / "checkpoints" / s).glob("step_*")) for s in ("inject", "pretrain")}
    assert kept == {
        "inject": ["step_00000005", "step_00000006"],
        "pretrain": ["step_00000010", "step_00000012"],
    }


CLONE_ONLY: dict[str, Any] = {
    "data__sources": [{"language": "en-clone", "weight": 1.0}],
    "inject__steps": 0,
    "codeswitch__ratio": 0.0,
    "method": "only_target",
}


def stopped_and_continued(
    files: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, taken: int, changes: dict[str, Any]
) -> None:
    stopped(run_config(files, folder, **changes), taken, monkeypatch)
    train(run_config(files, folder, **changes), ALONE)


def assert_same_pretraining(files: Path, folder: Path, reference: Path, changes: dict[str, Any]) -> None:
    assert numbers_of(folder) == numbers_of(reference)
    ours, theirs = (tensors_of(run_config(files, path, **changes), "pretrain") for path in (folder, reference))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    ours_summary, summary = (json.loads((path / "run.json").read_text()) for path in (folder, reference))
    assert (ours_summary["tokens_seen"], ours_summary["epochs"]) == (summary["tokens_seen"], summary["epochs"])


@pytest.mark.parametrize("taken", [2, 3, 7])
def test_a_resumed_run_is_the_same_over_several_epochs(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    """An epoch is three steps: stopped inside one, at its end, and in the third."""
    train(run_config(files, tmp_path / "whole", **CLONE_ONLY), ALONE)
    stopped_and_continued(files, tmp_path / "run", monkeypatch, taken, CLONE_ONLY)
    assert_same_pretraining(files, tmp_path / "run", tmp_path / "whole", CLONE_ONLY)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["epochs"] == {"en-clone": 4.0}


PLANNED: dict[str, Any] = {
    "inject__steps": 0,
    "train__batch_size_ramp": [{"until_tokens": 6 * SEQUENCE_LENGTH, "global_batch_size": 2}],
    "data__stages": [
        {
            "after_tokens": 20 * SEQUENCE_LENGTH,
            "sources": [{"language": "en-clone", "weight": 1.0}, {"language": "en", "weight": 1.0}],
        }
    ],
    "data__skip_samples": [[3, 4], [30, 39]],
}


@pytest.mark.parametrize("taken", [2, 4, 8, 10])
def test_a_run_with_a_ramp_stages_and_skipped_samples_is_the_same_when_resumed(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    train(run_config(files, tmp_path / "whole", **PLANNED), ALONE)
    stopped_and_continued(files, tmp_path / "run", monkeypatch, taken, PLANNED)
    assert_same_pretraining(files, tmp_path / "run", tmp_path / "whole", PLANNED)
    samples = [line["samples"] for line in metrics_of(tmp_path / "run")]
    assert samples == [2, 4, 6, *range(10, 43, 4)]
    # 42 samples are read up to number 53: of blocks of 11 (10 : 1) up to 22, then of blocks of 2 (1 : 1).
    order = RunInputs.open(run_config(files, tmp_path, **PLANNED)).samples.order
    assert order.starts == [0, 22]
    read = [n for n in range(54) if n not in (3, 4, *range(30, 40))]
    clone = [n for n in read if order.sources[order.place(n).source].language == "en-clone"]
    assert sum(n >= 22 for n in clone) == 11
    assert sum(n < 22 for n in clone) <= 2
    summary = json.loads((tmp_path / "run" / "run.json").read_text())
    assert summary["tokens_seen"]["pretrain"]["en-clone"] == len(clone) * SEQUENCE_LENGTH


def test_stages_and_skips_may_be_added_ahead_while_a_run_is_stopped(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(run_config(files, tmp_path / "whole", **{**PLANNED, "data__skip_samples": [[30, 39]]}), ALONE)
    before = {**PLANNED, "data__stages": [], "data__skip_samples": []}
    stopped(run_config(files, tmp_path / "run", **before), 5, monkeypatch)
    planned = {**PLANNED, "data__skip_samples": [[30, 39]]}
    train(run_config(files, tmp_path / "run", **planned), ALONE)
    assert_same_pretraining(files, tmp_path / "run", tmp_path / "whole", planned)


def test_plans_behind_the_checkpoint_are_refused_unless_accepted(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {**PLANNED, "data__skip_samples": []}
    folder = tmp_path / "run"
    stopped(run_config(files, folder, **before), 5, monkeypatch)
    with pytest.raises(
        DataError, match=r"was written with order '.*train\.accept_changed_data=true continues all the same"
    ):
        train(run_config(files, folder, **PLANNED), ALONE)
    assert steps_of(folder) == [("pretrain", n) for n in range(1, 6)], "nothing was computed"
    train(run_config(files, folder, **PLANNED, train__accept_changed_data=True), ALONE)
    assert steps_of(folder) == [("pretrain", n) for n in range(1, STEPS + 1)]
    (event,) = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert (event["event"], event["step"]) == ("changed_data", 5)


def test_the_length_of_a_run_does_not_change_what_it_reads_first(files: Path, tmp_path: Path) -> None:
    short, long = (
        RunInputs.open(run_config(files, tmp_path, train__steps=steps)).samples for steps in (STEPS, 10 * STEPS)
    )
    for number in range(4 * STEPS):
        for ours, theirs in zip(short.sample(number), long.sample(number), strict=True):
            assert (ours == theirs).all()
