"""`megalign checkpoint inspect|verify|reshard` on checkpoints of a real run."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import cases
import numpy as np
import pytest
import ranks
import torch
from fault_workers import Workers, checkpoints, read_latest, run_to_end, write_run
from typer.testing import CliRunner, Result

from megalign.cli.checkpoint import app
from megalign.config.layout import Layout
from megalign.engine.checkpoint import folder as names
from megalign.engine.checkpoint.describe import find_problems
from megalign.engine.checkpoint.pickles import read_index
from megalign.errors import ConfigError, DataError

TWO = {"parallel__data": 2, "parallel__distributed_optimizer": True}


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two processes with the distributed optimizer, and its YAML file beside; read-only."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    run_to_end(["train", str(write_run(data, folder, train__steps=3, **TWO))], folder.with_suffix(".log"), world_size=2)
    return folder


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_inspect_says_what_is_in_it(trained: Path) -> None:
    shown = invoke("inspect", trained)
    assert shown.exit_code == 0, shown.output
    lines = dict(line.split(maxsplit=1) for line in shown.output.replace("written ", "written_").splitlines())
    path = checkpoints(trained) / "step_00000003"
    assert lines["checkpoint"] == str(path)
    assert (lines["stage"], lines["step"], lines["samples"]) == ("pretrain", "3", "12")
    assert lines["written_under"] == "tensor 1, pipeline 1, data 2, context 1, distributed_optimizer True"
    assert f"torch {torch.__version__}" in lines["written_by"]
    assert lines["optimizer"].endswith("Adam step 3")
    state, facts = names.read_marker(path)
    assert lines["order"] == state["order"]
    assert lines["store"] == state["store"]
    assert lines["parameters"] == f"{facts['parameters']:,}"
    # Weights and moments, each a float32 of every parameter; the distributed optimizer keeps its own copy of the weights.
    assert lines["model"] == f"{4 * facts['parameters'] / 1e6:,.1f} MB"
    assert lines["optimizer"].startswith(f"{12 * facts['parameters'] / 1e6:,.1f} MB")
    assert invoke("inspect", path).output == invoke("inspect", checkpoints(trained)).output == shown.output


def test_inspect_lists_tensors_and_prints_json(trained: Path) -> None:
    listed = invoke("inspect", trained, "--tensors").output
    content = json.loads(invoke("inspect", trained, "--json").output)
    whole = read_latest(trained)
    assert {t["name"]: tuple(t["shape"]) for t in content["tensors"]} == {k: v.shape for k, v in whole.items()}
    assert content["state"]["step"] == content["checkpoint"]["adam_step"] == 3
    for name in whole:
        assert f"\n{name}  " in listed
    assert "2 x 64 x 32" in listed


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_path_without_checkpoint_is_named(tmp_path: Path, command: str) -> None:
    with pytest.raises(DataError, match=f"{tmp_path} is neither a complete checkpoint, nor a folder of checkpoints"):
        raise invoke(command, tmp_path).exception  # type: ignore[misc]


def test_verify_finds_nothing_wrong_with_a_good_one(trained: Path) -> None:
    shown = invoke("verify", trained)
    assert (shown.exit_code, shown.output) == (0, f"{checkpoints(trained) / 'step_00000003'}: no problem found\n")


# --- what verify finds


def rewrite(path: Path, change: str) -> None:
    """Doctor a checkpoint's index or tensors and give it fitting checksums."""
    shards = path / "shards"
    index = read_index(shards)
    fc1, norm = "decoder.layers.mlp.linear_fc1.weight", "optimizer.state.param.decoder.final_layernorm.weight"
    # Of several parts, the last.
    keys = {key.fqn: key for key in sorted(index.storage_data, key=lambda key: tuple(key.offset or ()))}
    moment, weight = keys[f"optimizer.state.exp_avg_sq.{fc1}"], keys[fc1]
    if change == "moment dropped":
        del index.state_dict_metadata[moment.fqn]
    elif change == "part dropped":
        del index.state_dict_metadata[weight.fqn].chunks[0]
    elif change == "part twice":
        chunks = index.state_dict_metadata[weight.fqn].chunks
        chunks[:] = [chunks[0]] * len(chunks)
    elif change == "outside":
        entry = index.storage_data[weight]
        index.storage_data[weight] = type(entry)("../state.json", entry.offset, entry.length)
    else:
        key = {"negative": moment, "copy": keys[norm]}.get(change, weight)
        entry = index.storage_data[key]
        shard = shards / entry.relative_path
        with shard.open("rb") as stream:
            stream.seek(entry.offset)
            tensor = torch.load(io.BytesIO(stream.read(entry.length)), weights_only=True)
        if change == "shape":
            tensor = tensor.view(-1)
        else:
            tensor.view(-1)[-1] = {"nan": torch.nan, "negative": -1e-8, "copy": 0.5}[change]
        offset = shard.stat().st_size
        with shard.open("ab") as stream:
            torch.save(tensor, stream)
        index.storage_data[key] = type(entry)(entry.relative_path, offset, shard.stat().st_size - offset)
    (shards / ".metadata").write_bytes(pickle.dumps(index))
    state, facts = names.read_marker(path)
    names.write_marker(path, state, {**facts, "files": names.describe_files(path, {})})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("moment dropped", "optimizer.state.exp_avg_sq.decoder.layers.mlp.linear_fc1.weight is missing"),
        ("part dropped", "decoder.layers.mlp.linear_fc1.weight: its parts hold "),
        ("part twice", "decoder.layers.mlp.linear_fc1.weight: its parts cover each other"),
        ("outside", "DataError the index points outside of the checkpoint, at ../state.json"),
        ("nan", "decoder.layers.mlp.linear_fc1.weight: the part at (1, 0, 0) holds values that are not finite"),
        ("negative", "linear_fc1.weight: the part at (1, 0, 0) holds negative second moments"),
        ("copy", "optimizer.state.param.decoder.final_layernorm.weight is not decoder.final_layernorm.weight: 1 of 32"),
        ("shape", "is (2048,) torch.float32, the index says (1, 64, 32) torch.float32"),
    ],
)
def test_verify_finds_what_checksums_do_not_see(trained: Path, tmp_path: Path, change: str, told: str) -> None:
    path = tmp_path / "step_00000003"
    shutil.copytree(checkpoints(trained) / "step_00000003", path)
    rewrite(path, change)
    problems = find_problems(path)
    assert any(told in problem for problem in problems), problems
    shown = invoke("verify", path)
    assert told in shown.output
    assert isinstance(shown.exception, DataError)
    assert shown.exception.exit_code == 3
    assert str(shown.exception).startswith(f"{path} has {len(problems)} problem")


