"""A study of a few seconds a run, computed once a session and shared by all tests that need a trained run."""

from __future__ import annotations

import copy
import csv
import io
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from megalign.config import StudyConfig, load_study
from megalign.study.expand import StudyFolder
from megalign.study.graph import Step

SEED = 3
CONTENT: dict[str, Any] = {
    "name": "small",
    "seeds": [SEED],
    "corpus": {
        "kind": "procedural",
        "clone": True,
        "source_tokens": 30000,
        "target_tokens": 6000,
        "validation_tokens": 3000,
        "vocab_size": 600,
        "tokenizer_characters": 60000,
    },
    "facts": {"num_relations": 3, "objects_per_relation": 4, "repetitions": 20},
    "table": {"kind": "golden", "min_count": 3},
    "model": {
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "ffn_hidden_size": 64,
        "sequence_length": 64,
        "position_embedding": "rotary",
        "init_std": 0.08,
    },
    "train": {
        "steps": 12,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "log_interval": 1,
        "evaluate_interval": 6,
        "checkpoint_interval": 6,
        "optimizer": {"lr": 3e-3},
    },
    "inject": {"steps": 4, "entries_per_step": 16, "lm_batch_size": 2},
    "codeswitch": {"ratio": 0.05},
    "evaluate": {"max_windows": 24, "batch_size": 8, "alignment_entries": 40},
    "execution": {"processes": 2},
    "methods": ["joint", "prealign"],
}


def content(**changes: Any) -> dict[str, Any]:
    """The study's YAML content; dotted keys, written with two underscores for a dot, replace values."""
    result = copy.deepcopy(CONTENT)
    for key, value in changes.items():
        at = result
        *sections, last = key.split("__")
        for section in sections:
            at = at.setdefault(section, {})
        at[last] = value
    return result


def write(path: Path, **changes: Any) -> Path:
    """Write the study's YAML file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content(**changes)), encoding="utf-8")
    return path


def study(tmp_path: Path, **changes: Any) -> StudyConfig:
    """The study, loaded as the command line loads it."""
    return load_study(write(tmp_path / "study.yaml", **changes))


@cache
def finished(base: Path) -> StudyFolder:
    """The folder of the finished study, its report included; nothing in it may be changed."""
    from megalign.study.report import build_report
    from megalign.study.runner import begin, run_steps

    folder = StudyFolder(base / "small-study" / "small")
    config = load_study(write(base / "small-study" / "small.yaml"))
    run_steps(begin(config, folder), folder, max_processes=2, console=quiet())
    build_report(folder.path)
    return folder


def with_data_of(finished_study: StudyFolder, folder: StudyFolder, *labels: str) -> StudyFolder:
    """Give a study folder the finished study's data, and the finished runs of the methods named."""
    shutil.copytree(finished_study.path / "data", folder.path / "data")
    folder.markers.mkdir(parents=True)
    runs = [f"run-{label}-seed{SEED}" for label in labels]
    for path in finished_study.markers.iterdir():
        if path.stem in runs or not path.stem.startswith("run-"):
            shutil.copy(path, folder.markers)
    for label in labels:
        shutil.copytree(finished_study.run(label, SEED), folder.run(label, SEED))
    return folder


def quiet() -> Console:
    """A console that keeps what is printed: read it with `.file.getvalue()`."""
    return Console(file=io.StringIO(), width=200)


def printed(console: Console) -> str:
    """What was printed on a console made by `quiet`."""
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def megalign(
    *arguments: str | Path, timeout_seconds: float = 400, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the installed `megalign` command; whatever happens, it must not print a traceback."""
    done = subprocess.run(
        command(*arguments),
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    return done


def command(*arguments: str | Path) -> list[str]:
    """The console script beside this interpreter, with arguments."""
    return [str(Path(sys.executable).with_name("megalign")), *map(str, arguments)]


def clean_environment(**environment: str) -> dict[str, str]:
    """This process's environment without a launcher's variables, with a wide terminal."""
    launcher = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
    kept = {key: value for key, value in os.environ.items() if key not in launcher}
    return {**kept, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment}


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The values of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def csv_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def step_named(steps: list[Step], name: str) -> Step:
    """The step of that name."""
    return next(step for step in steps if step.name == name)
