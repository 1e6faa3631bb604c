"""Messages in one go, and output whose reader has gone, in real processes."""

from __future__ import annotations

import os
import pty
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from megalign.errors import ConfigError

PROGRAM = """
import pathlib, sys, time
from megalign.console import outlive_reader
{call}
print("first", flush=True)
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.01)
for number in range(3):
    print("x" * 100_000, flush=True)
    print("to the end", file=sys.stderr)
pathlib.Path(sys.argv[2]).touch()
"""


def run(tmp_path: Path, call: str, terminal: bool) -> tuple[int, bool]:
    """(exit code, whether it came to its end) of a process whose reader goes after the first line."""
    reader, writer = pty.openpty() if terminal else os.pipe()
    arguments = [sys.executable, "-c", PROGRAM.format(call=call), str(tmp_path / "gone"), str(tmp_path / "end")]
    process = subprocess.Popen(arguments, stdout=writer, stderr=writer, start_new_session=True)
    os.close(writer)
    try:
        assert os.read(reader, 100).startswith(b"first")
        os.close(reader)
        (tmp_path / "gone").touch()
        return process.wait(60), (tmp_path / "end").exists()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
def test_a_reader_that_goes_does_not_end_the_process(tmp_path: Path, terminal: bool) -> None:
    assert run(tmp_path, "outlive_reader()", terminal) == (0, True)


@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
def test_without_it_the_process_ends(tmp_path: Path, terminal: bool) -> None:
    code, came_to_its_end = run(tmp_path, "", terminal)
    assert code != 0
    assert not came_to_its_end


MESSAGE = """
from megalign.console import outlive_reader
from megalign.errors import ConfigError, report_error
{call}
raise SystemExit(report_error(ConfigError("what", "why", "fix" * 1000)))
"""


@pytest.mark.parametrize("call", ["", "outlive_reader()"])
def test_a_message_is_one_write(call: str) -> None:
    """Of a socket that keeps its messages apart; ranks that share a terminal or log would else mix within lines."""
    reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with reader, writer:
        done = subprocess.run([sys.executable, "-c", MESSAGE.format(call=call)], stderr=writer.fileno(), timeout=60)
        writer.close()
        assert done.returncode == ConfigError.exit_code
        assert reader.recv(10_000) == f"error: what\n  why\n  {'fix' * 1000}\n".encode()
        assert reader.recv(10_000) == b""
