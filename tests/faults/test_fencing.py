"""A run that another process took over publishes nothing more."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from fault_workers import Workers, last_step, run_to_end, steps_kept, write_run

from megalign.cluster.ownership import Owner, Ownership
from megalign.errors import DataError, SupersededError


def test_of_two_processes_on_one_run_the_first_ends(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = str(write_run(data, folder, train__steps=100_000, train__checkpoint_interval=5))
    with Workers(["train", config], tmp_path / "first.log") as first:
        assert first.until(lambda: last_step(folder) >= 5), first.output
        with Workers(["train", config], tmp_path / "second.log") as second:
            assert first.wait() == [6], first.output
            begun = last_step(folder)
            assert second.until(lambda: last_step(folder) > begun), second.output
            second.send(signal.SIGTERM)
            assert second.wait() == [75], second.output
    assert f"error: {folder} was taken over by process {second.processes[0].pid} on " in first.output
    assert "Nothing more is published from here: it would overwrite the other's work." in first.output
    lines = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(1, last_step(folder) + 1)), "every step stands once, in order"
    assert steps_kept(folder)[-1] == last_step(folder)


def paused_before_publishing() -> None:
    """The process stands still before each publication, as one on a node that lost touch does."""
    from megalign.engine.checkpoint import saving

    publish = saving.Saver._publish

    def late(self: saving.Saver, *args: object) -> None:
        while not (self.folder / "go on").exists():
            time.sleep(0.01)
        publish(self, *args)  # type: ignore[arg-type]

    saving.Saver._publish = late  # type: ignore[method-assign, assignment]


def test_a_process_that_comes_back_may_not_publish_its_checkpoint(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = str(write_run(data, folder, train__steps=4, train__checkpoint_interval=4))
    where = folder / "checkpoints" / "pretrain"
    with Workers(["train", config], tmp_path / "first.log", fault=paused_before_publishing) as first:
        assert first.until(lambda: where.exists() and list(where.glob(".tmp-*/shards/metadata.json"))), first.output
        run_to_end(["train", config], tmp_path / "second.log")
        marker = (where / "step_00000004" / "state.json").read_bytes()
        (where / "go on").touch()
        assert first.wait() == [6], first.output
    assert (where / "step_00000004" / "state.json").read_bytes() == marker
    assert not list(where.glob(".tmp-*"))


def taken_over_while_writing() -> None:
    """As the new owner begins, it clears away what the old one has begun to write."""
    from megalign.engine.checkpoint import folder, saving

    begin = saving.Saver._begin

    def begun(self: saving.Saver, step: int) -> Path:
        temporary = begin(self, step)
        if step == 4:
            Ownership.claim(self.folder.parents[1], "train")
            folder.clean(self.folder)
        return temporary

    saving.Saver._begin = begun  # type: ignore[method-assign]


def test_a_process_whose_unfinished_files_are_cleared_away_says_why(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = str(write_run(data, folder, train__steps=6, train__checkpoint_interval=2, parallel__data=2))
    log = tmp_path / "log"
    with Workers(["train", config], log, world_size=2, fault=taken_over_while_writing) as workers:
        assert workers.wait() == [6, 6], workers.output
    assert "was taken over by process" in workers.output
    assert "Traceback" not in workers.output
    assert last_step(folder) == 2


def test_scores_of_an_evaluation_that_was_taken_over_are_not_written(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = str(write_run(data, folder, train__steps=2))
    run_to_end(["train", config], tmp_path / "log")
    with Workers(["eval", config], tmp_path / "log", fault=taken_over_while_measuring) as workers:
        assert workers.wait() == [6], workers.output
    assert not (folder / "scores.jsonl").exists()


def taken_over_while_measuring() -> None:
    from megalign.evaluation import run

    measure = run._all_scores

    def measured(engine: object, inputs: object, step: int) -> object:
        Ownership.claim(Path(inputs.config.folder), "eval")  # type: ignore[attr-defined]
        return measure(engine, inputs, step)  # type: ignore[arg-type]

    run._all_scores = measured  # type: ignore[assignment]


# --- who is newer


def slurm(job: int, restart: int = 0, cluster: str = "c") -> dict[str, str]:
    return {"SLURM_JOB_ID": str(job), "SLURM_RESTART_COUNT": str(restart), "SLURM_CLUSTER_NAME": cluster}


@pytest.mark.parametrize("later", [slurm(13), slurm(12, 1), slurm(12), slurm(5, cluster="other"), {}])
def test_a_later_owner_fences_the_earlier(tmp_path: Path, later: dict[str, str]) -> None:
    first = Ownership.claim(tmp_path, "train", slurm(12))
    first.check()
    second = Ownership.claim(tmp_path, "train", later)
    second.check()
    with pytest.raises(SupersededError, match=r"was taken over by .*; this is job 12, restart 0, process "):
        first.check()
    first.release()  # says nothing about the other
    second.check()


@pytest.mark.parametrize("earlier", [slurm(11), slurm(12, 1), slurm(9, 5)])
def test_an_earlier_job_may_not_take_over_a_running_one(tmp_path: Path, earlier: dict[str, str]) -> None:
    """A zombie of a requeued job that begins late must not push the new one out."""
    owner = Ownership.claim(tmp_path, "train", slurm(12, 2))
    with pytest.raises(SupersededError) as caught:
        Ownership.claim(tmp_path, "train", earlier)
    assert "belongs to a later job (job 12, restart 2, process" in str(caught.value)
    assert f"remove {tmp_path / 'owner-train.json'}" in str(caught.value)
    assert caught.value.exit_code == 6
    owner.check()
    Ownership.claim(tmp_path, "eval", earlier).check()  # another kind of work
    owner.release()
    Ownership.claim(tmp_path, "train", earlier).check()  # the later job has ended: an earlier one may follow


def test_an_owner_file_that_is_gone_or_damaged(tmp_path: Path) -> None:
    owner = Ownership.claim(tmp_path, "train", {})
    path = tmp_path / "owner-train.json"
    content = path.read_text()
    path.unlink()
    with pytest.raises(SupersededError, match="was taken over by nobody, its owner file is gone"):
        owner.check()
    path.write_text('{"owner": 1}')
    with pytest.raises(DataError, match="does not name an owner"):
        owner.check()
    path.write_text(content)
    owner.check()
    assert json.loads(content)["number"] == 1
    claimed = Owner(**json.loads(content))
    assert asdict(replace(claimed, number=2))["number"] == 2
