"""Training on a real Slurm: the numbers of a run do not depend on nodes, requeues and dead daemons."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_study
from fault_workers import last_step, read_latest, write_run
from mini_slurm import MiniSlurm
from slurm_work import events, log, megalign, requeued, write_site
from small_study import SEED

from megalign.study.expand import StudyFolder

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(900)]
TWO_NODES = {"parallel__data": 2, "parallel__tensor": 2}


def submit(slurm: MiniSlurm, tmp_path: Path, config: Path, *options: str | Path, **changes: Any) -> list[str]:
    """Job ids of `megalign submit`."""
    profile = write_site(tmp_path / "site.yaml", **changes)
    text = megalign(slurm, "submit", config, "--profile", profile, *options)
    return [line.removeprefix("job ").partition(":")[0] for line in text.splitlines() if line.startswith("job ")]


def logged(folder: Path) -> list[dict[str, Any]]:
    timed = {"tokens_per_second", "tflops_per_device", "step_seconds", "data_wait_share", "peak_memory_bytes"}
    timed |= {"slowest_over_median", "slowest_rank"}
    return [
        {k: v for k, v in line.items() if k not in timed} for line in small_study.json_lines(folder / "metrics.jsonl")
    ]


def same_weights(first: Path, second: Path) -> bool:
    one, other = read_latest(first), read_latest(second)
    assert one.keys() == other.keys()
    return all(np.array_equal(value, other[key]) for key, value in one.items())


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 4 processes on this machine, without Slurm."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    done = small_study.megalign("train", write_run(data, folder, **TWO_NODES, train__steps=12))
    assert done.returncode == 0, done.stderr
    return folder


def test_two_nodes_of_two_processes_have_the_losses_of_one_machine(
    slurm: MiniSlurm, undisturbed: Path, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    (job,) = submit(slurm, tmp_path, write_run(data, folder, **TWO_NODES, train__steps=12))
    assert slurm.ended(job, 150)["JobState"] == "COMPLETED", log(folder, "train")
    assert slurm.job(job)["NodeList"] == "n[1-2]"
    assert logged(folder) == logged(undisturbed)
    assert same_weights(folder, undisturbed)
    text = log(folder, "train")
    assert "preflight: 4 processes met" in text
    status = json.loads(megalign(slurm, "status", folder, "--json"))
    assert [(step["step"], step["state"]) for step in status["steps"]] == [("train", "done")]
    assert status["steps"][0]["metrics"]["step"] == 12


def test_signal_checkpoint_requeue_resume_to_the_same_weights(
    slurm: MiniSlurm, undisturbed: Path, data: Path, tmp_path: Path
) -> None:
    """Saves only when asked: what the second attempt goes on from was written because of the signal."""
    folder = tmp_path / "run"
    config = write_run(data, folder, **TWO_NODES, train__steps=12, train__checkpoint_interval=12)
    slow = {"PYTHONPATH": str(Path(__file__).resolve().parent / "slowed")}
    (job,) = submit(slurm, tmp_path, config, "--requeue", environment=slow)
    slurm.until(lambda: (folder / "metrics.jsonl").exists() and len(logged(folder)) >= 3, 120, "three steps")
    slurm.call("scancel", "--batch", "--signal=USR1", job)
    slurm.until(lambda: "stopped" in events(folder, "train"), 60, "the job stops")
    step = last_step(folder)
    assert 3 <= step < 12, "the run ended before the signal: the test shows nothing"
    requeued(slurm, job)
    assert slurm.ended(job, 200)["JobState"] == "COMPLETED", log(folder, "train")
    assert events(folder, "train") == ["begin", "stopped", "begin", "done"]
    assert f"pretrain is saved at step {step} of 12" in log(folder, "train")
    assert logged(folder) == logged(undisturbed)
    assert same_weights(folder, undisturbed)


def test_a_dead_node_the_job_is_requeued_its_old_workers_are_fenced(
    slurm: MiniSlurm, undisturbed: Path, data: Path, tmp_path: Path
) -> None:
    """slurmd of both nodes dies, so that Slurm can end none of the processes: they go on beside the requeued job's."""
    folder = tmp_path / "run"
    config = write_run(data, folder, **TWO_NODES, train__steps=12)
    slow = {"PYTHONPATH": str(Path(__file__).resolve().parent / "slowed"), "MEGALIGN_TEST_STEP_SECONDS": "15"}
    (job,) = submit(slurm, tmp_path, config, "--requeue", environment=slow)
    slurm.until(lambda: last_step(folder) >= 1, 120, "a checkpoint")
    nodes = slurm.job(job)["NodeList"]
    assert nodes == "n[1-2]"
    for node in ("n1", "n2"):
        slurm.kill_node(node)
    slurm.until(lambda: slurm.job(job).get("Restarts") == "1", 90, "the job is requeued")
    assert slurm.ended(job, 300)["JobState"] == "COMPLETED", log(folder, "train")
    assert slurm.job(job)["NodeList"] == "n[3-4]"
    # The script on the dead node looks after its processes have ended, which may be after the new job has.
    slurm.until(lambda: "superseded" in events(folder, "train"), 90, "the old script finds out")
    assert sorted(events(folder, "train")) == ["begin", "begin", "done", "superseded"]
    # srun had given the nodes up; their processes went on by themselves, until they wanted to publish.
    slurm.until(lambda: "6" in slurm.exit_codes("n1"), 60, "the old writer finds out")
    (step,) = json.loads(megalign(slurm, "status", folder, "--json"))["steps"]
    assert (step["state"], step["restarts"]) == ("done", 1)
    assert logged(folder) == logged(undisturbed)
    assert same_weights(folder, undisturbed)


