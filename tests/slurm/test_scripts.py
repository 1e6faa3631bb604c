"""The scripts of slurm/ that people copy, and the command's refusals."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import small_study
from fault_workers import write_run
from mini_slurm import MiniSlurm
from slurm_work import write_site

from megalign.corpus.store import TokenStore

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
REPOSITORY = Path(__file__).resolve().parent.parent.parent
PYTHON = {"PYTHON": sys.executable}


def test_preprocessing_as_an_array_then_one_store(slurm: MiniSlurm, data: Path, tmp_path: Path) -> None:
    texts = {"en": ["the cat sat on the mat"] * 30, "de": ["die katze sass auf der matte"] * 20}
    for language, lines in texts.items():
        folder = tmp_path / "text" / language
        folder.mkdir(parents=True)
        (folder / "part.jsonl").write_text(
            "".join(json.dumps({"text": f"{line} {n}"}) + "\n" for n, line in enumerate(lines))
        )
    tokenizer, stores = shutil.copy(data / "tokenizer.json", tmp_path), tmp_path / "stores"
    where = (f"--chdir={REPOSITORY}", f"--output={tmp_path}/%x-%a.log", "--cpus-per-task=1")
    array = slurm.call(
        "sbatch", "--parsable", *where, "--array=0-1", "slurm/preprocess_array.sbatch",
        str(tmp_path / "text"), str(stores), str(tokenizer), "en=all", "de=all", more=PYTHON, cwd=REPOSITORY,
    ).strip()  # fmt: skip
    merge = slurm.call(
        "sbatch", "--parsable", *where, f"--dependency=afterok:{array}", "--kill-on-invalid-dep=yes",
        "slurm/merge_stores.sbatch", str(stores), more=PYTHON, cwd=REPOSITORY,
    ).strip()  # fmt: skip
    logs = sorted(tmp_path.glob("*.log"))
    assert slurm.ended(merge, 120)["JobState"] == "COMPLETED", "".join(path.read_text() for path in logs)
    store = TokenStore.open(stores / "all")
    assert {language: len(list(store.documents(language))) for language in ("en", "de")} == {"en": 30, "de": 20}


@pytest.mark.slow
def test_a_run_on_two_nodes_by_hand_is_requeued_when_asked_to_stop(
    slurm: MiniSlurm, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    config = write_run(data, folder, parallel__data=2, train__steps=6, train__checkpoint_interval=6)
    slow = {"PYTHONPATH": str(Path(__file__).resolve().parent / "slowed"), "MEGALIGN_TEST_STEP_SECONDS": "2"}
    job = slurm.call(
        "sbatch", "--parsable", f"--chdir={REPOSITORY}", f"--output={tmp_path}/log", "--nodes=2", "--ntasks-per-node=1",
        "--cpus-per-task=1", "--gres=gpu:1", "slurm/multi_node.sbatch", str(config), more={**PYTHON, **slow},
        cwd=REPOSITORY,
    ).strip()  # fmt: skip
    metrics = folder / "metrics.jsonl"
    slurm.until(lambda: metrics.exists() and metrics.read_text().count("\n"), 100, "a step")
    slurm.call("scancel", "--batch", "--signal=USR1", job)
    slurm.until(lambda: slurm.job(job).get("Restarts") == "1", 60, "the job is requeued")
    assert slurm.ended(job, 150)["JobState"] == "COMPLETED", (tmp_path / "log").read_text()
    assert [line["step"] for line in small_study.json_lines(metrics)] == list(range(1, 7))


def test_what_the_command_refuses(slurm: MiniSlurm, data: Path, tmp_path: Path) -> None:
    config, site = write_run(data, tmp_path / "run"), write_site(tmp_path / "site.yaml")

    def refused(*arguments: str | Path) -> str:
        done = small_study.megalign("submit", config, "--profile", site, *arguments, **slurm.environment)
        assert done.returncode in (2, 4), done.stdout
        assert not (tmp_path / "run" / "slurm.json").exists()
        return done.stderr

    assert "--requeue and --chain are two ways to continue a run." in refused("--requeue", "--chain", "2")
    assert "3 processes do not fill nodes of tasks_per_node 2" in refused(
        "parallel.data=3", "train.global_batch_size=12", "train.micro_batch_size=4"
    )
    assert "unknown key tasks_per_nod" in refused("profile.tasks_per_nod=3")
    assert "invalid partition specified: nowhere" in refused("profile.training.partition=nowhere")
    assert (
        "is neither a study's nor a run's folder"
        in small_study.megalign("status", tmp_path, **slurm.environment).stderr
    )
    assert "was not submitted to Slurm" in small_study.megalign("cancel", tmp_path / "run", **slurm.environment).stderr
