"""A process of a job step."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from small_study import clean_environment

MODULE = """
import os, signal, sys

class AskedInShutdown:
    def __del__(self, kill=os.kill, process=os.getpid(), number=signal.SIG{name}):
        kill(process, number)

signal.signal(signal.SIG{name}, lambda number, frame: None)
sys.kept = AskedInShutdown()
sys.exit({code})
"""


@pytest.mark.parametrize("name", ["TERM", "USR1"])
@pytest.mark.parametrize("code", [75, 5])
def test_a_request_during_shutdown_leaves_the_exit_code(tmp_path: Path, name: str, code: int) -> None:
    """Slurm sends SIGTERM and the job's script SIGUSR1; the second may find a process that is about to leave."""
    (tmp_path / "leaving.py").write_text(MODULE.format(name=name, code=code), encoding="utf-8")
    environment = clean_environment(PYTHONPATH=str(tmp_path))
    plain, task = (
        subprocess.run([sys.executable, *how, "leaving"], env=environment, timeout=120).returncode
        for how in (["-m"], ["-m", "megalign.cluster.task"])
    )
    assert plain < 0, "the signal came after the handlers were gone"
    assert task == code
