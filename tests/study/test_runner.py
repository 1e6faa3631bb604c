"""Running a study: what is done is not done again, failures are told, a stop continues to the same numbers."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import small_study
from small_study import SEED, clean_environment, command, csv_rows, json_lines, megalign, printed, quiet

from megalign.config import load_study
from megalign.errors import ConfigError, DataError, EnvironmentProblem, MegalignError
from megalign.study import runner
from megalign.study.expand import StudyFolder
from megalign.study.graph import Step, marker_of
from megalign.study.runner import begin, run_steps


def test_a_finished_study_starts_nothing(
    finished_study: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_process(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"a process was started: {args}")

    monkeypatch.setattr(runner, "LocalProcesses", no_process)
    folder = StudyFolder(tmp_path / "small")
    shutil.copytree(finished_study.path, folder.path)
    steps = begin(small_study.study(tmp_path), folder)
    console = quiet()
    run_steps(steps, folder, max_processes=2, console=console)
    assert printed(console) == ""
    # Without one marker that step alone is wanted again.
    Path(marker_of(folder, steps[-1])).unlink()
    with pytest.raises(AssertionError, match=r"a process was started.*'run', '.*small', 'prealign', '3'"):
        run_steps(steps, folder, max_processes=2, console=console)


def test_every_step_left_its_files(finished_study: StudyFolder) -> None:
    for label, stages in (("joint", {"pretrain"}), ("prealign", {"inject", "pretrain"})):
        run = finished_study.run(label, SEED)
        assert {line["stage"] for line in json_lines(run / "metrics.jsonl")} == stages
        assert {line["step"] for line in json_lines(run / "scores.jsonl")} == {0, 6, 12}
        summary = json.loads((run / "run.json").read_text(encoding="utf-8"))
        assert summary["status"] == "done"
        assert summary["steps"] == {"inject": 4 if "inject" in stages else 0, "pretrain": 12}
        assert sum(summary["tokens_seen"]["pretrain"].values()) == 12 * 4 * 64
        assert summary["tokens_seen"]["injection"] == (4 * 2 * 64 if "inject" in stages else 0)
    rows = csv_rows(finished_study.path / "report" / "summary.csv")
    assert list(rows[0]) == ["method", "seed", "metric", "language", "level", "value", "low", "high", "n", "unit"]
    final = {
        (line["metric"], line["language"], line["level"]): line["value"]
        for line in json_lines(finished_study.run("joint", SEED) / "scores.jsonl")
        if line["step"] == 12
    }
    told = {
        (row["metric"], row["language"], int(row["level"]) if row["level"] else None): float(row["value"])
        for row in rows
        if row["method"] == "joint"
    }
    assert told == final


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "small")
    begin(small_study.study(tmp_path), folder)
    begin(small_study.study(tmp_path, execution__processes=1), folder)
    before = folder.config.read_bytes()
    message = r"holds this study with other settings: train\.optimizer\.lr was 0\.003, is 0\.1\."
    with pytest.raises(ConfigError, match=message):
        begin(small_study.study(tmp_path, train__optimizer__lr=0.1), folder)
    assert folder.config.read_bytes() == before
    assert load_study(folder.config) == small_study.study(tmp_path, execution__processes=1)


def test_a_failed_run_is_told_and_the_others_go_on(finished_study: StudyFolder, tmp_path: Path) -> None:
    folder = small_study.with_data_of(finished_study, StudyFolder(tmp_path / "small"))
    settings: dict[str, Any] = {
        "methods": [
            {"method": "joint", "set": {"train.optimizer.lr": 1e30, "train.optimizer.clip_grad": 0.0}},
            "cs_only",
        ],
        "train__evaluate_interval": None,
    }
    steps = begin(small_study.study(tmp_path, **settings), folder)
    console = quiet()
    with pytest.raises(MegalignError) as error:
        run_steps(steps, folder, max_processes=1, console=console)
    assert error.value.exit_code == 1
    text = str(error.value)
    assert f"run-joint-seed{SEED} ended with code 5; the end of {folder.logs / f'run-joint-seed{SEED}.log'}" in text
    assert "not finite" in text
    assert "Lower the learning rate" in text
    assert "Traceback" not in text
    assert "run-cs_only" not in text
    lines = printed(console)
    assert f"run-joint-seed{SEED}: failed" in lines
    assert f"run-cs_only-seed{SEED}: done" in lines
    assert {path.stem for path in folder.markers.glob("run-*")} == {f"run-cs_only-seed{SEED}"}


def test_runs_of_failed_data_are_skipped(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "small")
    changes: dict[str, Any] = {"kind": "folder", "path": str(tmp_path / "nowhere")}
    study = small_study.study(tmp_path, corpus={**small_study.CONTENT["corpus"], **changes})
    console = quiet()
    with pytest.raises(
        DataError, match=r"(?s)tokenizer-seed3 ended with code 3; .*nowhere does not exist or is empty"
    ) as error:
        run_steps(begin(study, folder), folder, max_processes=2, console=console)
    assert error.value.exit_code == 3
    for name in ("store-en", "store-en-clone", "data", "run-joint", "run-prealign"):
        assert f"{name}-seed{SEED}: skipped" in printed(console)
    assert not list(folder.path.glob("runs/*"))


class _Pretended:
    """In place of real processes: ends with a code after some polls, and says how many ran at a time."""

    running = 0
    most = 0
    codes: dict[str, int]

    def __init__(self, arguments: list[str], *, world_size: int, log: Path) -> None:
        self.code = type(self).codes.get(log.stem, 0)
        self.size, self.left = world_size, 3
        type(self).running += world_size
        type(self).most = max(type(self).most, type(self).running)

    def poll(self) -> int | None:
        self.left -= 1
        if self.left:
            return None
        type(self).running -= self.size
        return self.code


@pytest.mark.parametrize(("processes", "step_processes", "most"), [(1, 1, 1), (3, 1, 3), (3, 2, 2), (1, 2, 2)])
def test_no_more_processes_than_allowed_run_at_a_time(
    processes: int, step_processes: int, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = type("Pretended", (_Pretended,), {"codes": {"c": 2}})
    monkeypatch.setattr(runner, "LocalProcesses", pretended)
    steps = [Step(name, [], processes=step_processes) for name in "abcd"]
    steps.append(dataclasses.replace(steps[0], name="e", needs=["c"]))
    with pytest.raises(ConfigError, match="c ended with code 2"):
        run_steps(steps, StudyFolder(tmp_path), max_processes=processes, console=quiet())
    assert pretended.most == most
    assert sorted(path.stem for path in (tmp_path / "steps").iterdir()) == ["a", "b", "d"]


def test_a_study_is_run_by_one_process_at_a_time(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(EnvironmentProblem, match="Another process runs the study in"):
            run_steps([], StudyFolder(tmp_path), max_processes=1, console=quiet())
    run_steps([], StudyFolder(tmp_path), max_processes=1, console=quiet())


def test_a_stopped_study_continues_to_the_same_summary(finished_study: StudyFolder, tmp_path: Path) -> None:
    """SIGTERM to the command in the middle of a run; the rerun ends with an undisturbed study's bytes."""
    folder = small_study.with_data_of(finished_study, StudyFolder(tmp_path / "small"), "joint")
    config = small_study.write(tmp_path / "small.yaml")
    arguments = ("study", "run", config, "--out", tmp_path)
    metrics = folder.run("prealign", SEED) / "metrics.jsonl"
    process = subprocess.Popen(
        command(*arguments), env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        deadline = time.monotonic() + 300
        while not metrics.exists() or not metrics.read_text(encoding="utf-8").count("\n"):
            assert time.monotonic() < deadline, "the run did not start in time"
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 75, output
    assert "error: The study was stopped by SIGTERM." in output
    assert "Run the same command again to continue." in output
    assert "Traceback" not in output
    assert not (folder.markers / f"run-prealign-seed{SEED}.json").exists()
    pretrain = folder.run("prealign", SEED) / "checkpoints" / "pretrain" / "step_00000012"
    assert not pretrain.exists(), "the run ended before the signal; the test shows nothing"

    again = megalign(*arguments)
    assert again.returncode == 0, again.stdout + again.stderr
    for name in ("summary.csv", "curves.csv", "aggregate.csv"):
        assert (folder.path / "report" / name).read_bytes() == (finished_study.path / "report" / name).read_bytes()
    steps = [(line["stage"], line["step"]) for line in json_lines(metrics)]
    assert steps == [("inject", i) for i in range(1, 5)] + [("pretrain", i) for i in range(1, 13)]
    assert without_times(metrics) == without_times(finished_study.run("prealign", SEED) / "metrics.jsonl")


def without_times(path: Path) -> list[dict[str, Any]]:
    timed = {"tokens_per_second", "tflops_per_device", "step_seconds", "data_wait_share", "peak_memory_bytes"}
    return [{key: value for key, value in line.items() if key not in timed} for line in json_lines(path)]


@pytest.mark.slow
def test_two_studies_of_one_seed_have_one_summary(finished_study: StudyFolder, tmp_path: Path) -> None:
    done = megalign("study", "run", small_study.write(tmp_path / "small.yaml"), "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("summary.csv", "curves.csv", "aggregate.csv"):
        ours = tmp_path / "small" / "report" / name
        assert ours.read_bytes() == (finished_study.path / "report" / name).read_bytes()
