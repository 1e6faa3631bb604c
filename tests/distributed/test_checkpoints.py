"""Checkpoints under layouts: exact resume, resharding with moments, damage, crashes, and the optimizer's traps."""

from __future__ import annotations

import os
import re
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cases
import numpy as np
import pytest
import ranks

from megalign.config.layout import Layout
from megalign.config.sections import PrecisionConfig
from megalign.engine.checkpoint.folder import read_marker, write_marker
from megalign.engine.engine import Engine, StepResult
from megalign.errors import DataError, MegalignError

TP2: dict[str, Any] = {"tensor": 2}
PP2: dict[str, Any] = {"pipeline": 2}
VP2: dict[str, Any] = {**PP2, "virtual_pipeline": 2}
DO: dict[str, Any] = {"distributed_optimizer": True}
DP2_DO: dict[str, Any] = {"data": 2, **DO}
# What Megatron writes beside the tensors.
COMMON_FILE = "metadata.json" if cases.LATER_MEGATRON else "common.pt"


@dataclass(frozen=True)
class Trained:
    """What a rank holds at the end: results of its steps, weights, and what the checkpoint returned."""

    results: list[StepResult]
    shards: list[cases.Shard]
    state: dict[str, Any]
    adam_steps: set[float]


def engine_for(layout: Layout, model: str = "gpt", dtype: Any = "float32", **kwargs: Any) -> Engine:
    return cases.engine_of(layout, cases.MODELS[model], precision=PrecisionConfig(dtype=dtype), **kwargs)


def train_and_save(
    layout: Layout, folder: Path, model: str, dtype: str, save_after: list[int], last: int, keep: int = 2
) -> Trained:
    """Steps 1..last, saving after each of `save_after`."""
    from megalign.engine import checkpoint
    from megalign.engine.optimizer import adam_steps

    engine = engine_for(layout, model, dtype)
    results = []
    for step in range(1, last + 1):
        results += cases.pretrain(engine, step, step)
        if step in save_after:
            checkpoint.save(engine, folder, step, {"samples": 8 * step, "names": ["ä"]}, keep=keep)
    return Trained(results, cases.shards_of(engine), {}, adam_steps(engine.optimizer))


def load_and_train(layout: Layout, folder: Path, model: str, dtype: str, last: int) -> Trained:
    """From the latest checkpoint to `last`; the engine has another seed, so nothing is right by chance."""
    from megalign.engine import checkpoint
    from megalign.engine.optimizer import adam_steps

    path = checkpoint.latest(folder)
    assert path is not None
    engine = engine_for(layout, model, dtype, seed=cases.SEED + 1)
    state = checkpoint.load(engine, path)
    results = cases.pretrain(engine, state["step"] + 1, last)
    return Trained(results, cases.shards_of(engine), state, adam_steps(engine.optimizer))


def load_and_save(layout: Layout, source: Path, target: Path, model: str) -> Trained:
    """Load the latest of `source` and write it to `target` unchanged."""
    from megalign.engine import checkpoint
    from megalign.engine.optimizer import adam_steps

    path = checkpoint.latest(source)
    assert path is not None
    engine = engine_for(layout, model, seed=cases.SEED + 1)
    state = checkpoint.load(engine, path)
    checkpoint.save(engine, target, state["step"], state, keep=2)
    return Trained([], cases.shards_of(engine), state, adam_steps(engine.optimizer))


def plain_tensors(layout: Layout, path: Path) -> dict[str, np.ndarray]:
    """All tensors of a checkpoint as Megatron reads them without a model: weights, and moments by parameter."""
    from megalign.engine.mcore import dist_checkpointing

    content = dist_checkpointing.load_plain_tensors(str(path / "shards"))
    return {key: value.float().numpy() for key, value in content.items() if hasattr(value, "numpy")}


def read(path: Path) -> dict[str, np.ndarray]:
    (tensors,) = ranks.run(plain_tensors, ranks.layout_of(), path)
    return tensors


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[key], right[key]) for key in right)


