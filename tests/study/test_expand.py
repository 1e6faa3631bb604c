"""A study as runs: folders, run configurations by method, steps, what the report is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_study
from small_study import SEED

from megalign.config import METHODS, RunConfig, StudyConfig
from megalign.errors import ConfigError, DataError
from megalign.prealign.table import AlignmentTable
from megalign.study.data import build_data
from megalign.study.expand import StudyFolder, describe, folder_for, run_config
from megalign.study.graph import steps_of


def runs_of(study: StudyConfig, folder: Path) -> dict[str, RunConfig]:
    return {method.label: run_config(study, StudyFolder(folder), method, 5) for method in study.methods}


def test_every_method_is_the_study_with_its_own_traits(tmp_path: Path) -> None:
    study = small_study.study(tmp_path, methods=list(METHODS))
    runs = runs_of(study, tmp_path)
    ablations = {"table_25", "table_50", "table_75", "vanilla_switching", "first_subword_switching"}
    injected = {name for name, run in runs.items() if run.inject.steps == 4}
    assert injected == {"prealign", "init_only", "on_the_fly", "post"} | ablations
    switched = {name for name, run in runs.items() if run.codeswitch.ratio == 0.05}
    assert switched == {"prealign", "cs_only", "golden"} | ablations
    assert all(run.inject.steps in (0, 4) and run.codeswitch.ratio in (0.0, 0.05) for run in runs.values())
    assert {name for name, run in runs.items() if run.golden_embeddings} == {"golden"}
    mixture = [("en", 30000.0, None), ("en-clone", 6000.0, None)]
    sources = {name: [(s.language, s.weight, s.as_clone) for s in run.data.sources] for name, run in runs.items()}
    assert sources.pop("only_target") == mixture[1:]
    assert [(language, clone) for language, _, clone in sources.pop("full_target")] == [("en", "en-clone")]
    assert all(found == mixture for found in sources.values())
    for name, run in runs.items():
        assert (run.method, run.seed, run.model, run.train) == (name, 5, study.model, study.train)
        assert run.folder == str(tmp_path / "runs" / name / "seed5")
        assert run.data.store == str(tmp_path / "data" / "seed5" / "store")
        assert run.data.facts == str(tmp_path / "data" / "seed5" / "facts.json")


def test_set_changes_one_method_alone(tmp_path: Path) -> None:
    changed = {"method": "joint", "name": "joint_fast", "set": {"train.optimizer.lr": 0.5, "model.init_std": 0.1}}
    study = small_study.study(tmp_path, methods=["joint", changed])
    runs = runs_of(study, tmp_path)
    assert (runs["joint"].train.optimizer.lr, runs["joint_fast"].train.optimizer.lr) == (3e-3, 0.5)
    assert (runs["joint"].model.init_std, runs["joint_fast"].model.init_std) == (0.08, 0.1)
    assert runs["joint_fast"].method == "joint"


def test_an_unknown_key_in_set_names_the_method_and_the_nearest_key(tmp_path: Path) -> None:
    changed = {"method": "prealign", "name": "mine", "set": {"train.optimiser.lr": 0.5}}
    study = small_study.study(tmp_path, methods=["joint", changed])
    message = r"method mine: unknown key train\.optimiser: did you mean train\.optimizer\?"
    with pytest.raises(ConfigError, match=message):
        steps_of(study, StudyFolder(tmp_path))


def test_a_broken_rule_in_set_names_the_method(tmp_path: Path) -> None:
    study = small_study.study(tmp_path, methods=[{"method": "joint", "set": {"train.micro_batch_size": 3}}])
    with pytest.raises(ConfigError, match=r"method joint: .*global_batch_size 4 is not a multiple of"):
        steps_of(study, StudyFolder(tmp_path))


def test_overrides_name_the_folder(tmp_path: Path) -> None:
    study = small_study.study(tmp_path)

    def name(*overrides: str) -> str:
        return folder_for(study, overrides, Path("out")).path.name

    assert name() == "small"
    assert name("execution.processes=4") == "small"
    assert name("train.steps=50", "parallel.tensor=2") == "small+parallel.tensor=2+train.steps=50"
    assert name("parallel.tensor=2", "train.steps=50", "execution.processes=1") == name(
        "train.steps=50", "parallel.tensor=2"
    )
    assert name("corpus.path=/a b/../c") == "small+corpus.path=-a-b-..-c"
    assert folder_for(study, ["corpus.path=../.."], Path("out")).path.parent == Path("out")
    long = [f"corpus.path=/{'x' * 200}/{end}" for end in "ab"]
    assert name(long[0]) != name(long[1])
    assert max(len(name(text)) for text in long) <= len("small+") + 80


def test_steps_stand_after_what_they_need(tmp_path: Path) -> None:
    study = small_study.study(tmp_path, seeds=[1, 2], parallel={"data": 2})
    steps = steps_of(study, StudyFolder(tmp_path))
    stores = ["store-en-seed1", "store-en-clone-seed1"]
    assert [(step.name, step.needs, step.processes, step.run) for step in steps[:6]] == [
        ("tokenizer-seed1", [], 1, None),
        ("store-en-seed1", ["tokenizer-seed1"], 1, None),
        ("store-en-clone-seed1", ["tokenizer-seed1"], 1, None),
        ("data-seed1", stores, 1, None),
        ("run-joint-seed1", ["data-seed1"], 2, ("joint", 1)),
        ("run-prealign-seed1", ["data-seed1"], 2, ("prealign", 1)),
    ]
    assert [step.name.replace("seed2", "seed1") for step in steps[6:]] == [step.name for step in steps[:6]]
    assert len({step.kind for step in steps}) == 6


def test_a_study_of_a_store_builds_the_table_alone(tmp_path: Path) -> None:
    """What tools/ made is read where it is."""
    made = tmp_path / "made"
    build_data(small_study.study(tmp_path), SEED, made)
    wanted = {**small_study.CONTENT["corpus"], "kind": "store", "path": str(made / "store")}
    for key in ("vocab_size", "validation_tokens", "tokenizer_characters"):
        del wanted[key]
    study = small_study.study(tmp_path, corpus=wanted, facts=None, seeds=[1])
    folder = StudyFolder(tmp_path / "study")
    assert [step.name for step in steps_of(study, folder)] == ["data-seed1", "run-joint-seed1", "run-prealign-seed1"]
    build_data(study, 1, folder.data(1))
    assert [path.name for path in folder.data(1).iterdir()] == ["table.parquet"]
    assert (folder.data(1) / "table.parquet").read_bytes() == (made / "table.parquet").read_bytes()
    run = run_config(study, folder, study.methods[0], 1)
    assert (run.data.store, run.data.facts) == (str(made / "store"), None)

    table = {"kind": "file", "path": str(made / "table.parquet"), "fraction": 0.5}
    half = small_study.study(tmp_path, corpus=wanted, facts=None, seeds=[1], table=table)
    build_data(half, 1, tmp_path / "half")
    kept, whole = (AlignmentTable.load(path / "table.parquet") for path in (tmp_path / "half", made))
    assert kept.entries == whole.top_fraction(0.5).entries

    greedy = small_study.study(tmp_path, corpus={**wanted, "target_tokens": 7000}, facts=None)
    with pytest.raises(
        DataError, match=r"has 6,000 training tokens of en-clone, fewer than corpus\.target_tokens, 7,000"
    ):
        build_data(greedy, 1, tmp_path / "greedy")
    other = small_study.study(tmp_path, corpus={**wanted, "vocab_size": 700}, facts=None)
    with pytest.raises(DataError, match=r"has 600 ids, corpus\.vocab_size is 700"):
        build_data(other, 1, tmp_path / "other")
    build_data(small_study.study(tmp_path, corpus={**wanted, "vocab_size": 600}, facts=None), 1, tmp_path / "same")


def test_a_layout_that_does_not_divide_ends_before_anything_starts(tmp_path: Path) -> None:
    study = small_study.study(tmp_path, parallel={"pipeline": 3})
    with pytest.raises(ConfigError, match=r"parallel\.pipeline is 3, which does not divide model\.num_layers 2"):
        steps_of(study, StudyFolder(tmp_path))


def test_the_report_is_told_what_differs(tmp_path: Path) -> None:
    changed = {"method": "joint", "name": "fast", "title": "Fast", "set": {"train.optimizer.lr": 0.5}}
    told = describe(small_study.study(tmp_path, methods=[changed, "prealign"]))
    assert [(method["name"], method["title"], method["traits"]) for method in told["methods"]] == [
        ("fast", "Fast", []),
        ("prealign", "PreAlign", ["injection", "codeswitch"]),
    ]
    assert told["methods"][0]["description"].endswith("Here with train.optimizer.lr = 0.5.")
    assert told["languages"] == ["en", "en-clone"]
    assert told["clone_of"] == {"en-clone": "en"}
    assert told["facts"] is True
    assert told["settings"]["train.optimizer.lr"] == 3e-3
    assert not [key for key in told["settings"] if key.split(".")[0] in ("execution", "seeds", "methods", "name")]