def test_the_small_study_as_a_graph_on_four_nodes(
    slurm: MiniSlurm, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """From data to report: the summary of the same study run here."""
    local = small_study.finished(tmp_path_factory.getbasetemp())
    config = small_study.write(tmp_path / "small.yaml")
    out = tmp_path / "runs"
    plan = megalign(slurm, "submit", config, "--profile", write_site(tmp_path / "site.yaml"), "--out", out, "--dry-run")
    assert not out.exists()
    assert "#SBATCH --array=0-1" in plan
    jobs = submit(slurm, tmp_path, config, "--out", out, "--requeue")
    folder = StudyFolder(out / "small")
    assert len(jobs) == 6
    begun = json.loads(megalign(slurm, "status", folder.path, "--json"))["steps"]
    assert [step["step"] for step in begun] == [
        *(f"{name}-seed{SEED}" for name in ("tokenizer", "store-en", "store-en-clone", "data")),
        *(f"{kind}-{method}-seed{SEED}" for method in ("joint", "prealign") for kind in ("train", "run")),
        "report",
    ]
    assert {step["state"] for step in begun} <= {"waiting", "running"}
    assert [step["why"] for step in begun[1:]] == ["Dependency"] * 8
    assert slurm.ended(jobs[-1], 300)["JobState"] == "COMPLETED", log(folder.path, "report")
    for name in ("summary.csv", "curves.csv", "aggregate.csv"):
        assert (folder.path / "report" / name).read_bytes() == (local.path / "report" / name).read_bytes()
    ended = json.loads(megalign(slurm, "status", folder.path, "--json"))["steps"]
    assert {step["state"] for step in ended} == {"done"}
    done = small_study.megalign("study", "run", config, "--out", out)
    assert done.returncode == 0
    assert "done before" not in done.stdout
    assert all("running" not in line for line in done.stdout.splitlines())
    again = megalign(slurm, "submit", config, "--profile", tmp_path / "site.yaml", "--out", out)
    assert [line.split(": ")[1] for line in again.splitlines() if line.startswith("job")] == ["report"]
    shutil.rmtree(out)
