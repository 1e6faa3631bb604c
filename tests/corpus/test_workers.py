"""Worker processes: results once each, deaths explained, an end with whoever started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megalign.corpus.preprocess import open_workers
from megalign.corpus.preprocess.parallel import Workers
from megalign.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[2]


def test_a_dead_worker_is_explained(tmp_path: Path) -> None:
    with open_workers(2) as workers:
        assert workers is not None
        with pytest.raises(DataError, match="A worker process was killed"):
            list(workers.unordered(os._exit, [(3,)] * 4))


def test_results_come_once_each() -> None:
    def calls() -> Iterator[tuple[int]]:
        yield from ((i,) for i in range(20))

    with open_workers(1) as workers:
        assert isinstance(workers, Workers)
        assert sorted(workers.unordered(abs, calls())) == list(range(20))
    with pytest.raises(ConfigError, match="The number of workers is 0"), open_workers(0):
        pass


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    script = tmp_path / "serve.py"
    script.write_text(
        "import os, time\n"
        "from megalign.corpus.preprocess.parallel import open_workers\n"
        "if __name__ == '__main__':\n"
        "    with open_workers(2) as workers:\n"
        "        print(*set(workers.unordered(os.getpid, [()] * 4)), flush=True)\n"
        "        time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = subprocess.Popen([sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    workers = [int(pid) for pid in started.stdout.readline().split()]
    assert workers
    started.kill()
    started.wait()
    started.stdout.close()
    deadline = time.monotonic() + 50
    while any(_runs(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_runs(pid) for pid in workers)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_workers_leave_ctrl_c_to_the_process_that_started_them() -> None:
    with open_workers(2) as workers:
        assert workers is not None
        (blocked,) = workers.unordered(signal.pthread_sigmask, [(signal.SIG_BLOCK, ())])
        assert signal.SIGINT in blocked
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        _interrupted()
    assert time.monotonic() - begun < 30


def _interrupted() -> None:
    with open_workers(2) as workers:
        assert workers is not None
        for _ in workers.unordered(time.sleep, [(0,), (60,), (60,), (60,), (60,)]):
            raise KeyboardInterrupt
