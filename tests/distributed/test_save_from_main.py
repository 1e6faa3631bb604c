"""Saving starts a process by spawn, which imports the main file again: what that asks of a main file."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SAVE = """
import sys
sys.path.insert(0, {helpers!r})
from pathlib import Path

def main():
    import cases, ranks
    from megalign.engine import checkpoint, groups
    layout = ranks.layout_of()
    groups.start(layout, rank=0, world_size=1, local_rank=0, init_method="file://{folder}/meeting")
    checkpoint.save(cases.engine_of(layout), Path({folder!r}) / "run", 1, {{}}, keep=1)
    groups.stop()

print("imported as", __name__, flush=True)
"""


def save_by(folder: Path, ending: str) -> subprocess.CompletedProcess[str]:
    script = folder / "save_once.py"
    helpers = str(Path(__file__).resolve().parent)
    script.write_text(textwrap.dedent(SAVE).format(helpers=helpers, folder=str(folder)) + ending)
    command = [sys.executable, "-m", "save_once"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, check=False)


def test_a_guarded_main_saves(tmp_path: Path) -> None:
    result = save_by(tmp_path, "if __name__ == '__main__':\n    main()\n")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "step_00000001" / "state.json").exists()
    assert (tmp_path / "run" / "latest").read_text() == "step_00000001\n"
    # Once as the program, once by the process that spawn starts; only the first may call main.
    assert result.stdout.splitlines() == ["imported as __main__", "imported as __mp_main__"]


@pytest.mark.slow
def test_without_the_guard_saving_fails(tmp_path: Path) -> None:
    result = save_by(tmp_path, "main()\n")
    assert result.returncode != 0
    assert not (tmp_path / "run" / "latest").exists()