@pytest.mark.parametrize(
    ("parallel", "model", "dtype"),
    [
        pytest.param({}, "gpt", "float32", id="single"),
        pytest.param(DP2_DO, "llama", "float32", id="DP2-DO"),
        pytest.param(VP2, "gpt", "float32", id="PP2-VP2"),
        pytest.param(DO, "llama", "bfloat16", id="DO-bfloat16"),
        pytest.param({}, "gpt", "bfloat16", id="single-bfloat16"),
        pytest.param({"data": 2}, "gpt", "float32", id="DP2", marks=pytest.mark.slow),
        pytest.param({"context": 2, **DO}, "llama", "bfloat16", id="CP2-DO-bfloat16", marks=pytest.mark.slow),
        pytest.param(DP2_DO, "gpt", "bfloat16", id="DP2-DO-bfloat16", marks=pytest.mark.slow),
        pytest.param({**TP2, **PP2, **DO}, "llama-tied", "float32", id="TP2-PP2-DO", marks=pytest.mark.slow),
    ],
)
def test_resume_is_bitwise_on_the_same_layout(tmp_path: Path, parallel: dict[str, Any], model: str, dtype: str) -> None:
    layout = ranks.layout_of(**parallel)
    whole: list[Trained] = ranks.run(train_and_save, layout, tmp_path, model, dtype, [3], 6)
    resumed: list[Trained] = ranks.run(load_and_train, layout, tmp_path, model, dtype, 6)
    for one, two in zip(whole, resumed, strict=True):
        assert two.results == one.results[3:]
        assert two.state == {"samples": 24, "names": ["ä"], "step": 3}
        assert two.adam_steps == one.adam_steps == {6.0}
    assert same(cases.assemble([t.shards for t in resumed]), cases.assemble([t.shards for t in whole]))


def test_saving_does_not_change_the_run(tmp_path: Path) -> None:
    layout = ranks.layout_of(**DP2_DO)
    saved, not_saved = (
        ranks.run(train_and_save, layout, tmp_path, "gpt", "float32", steps, 4) for steps in ([1, 2, 3], [])
    )
    assert [t.results for t in saved] == [t.results for t in not_saved]


@pytest.mark.parametrize(
    ("chain", "model"),
    [
        pytest.param([{**TP2, "data": 2, "sequence_parallel": True, **DO}, {**PP2, **DO}, DO], "llama", id="DO"),
        pytest.param([TP2, PP2, {}], "gpt", id="no-DO"),
        pytest.param([DP2_DO, DO, {"data": 3, **DO}], "gpt", id="DO-data-2-1-3", marks=pytest.mark.slow),
        pytest.param([VP2, {"pipeline": 4}, TP2], "gpt-untied", id="no-DO-VP2", marks=pytest.mark.slow),
        pytest.param([{"context": 2, **DO}, DO], "llama", id="DO-context-2-1"),
        pytest.param([{"context": 2}, {**TP2, "context": 2}, {}], "gpt", id="no-DO-context", marks=pytest.mark.slow),
        pytest.param([DO, {"context": 2, **DP2_DO}], "gpt", id="DO-context-1-2", marks=pytest.mark.slow),
    ],
)
def test_reshard_keeps_every_weight_and_moment(tmp_path: Path, chain: list[dict[str, Any]], model: str) -> None:
    """The file written under each layout of the chain holds the same tensors, bit by bit; training goes on alike."""
    first = ranks.layout_of(**chain[0])
    whole: list[Trained] = ranks.run(train_and_save, first, tmp_path / "0", model, "float32", [3], 6)
    expected = read(tmp_path / "0" / "step_00000003")
    for moment in ("exp_avg", "exp_avg_sq"):
        assert sum(moment in key.split(".") for key in expected) >= 8
        assert all(np.abs(value).max() > 0 for key, value in expected.items() if moment in key.split("."))
    for number, parallel in enumerate(chain[1:], start=1):
        source, target = tmp_path / str(number - 1), tmp_path / str(number)
        loaded: list[Trained] = ranks.run(load_and_save, ranks.layout_of(**parallel), source, target, model)
        assert all(t.adam_steps == {3.0} for t in loaded)
        assert same(read(target / "step_00000003"), expected)
        weights = cases.assemble([t.shards for t in loaded])
        assert all(np.array_equal(value, expected[key]) for key, value in weights.items())
    if chain[-1].get("data") == 3:
        return  # the batches of these tests do not divide by 3
    resumed = ranks.run(
        load_and_train, ranks.layout_of(**chain[-1]), tmp_path / str(len(chain) - 1), model, "float32", 6
    )
    for one, two in zip(whole[0].results[3:], resumed[0].results, strict=True):
        # Another layout adds in another order: as in test_layouts. Lost moments show at 1e-3.
        np.testing.assert_allclose([two.loss, two.grad_norm], [one.loss, one.grad_norm], rtol=5e-6)


