"""Saving starts no other process: what Megatron's own writer would, and what that asks of a main file."""

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
    import cases, psutil, ranks
    from megalign.engine import checkpoint, groups
    layout = ranks.layout_of()
    groups.start(layout, rank=0, world_size=1, local_rank=0, init_method="file://{folder}/meeting")
    saver = checkpoint.Saver(Path({folder!r}) / "run", keep=1, background={background})
    saver.save(cases.engine_of(layout), 1, {{}})
    print("processes started:", len(psutil.Process().children(recursive=True)))
    saver.finish()
    groups.stop()

print("imported as", __name__, flush=True)
main()
"""


@pytest.mark.parametrize("background", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_unguarded_main_saves_and_no_process_is_started(tmp_path: Path, background: bool) -> None:
    """Megatron's writer spawns a manager, which imports the main file again and outlives a killed rank."""
    script = tmp_path / "save_once.py"
    helpers = str(Path(__file__).resolve().parent)
    script.write_text(textwrap.dedent(SAVE).format(helpers=helpers, folder=str(tmp_path), background=background))
    command = [sys.executable, "-m", "save_once"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "step_00000001" / "state.json").exists()
    assert (tmp_path / "run" / "latest").read_text() == "step_00000001\n"
    assert result.stdout.splitlines() == ["imported as __main__", "processes started: 0"]
