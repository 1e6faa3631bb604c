"""Real processes: exit codes, the end of the others, signals, the log."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from megalign.cluster import local
from megalign.cluster.local import ForwardSignals, LocalProcesses, free_port, process_environment, run_locally
from megalign.cluster.nodes import FIRST_PORT, NUM_PORTS
from megalign.errors import EnvironmentProblem

# What the processes run. `mark` tells the test that a process has come so far.
MODULE = """
import os, pathlib, signal, sys, time

rank = int(os.environ["RANK"])
folder = pathlib.Path(sys.argv[2])

def mark(name, text=""):
    temporary = folder / f".{name}.{rank}"
    temporary.write_text(text)
    temporary.rename(folder / f"{name}.{rank}")

def leave(number, frame):
    mark("signal", str(number))
    sys.exit(75)

def environment():
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
    mark("environment", " ".join(os.environ[name] for name in names))

def talk():
    os.write(1, f"out {rank}\\n".encode())  # in one go, or lines of two processes could mix
    os.write(2, f"error {rank}\\n".encode())

def one_fails():
    if rank == 1:
        sys.exit(3)
    time.sleep(60)

def one_is_killed():
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)

def one_ignores_sigterm():
    if rank == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        mark("ready")
        time.sleep(60)
    while not (folder / "ready.0").exists():
        time.sleep(0.01)
    sys.exit(3)

def wait():
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, leave)
    mark("ready")
    time.sleep(60)

def wait_for_the_launchers_end():
    from megalign.cluster.local import stop_with_launcher

    stop_with_launcher()
    wait()

def one_stops_first():
    if rank == 1:
        sys.exit(75)
    time.sleep(1.0)
    mark("saved")
    sys.exit(75)

globals()[sys.argv[1]]()
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_process.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def arguments(what: str, folder: Path) -> list[str]:
    return ["a_process", what, str(folder)]


def wait_for(*paths: Path, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline, f"{[p.name for p in paths if not p.exists()]} did not come"
        time.sleep(0.01)


def finish(processes: LocalProcesses, seconds: float = 120.0) -> int:
    deadline = time.monotonic() + seconds
    while (code := processes.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return code


def test_every_process_knows_its_place(tmp_path: Path) -> None:
    assert run_locally(arguments("environment", tmp_path), world_size=3, threads=2) == 0
    lines = [(tmp_path / f"environment.{rank}").read_text().split() for rank in range(3)]
    port = lines[0][4]
    assert lines == [[str(rank), "3", str(rank), "127.0.0.1", port, "2"] for rank in range(3)]


def test_the_environment_of_a_process_extends_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMETHING", "kept")
    monkeypatch.setenv("RANK", "9")
    environment = process_environment(1, 2, 1234, 3)
    assert environment["SOMETHING"] == "kept"
    assert (environment["RANK"], environment["OMP_WAIT_POLICY"]) == ("1", "PASSIVE")
    assert os.environ["RANK"] == "9"


def test_a_free_port_can_be_listened_on() -> None:
    with socket.socket() as server:
        port = free_port()
        server.bind(("127.0.0.1", port))
        assert FIRST_PORT <= port < FIRST_PORT + NUM_PORTS


def test_no_free_port_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(local, "FIRST_PORT", taken.getsockname()[1])
        monkeypatch.setattr(local, "NUM_PORTS", 1)
        with pytest.raises(EnvironmentProblem, match="no free port"):
            free_port()


def test_the_log_has_the_output_of_all_and_is_appended(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "log.txt"
    for _ in range(2):
        assert run_locally(arguments("talk", tmp_path), world_size=2, log=log) == 0
    assert sorted(log.read_text().split("\n")[:-1]) == sorted(
        2 * [f"{stream} {rank}" for rank in range(2) for stream in ("out", "error")]
    )


def test_a_failure_ends_the_others_and_gives_its_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "FAILURE_GRACE_SECONDS", 0.5)
    processes = LocalProcesses(arguments("one_fails", tmp_path), world_size=3)
    assert finish(processes) == 3
    assert [process.returncode for process in processes.processes] == [-signal.SIGTERM, 3, -signal.SIGTERM]


def test_a_process_ended_by_a_signal_gives_128_and_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "FAILURE_GRACE_SECONDS", 0.1)
    log = tmp_path / "log.txt"
    assert run_locally(arguments("one_is_killed", tmp_path), world_size=2, log=log) == 128 + signal.SIGKILL
    # Not of the other one, which was ended for it.
    assert log.read_text() == (
        "error: rank 1 was ended by SIGKILL (the system does that to the largest where memory is short)\n"
    )


def test_a_process_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "FAILURE_GRACE_SECONDS", 0.1)
    monkeypatch.setattr(local, "TERMINATE_GRACE_SECONDS", 0.3)
    processes = LocalProcesses(arguments("one_ignores_sigterm", tmp_path), world_size=2)
    assert finish(processes) == 3
    assert processes.processes[0].returncode == -signal.SIGKILL


