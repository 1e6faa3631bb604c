"""Damaged, doctored and failed checkpoints: found before training goes on, never run, never in place of a good one."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import numpy as np
import pytest
import ranks
from fault_workers import Workers, checkpoints, last_step, read_latest, run_to_end, steps_kept, write_run

from megalign.config.layout import Layout
from megalign.engine.checkpoint import folder as names
from megalign.engine.checkpoint.pickles import RefusedPickle, read_index

DP2: dict[str, Any] = {"data": 2, "distributed_optimizer": True}


def shard_of(checkpoint: Path) -> Path:
    return sorted((checkpoint / "shards").glob("*.distcp"))[0]


def flip_a_bit(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.seek(path.stat().st_size // 2)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 1]))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "flipped bit": (lambda path: flip_a_bit(shard_of(path)), "does not have the crc32c"),
    "truncated shard": (lambda path: truncate(shard_of(path)), "bytes instead of"),
    "missing shard": (lambda path: shard_of(path).unlink(), "is missing"),
    "missing marker": (lambda path: (path / "state.json").unlink(), "says 'step_00000006'"),
    "edited marker": (
        lambda path: (path / "state.json").write_text(
            (path / "state.json").read_text().replace('"step": 6', '"step": 5')
        ),
        "its content changed",
    ),
    "gone": (shutil.rmtree, "says 'step_00000006'"),
}


@pytest.fixture(scope="module")
def run_of_six(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run stopped after 6 of 9 steps, with its checkpoints 4, 5 and 6, and beside it the whole one; read-only."""
    base = tmp_path_factory.mktemp("six")
    run_to_end(["train", str(write_run(data, base / "whole", train__steps=9))], base / "log")
    config = write_run(data, base / "run", train__steps=9, train__keep_checkpoints=3)
    with Workers(["train", str(config)], base / "log", fault=exit_file_at_six) as workers:
        assert workers.wait() == [75], workers.output
    assert steps_kept(base / "run") == [4, 5, 6]
    return base


def exit_file_at_six() -> None:
    from megalign.training import loop

    save = loop._save

    def then_exit(stage: Any, engine: Any, saver: Any, step: int, *args: Any) -> None:
        save(stage, engine, saver, step, *args)
        if step == 6:
            (saver.folder.parent.parent / "exit").touch()

    loop._save = then_exit


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_latest_checkpoint_is_set_aside_and_the_one_before_taken(
    data: Path, run_of_six: Path, tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_of_six / "run", folder)
    config = write_run(data, folder, train__steps=9, train__keep_checkpoints=3)
    act, told = DAMAGE[kind]
    act(checkpoints(folder) / "step_00000006")
    output = run_to_end(["train", str(config)], tmp_path / "log")
    assert f"going on from {checkpoints(folder) / 'step_00000005'}" in output
    assert told in output
    assert output.count("warning: ") >= 1
    aside = checkpoints(folder) / "damaged-step_00000006"
    assert aside.exists() == (kind not in ("missing marker", "gone"))
    ours, theirs = read_latest(folder), read_latest(run_of_six / "whole")
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert steps_kept(folder) == [7, 8, 9]


def test_when_no_checkpoint_holds_the_run_does_not_begin_anew(data: Path, run_of_six: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_of_six / "run", folder)
    config = write_run(data, folder, train__steps=9)
    for path in names.complete(checkpoints(folder)):
        flip_a_bit(shard_of(path))
    with Workers(["train", str(config)], tmp_path / "log") as workers:
        assert workers.wait() == [3], workers.output
    assert (
        f"error: No checkpoint in {checkpoints(folder)} is whole: step_00000006: shards/__0_0.distcp" in workers.output
    )
    assert "Restore one from a copy, or remove" in workers.output
    assert steps_kept(folder) == [4, 5, 6], "nothing was touched"


# --- saving that fails


def no_space_on_last_rank() -> None:
    """From the third checkpoint on the last rank's storage is full."""
    from megalign.engine.checkpoint import saving, shards

    begin, write = saving.Saver.save, shards._SummedStream.write
    step = 0

    def counted(self: Any, engine: Any, number: int, state: Any) -> Path:
        nonlocal step
        step = number
        return begin(self, engine, number, state)

    def failing(self: Any, block: Any) -> int:
        if step >= 3 and os.environ["RANK"] == "1":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, block)

    saving.Saver.save, shards._SummedStream.write = counted, failing  # type: ignore[method-assign]