def test_keys_have_no_module_prefix_and_files_no_rank_of_the_layout(tmp_path: Path) -> None:
    """Taken from below DDP: through it every key would begin with 'module.', and readers without DDP would fail."""
    ranks.run(train_and_save, ranks.layout_of(**TP2), tmp_path, "gpt", "bfloat16", [1], 1)
    keys = read(tmp_path / "step_00000001").keys()
    assert "embedding.word_embeddings.weight" in keys
    assert not [key for key in keys if "module." in key]


def score_from(layout: Layout, folder: Path) -> np.ndarray:
    from megalign.engine import checkpoint

    engine = engine_for(layout, optimizer=None, seed=0)
    path = checkpoint.latest(folder)
    assert path is not None
    checkpoint.load(engine, path, with_optimizer=False)
    return engine.score([cases.windows(50, 4)])[0].nll


def test_a_reader_without_optimizer_loads_any_checkpoint(tmp_path: Path) -> None:
    ranks.run(train_and_save, ranks.layout_of(**DP2_DO), tmp_path, "gpt", "float32", [4], 4)
    (one,) = ranks.run(score_from, ranks.layout_of(), tmp_path)
    two, _ = ranks.run(score_from, ranks.layout_of(**TP2), tmp_path)
    np.testing.assert_allclose(two, one, atol=1e-5)
    assert np.ptp(one) > 1


def next_stage(layout: Layout, folder: Path, dtype: str) -> tuple[list[float], float, float]:
    """A fresh optimizer on loaded weights (injection, then pretraining): Adam's steps, and how far one step goes."""
    from megalign.engine import checkpoint
    from megalign.engine.optimizer import adam_steps

    engine = engine_for(layout, "gpt", dtype, seed=0)
    path = checkpoint.latest(folder)
    assert path is not None
    checkpoint.load(engine, path, with_optimizer=False)
    before = cases.assemble([cases.shards_of(engine)])
    (result,) = cases.pretrain(engine, 1, 1)
    after = cases.assemble([cases.shards_of(engine)])
    return sorted(adam_steps(engine.optimizer)), cases.largest_difference(after, before)[0], result.lr


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
@pytest.mark.parametrize("cut_optimizer", [False, True])
def test_a_new_stage_starts_from_the_loaded_weights(tmp_path: Path, dtype: str, cut_optimizer: bool) -> None:
    """With bfloat16 the optimizer has weights of its own in float32: not refreshed, the first step would undo loading."""
    layout = ranks.layout_of(distributed_optimizer=cut_optimizer)
    ranks.run(train_and_save, layout, tmp_path, "gpt", dtype, [3], 3)
    ((steps, moved, lr),) = ranks.run(next_stage, layout, tmp_path, dtype)
    assert steps == [1.0]
    # Adam's first step moves a weight by the learning rate at most, plus decay; a bfloat16 of 1 is rounded to 1 / 256.
    assert 0 < moved < 2 * lr + (1 / 128 if dtype == "bfloat16" else 0)


# --- damage


def messages(layout: Layout, good: Path, others: dict[str, Path]) -> dict[str, tuple[str, str]]:
    """(class, message) of loading each; the good one must still load afterwards, into the same engine."""
    from megalign.engine import checkpoint

    engine = engine_for(layout)
    found = {}
    for name, path in others.items():
        try:
            checkpoint.load(engine, path)
            found[name] = ("nothing", "")
        except Exception as error:
            found[name] = (type(error).__name__, str(error))
    checkpoint.load(engine, good)
    return found


