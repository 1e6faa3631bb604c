"""The `megalign` command where all is well, and the same numbers from every layout."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import small_study
from small_study import SEED, json_lines, megalign

from megalign import __version__
from megalign.cli.app import app
from megalign.study.expand import StudyFolder

COMMANDS = [
    (),
    ("study",),
    ("study", "run"),
    ("study", "report"),
    ("train",),
    ("eval",),
    ("store",),
    ("store", "check"),
    ("submit",),
    ("status",),
    ("logs",),
    ("cancel",),
    ("clika",),
    ("clika", "answer"),
    ("clika", "check"),
    ("clika", "conductivity"),
    ("crossin",),
    ("crossin", "tune"),
    ("crossin", "eval"),
    ("checkpoint",),
    ("checkpoint", "inspect"),
    ("checkpoint", "verify"),
    ("checkpoint", "reshard"),
    ("export",),
    ("import",),
    ("lm-eval",),
    ("nli",),
    ("plan",),
    ("scaling",),
    ("scaling", "ladder"),
    ("scaling", "fit"),
    ("settings",),
    ("doctor",),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(command: tuple[str, ...]) -> None:
    done = megalign(*command, "--help")
    assert done.returncode == 0
    assert " ".join(["Usage: megalign", *command]) in done.stdout
    assert len(done.stdout.split("\n")) > 6


def test_the_list_of_commands_is_whole() -> None:
    found: set[tuple[str, ...]] = {()}
    for group in (None, *app.registered_groups):
        prefix = (str(group.name),) if group else ()
        commands = (group.typer_instance if group else app).registered_commands
        found |= {prefix, *((*prefix, c.name or c.callback.__name__) for c in commands if c.callback)}
    assert found == set(COMMANDS)


def test_the_version_is_printed() -> None:
    assert megalign("--version").stdout.strip() == __version__


def test_an_unknown_command_is_refused() -> None:
    assert megalign("trian").returncode == 2


def test_a_good_store_is_good(finished_study: StudyFolder) -> None:
    store = finished_study.data(SEED) / "store"
    for quick in ([], ["--quick"]):
        done = megalign("store", "check", store, *quick)
        assert (done.returncode, done.stdout) == (0, f"{store}: no problem found\n")


def test_doctor_says_what_will_be_used() -> None:
    import torch

    done = megalign("doctor")
    assert done.returncode == 0
    for word in ("torch", torch.__version__, "megatron-core", "collectives", "optimizer", "Slurm"):
        assert word in done.stdout
    if not torch.cuda.is_available():
        assert "gloo" in done.stdout
        assert "refused" in done.stdout


def test_the_report_is_written_again_from_the_scores(finished_study: StudyFolder, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    shutil.copytree(finished_study.path, folder, ignore=shutil.ignore_patterns("report", "data", "checkpoints"))
    done = megalign("study", "report", folder)
    assert done.returncode == 0, done.stderr
    assert f"report: {folder / 'report' / 'index.html'}" in done.stdout
    assert "PreAlign" in done.stdout
    before = (finished_study.path / "report" / "summary.csv").read_bytes()
    assert (folder / "report" / "summary.csv").read_bytes() == before


def assert_same_losses(run: Path, reference: Path) -> None:
    """All layouts add the same numbers in another order.

    One float32 step differs by a few units in the last place (6e-8, relative). Over these 16 steps the worst measured is
    1.3e-7 of a loss and 9e-7 of a gradient norm; a wrong layout is off by 1e-3 and more at once.
    """
    steps, expected = json_lines(run / "metrics.jsonl"), json_lines(reference / "metrics.jsonl")
    assert [(step["stage"], step["step"]) for step in steps] == [(step["stage"], step["step"]) for step in expected]
    assert len(steps) == 4 + 12
    for ours, theirs in zip(steps, expected, strict=True):
        assert ours.keys() == theirs.keys()
        assert [ours[key] for key in ("samples", "tokens")] == [theirs[key] for key in ("samples", "tokens")]
        keys = [
            "loss",
            "lr",
            "grad_norm",
            *(["contrastive", "contrastive_by_level"] if ours["stage"] == "inject" else []),
        ]
        for key in keys:
            assert ours[key] == pytest.approx(theirs[key], rel=1e-5), (ours["stage"], ours["step"], key)


@pytest.mark.parametrize("override", ["parallel.data=2", "parallel.pipeline=2"])
def test_a_run_has_the_same_losses_in_every_layout(override: str, finished_study: StudyFolder, tmp_path: Path) -> None:
    reference = finished_study.run("prealign", SEED)
    done = megalign("train", reference / "config.yaml", f"folder={tmp_path / 'run'}", override)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_losses(tmp_path / "run", reference)


def test_a_study_has_the_same_scores_in_another_layout(finished_study: StudyFolder, tmp_path: Path) -> None:
    study = small_study.write(tmp_path / "small.yaml", methods=["prealign"])
    folder = StudyFolder(tmp_path / "small+parallel.tensor=2")
    small_study.with_data_of(finished_study, folder)
    done = megalign("study", "run", study, "parallel.tensor=2", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"table:  {folder.path / 'report' / 'summary.csv'}" in done.stdout
    assert_same_losses(folder.run("prealign", SEED), finished_study.run("prealign", SEED))
    values = {}
    for path in (folder.path, finished_study.path):
        rows = small_study.csv_rows(path / "report" / "summary.csv")
        values[path] = {
            (row["metric"], row["language"], row["level"]): float(row["value"])
            for row in rows
            if row["method"] == "prealign"
        }
    cut, alone = values[folder.path], values[finished_study.path]
    assert cut.keys() == alone.keys()
    continuous = [key for key in cut if key[0] not in ("clka", "clka_control", "retrieval_at_1")]
    assert len(continuous) > 10
    for key in continuous:
        assert cut[key] == pytest.approx(alone[key], rel=1e-4, abs=1e-4), key


def test_eval_measures_a_finished_run_again(finished_study: StudyFolder, tmp_path: Path) -> None:
    reference = finished_study.run("joint", SEED)
    shutil.copytree(reference, tmp_path / "run")
    done = megalign("eval", reference / "config.yaml", f"folder={tmp_path / 'run'}", "evaluate.max_windows=5")
    assert done.returncode == 0, done.stdout + done.stderr
    text = {
        line["language"]: line["n"]
        for line in json_lines(tmp_path / "run" / "scores.jsonl")
        if line["metric"] == "perplexity" and line["step"] == 12
    }
    assert text == {"en": 5 * 64, "en-clone": 5 * 64}
    perplexity, *_, last = done.stdout.splitlines()
    assert re.fullmatch(r"perplexity  +en [\d.]+ \[[\d.]+, [\d.]+\]  en-clone [\d.]+ \[[\d.]+, [\d.]+\]", perplexity)
    assert last == f"scores: {tmp_path / 'run' / 'scores.jsonl'}"


def test_a_checkpoint_is_written_again_and_its_damage_found(finished_study: StudyFolder, tmp_path: Path) -> None:
    run = finished_study.run("prealign", SEED)
    done = megalign("checkpoint", "reshard", run, tmp_path / "copy", "parallel.tensor=2", "--without-optimizer")
    assert done.returncode == 0, done.stderr
    copy = tmp_path / "copy" / "step_00000012"
    assert done.stdout.endswith(f"{run / 'checkpoints' / 'pretrain' / 'step_00000012'} was written to {copy}\n")
    (copy / "shards" / "__1_0.distcp").unlink()
    done = megalign("checkpoint", "verify", copy)
    assert (done.returncode, done.stdout) == (3, "shards/__1_0.distcp is missing\n")
    assert f"error: {copy} has 1 problem." in done.stderr