@pytest.mark.parametrize("background", [False, True])
def test_a_rank_without_space_ends_the_run_and_the_checkpoint_before_stays(
    data: Path, tmp_path: Path, background: bool
) -> None:
    folder = tmp_path / "run"
    config = write_run(data, folder, train__steps=9, parallel__pipeline=2, train__async_checkpoint=background)
    with Workers(["train", str(config)], tmp_path / "log", world_size=2, fault=no_space_on_last_rank) as workers:
        assert workers.wait() == [4, 4], workers.output
    where = checkpoints(folder)
    assert (
        f"error: The checkpoint of step 3 could not be written to {where}: rank 1: OSError: [Errno 28] No space left on "
        "device.\n  Nothing was published; the checkpoint before is still the latest.\n  Free space there"
    ) in workers.output
    assert (last_step(folder), steps_kept(folder)) == (2, [1, 2])
    assert not list(where.glob(".tmp-*")), "the space is given back"
    run_to_end(["train", str(config)], tmp_path / "log", world_size=2)
    assert last_step(folder) == 9


def no_space_for_common_file() -> None:
    """Megatron writes this one by itself, on rank 0, before the shards."""
    import torch

    save, count = torch.save, 0

    def failing(*args: Any, **kwargs: Any) -> None:
        nonlocal count
        if str(args[1]).endswith("common.pt"):
            count += 1
            if count == 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(*args, **kwargs)

    torch.save = failing  # type: ignore[assignment]


def no_space_for_metadata() -> None:
    """The file that Megatron would write on rank 0 at the end, while the others wait at a barrier."""
    from megalign.engine.checkpoint import shards

    save, count = shards.save_config, 0

    def failing(*args: Any) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(*args)

    shards.save_config = failing  # type: ignore[assignment]


@pytest.mark.parametrize("fault", [no_space_for_common_file, no_space_for_metadata])
def test_no_space_for_the_small_files_of_rank_0(data: Path, tmp_path: Path, fault: Callable[[], None]) -> None:
    folder = tmp_path / "run"
    config = write_run(data, folder, train__steps=9, parallel__tensor=2)
    with Workers(["train", str(config)], tmp_path / "log", world_size=2, fault=fault) as workers:
        assert workers.wait() == [4, 4], workers.output
    assert "The checkpoint of step 3 could not be written" in workers.output
    assert "rank 0: OSError: [Errno 28] No space left on device" in workers.output
    assert "Traceback" not in workers.output
    assert (last_step(folder), steps_kept(folder)) == (2, [1, 2])
    assert not list(checkpoints(folder).glob(".tmp-*"))


def file_size_limit() -> None:
    """The kernel refuses files beyond 100 kB from the third checkpoint on."""
    import resource

    from megalign.engine.checkpoint import saving

    save = saving.Saver.save

    def limited(self: Any, engine: Any, step: int, state: Any) -> Path:
        if step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        return save(self, engine, step, state)

    saving.Saver.save = limited  # type: ignore[method-assign]