def save_model(layout: Layout, folder: Path, changes: dict[str, Any], vocab_size: int) -> None:
    from megalign.engine import checkpoint

    engine = cases.engine_of(layout, cases.GPT.model_copy(update=changes), vocab_size=vocab_size)
    batch = cases.LanguageBatch(*(np.minimum(a, 1) for a in vars(cases.windows(1, 2)).values()))
    engine.step([batch], 1)
    checkpoint.save(engine, folder, 1, {}, keep=1)


@pytest.mark.parametrize("parallel", [{}, pytest.param(TP2, marks=pytest.mark.slow)], ids=["single", "TP2"])
def test_damaged_missing_and_other_checkpoints_are_refused(tmp_path: Path, parallel: dict[str, Any]) -> None:
    layout = ranks.layout_of(**parallel)
    single = ranks.layout_of()
    ranks.run(train_and_save, layout, tmp_path / "run", "gpt", "float32", [2], 2)
    good = tmp_path / "run" / "step_00000002"
    shards = sorted(p.name for p in (good / "shards").iterdir() if p.suffix == ".distcp")
    broken = {
        name: tmp_path / name
        for name in (
            *("no marker", "no shard", "truncated", "no metadata", "no common", "marker damaged", "other step"),
            *("metadata truncated", "common truncated", "flipped bit", "marker edited", "old format"),
        )
    }
    for path in broken.values():
        shutil.copytree(good, path)
    (broken["no marker"] / "state.json").unlink()
    (broken["no shard"] / "shards" / shards[0]).unlink()
    for name, file in (
        ("truncated", shards[0]),
        ("metadata truncated", ".metadata"),
        ("common truncated", COMMON_FILE),
    ):
        with (broken[name] / "shards" / file).open("r+b") as stream:
            stream.truncate(stream.seek(0, os.SEEK_END) // 2)
    (broken["no metadata"] / "shards" / ".metadata").unlink()
    (broken["no common"] / "shards" / COMMON_FILE).unlink()
    (broken["marker damaged"] / "state.json").write_text("{")
    state, facts = read_marker(good)
    write_marker(broken["other step"], {**state, "step": 3}, {**facts, "adam_step": 3})
    (broken["marker edited"] / "state.json").write_text(
        (good / "state.json").read_text().replace('"samples": 16', '"samples": 24')
    )
    (broken["old format"] / "state.json").write_text('{"step": 2}')
    with (broken["flipped bit"] / "shards" / shards[0]).open("r+b") as stream:
        stream.seek(stream.seek(0, os.SEEK_END) // 2)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 0b100]))
    for name, changes, vocab_size in (
        ("wider", {"hidden_size": 64}, 90),
        ("deeper", {"num_layers": 6}, 90),
        ("shallower", {"num_layers": 2}, 90),
        ("vocabulary", {}, 200),
        ("rotary", {"position_embedding": "rotary"}, 90),
    ):
        ranks.run(save_model, single, tmp_path / name, changes, vocab_size)
        broken[name] = tmp_path / name / "step_00000001"
    broken["absent"] = tmp_path / "absent"
    for found in ranks.run(messages, layout, good, broken):
        for name in broken:
            assert found[name][0] == "DataError", f"{name}: {found[name]}"
        assert "is not a complete checkpoint: it has no state.json" in found["no marker"][1]
        assert "is not a complete checkpoint: it has no state.json" in found["absent"][1]
        assert "is not JSON" in found["marker damaged"][1]
        assert "Adam counts steps [2.0], the checkpoint says 3" in found["other step"][1]
        assert "does not have the crc32c it says" in found["marker edited"][1]
        assert "is of format None, this version of megalign reads 2" in found["old format"][1]
        assert f"is damaged: shards/{shards[0]} does not have the crc32c" in found["flipped bit"][1]
        for name, file in (("no shard", shards[0]), ("no metadata", ".metadata"), ("no common", COMMON_FILE)):
            assert f"is damaged: shards/{file} is missing." in found[name][1]
        for name, file in (
            ("truncated", shards[0]),
            ("metadata truncated", ".metadata"),
            ("common truncated", COMMON_FILE),
        ):
            size = (good / "shards" / file).stat().st_size
            assert f"is damaged: shards/{file} has {size // 2} bytes instead of {size}." in found[name][1]
        for name in ("wider", "deeper", "shallower", "vocabulary", "rotary"):
            assert "does not fit this model or is damaged" in found[name][1], name


# --- crashes and the folder


def die_inside_save(layout: Layout, folder: Path, moment: str) -> None:
    """Two more steps after the latest checkpoint, then SIGKILL at `moment` of saving."""
    from megalign.engine import checkpoint
    from megalign.engine.checkpoint import folder as names

    engine = engine_for(layout)
    path = checkpoint.latest(folder)
    assert path is not None
    checkpoint.load(engine, path)
    cases.pretrain(engine, 3, 4)

    def die(*args: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(names, {"before marker": "write_json", "before pointer": "write_text"}[moment], die)
    checkpoint.save(engine, folder, 4, {}, keep=2)


@pytest.mark.parametrize(
    ("parallel", "moment"),
    [
        pytest.param(TP2, "before marker", id="TP2-before-marker"),
        pytest.param({}, "before pointer", id="single-before-pointer"),
        pytest.param({}, "before marker", id="single-before-marker", marks=pytest.mark.slow),
        pytest.param(TP2, "before pointer", id="TP2-before-pointer", marks=pytest.mark.slow),
    ],
)
def test_a_kill_inside_saving_leaves_the_old_checkpoint(tmp_path: Path, parallel: dict[str, Any], moment: str) -> None:
    from megalign.engine import checkpoint

    layout = ranks.layout_of(**parallel)
    whole = ranks.run(train_and_save, layout, tmp_path / "whole", "gpt", "float32", [], 6)
    folder = tmp_path / "run"
    ranks.run(train_and_save, layout, folder, "gpt", "float32", [2], 2)
    with pytest.raises(ranks.RanksFailed, match="exit code -9"):
        ranks.run(die_inside_save, layout, folder, moment)
    assert checkpoint.latest(folder) == checkpoint.path_of(folder, 2)
    left = {re.sub(r"-[0-9a-f]{8}\Z", "", path.name) for path in folder.iterdir()}
    assert left == {"latest", "step_00000002", "step_00000004" if moment == "before pointer" else ".tmp-step_00000004"}
    resumed = ranks.run(load_and_train, layout, folder, "gpt", "float32", 6)
    assert [t.results for t in resumed] == [t.results[2:] for t in whole]
    ranks.run(load_train_and_save, layout, folder, 4)
    assert checkpoint.latest(folder) == checkpoint.path_of(folder, 4)
    assert {path.name for path in folder.iterdir()} == {"latest", "step_00000002", "step_00000004"}


def load_train_and_save(layout: Layout, folder: Path, last: int, keep: int = 2) -> None:
    from megalign.engine import checkpoint

    engine = engine_for(layout)
    path = checkpoint.latest(folder)
    assert path is not None
    step = checkpoint.load(engine, path)["step"]
    cases.pretrain(engine, step + 1, last)
    checkpoint.save(engine, folder, last, {}, keep=keep)


def test_old_checkpoints_go_and_the_latest_never(tmp_path: Path) -> None:
    from megalign.engine import checkpoint

    layout = ranks.layout_of()
    ranks.run(train_and_save, layout, tmp_path, "gpt", "float32", [1, 2, 3, 4, 5], 5, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_00000004", "step_00000005"]
    # Someone goes back to step 4 by hand, as the error message of a bad pointer says, and trains on from there.
    (tmp_path / "latest").write_text("step_00000004\n")
    shutil.copytree(tmp_path / "step_00000005", tmp_path / "step_00000009")
    ranks.run(load_train_and_save, layout, tmp_path, 6, 1)
    assert checkpoint.latest(tmp_path) == checkpoint.path_of(tmp_path, 6)
    assert not (tmp_path / "step_00000005").exists()


def test_latest_of_a_damaged_folder(tmp_path: Path) -> None:
    from megalign.engine import checkpoint

    assert checkpoint.latest(tmp_path) is None
    for content in ("step_00000007", "../elsewhere", ""):
        (tmp_path / "latest").write_text(content)
        with pytest.raises(DataError, match=r"which is not a complete checkpoint\. .*Write the name of a complete"):
            checkpoint.latest(tmp_path)


def save_poisoned(layout: Layout, folder: Path) -> str:
    """One weight on the last rank alone is not finite."""
    import torch

    from megalign.engine import checkpoint, groups

    engine = engine_for(layout)
    cases.pretrain(engine, 1, 1)
    if groups.rank() == layout.world_size - 1:
        with torch.no_grad():
            next(iter(engine.chunks[0].parameters())).view(-1)[0] = torch.inf
    try:
        checkpoint.save(engine, folder, 1, {}, keep=1)
    except MegalignError as error:
        return str(error)
    return "saved"


@pytest.mark.parametrize("parallel", [{}, TP2], ids=["single", "TP2"])
def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, parallel: dict[str, Any]) -> None:
    for message in ranks.run(save_poisoned, ranks.layout_of(**parallel), tmp_path):
        assert "Step 1: 1 weights and 0 tensors of the optimizer hold values that are not finite" in message
        assert "(embedding.word_embeddings.weight); no checkpoint was written" in message
        assert "lower learning rate" in message
    assert list(tmp_path.iterdir()) == []


# --- the traps of Megatron's optimizer, each with its remedy taken away


def resume_without(layout: Layout, folder: Path, remedy: str) -> Trained:
    """`load_and_train`, with one remedy of megalign.engine taken away."""
    from megalign.engine import optimizer
    from megalign.engine.checkpoint import content, loading

    if remedy == "allocate_state":
        loading.allocate_state = lambda opt: None
    elif remedy.startswith("separate_steps"):
        loading.separate_steps = lambda opt: None
        if remedy.endswith("and the check"):
            loading.verify_moments = lambda *args: None
    elif remedy == "keep_step":
        with_step = optimizer.DistributedOptimizer._set_main_param_and_optimizer_states
        (original,) = (c.cell_contents for c in with_step.__wrapped__.__closure__)
        optimizer.DistributedOptimizer._set_main_param_and_optimizer_states = original
    elif remedy == "metadata":
        complete = content.sharding_metadata
        content.sharding_metadata = lambda: {"dp_cp_group": complete()["dp_cp_group"]}
    return load_and_train(layout, folder, "gpt-untied", "float32", 6)


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[StepResult]]:
    """A run with the distributed optimizer, saved after step 3, and all its steps."""
    folder = tmp_path_factory.mktemp("saved")
    (trained,) = ranks.run(train_and_save, ranks.layout_of(**DO), folder, "gpt-untied", "float32", [3], 6)
    return folder, trained.results


@pytest.mark.parametrize(
    ("remedy", "failure"),
    [
        ("allocate_state", "AssertionError"),
        ("keep_step", "KeyError: 'step'"),
        ("metadata", "flattened_range is not supported"),
    ],
)
def test_without_the_remedy_loading_fails(saved_run: tuple[Path, Any], remedy: str, failure: str) -> None:
    with pytest.raises(ranks.RanksFailed, match=failure):
        ranks.run(resume_without, ranks.layout_of(**DO), saved_run[0], remedy)


def test_with_all_remedies_it_does_not(saved_run: tuple[Path, list[StepResult]]) -> None:
    (trained,) = ranks.run(resume_without, ranks.layout_of(**DO), saved_run[0], "none")
    assert trained.results == saved_run[1][3:]


def test_shared_step_counters_advance_once_per_parameter(saved_run: tuple[Path, list[StepResult]]) -> None:
    with pytest.raises(ranks.RanksFailed, match="parameters share a step counter, which would advance once for each"):
        ranks.run(resume_without, ranks.layout_of(**DO), saved_run[0], "separate_steps")
    (trained,) = ranks.run(resume_without, ranks.layout_of(**DO), saved_run[0], "separate_steps and the check")
    assert max(trained.adam_steps) > 6
    assert trained.results[0].loss == saved_run[1][3].loss, "before an update nothing is wrong yet"
    assert trained.results[-1].loss != pytest.approx(saved_run[1][5].loss, rel=1e-5)


def train_in_two_parts(layout: Layout, folder: Path, settings: dict[str, float], part: str) -> list[StepResult]:
    """Steps 3 to 5: after steps 1 and 2 and saving ("whole"), or after loading ("resumed", "resumed without mark")."""
    from megalign.engine import checkpoint, optimizer

    if part.endswith("without mark"):
        build = optimizer.get_megatron_optimizer

        def without_mark(*args: Any, config_overrides: Any, **kwargs: Any) -> Any:
            for fields in config_overrides.values():
                fields.pop("is_decoupled_lr", None)
            return build(*args, config_overrides=config_overrides, **kwargs)

        optimizer.get_megatron_optimizer = without_mark
    engine = engine_for(layout, optimizer=cases.SETTINGS.model_copy(update=settings))
    if part == "whole":
        cases.pretrain(engine, 1, 2)
        checkpoint.save(engine, folder, 2, {}, keep=1)
    else:
        checkpoint.load(engine, checkpoint.path_of(folder, 2))
    return cases.pretrain(engine, 3, 5)


EQUAL_DECAYS = {"weight_decay": 0.1, "embedding_weight_decay": 0.1, "embedding_lr_multiplier": 3.0}


@pytest.mark.parametrize("cut_optimizer", [False, True])
def test_groups_that_differ_in_learning_rate_alone_are_exchanged(tmp_path: Path, cut_optimizer: bool) -> None:
    """Megatron finds a loaded group by its multipliers and flags, not by its learning rates: silently, when cut."""
    layout = ranks.layout_of(distributed_optimizer=cut_optimizer)
    (whole,) = ranks.run(train_in_two_parts, layout, tmp_path, EQUAL_DECAYS, "whole")
    (resumed,) = ranks.run(train_in_two_parts, layout, tmp_path, EQUAL_DECAYS, "resumed")
    assert resumed == whole
    if cut_optimizer and not cases.LATER_MEGATRON:
        (wrong,) = ranks.run(train_in_two_parts, layout, tmp_path, EQUAL_DECAYS, "resumed without mark")
        assert wrong[0].loss == whole[0].loss
        assert wrong[2].loss != pytest.approx(whole[2].loss, rel=1e-5)
    else:
        with pytest.raises(ranks.RanksFailed, match=r"DataError: The checkpoint .* does not fit"):
            ranks.run(train_in_two_parts, layout, tmp_path, EQUAL_DECAYS, "resumed without mark")


@pytest.mark.parametrize("settings", [{"weight_decay": 0.0}, {"embedding_weight_decay": 0.0}], ids=str)
def test_groups_without_decay_are_told_apart(tmp_path: Path, settings: dict[str, float]) -> None:
    layout = ranks.layout_of(**DO)
    (whole,) = ranks.run(train_in_two_parts, layout, tmp_path, settings, "whole")
    (resumed,) = ranks.run(train_in_two_parts, layout, tmp_path, settings, "resumed")
    assert resumed == whole


def save_two_layers(layout: Layout, folder: Path, repaired: bool) -> None:
    """A stage's layer, then the shared embedding in a bucket of its own, behind 64 numbers of padding."""
    from megalign.engine import checkpoint, optimizer

    if not repaired:
        wrapped = optimizer.DistributedOptimizer.sharded_param_state_fully_reshardable
        optimizer.DistributedOptimizer.sharded_param_state_fully_reshardable = wrapped.__wrapped__
    engine = cases.engine_of(layout, cases.GPT.model_copy(update={"num_layers": 2}))
    cases.pretrain(engine, 1, 2)
    checkpoint.save(engine, folder, 2, {}, keep=1)


@pytest.mark.parametrize("repaired", [True, False])
def test_what_stands_behind_a_padded_bucket_is_saved_shifted(tmp_path: Path, repaired: bool) -> None:
    """Megatron writes other numbers as the shared embedding's moments: silent, and wrong wherever they are loaded."""
    from megalign.engine.checkpoint.describe import find_problems

    ranks.run(save_two_layers, ranks.layout_of(**PP2, **DO), tmp_path, repaired)
    path = tmp_path / "step_00000002"
    content, problems = read(path), find_problems(path)
    name = "embedding.word_embeddings.weight"
    copy = f"optimizer.state.param.{name}"
    if repaired:
        assert np.array_equal(content[name], content[copy])
        assert problems == []
    else:
        assert np.abs(content[name] - content[copy]).max() > 0.1
        (problem,) = problems
        assert problem.startswith(f"{copy} is not {name}: ")
