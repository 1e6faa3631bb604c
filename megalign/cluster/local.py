"""Start the processes of a run on this machine, pass signals on, end all when one fails."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType

from megalign.cluster.nodes import FIRST_PORT, NUM_PORTS
from megalign.errors import EnvironmentProblem

# How long the others may go on by themselves after one left on a request to stop, or failed; then after SIGTERM.
STOP_GRACE_SECONDS = 60.0
FAILURE_GRACE_SECONDS = 5.0
TERMINATE_GRACE_SECONDS = 5.0
_LAUNCHED = "MEGALIGN_LAUNCHED"
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# Of a person at a terminal: Ctrl-C, and the terminal closed.
_OF_TERMINAL = (signal.SIGINT, signal.SIGHUP)


def free_port() -> int:
    """A TCP port of the loopback interface that was free a moment ago.

    It is none that the system gives to outgoing connections: one of those may be taken before rank 0 has started.

    Raises:
        EnvironmentProblem: none was found.
    """
    choice = random.SystemRandom()
    for _ in range(1000):
        port = choice.randrange(FIRST_PORT, FIRST_PORT + NUM_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise EnvironmentProblem(
        f"There is no free port from {FIRST_PORT} on at 127.0.0.1.",
        "The processes of a run meet at one.",
        "Look at what listens there, or at what forbids it.",
    )


def process_environment(rank: int, world_size: int, port: int, threads: int) -> dict[str, str]:
    """Variables of one process: its rank, the meeting point, its threads."""
    return {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(threads),
        # Spinning OpenMP threads starve the other processes of a shared machine.
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
    }


def stop_with_launcher() -> None:
    """Ask this process to stop, by SIGTERM, once the launcher that started it has been killed and can pass nothing on."""
    if not os.environ.pop(_LAUNCHED, ""):
        return

    def watch() -> None:
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="launcher", daemon=True).start()


class LocalProcesses:
    """The processes of one command: `arguments` for `python -m`, started `world_size` times.

    Args:
        arguments: module and arguments.
        world_size: number of processes.
        threads: threads each computes with.
        log: file that receives their output, appended; None leaves it on the terminal.
    """

    def __init__(self, arguments: Sequence[str], *, world_size: int, threads: int = 1, log: Path | None = None) -> None:
        self.arguments, self.log, self._told = list(arguments), log, False
        port = free_port()
        stream = None
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            stream = log.open("ab")
        # Nothing is written into it: processes see its end when this one has ended, however that came.
        lifeline, held = os.pipe()
        self._lifeline: int | None = held
        try:
            self.processes = [
                subprocess.Popen(
                    [sys.executable, "-m", *self.arguments],
                    env={**process_environment(rank, world_size, port, threads), _LAUNCHED: "1"},
                    stdout=stream,
                    stderr=subprocess.STDOUT if stream else None,
                    stdin=lifeline,
                    start_new_session=True,  # a Ctrl-C reaches them through us, once
                )
                for rank in range(world_size)
            ]
        finally:
            os.close(lifeline)
            if stream is not None:
                stream.close()

    def poll(self) -> int | None:
        """None while running; then 0, or the exit code of the first that failed. A failure ends the others."""
        codes = [process.poll() for process in self.processes]
        failed = [code for code in codes if code]
        if failed and not self._told:
            self._tell_killed(codes)
        if failed and None in codes:
            # On a request to stop all leave by themselves, so a first exit code of 75 only means: wait.
            self.stop(STOP_GRACE_SECONDS if failed[0] == 75 else FAILURE_GRACE_SECONDS)
            codes = [process.poll() for process in self.processes]
        if None in codes:
            return None
        self._let_go()
        return _meaning(failed[0]) if failed else 0

    def _tell_killed(self, codes: list[int | None]) -> None:
        """A killed process has said nothing itself."""
        self._told = True
        for rank, code in enumerate(codes):
            if code is not None and code < 0:
                name = signal.Signals(-code).name
                why = " (the system does that to the largest where memory is short)" if name == "SIGKILL" else ""
                text = f"error: rank {rank} was ended by {name}{why}\n"
                if self.log is None:
                    sys.stderr.write(text)
                else:
                    with self.log.open("a", encoding="utf-8") as stream:
                        stream.write(text)

    def send(self, number: int) -> None:
        """Send a signal to all that are running."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def stop(self, grace_seconds: float) -> None:
        """Wait for all to end; after `grace_seconds` end them."""
        self._wait(grace_seconds)
        self.send(signal.SIGTERM)
        self._wait(TERMINATE_GRACE_SECONDS)
        self.send(signal.SIGKILL)
        for process in self.processes:
            process.wait()
        self._let_go()

    def _let_go(self) -> None:
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))


def _meaning(code: int) -> int:
    return 128 - code if code < 0 else code


class ForwardSignals:
    """While active, SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGUSR2 of this process go to the given processes.

    SIGINT and SIGHUP as SIGTERM: they save and leave. Under nohup, which ignores SIGHUP, it stays ignored.

    Attributes:
        received: the first signal that came, or None.
    """

    def __init__(self) -> None:
        self.targets: list[LocalProcesses] = []
        self.received: int | None = None

    def __enter__(self) -> ForwardSignals:
        numbers = (n for n in _FORWARDED if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN)
        self._before = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number
        for target in self.targets:
            target.send(signal.SIGTERM if number in _OF_TERMINAL else number)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def run_locally(arguments: Sequence[str], *, world_size: int, threads: int = 1, log: Path | None = None) -> int:
    """Start, wait, and return the exit code (see LocalProcesses.poll)."""
    with ForwardSignals() as signals:
        processes = LocalProcesses(arguments, world_size=world_size, threads=threads, log=log)
        signals.targets.append(processes)
        if signals.received is not None:
            processes.send(signal.SIGTERM)
        while (code := processes.poll()) is None:
            time.sleep(0.05)
        return code
