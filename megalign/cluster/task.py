"""One process of a job step: `srun ... python -m megalign.cluster.task [--preflight SECONDS] MODULE [ARGUMENT ...]`.

Finds the other processes, holds the preflight where there are any, and then is `python -m MODULE ARGUMENT ...`. Where that
ends well, the first process makes the file MEGALIGN_FINISHED names.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path
from types import FrameType

from megalign.cluster.nodes import meeting_point
from megalign.cluster.ranks import Rank, discover
from megalign.errors import MegalignError, StoppedOnRequest, report_error

_REQUESTS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_CACHES = {"TMPDIR": "tmp", "TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}


def _leave(number: int, frame: FrameType | None) -> None:
    """A request to stop before there is anything to save."""
    os._exit(StoppedOnRequest.exit_code)


def _use_node_local() -> None:
    """Put temporary files and caches of compilers on the node's own disk, where the profile names one."""
    folder = os.environ.get("MEGALIGN_NODE_LOCAL")
    for name, part in _CACHES.items() if folder else ():
        path = Path(str(folder)) / part
        path.mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(path)


def _join(seconds: float) -> None:
    """Set the variables of torch.distributed, and hold the preflight among several processes."""
    point = meeting_point(os.environ)
    if point is not None:
        os.environ.setdefault("MASTER_ADDR", point[0])
        os.environ.setdefault("MASTER_PORT", point[1])
    rank: Rank = discover()
    if rank.world_size == 1:
        return
    if seconds:
        from megalign.cluster.preflight import preflight, summary

        port = int(os.environ["MASTER_PORT"]) + 1
        reports = preflight(rank, os.environ["MASTER_ADDR"], port, seconds=seconds)
        if rank.rank == 0:
            print(summary(reports), flush=True)
    os.environ.update(RANK=str(rank.rank), WORLD_SIZE=str(rank.world_size), LOCAL_RANK=str(rank.local_rank))


def main() -> None:
    """Entry point of the process."""
    for number in _REQUESTS:
        signal.signal(number, _leave)
    arguments = sys.argv[1:]
    seconds = 0.0
    if arguments[:1] == ["--preflight"]:
        seconds, arguments = float(arguments[1]), arguments[2:]
    try:
        _use_node_local()
        _join(seconds)
    except MegalignError as error:
        os._exit(report_error(error))
    sys.argv = arguments
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    except SystemExit as left:
        if left.code:
            raise
    finally:
        # Python's shutdown takes handlers away: a second request would then replace the exit code by its own.
        for number in _REQUESTS:
            signal.signal(number, signal.SIG_IGN)
    if os.environ.get("MEGALIGN_FINISHED") and os.environ.get("SLURM_PROCID", "0") == "0":
        Path(os.environ["MEGALIGN_FINISHED"]).touch()


if __name__ == "__main__":
    main()
