"""The example's commands, run as its README gives them."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
README = REPOSITORY / "examples" / "clika" / "README.md"


def commands(heading: str) -> list[list[str]]:
    """The command lines of the first block under a heading."""
    text = README.read_text(encoding="utf-8").split(f"## {heading}")[1]
    match = re.search(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    assert match
    return [shlex.split(line) for line in match[1].splitlines()]


def execute(line: list[str], folder: Path) -> None:
    """Run a command in `folder`, where the repository's folders can be seen; it must end well."""
    for name in ("examples", "tools"):
        if not (folder / name).exists():
            (folder / name).symlink_to(REPOSITORY / name)
    binaries = Path(sys.executable).parent
    done = subprocess.run(
        [str(binaries / line[0]), *line[1:]],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_example_shows_what_its_readme_says(tmp_path: Path) -> None:
    for line in commands("Conductivity of a tiny model of ours"):
        execute(line, tmp_path)
    shared, own, short = (
        json.loads((tmp_path / "runs" / name / "conductivity.jsonl").read_text(encoding="utf-8"))
        for name in ("conductivity", "conductivity-own", "conductivity-short")
    )
    assert shared["failed_gates"] == own["failed_gates"] == []
    assert shared["low"] > 0.6
    assert own["high"] < 0.4
    assert short["xrr"] is None
    assert len(short["failed_gates"]) == 4
    for line in commands("Answers to multiple-choice questions"):
        execute(line, tmp_path)
    assert (tmp_path / "runs" / "scores" / "scores.jsonl").read_text(encoding="utf-8").count("\n") == 3
