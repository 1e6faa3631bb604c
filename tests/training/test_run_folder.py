"""A run folder belongs to one run: its settings may not change, its layout may."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from training_data import run_config

from megalign.config import load_run
from megalign.config.compare import differences
from megalign.errors import ConfigError, DataError
from megalign.training.run import RunFolder, RunInputs


def test_the_resolved_configuration_is_in_the_folder(tmp_path: Path, files: Path) -> None:
    config = run_config(files, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    folder.begin(config)
    assert load_run(folder.config) == config
    # Defaults stand in it too: what was used can be read without the program.
    assert yaml.safe_load(folder.config.read_text())["train"]["optimizer"]["beta2"] == 0.95
    folder.begin(config)
    assert load_run(folder.config) == config


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"seed": 6}, "seed was 5, is 6"),
        ({"train__steps": 13}, "train.steps was 12, is 13"),
        ({"train__optimizer__lr": 1e-3}, "train.optimizer.lr was 0.01, is 0.001"),
        ({"train__global_batch_size": 8}, "train.global_batch_size was 4, is 8"),
        ({"inject__steps": 7}, "inject.steps was 6, is 7"),
        ({"codeswitch__ratio": 0.2}, "codeswitch.ratio was 0.3, is 0.2"),
        ({"model__num_layers": 4}, "model.num_layers was 2, is 4"),
        ({"precision__dtype": "bfloat16"}, "precision.dtype was 'float32', is 'bfloat16'"),
        ({"golden_embeddings": True}, "golden_embeddings was False, is True"),
        (
            {"seed": 6, "train__max_epochs": 2.0},
            "seed was 5, is 6; train.max_epochs was None, is 2.0",
        ),
    ],
)
def test_other_settings_are_refused_with_the_keys_that_changed(
    tmp_path: Path, files: Path, changes: dict[str, Any], shown: str
) -> None:
    folder = RunFolder(tmp_path)
    folder.begin(run_config(files, tmp_path))
    before = folder.config.read_bytes()
    with pytest.raises(ConfigError) as caught:
        folder.begin(run_config(files, tmp_path, **changes))
    assert str(caught.value) == (
        f"The run folder {tmp_path} was started with other settings: {shown}. Continuing would mix two runs. "
        "Restore the settings, choose another folder, or remove this one."
    )
    assert folder.config.read_bytes() == before


def test_other_sources_are_refused(tmp_path: Path, files: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.begin(run_config(files, tmp_path))
    with pytest.raises(ConfigError, match=r"data\.sources was \[.*'weight': 10\.0.*\], is \[.*'weight': 2\.0"):
        folder.begin(run_config(files, tmp_path, data__sources=[{"language": "en", "weight": 2.0}]))


@pytest.mark.parametrize(
    "changes",
    [
        {"parallel__tensor": 2, "parallel__data": 2, "parallel__distributed_optimizer": True},
        {"train__micro_batch_size": 1},
        {"train__log_interval": 5, "train__checkpoint_interval": 3, "train__keep_checkpoints": 9},
        {"data__store": "moved/store", "data__table": "moved/table", "data__facts": "moved/facts"},
        {"name": "other", "evaluate__max_windows": 3},
    ],
)
def test_where_and_how_a_run_is_computed_may_change(tmp_path: Path, files: Path, changes: dict[str, Any]) -> None:
    folder = RunFolder(tmp_path)
    folder.begin(run_config(files, tmp_path))
    changed = run_config(files, tmp_path, **changes)
    folder.begin(changed)
    assert load_run(folder.config) == changed


def test_differences_are_dotted_and_complete() -> None:
    old = {"a": {"b": 1, "c": 2}, "same": [1], "gone": 3, "section": {"x": 1}}
    new = {"a": {"b": 1, "c": 5}, "same": [1], "new": 4, "section": None}
    assert differences(old, new) == [
        ("a.c", 2, 5),
        ("gone", 3, None),
        ("section", {"x": 1}, None),
        ("new", None, 4),
    ]
    assert differences(old, old) == []


def test_epochs_end_a_run_before_its_steps(tmp_path: Path, files: Path) -> None:
    # The clone has 12 windows in blocks of 11: one epoch of it is 12 x 11 samples, 33 steps of 4.
    assert RunInputs.open(run_config(files, tmp_path)).num_steps == 12
    assert RunInputs.open(run_config(files, tmp_path, train__steps=500, train__max_epochs=1.0)).num_steps == 33
    assert RunInputs.open(run_config(files, tmp_path, train__steps=20, train__max_epochs=1.0)).num_steps == 20
    with pytest.raises(DataError) as caught:
        _ = RunInputs.open(run_config(files, tmp_path, train__max_epochs=0.02)).num_steps
    assert str(caught.value) == (
        "0.02 epochs are 2 windows, fewer than train.global_batch_size 4. There is not a single step to take. "
        "Raise train.max_epochs, or give the source more text."
    )


def test_a_table_that_is_needed_but_not_named(tmp_path: Path, files: Path) -> None:
    config = run_config(files, tmp_path, data__table=None, inject__steps=0, codeswitch__ratio=0.0)
    with pytest.raises(ConfigError) as caught:
        _ = RunInputs.open(config).encoded
    assert str(caught.value) == "data.table is not set. This method needs an alignment table. Set data.table."


def test_a_store_that_is_not_there_is_named(tmp_path: Path, files: Path) -> None:
    with pytest.raises(DataError, match=f"There is no finished token store at {tmp_path / 'none'}"):
        RunInputs.open(run_config(files, tmp_path, data__store=str(tmp_path / "none")))


def test_the_table_s_fingerprint_follows_its_content(tmp_path: Path, files: Path) -> None:
    inputs = RunInputs.open(run_config(files, tmp_path))
    inputs.encoded.table.save(tmp_path / "same.parquet")
    inputs.encoded.table.top_fraction(0.9).save(tmp_path / "less.parquet")
    prints = [
        RunInputs.open(run_config(files, tmp_path, data__table=str(tmp_path / name))).table_fingerprint
        for name in ("same.parquet", "less.parquet")
    ]
    assert prints[0] == inputs.table_fingerprint != prints[1]


def test_a_run_of_a_version_with_fewer_settings_goes_on_at_their_defaults(tmp_path: Path, files: Path) -> None:
    folder, config = RunFolder(tmp_path), run_config(files, tmp_path)
    folder.begin(config)
    content = yaml.safe_load(folder.config.read_text())
    del content["inject"]["measure_entries"], content["codeswitch"]["sources"]
    folder.config.write_text(yaml.safe_dump(content))
    folder.check(config)
    with pytest.raises(ConfigError, match=r"inject\.measure_entries was 256, is 7"):
        folder.check(run_config(files, tmp_path, inject__measure_entries=7))
    # Settings that no version reads are compared as they stand.
    folder.config.write_text(yaml.safe_dump({**content, "unheard_of": 1}))
    with pytest.raises(ConfigError, match=r"unheard_of was 1, is None"):
        folder.check(config)
