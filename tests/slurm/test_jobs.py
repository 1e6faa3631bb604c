"""Jobs on a real Slurm: stopped, requeued, crashed, chained, failed, cancelled; the steps are small programs."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from mini_slurm import MiniSlurm
from slurm_work import attempts, events, log, megalign, probe, requeued, site, submit_steps

from megalign.cluster.nodes import expand
from megalign.cluster.records import records_of
from megalign.cluster.submit import submissions
from megalign.errors import ConfigError, EnvironmentProblem

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400)]


@pytest.mark.parametrize("number", ["USR1", "TERM"])
def test_a_job_asked_to_stop_saves_is_requeued_and_goes_on(slurm: MiniSlurm, tmp_path: Path, number: str) -> None:
    (job,) = submit_steps(tmp_path / "run", probe(tmp_path / "run", "train", "stop-first:1"), on_stop="requeue")
    slurm.until(lambda: attempts(tmp_path / "run", "train") == 1, 30, "the probe begins")
    slurm.call("scancel", "--batch", f"--signal={number}", job.number)
    slurm.until(lambda: "stopped" in events(tmp_path / "run", "train"), 30, "the stop is noted")
    requeued(slurm, job.number)
    assert slurm.ended(job.number, 60)["JobState"] == "COMPLETED"
    assert slurm.job(job.number)["Restarts"] == "1"
    records = records_of(tmp_path / "run", "train")
    assert [record.event for record in records] == ["begin", "stopped", "begin", "done"]
    assert records[1].detail == f"exit code 75 after SIG{number}"
    assert [record.checkpoints for record in records] == ["none", *["pretrain/step_00000001"] * 3]
    assert "probe: asked by ['SIGUSR1']" in log(tmp_path / "run", "train")


@pytest.mark.slow
def test_a_plain_requeue_by_slurm_saves_too(slurm: MiniSlurm, tmp_path: Path) -> None:
    """As at preemption: Slurm sends SIGTERM to all processes and requeues by itself; the script must not do it again."""
    run = tmp_path / "run"
    (job,) = submit_steps(run, probe(run, "train", "stop-first:1", processes=4), on_stop="requeue")
    slurm.until(lambda: attempts(run, "train") == 4, 30, "all ranks begin")
    slurm.call("scontrol", "requeue", job.number)
    slurm.until(lambda: "stopped" in events(run, "train"), 30, "the stop is noted")
    assert records_of(run, "train")[-1].detail == "exit code 75, ended by Slurm"
    requeued(slurm, job.number)
    assert slurm.ended(job.number, 60)["JobState"] == "COMPLETED"
    assert events(run, "train") == ["begin", "stopped", "begin", "done"]
    assert (run / "train" / "checkpoints" / "pretrain" / "latest").exists(), "saved before it left"
    lines = [line.split() for line in (run / "train" / "attempts").read_text().splitlines()]
    assert sorted(lines) == [
        [job.number, restart, str(rank), lines_node(lines, rank, restart)] for restart in "01" for rank in range(4)
    ]
    assert len({line[3] for line in lines if line[1] == "0"}) == 2


def lines_node(lines: list[list[str]], rank: int, restart: str) -> str:
    return next(node for _, r, n, node in lines if (r, n) == (restart, str(rank)))


def test_a_failed_save_is_requeued_too(slurm: MiniSlurm, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (job,) = submit_steps(run, probe(run, "train", "save-fails-first:1"), on_stop="requeue")
    slurm.until(lambda: attempts(run, "train") == 1, 30, "the probe begins")
    slurm.call("scancel", "--batch", "--signal=USR1", job.number)
    slurm.until(lambda: "stopped" in events(run, "train"), 30, "the stop is noted")
    requeued(slurm, job.number)
    assert slurm.ended(job.number, 60)["JobState"] == "COMPLETED"
    assert [(r.event, r.detail) for r in records_of(run, "train")][1] == ("stopped", "exit code 1 after SIGUSR1")


def test_a_crash_loop_is_stopped_by_the_guard(slurm: MiniSlurm, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (job,) = submit_steps(run, probe(run, "train", "crash"), profile=site(max_stalls=1), on_stop="requeue")
    slurm.until(lambda: "stopped" in events(run, "train"), 30, "the first crash")
    requeued(slurm, job.number)
    assert slurm.ended(job.number, 60)["JobState"] == "FAILED"
    records = records_of(run, "train")
    assert [record.event for record in records] == ["begin", "stopped", "begin", "gave-up"]
    assert records[1].detail == "exit code 137"
    assert records[3].detail == "1 restarts without a new checkpoint (max_stalls 1)"
    assert attempts(run, "train") == 2
    (step,) = json.loads(megalign(slurm, "status", run, "--json"))["steps"]
    assert (step["state"], step["restarts"]) == ("failed", 1)
    assert step["why"].startswith("1 restarts without a new checkpoint (max_stalls 1) on n")


def test_crashes_with_progress_between_them_are_no_crash_loop(slurm: MiniSlurm, tmp_path: Path) -> None:
    """A chain of four jobs, of which three crash after a checkpoint, under a guard that allows no restart without one."""
    run = tmp_path / "run"
    jobs = submit_steps(run, probe(run, "train", "crash-after-save:2"), profile=site(max_stalls=0), chain=4)
    assert [job.link for job in jobs] == [1, 2, 3, 4]
    assert slurm.ended(jobs[-1].number, 90)["JobState"] == "COMPLETED"
    assert events(run, "train") == ["begin", "stopped", "begin", "stopped", "begin", "done"]
    states = [slurm.job(job.number)["JobState"] for job in jobs]
    assert states == ["FAILED", "FAILED", "COMPLETED", "COMPLETED"]  # the fourth finds it done


def test_a_chain_ends_where_starting_again_would_not_help(slurm: MiniSlurm, tmp_path: Path) -> None:
    run = tmp_path / "run"
    after = probe(run, "after", "exit:0", needs=["train"])
    jobs = submit_steps(run, probe(run, "train", "exit:3"), after, chain=2)
    slurm.ended(jobs[1].number, 60)
    assert events(run, "train") == ["begin", "failed"]
    assert attempts(run, "train") == 1
    assert "an earlier job of this chain: failed exit code 3" in log(run, "train")
    # What needs it never begins, and does not stay in the queue for ever.
    assert slurm.ended(jobs[2].number, 60)["JobState"] == "CANCELLED"
    assert attempts(run, "after") == 0
    # A new submission tries again.
    again = submit_steps(run, probe(run, "train", "exit:0"))
    assert slurm.ended(again[0].number, 60)["JobState"] == "COMPLETED"


def test_arrays_over_the_sites_limit_and_a_failed_task(slurm: MiniSlurm, tmp_path: Path) -> None:
    run = tmp_path / "run"
    behaviours = ["exit:0"] * 5
    behaviours[1] = "exit:3"
    steps = [
        probe(run, f"s{n}", b, kind="runs", trains=False, marker=run / "steps" / f"s{n}.json")
        for n, b in enumerate(behaviours)
    ]
    ok = probe(run, "after-s2", "exit:0", needs=["s2"], trains=False)
    lost = probe(run, "after-s1", "exit:0", needs=["s1"], trains=False)
    end = probe(run, "report", "exit:0", follows=[step.name for step in steps], trains=False)
    with pytest.raises(EnvironmentProblem, match=r"sbatch: .*Invalid job array specification \(job runs\)"):
        submit_steps(tmp_path / "other", *steps, profile=site(max_array_size=5))
    jobs = submit_steps(run, *steps, ok, lost, end)
    assert [(job.name, job.is_array, len(job.steps)) for job in jobs] == [
        ("runs.1", True, 4),
        ("runs.2", False, 1),
        ("after-s2", False, 1),
        ("after-s1", False, 1),
        ("report", False, 1),
    ]
    slurm.until_gone([job.number for job in jobs], 120)
    assert slurm.ended(jobs[4].number, 60)["JobState"] == "COMPLETED"
    assert slurm.ended(jobs[3].number, 60)["JobState"] == "CANCELLED"
    assert [events(run, f"s{n}")[-1] for n in range(5)] == ["done", "failed", "done", "done", "done"]
    assert [attempts(run, name) for name in ("after-s2", "after-s1")] == [1, 0]
    assert sorted(path.stem for path in (run / "steps").iterdir()) == ["s0", "s2", "s3", "s4"]
    # Submitted again, only what is not done runs.
    steps[1] = probe(run, "s1", "exit:0", kind="runs", trains=False, marker=run / "steps" / "s1.json")
    again = submit_steps(run, *steps, lost)
    assert [job.steps for job in again] == [["s1"], ["after-s1"]]
    assert slurm.ended(again[1].number, 60)["JobState"] == "COMPLETED"


@pytest.mark.slow
def test_slurmctld_killed_and_started_again(slurm: MiniSlurm, tmp_path: Path) -> None:
    """The job runs on, and one that is asked to stop while slurmctld is away is requeued when it is back."""
    run = tmp_path / "run"
    (job,) = submit_steps(run, probe(run, "train", "stop-first:1"), on_stop="requeue")
    slurm.until(lambda: attempts(run, "train") == 1, 30, "the probe begins")
    slurm.until_saved(time.time())
    slurm.kill_controller()
    slurm.signal_batch_script(job.number)
    slurm.until(lambda: "stopped" in events(run, "train"), 30, "the stop is noted")
    slurm.start_controller()
    requeued(slurm, job.number)
    assert slurm.ended(job.number, 90)["JobState"] == "COMPLETED"
    assert events(run, "train") == ["begin", "stopped", "begin", "done"]


@pytest.mark.slow
def test_status_logs_and_cancel_tell_the_truth_at_each_point(slurm: MiniSlurm, tmp_path: Path) -> None:
    run, go = tmp_path / "run", tmp_path / "go"

    def told() -> dict[str, str]:
        (step,) = json.loads(megalign(slurm, "status", run, "--json"))["steps"]
        return {key: step[key] for key in ("state", "why", "job")}

    step = probe(run, "train", f"wait:{go}")
    slurm.call("scontrol", "update", "PartitionName=main", "State=DOWN")
    try:
        (job,) = submit_steps(run, step)
        waiting = told()
    finally:
        slurm.call("scontrol", "update", "PartitionName=main", "State=UP")
    assert waiting == {"state": "waiting", "why": "PartitionDown", "job": job.number}
    slurm.until(lambda: attempts(run, "train") == 1, 30, "the probe begins")
    running = told()
    assert (running["state"], running["job"]) == ("running", job.number)
    assert running["why"].startswith("on n")
    with pytest.raises(ConfigError, match=f"has jobs in the queue: {job.number}"):
        submit_steps(run, step)
    assert f"cancelled: {job.number}" in megalign(slurm, "cancel", run)
    assert slurm.ended(job.number, 60)["JobState"] == "CANCELLED"
    assert told()["state"] == "cancelled"
    assert records_of(run, "train")[-1].detail == "exit code 75, ended by Slurm"
    shown = megalign(slurm, "logs", run)
    assert "probe wait" in shown
    assert f"JOB {job.number} ON n" in shown  # what Slurm itself said
    assert "no job of it is in the queue" in megalign(slurm, "cancel", run)

    go.touch()
    (again,) = submit_steps(run, step)
    slurm.ended(again.number, 60)
    assert told() == {"state": "done", "why": "", "job": again.number}

    (failed,) = submit_steps(run, probe(run, "train", "exit:3"))
    slurm.ended(failed.number, 60)
    found = told()
    assert found["state"] == "failed"
    assert found["why"].endswith(": the text is damaged. It has no words.")
    assert len(submissions(run)) == 3

    slurm.kill_controller()
    text = megalign(slurm, "status", run)
    assert "the queue cannot be asked: squeue" in text
    assert "failed" in text


def test_processes_find_each_other_and_know_their_threads(slurm: MiniSlurm, tmp_path: Path) -> None:
    run = tmp_path / "run"
    resources = {"time_limit": "00:10:00", "cpus_per_task": 3, "memory_per_cpu": "1M", "gres": "gpu"}
    values = {**site().environment, "A_B": 'it\'s $HOME "now"; echo x'}
    (job,) = submit_steps(
        run, probe(run, "train", "ranks", processes=4), profile=site(training=resources, environment=values)
    )
    assert slurm.ended(job.number, 90)["JobState"] == "COMPLETED", log(run, "train")
    told = [line for line in log(run, "train").splitlines() if line.startswith("probe: RANK")]
    ports = {line.partition("MASTER_PORT=")[2].split()[0] for line in told}
    (port,) = ports
    expected = [
        f"probe: RANK={rank} WORLD_SIZE=4 LOCAL_RANK={rank % 2} MASTER_ADDR=127.0.0.1 MASTER_PORT={port} "
        f"SRUN_CPUS_PER_TASK=3 A_B={values['A_B']}"
        for rank in range(4)
    ]
    assert sorted(told) == expected
    assert 10_000 <= int(port) < 30_000
    text = log(run, "train")
    assert "preflight: 4 processes met; megalign" in text
    for rank, node in zip((0, 2), expand(slurm.job(job.number)["NodeList"]), strict=True):
        assert f"  {node}: ranks {rank}-{rank + 1} on cpu" in text


def test_a_process_that_does_not_come_is_named(slurm: MiniSlurm, tmp_path: Path) -> None:
    """One node's interpreter hangs before it begins: rank 0 names its ranks and the node, and the job is not left hanging."""
    run = tmp_path / "run"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ "$SLURM_NODEID" = 1 ] && exec sleep 60\nexec {site().python} "$@"\n')
    python.chmod(0o755)
    profile = site(python=str(python), preflight_seconds=15, exit_grace_seconds=2)
    (job,) = submit_steps(run, probe(run, "train", "ranks", processes=4), profile=profile)
    assert slurm.ended(job.number, 90)["JobState"] == "FAILED"
    _, node = expand(slurm.job(job.number)["NodeList"])
    assert f"error: 2 of 4 processes did not come within 15 s: rank 2 on {node}, rank 3 on {node}." in log(run, "train")
    assert attempts(run, "train") == 0