def test_a_write_the_kernel_refuses(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = write_run(data, folder, train__steps=9)
    with Workers(["train", str(config)], tmp_path / "log", fault=file_size_limit) as workers:
        assert workers.wait() == [4], workers.output
    assert "The checkpoint of step 3 could not be written" in workers.output
    assert "File too large" in workers.output
    assert "Traceback" not in workers.output
    assert steps_kept(folder) == [1, 2]
    assert not list(checkpoints(folder).glob(".tmp-*"))


# --- in the background


def slow_writes() -> None:
    """Writing takes long, so that training goes on beside it."""
    from megalign.engine.checkpoint import shards

    write = shards.ShardWrite._run

    def slow(self: Any) -> None:
        time.sleep(0.7)
        write(self)

    shards.ShardWrite._run = slow  # type: ignore[method-assign]


def test_what_is_written_in_the_background_is_the_state_of_its_step(data: Path, tmp_path: Path) -> None:
    """Steps taken while the thread writes overwrite the weights and moments in place."""
    kept = {"train__steps": 20, "train__keep_checkpoints": 9, "train__checkpoint_interval": 5}
    kept |= {"parallel__data": 2, "parallel__distributed_optimizer": True}
    at_once, behind = tmp_path / "at once", tmp_path / "behind"
    run_to_end(["train", str(write_run(data, at_once, **kept))], tmp_path / "log", world_size=2)
    config = write_run(data, behind, **kept, train__async_checkpoint=True)
    with Workers(["train", str(config)], tmp_path / "log", world_size=2, fault=slow_writes) as workers:
        overtaken = False
        while workers.until(lambda: list(checkpoints(behind).glob(".tmp-*"))):
            pending = next(checkpoints(behind).glob(".tmp-*"), None)
            lines = (behind / "metrics.jsonl").read_text().count("\n")
            overtaken |= pending is not None and lines > int(pending.name[len(".tmp-step_") :][:8]) + 1
            if lines >= 20:
                break
        assert workers.wait() == [0, 0], workers.output
    assert overtaken, "training did not go on while the checkpoint was written"
    assert steps_kept(behind) == steps_kept(at_once) == [5, 10, 15, 20]
    for step in (5, 15):
        ours, theirs = (tensors_at(folder, step) for folder in (behind, at_once))
        assert ours.keys() == theirs.keys()
        assert [name for name in theirs if not np.array_equal(ours[name], theirs[name])] == []


def tensors_at(folder: Path, step: int) -> dict[str, np.ndarray]:
    from fault_workers import tensors

    (content,) = ranks.run(tensors, ranks.layout_of(), names.path_of(checkpoints(folder), step))
    return content


def test_a_save_in_the_background_that_is_killed_is_as_if_it_was_not(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = write_run(data, folder, train__steps=30, train__checkpoint_interval=5, train__async_checkpoint=True)
    with Workers(["train", str(config)], tmp_path / "log", fault=slow_writes) as workers:
        where = checkpoints(folder)
        assert workers.until(lambda: list(where.glob(".tmp-step_00000010-*"))), workers.output
        workers.kill()
    assert last_step(folder) == 5
    run_to_end(["train", str(config)], tmp_path / "log")
    assert last_step(folder) == 30
    assert sorted(path.name for path in where.iterdir()) == ["latest", "step_00000025", "step_00000030"]


# --- what may go


def save_steps(layout: Layout, folder: Path, steps: list[int], settings: dict[str, Any], fault: str) -> None:
    """Save at each of `steps` while training; what `fault` damages is damaged at the last of them."""
    from megalign.engine import checkpoint
    from megalign.engine.checkpoint import folder as files

    engine = cases.engine_of(layout)
    saver = checkpoint.Saver(folder, **settings)
    describe, publish = files.describe_files, files.publish

    def described(path: Path, known: dict[str, str]) -> Any:
        facts = describe(path, known)
        flip_a_bit(shard_of(path))
        return facts

    def published(temporary: Path, final: Path) -> None:
        publish(temporary, final)
        flip_a_bit(shard_of(final))

    for step in range(1, steps[-1] + 1):
        cases.pretrain(engine, step, step)
        if step == steps[-1] and fault == "before publishing":
            files.describe_files = described
        if step == steps[-1] and fault == "after publishing":
            files.publish = published
        if step in steps:
            saver.save(engine, step, {})


def kept_in(folder: Path) -> list[int]:
    return [names.step_of(path) for path in names.complete(folder)]


def test_permanent_checkpoints_stay(tmp_path: Path) -> None:
    settings = {"keep": 2, "permanent_interval": 4}
    ranks.run(save_steps, ranks.layout_of(), tmp_path, list(range(1, 11)), settings, "")
    assert kept_in(tmp_path) == [4, 8, 9, 10]


def test_the_last_good_checkpoint_is_never_removed(tmp_path: Path) -> None:
    """The new one is damaged between its publication and the removal of the old one."""
    layout = ranks.layout_of(**DP2)
    ranks.run(save_steps, layout, tmp_path, [2, 3], {"keep": 1}, "after publishing")
    assert kept_in(tmp_path) == [2, 3], "with keep 1, 2 would have gone"
    ranks.run(save_steps, layout, tmp_path / "well", [2, 3], {"keep": 1}, "")
    assert kept_in(tmp_path / "well") == [3]


def test_reading_back_finds_what_was_not_written_as_meant(tmp_path: Path) -> None:
    with pytest.raises(ranks.RanksFailed) as caught:
        ranks.run(
            save_steps, ranks.layout_of(**DP2), tmp_path, [2, 3], {"keep": 3, "verify": True}, "before publishing"
        )
    told = (
        "The checkpoint of step 3 could not be written to .*: read back, shards/__0_0.distcp does not have the crc32c"
    )
    assert caught.match(told)
    assert str(caught.value).count("could not be written") >= 2, "on both ranks"
    assert kept_in(tmp_path) == [2]
    assert names.latest(tmp_path) == names.path_of(tmp_path, 2)
    ranks.run(save_steps, ranks.layout_of(), tmp_path / "trusting", [2, 3], {"keep": 3}, "before publishing")
    assert kept_in(tmp_path / "trusting") == [2, 3], "without verify it is found when it is loaded"


def save_poisoned(layout: Layout, folder: Path, what: str) -> str:
    """One number of the last rank's optimizer is not what it must be."""
    import torch

    from megalign.engine import checkpoint, groups
    from megalign.engine.checkpoint.content import optimizer_states

    engine = cases.engine_of(layout)
    cases.pretrain(engine, 1, 1)
    if groups.rank() == layout.world_size - 1:
        _, state = next(iter(optimizer_states(engine.optimizer)))
        if what == "step":
            state["step"] += 1
        else:
            with torch.no_grad():
                state[what].view(-1)[0] = torch.nan
    try:
        checkpoint.save(engine, folder, 1, {}, keep=1)
    except Exception as error:
        return str(error)
    return "saved"


@pytest.mark.parametrize(
    ("what", "told"),
    [
        (
            "exp_avg_sq",
            "Step 1: 0 weights and 1 tensors of the optimizer hold values that are not finite; no checkpoint",
        ),
        ("step", "Step 1: Adam's step counters are [1.0, 2.0], not one number; no checkpoint was written."),
    ],
)
def test_moments_that_are_not_sound_are_not_saved(tmp_path: Path, what: str, told: str) -> None:
    for message in ranks.run(save_poisoned, ranks.layout_of(**DP2), tmp_path, what):
        assert message.startswith(told)
    assert list(tmp_path.iterdir()) == []


def save_and_load_unstepped(layout: Layout, folder: Path) -> int:
    from megalign.engine import checkpoint

    engine = cases.engine_of(layout)
    path = checkpoint.save(engine, folder, 1, {}, keep=1)
    return int(checkpoint.load(engine, path)["step"])


@pytest.mark.parametrize("cut", [False, True])
def test_an_optimizer_that_never_stepped_is_saved_and_loaded(tmp_path: Path, cut: bool) -> None:
    """All steps so far may have been left out because they were not finite."""
    assert ranks.run(save_and_load_unstepped, ranks.layout_of(distributed_optimizer=cut), tmp_path) == [1]


def load_into(layout: Layout, path: Path) -> str:
    from megalign.engine import checkpoint

    try:
        checkpoint.load(cases.engine_of(layout), path)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "loaded"


def test_the_other_kind_of_optimizer_is_refused_by_name(tmp_path: Path) -> None:
    ranks.run(save_steps, ranks.layout_of(), tmp_path, [1], {"keep": 1}, "")
    (told,) = ranks.run(load_into, ranks.layout_of(distributed_optimizer=True), names.path_of(tmp_path, 1))
    assert "was written with parallel.distributed_optimizer False, this run has True." in told
    assert "Set parallel.distributed_optimizer to false; every other degree may change." in told


# --- pickles that would run


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def mend_marker(path: Path) -> None:
    """Give the marker the checksums of the doctored files: they guard against damage, not against a forger."""
    state, facts = names.read_marker(path)
    names.write_marker(path, state, {**facts, "files": names.describe_files(path, {})})


def doctor(path: Path, where: str, bomb: Bomb) -> None:
    """Put a bomb into a checkpoint's index, its common file, or an object inside a shard."""
    import torch

    shards = path / "shards"
    if where == "index":
        index = read_index(shards)
        index.planner_data = bomb
        (shards / ".metadata").write_bytes(pickle.dumps(index))
    elif where == "common":
        torch.save({**torch.load(shards / "common.pt"), "optimizer": bomb}, shards / "common.pt")
    else:
        index = read_index(shards)
        at, entry = next((k, v) for k, v in index.storage_data.items() if "_extra_state" in k.fqn)
        shard = shards / entry.relative_path
        offset = shard.stat().st_size
        with shard.open("ab") as stream:
            torch.save([bomb], stream)
        index.storage_data[at] = type(entry)(entry.relative_path, offset, shard.stat().st_size - offset)
        (shards / ".metadata").write_bytes(pickle.dumps(index))
    mend_marker(path)


def load_without_restrictions(layout: Layout, path: Path) -> str:
    """As `load_into`, with torch's own reader, as Megatron has it."""
    import torch
    from torch.distributed.checkpoint import FileSystemReader

    from megalign.engine.mcore import torch_strategy

    torch_strategy._get_filesystem_reader = lambda path, cache_metadata=False: FileSystemReader(path)
    load = torch.load
    torch.load = lambda *args, **kwargs: load(*args, **{**kwargs, "weights_only": False})
    return load_into(layout, path)


@pytest.mark.parametrize("where", ["index", "common", "object"])
def test_a_doctored_checkpoint_runs_nothing(tmp_path: Path, where: str) -> None:
    layout = ranks.layout_of()
    ranks.run(save_steps, layout, tmp_path / "run", [1], {"keep": 1}, "")
    path = names.path_of(tmp_path / "run", 1)
    target = tmp_path / "it ran"
    doctor(path, where, Bomb(target))
    (told,) = ranks.run(load_into, layout, path)
    assert told.startswith("DataError: The checkpoint "), told
    assert "it names posix.mkdir, which is not allowed in a checkpoint. Nothing of it was run." in told
    assert not target.exists()
    if where == "index":
        with pytest.raises(RefusedPickle, match=r"the index names GLOBAL (posix|os)\.mkdir, which is not allowed"):
            read_index(path / "shards")
        assert not target.exists()
    ranks.run(load_without_restrictions, layout, path)
    assert target.exists(), "the test shows nothing: unrestricted loading does not run it either"