def test_after_a_first_exit_of_75_the_others_have_time_to_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Were 75 taken for a failure, the first process would be ended long before its second is over.
    monkeypatch.setattr(local, "FAILURE_GRACE_SECONDS", 0.0)
    processes = LocalProcesses(arguments("one_stops_first", tmp_path), world_size=2)
    assert finish(processes) == 75
    assert [process.returncode for process in processes.processes] == [75, 75]
    assert (tmp_path / "saved.0").exists()


@pytest.mark.parametrize(
    ("sent", "arrives"),
    [
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGUSR1, signal.SIGUSR1),
        (signal.SIGUSR2, signal.SIGUSR2),
        (signal.SIGINT, signal.SIGTERM),
    ],
)
def test_signals_reach_every_process(tmp_path: Path, sent: signal.Signals, arrives: signal.Signals) -> None:
    before = {number: signal.getsignal(number) for number in local._FORWARDED}

    def send() -> None:
        wait_for(tmp_path / "ready.0", tmp_path / "ready.1")
        os.kill(os.getpid(), sent)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        assert run_locally(arguments("wait", tmp_path), world_size=2) == 75
    finally:
        sender.join()
    assert [(tmp_path / f"signal.{rank}").read_text() for rank in range(2)] == [str(int(arrives))] * 2
    assert {number: signal.getsignal(number) for number in local._FORWARDED} == before


def test_a_signal_before_there_are_processes_is_remembered() -> None:
    with ForwardSignals() as signals:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR2)
        assert signals.received == signal.SIGUSR1


def test_under_nohup_a_closed_terminal_changes_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ForwardSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received is None
        with_handler = signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert with_handler == signal.SIG_IGN
        with ForwardSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received == signal.SIGHUP
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_launcher_ended_from_outside_passes_the_stop_on(tmp_path: Path, number: signal.Signals) -> None:
    """The whole launcher in a process of its own, as a job script would start it; and as its terminal is closed."""
    program = (
        "import signal, sys; from megalign.cluster.local import run_locally; "
        "signal.signal(signal.SIGHUP, signal.SIG_DFL); "  # these tests may run under nohup
        f"sys.exit(run_locally({arguments('wait', tmp_path)!r}, world_size=2))"
    )
    launcher = subprocess.Popen([sys.executable, "-c", program])
    try:
        wait_for(tmp_path / "ready.0", tmp_path / "ready.1")
        launcher.send_signal(number)
        assert launcher.wait(120) == 75
    finally:
        launcher.kill()
        launcher.wait()


def test_a_killed_launcher_leaves_nobody_behind(tmp_path: Path) -> None:
    """Whom it can no longer tell to stop learns it from the pipe."""
    program = (
        "from megalign.cluster.local import run_locally; "
        f"run_locally({arguments('wait_for_the_launchers_end', tmp_path)!r}, world_size=2)"
    )
    launcher = subprocess.Popen([sys.executable, "-c", program])
    try:
        wait_for(tmp_path / "ready.0", tmp_path / "ready.1")
    finally:
        launcher.kill()
        launcher.wait()
    wait_for(tmp_path / "signal.0", tmp_path / "signal.1")
    assert [(tmp_path / f"signal.{rank}").read_text() for rank in range(2)] == [str(int(signal.SIGTERM))] * 2
