"""The `megalign` command on bad input: an exit code, what is wrong, what to do, and never a traceback."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
import small_study
from small_study import SEED, megalign

from megalign.corpus.store import TokenStore
from megalign.errors import of_storage, report_error
from megalign.prealign.table import AlignmentTable, Entry, Translation
from megalign.study.data import build_data
from megalign.study.expand import StudyFolder


@pytest.fixture(scope="module")
def config(finished_study: StudyFolder) -> Path:
    """The configuration of the finished run of prealign; tests that write give the run another folder."""
    return finished_study.run("prealign", SEED) / "config.yaml"


@pytest.fixture(scope="module")
def store(finished_study: StudyFolder) -> Path:
    return finished_study.data(SEED) / "store"


@pytest.fixture(scope="module")
def other_store(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Path:
    """A store built from the same text with another tokenizer of the same size."""
    folder = tmp_path_factory.mktemp("other")
    build_data(small_study.study(folder, corpus__tokenizer_characters=25000), SEED, folder)
    ours, theirs = TokenStore.open(store).vocabulary, TokenStore.open(folder / "store").vocabulary
    assert ours.size == theirs.size
    assert ours.tokenizer.fingerprint != theirs.tokenizer.fingerprint
    return folder / "store"


def interrupted(config: Path, folder: Path) -> Path:
    """A copy of the finished run as it was after the checkpoint of step 6."""
    shutil.copytree(config.parent, folder)
    pretrain = folder / "checkpoints" / "pretrain"
    shutil.rmtree(pretrain / "step_00000012")
    (pretrain / "latest").write_text("step_00000006\n", encoding="utf-8")
    return folder


def fails(code: int, *arguments: str | Path, **environment: str) -> str:
    """What the command prints when it ends with the code."""
    done = megalign(*arguments, **environment)
    assert done.returncode == code, done.stdout + done.stderr
    assert "error: " in done.stderr
    return " ".join(done.stderr.split())


def test_an_unknown_key_comes_with_the_nearest(tmp_path: Path) -> None:
    study = small_study.write(tmp_path / "small.yaml")
    text = fails(2, "study", "run", study, "train.optimizer.wieght_decay=0.1", "--out", tmp_path / "runs")
    assert "unknown key train.optimizer.wieght_decay: did you mean train.optimizer.weight_decay?" in text
    assert "unknown key trian: did you mean train?" in fails(2, "study", "run", study, "trian.steps=3")
    assert not (tmp_path / "runs").exists()


def test_a_run_takes_no_key_of_a_study(config: Path) -> None:
    assert "unknown key corpus" in fails(2, "train", config, "corpus.vocab_size=300")


@pytest.mark.parametrize("command", [("study", "run"), ("train",), ("eval",)])
def test_a_missing_file_is_named(command: tuple[str, ...], tmp_path: Path) -> None:
    text = fails(2, *command, tmp_path / "nowhere.yaml")
    assert f"error: There is no configuration file {tmp_path / 'nowhere.yaml'}." in text


def test_a_wrong_override_is_named(config: Path) -> None:
    assert "The override 'train.steps' is not of the form section.key=value." in fails(
        2, "train", config, "train.steps"
    )
    assert "train.steps" in fails(2, "train", config, "train.steps=many")


def test_a_degree_that_does_not_divide_is_named_with_its_value(config: Path) -> None:
    text = fails(2, "train", config, "parallel.pipeline=3")
    assert "parallel.pipeline is 3, which does not divide model.num_layers 2" in text
    assert "Set parallel.pipeline to" in text
    text = fails(2, "eval", config, "parallel.tensor=3")
    assert "parallel.tensor is 3, which does not divide model.num_attention_heads 4" in text


def test_a_missing_store_is_named(config: Path, tmp_path: Path) -> None:
    text = fails(3, "train", config, f"folder={tmp_path / 'run'}", f"data.store={tmp_path / 'nowhere'}")
    assert f"There is no finished token store at {tmp_path / 'nowhere'}." in text
    assert not (tmp_path / "run").exists()
    text = fails(3, "store", "check", tmp_path / "nowhere")
    assert "has 1 problems" in text


def test_a_truncated_shard_is_found(config: Path, store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "store")
    shard = tmp_path / "store" / "en" / "train" / "tokens" / "c" / "0"
    with shard.open("r+b") as stream:
        stream.truncate(shard.stat().st_size - 1000)
    for quick in ([], ["--quick"]):
        done = megalign("store", "check", tmp_path / "store", *quick)
        assert done.returncode == 3
        assert "en/train: truncated: " in done.stdout
        assert "error: " in done.stderr
    text = fails(3, "train", config, f"folder={tmp_path / 'run'}", f"data.store={tmp_path / 'store'}")
    assert f"The shard {shard} is truncated: " in text


def test_a_flipped_byte_is_found_by_the_deep_check_alone(store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "store")
    shard = tmp_path / "store" / "en-clone" / "train" / "tokens" / "c" / "0"
    with shard.open("r+b") as stream:
        stream.seek(500)
        (byte,) = stream.read(1)
        stream.seek(500)
        stream.write(bytes([byte ^ 1]))
    assert megalign("store", "check", tmp_path / "store", "--quick").returncode == 0
    done = megalign("store", "check", tmp_path / "store")
    assert done.returncode == 3
    assert "en-clone/train: checksum: " in done.stdout


def test_a_run_does_not_resume_on_a_store_of_another_tokenizer(config: Path, other_store: Path, tmp_path: Path) -> None:
    run = interrupted(config, tmp_path / "run")
    before = (run / "metrics.jsonl").read_bytes()
    text = fails(3, "train", run / "config.yaml", f"folder={run}", f"data.store={other_store}")
    assert "was written with store " in text
    assert "Restore the data and settings it was started with" in text
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_run_is_not_measured_on_a_store_of_another_tokenizer(config: Path, other_store: Path, tmp_path: Path) -> None:
    shutil.copytree(config.parent, tmp_path / "run")
    text = fails(3, "eval", config, f"folder={tmp_path / 'run'}", f"data.store={other_store}")
    assert "was trained on the token store " in text
    assert "Its ids may mean other words" in text


def test_a_model_of_another_size_is_refused(config: Path, tmp_path: Path) -> None:
    shutil.copytree(config.parent, tmp_path / "run")
    text = fails(3, "eval", config, f"folder={tmp_path / 'run'}", "model.ffn_hidden_size=128")
    assert "does not fit this model or is damaged" in text


def test_a_table_of_another_language_is_refused(config: Path, tmp_path: Path) -> None:
    table = AlignmentTable([Entry("haus", 30, (Translation("en-clone", "haus", "golden"),))], "de")
    table.save(tmp_path / "table.parquet")
    text = fails(3, "train", config, f"folder={tmp_path / 'run'}", f"data.table={tmp_path / 'table.parquet'}")
    assert "The alignment table starts from 'de', the run from 'en'." in text


def test_fp8_is_refused_where_it_would_be_ignored(config: Path, tmp_path: Path) -> None:
    text = fails(4, "train", config, f"folder={tmp_path / 'run'}", "precision.fp8=delayed")
    assert "precision.fp8" in text
    assert "TransformerEngine" in text


def test_a_wrong_number_of_processes_is_refused(config: Path, tmp_path: Path) -> None:
    launcher = {"RANK": "0", "WORLD_SIZE": "3"}
    text = fails(4, "train", config, f"folder={tmp_path / 'run'}", **launcher)
    assert "MASTER_ADDR and MASTER_PORT are not set" in text
    text = fails(
        2, "train", config, f"folder={tmp_path / 'run'}", **launcher, MASTER_ADDR="127.0.0.1", MASTER_PORT="29511"
    )
    assert "3 processes were started for a layout of 1 (tensor 1 x context 1 x data 1 x pipeline 1)." in text


def test_other_settings_in_a_run_folder_are_refused(config: Path, tmp_path: Path) -> None:
    run = interrupted(config, tmp_path / "run")
    text = fails(2, "train", config, f"folder={run}", "train.optimizer.lr=0.5")
    assert "was started with other settings: train.optimizer.lr was 0.003, is 0.5." in text


def test_a_folder_without_a_study_has_no_report(tmp_path: Path) -> None:
    assert str(tmp_path) in fails(3, "study", "report", tmp_path)


def test_a_folder_that_cannot_be_written_is_named(config: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "run"
    text = fails(4, "train", config, f"folder={folder}")
    assert f"error: {folder}" in text
    assert "Not a directory. Check this path and the storage it is on." in text


@pytest.mark.parametrize(
    ("number", "path", "expected"),
    [
        (errno.ENOSPC, None, "No space left on device. Free space there, or choose another folder; the same command"),
        (
            errno.EACCES,
            "/x",
            "/x: Permission denied. Choose a folder that you may write to, or change its permissions.",
        ),
        (errno.ENOENT, "/x", "/x: No such file or directory. Check this path and the storage it is on."),
    ],
)
def test_what_the_file_system_says_has_a_way_out(number: int, path: str | None, expected: str) -> None:
    problem = of_storage(OSError(number, os.strerror(number), path))
    assert problem is not None
    assert str(problem).startswith(expected)


@pytest.mark.parametrize("error", [OSError(errno.ECONNREFUSED, "x"), FileNotFoundError("x"), OSError("x")])
def test_errors_that_are_not_of_files_keep_their_traceback(error: OSError) -> None:
    with pytest.raises(OSError, match="x"):
        report_error(error)