def test_verify_finds_damaged_and_stray_files(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "step_00000003"
    shutil.copytree(checkpoints(trained) / "step_00000003", path)
    (path / "shards" / "stray").touch()
    with (path / "shards" / "__0_0.distcp").open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"\x00\x01\x02")
    (path / "shards" / "common.pt").unlink()
    assert [problem.split()[0] for problem in find_problems(path)] == [
        "shards/__0_0.distcp",
        "shards/common.pt",
        "shards/stray",
    ]


# --- reshard


def reshard(config: Path, source: Path, target: Path, kept: str, *overrides: str, world_size: int = 1) -> None:
    arguments = ["reshard", str(config), str(source), str(target), kept, *overrides]
    run_to_end(arguments, target.with_suffix(".log"), world_size=world_size)


def content_of(folder: Path) -> dict[str, np.ndarray]:
    from fault_workers import tensors

    path = names.latest(folder)
    assert path is not None
    (content,) = ranks.run(tensors, ranks.layout_of(), path)
    return content


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[key], right[key]) for key in right)


def shards_in(folder: Path) -> int:
    path = names.latest(folder)
    assert path is not None
    return len(list((path / "shards").glob("*.distcp")))


@pytest.mark.parametrize(
    "chain",
    [
        pytest.param(["parallel.data=1 parallel.tensor=2 parallel.pipeline=2", "parallel.data=1"], id="TP2-PP2-1"),
        pytest.param(["parallel.data=1", "parallel.data=3"], id="data-2-1-3", marks=pytest.mark.slow),
    ],
)
def test_resharding_keeps_every_number(data: Path, trained: Path, tmp_path: Path, chain: list[str]) -> None:
    # 12 windows a step divide by 2, 1 and 3 replicas alike.
    config = write_run(data, tmp_path / "run", train__steps=3, train__global_batch_size=12, **TWO)
    source, expected = checkpoints(trained), read_latest(trained)
    for number, overrides in enumerate(chain):
        target = tmp_path / str(number)
        degrees = dict(part.removeprefix("parallel.").split("=") for part in overrides.split())
        world_size = int(np.prod([int(degree) for degree in degrees.values()]))
        path = names.latest(source)
        assert path is not None
        reshard(config, path, target, "all", *overrides.split(), world_size=world_size)
        assert same(content_of(target), expected)
        found = names.latest(target)
        assert found is not None
        state, facts = names.read_marker(found)
        assert state == names.read_marker(path)[0]
        assert facts["parallel"]["data"] == int(degrees["data"])
        assert shards_in(target) == (4 if "tensor" in degrees else int(degrees["data"]))
        assert find_problems(found) == []
        source = target


def test_without_the_optimizer_the_weights_stay_and_training_on_is_refused(
    data: Path, trained: Path, tmp_path: Path
) -> None:
    config = trained.with_suffix(".yaml")
    target = tmp_path / "weights"
    reshard(config, checkpoints(trained) / "step_00000003", target, "weights", "parallel.data=1")
    expected = {name: value for name, value in read_latest(trained).items() if not name.startswith("optimizer.")}
    assert same(content_of(target), expected)
    (told,) = ranks.run(load_with_optimizer, ranks.layout_of(), names.latest(target))
    assert "has no optimizer. It was written to be read, not to go on training from." in told


def load_with_optimizer(layout: Layout, path: Path) -> str:
    from megalign.engine import checkpoint

    with pytest.raises(DataError) as caught:
        checkpoint.load(cases.engine_of(layout), path)
    return str(caught.value)


def test_reshard_refuses_a_folder_that_has_checkpoints(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(trained.with_suffix(".yaml"), folder / "config.yaml")
    shown = invoke("reshard", folder, checkpoints(trained), "--checkpoint", trained)
    assert isinstance(shown.exception, ConfigError)
    assert f"{checkpoints(trained)} already has checkpoints." in str(shown.exception)


def test_a_run_resumes_under_another_layout_without_resharding(data: Path, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    changes: dict[str, Any] = {**TWO, "parallel__data": 1, "parallel__pipeline": 2, "train__steps": 3}
    config = write_run(data, folder, **changes)
    shutil.rmtree(checkpoints(folder) / "step_00000003")
    with Workers(["train", str(config)], tmp_path / "log", world_size=2) as workers:
        assert workers.wait() == [0, 0], workers.output
    ours, theirs = read_latest(folder), read_latest(trained)
    for name, value in theirs.items():
        # Another layout adds in another order; lost moments would show at 1e-3.
        np.testing.assert_allclose(ours[name], value, rtol=1e-4, atol=2e-6, err_msg=name)
