"""TensorBoard, W&B and profiler files of real runs, read back by the libraries' own readers."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_data import SEQUENCE_LENGTH, run_config

from megalign.cluster.ranks import Rank
from megalign.config.layout import Layout
from megalign.config.sections import TrackConfig
from megalign.engine.batch import LanguageBatch
from megalign.errors import EnvironmentProblem
from megalign.training import tracking
from megalign.training.run import RunInputs, train
from megalign.training.tracking import check_installed, scalars

pytestmark = pytest.mark.usefixtures("world_of_one")

ALONE = Rank(0, 1, 0, "", "single")


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_numbers_are_named_by_their_path() -> None:
    values = {"loss": 1.5, "by": {"en": 2, "de": None}, "levels": [1.0, 2.0], "name": "x", "flag": True}
    assert list(scalars(values)) == [("loss", 1.5), ("by/en", 2.0), ("levels/0", 1.0), ("levels/1", 2.0)]


@pytest.mark.parametrize(
    ("settings", "key"), [({"tensorboard": True}, "track.tensorboard"), ({"wandb_project": "p"}, "track.wandb_project")]
)
def test_a_missing_library_is_told_before_training(
    settings: dict[str, Any], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match=rf"{key} is set, but \w+ is not installed.*megalign\[tracking\]"):
        check_installed(TrackConfig(**settings))
    check_installed(TrackConfig())


def test_tensorboard_has_every_logged_number_of_both_stages(files: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(run_config(files, tmp_path, track__tensorboard=True), ALONE)
    lines = metrics_of(tmp_path)
    for stage in ("inject", "pretrain"):
        events = EventAccumulator(str(tmp_path / "tensorboard" / stage))
        events.Reload()
        own = [line for line in lines if line["stage"] == stage]
        for name in ("loss", "grad_norm", "lr", "tokens", "peak_memory_bytes"):
            found = [(event.step, event.value) for event in events.Scalars(name)]
            assert found == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in own]
    assert {"tokens_by_source/en", "tokens_by_source/en-clone", "tflops_per_device"} <= set(events.Tags()["scalars"])
    assert "mfu" not in events.Tags()["scalars"], "null is no number"


def leveldb_records(content: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: after 7 bytes of its own, LevelDB's log format in blocks of 32 KiB."""
    block, header, at, parts = 32768, 7, 7, b""
    while at + header <= len(content):
        if block - at % block < header:
            at += block - at % block
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts += content[at + header : at + header + length]
        at += header + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def test_wandb_offline_has_the_history_and_nothing_of_the_machine(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    train(run_config(files, tmp_path, track__wandb_project="tests", inject__steps=0), ALONE)
    (path,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    content = path.read_bytes()
    assert b"k" * 40 not in content
    history = []
    for data in leveldb_records(content):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            keys = [item.key or "/".join(item.nested_key) for item in record.history.item]
            history.append(dict(zip(keys, (json.loads(i.value_json) for i in record.history.item), strict=True)))
    found = [(line["pretrain/step"], line["pretrain/loss"]) for line in history]
    assert found == [(line["step"], pytest.approx(line["loss"])) for line in metrics_of(tmp_path)]


def test_the_trace_of_the_asked_steps_can_be_opened(files: Path, tmp_path: Path) -> None:
    train(run_config(files, tmp_path, track__profile_steps=[3, 4], inject__steps=0), ALONE)
    (path,) = (tmp_path / "profile").iterdir()
    assert path.name == "pretrain-step3-4.json.gz"
    with gzip.open(path) as stream:
        names = [event.get("name", "") for event in json.load(stream)["traceEvents"]]
    # Two steps of two micro-batches: as many fused Adam calls as steps, and attention kernels in both layers.
    assert sum("adam" in name.lower() for name in names) >= 2
    assert sum("scaled_dot_product" in name for name in names) >= 2 * 2 * 2


def test_losses_by_source_are_those_of_their_samples(files: Path, tmp_path: Path) -> None:
    """Before its first step the model is a fresh one: every sample is scored by it alone."""
    config = run_config(files, tmp_path, inject__steps=0, train__steps=1, train__global_batch_size=24)
    train(config, ALONE)
    inputs = RunInputs.open(config)
    samples, vocabulary = inputs.samples, inputs.store.vocabulary
    engine = inputs.engine(Layout(config.parallel), None)
    sums = {name: np.zeros(3) for name in ("en", "en-clone")}
    for number in range(24):
        tokens, labels, mask = samples.sample(number)
        (scores,) = engine.score([LanguageBatch(tokens[None], labels[None], mask[None])])
        num_bytes = len(vocabulary.decode_bytes(labels[mask > 0]))
        name = samples.sources[samples.order.place(number).source].read_as
        sums[name] += [float((scores.nll[0] * mask).sum(dtype=np.float64)), mask.sum(), num_bytes]
    (line,) = metrics_of(tmp_path)
    assert sums["en-clone"][1] > 0
    for name, (nll, targets, num_bytes) in sums.items():
        assert line["loss_by_source"][name] == pytest.approx(nll / targets, rel=1e-5)
        assert line["bits_per_byte_by_source"][name] == pytest.approx(nll / np.log(2) / num_bytes, rel=1e-5)
    total = sum(sums.values())
    assert line["loss"] == pytest.approx(total[0] / total[1], rel=1e-5)


def test_losses_are_summed_over_the_steps_of_a_line_and_over_a_resume(files: Path, tmp_path: Path) -> None:
    every, third = (
        run_config(files, tmp_path / name, inject__steps=0, train__steps=6, train__log_interval=interval)
        for name, interval in (("every", 1), ("third", 3))
    )
    for config in (every, third):
        train(config, ALONE)
    lines = metrics_of(tmp_path / "every")
    last = metrics_of(tmp_path / "third")[-1]
    assert last["step"] == 6
    # The windows of English have all their targets; those of the clone are omitted where a word was switched.
    known = [line["loss_by_source"]["en"] for line in lines[3:] if line["loss_by_source"]["en"] is not None]
    assert min(known) <= last["loss_by_source"]["en"] <= max(known)


def test_the_speed_in_flops_follows_from_the_tokens(files: Path, tmp_path: Path) -> None:
    from megalign.scaling.flops import training_flops_per_token

    config = run_config(files, tmp_path, inject__steps=0)
    train(config, ALONE)
    flops = training_flops_per_token(config.model, RunInputs.open(config).store.vocabulary.size)
    for line in metrics_of(tmp_path):
        assert line["tflops_per_device"] == pytest.approx(line["tokens_per_second"] * flops / 1e12, rel=1e-2, abs=1e-6)
        assert line["mfu"] is None, "the peak of this machine is unknown"
        assert line["peak_memory_bytes"] > 50e6
        assert sum(line["tokens_by_source"].values()) == line["tokens"] == line["samples"] * SEQUENCE_LENGTH


def test_the_utilisation_uses_a_named_device(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from megalign.training import stages

    table = tmp_path / "devices.yaml"
    table.write_text("mine: {title: Mine, driver_names: [Cardboard 9000], peak_flops: {float32: 1.0e+9}}\n")
    monkeypatch.setattr(stages, "device_name", lambda: "Cardboard 9000")
    train(run_config(files, tmp_path / "run", inject__steps=0, track__devices=str(table)), ALONE)
    for line in metrics_of(tmp_path / "run"):
        assert line["mfu"] == pytest.approx(line["tflops_per_device"] * 1e3, rel=1e-2, abs=2e-3)
