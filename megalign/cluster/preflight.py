"""Before training: do all processes meet, do they have the same software, and does a collective get through?

Every rank writes what it is into a store of rank 0. Rank 0 names those that did not come; after the all-reduce again.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from importlib import metadata
from typing import TYPE_CHECKING, Any

from megalign import __version__
from megalign.cluster.network import use_interface_to
from megalign.cluster.nodes import hosts_of_ranks
from megalign.cluster.ranks import Rank
from megalign.errors import EnvironmentProblem, first_line

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

_POLL_SECONDS = 0.05
_AFTER_VERDICT_SECONDS = 30.0
_LATE_SECONDS = 2.0


@dataclass(frozen=True)
class RankReport:
    """What a process says of itself."""

    rank: int
    host: str
    device: str
    versions: dict[str, str]


def describe_process(rank: Rank) -> RankReport:
    """This process's host, device and versions."""
    import torch

    device = "cpu"
    if torch.cuda.is_available():
        device = f"cuda:{rank.local_rank} {torch.cuda.get_device_name(rank.local_rank)}"
    versions = {
        "megalign": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "megatron-core": _version("megatron-core"),
    }
    return RankReport(rank.rank, os.environ.get("SLURMD_NODENAME") or socket.gethostname(), device, versions)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def preflight(
    rank: Rank, address: str, port: int, *, seconds: float, environment: Mapping[str, str] | None = None
) -> list[RankReport]:
    """Meet, compare, reduce; called by every process.

    Args:
        rank: this process.
        address, port: where rank 0 listens; not the port of torch.distributed.
        seconds: the processes have so long to come, and again for the all-reduce.
        environment: Slurm's variables, to name the host of a rank that did not come.

    Returns:
        the reports of all ranks.

    Raises:
        EnvironmentProblem: on every rank that is there: ranks did not come in time, versions differ, or the all-reduce
            did not end in time or gave a wrong sum.
    """
    env = os.environ if environment is None else environment
    store = _open_store(rank, address, port, seconds)
    own = describe_process(rank)
    store.set(f"report/{rank.rank}", json.dumps(asdict(own)))

    def met() -> Any:
        missing = _wait(store, [f"report/{n}" for n in range(rank.world_size)], seconds)
        if missing:
            return _missing_ranks(missing, rank.world_size, seconds, hosts_of_ranks(env))
        reports = [json.loads(store.get(f"report/{n}")) for n in range(rank.world_size)]
        return _differing(reports) or {"reports": reports}

    verdict = _decide(store, rank, "met", met, 2 * seconds)
    reports = [RankReport(**report) for report in verdict["reports"]]
    total = _all_reduce(store, rank, address, seconds)
    if total is not None:
        store.set(f"reduced/{rank.rank}", str(total))

    def reduced() -> Any:
        patience = _LATE_SECONDS if total is None else seconds  # this rank has waited already
        missing = _wait(store, [f"reduced/{n}" for n in range(rank.world_size)], patience)
        # Those that never began are why the others did not end.
        missing = _wait(store, [f"entered/{n}" for n in range(rank.world_size)], 0) or missing
        if missing:
            named = ", ".join(f"rank {n} on {reports[n].host} ({reports[n].device})" for n in missing)
            return _problem(
                f"The all-reduce of {rank.world_size} processes did not end within {seconds:g} s on {named}.",
                "Training would hang there.",
                "Look at the network between these hosts (NCCL_DEBUG=INFO, NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME).",
            )
        totals = {n: float(store.get(f"reduced/{n}")) for n in range(rank.world_size)}
        expected = rank.world_size * (rank.world_size + 1) / 2
        wrong = [f"rank {n} on {reports[n].host} has {t:g}" for n, t in totals.items() if t != expected]
        return _problem(f"The all-reduce should give {expected:g}, but {', '.join(wrong)}.") if wrong else {}

    _decide(store, rank, "reduced", reduced, 2 * seconds)
    # Rank 0 holds the store: it leaves last.
    store.set(f"left/{rank.rank}", "1")
    if rank.rank == 0:
        _wait(store, [f"left/{n}" for n in range(rank.world_size)], _AFTER_VERDICT_SECONDS)
    return reports


def _open_store(rank: Rank, address: str, port: int, seconds: float) -> Store:
    import torch.distributed as dist

    try:
        return dist.TCPStore(  # type: ignore[attr-defined]
            address,
            port,
            is_master=rank.rank == 0,
            timeout=timedelta(seconds=seconds),
            wait_for_workers=False,
        )
    except (RuntimeError, OSError) as error:
        if rank.rank == 0:
            raise EnvironmentProblem(
                f"Rank 0 on {socket.gethostname()} cannot listen on port {port}: {first_line(error)}.",
                "The processes of the job meet there.",
                "Start the job again, or set MASTER_PORT to a free port.",
            ) from None
        raise EnvironmentProblem(
            f"Rank {rank.rank} on {socket.gethostname()} did not reach rank 0 at {address}:{port} within {seconds:g} s: "
            f"{first_line(error)}.",
            "Rank 0 did not start, or its host cannot be reached from here.",
            "Look for rank 0 in this log; set MASTER_ADDR to an address that all hosts reach.",
        ) from None


def _wait(store: Store, keys: Sequence[str], seconds: float) -> list[int]:
    """Indices of the keys that were not written within so many seconds."""
    deadline = time.monotonic() + seconds
    left = list(range(len(keys)))
    while True:
        left = [n for n in left if not store.check([keys[n]])]
        if not left or time.monotonic() >= deadline:
            return left
        time.sleep(_POLL_SECONDS)


def _decide(store: Store, rank: Rank, name: str, judge: Callable[[], Any], seconds: float) -> dict[str, Any]:
    """Rank 0 judges, all learn the verdict; a problem is raised on every rank."""
    key = f"verdict/{name}"
    if rank.rank == 0:
        store.set(key, json.dumps(judge()))
    elif _wait(store, [key], seconds + _AFTER_VERDICT_SECONDS):
        raise EnvironmentProblem(f"Rank {rank.rank} on {socket.gethostname()} heard nothing more from rank 0.")
    verdict: dict[str, Any] = json.loads(store.get(key))
    if "problem" in verdict:
        if rank.rank == 0:  # it holds the store: let the others read first
            time.sleep(1.0)
        raise EnvironmentProblem(*verdict["problem"])
    return verdict


def _problem(what: str, why: str = "", fix: str = "") -> dict[str, list[str]]:
    return {"problem": [what, why, fix]}


def _missing_ranks(
    missing: list[int], world_size: int, seconds: float, hosts: list[str] | None
) -> dict[str, list[str]]:
    known = hosts if hosts and len(hosts) == world_size else None
    named = ", ".join(f"rank {n} on {known[n]}" if known else f"rank {n}" for n in missing)
    return _problem(
        f"{len(missing)} of {world_size} processes did not come within {seconds:g} s: {named}.",
        "The others would wait for them for ever.",
        "Look at these hosts: do they see Python, the run's files and the network? Exclude a broken one "
        "(sbatch --exclude), or raise preflight_seconds.",
    )


def _differing(reports: list[dict[str, Any]]) -> dict[str, list[str]] | None:
    first = reports[0]
    for report in reports[1:]:
        for package, version in report["versions"].items():
            if version != first["versions"][package]:
                return _problem(
                    f"Rank {report['rank']} on {report['host']} has {package} {version}, rank 0 on {first['host']} has "
                    f"{first['versions'][package]}.",
                    "Ranks that compute with other software differ silently, or hang.",
                    "Use one environment or one container on all hosts.",
                )
    return None


def _all_reduce(store: Store, rank: Rank, address: str, seconds: float) -> float | None:
    """1 + 2 + ... over all ranks, through the backend that training uses; None: not within `seconds`."""
    import torch
    import torch.distributed as dist

    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", rank.local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    else:
        use_interface_to(address)
    store.set(f"entered/{rank.rank}", "1")
    value = torch.full((1,), float(rank.rank + 1), device=device)
    try:
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=dist.PrefixStore("preflight", store),  # type: ignore[attr-defined]
            rank=rank.rank,
            world_size=rank.world_size,
            timeout=timedelta(seconds=seconds),
        )
        work = dist.all_reduce(value, async_op=True)
        deadline = time.monotonic() + seconds
        while work is not None and not work.is_completed():
            if time.monotonic() >= deadline:
                return None
            time.sleep(_POLL_SECONDS / 10)
        if work is not None:
            work.wait()
        total = float(value.item())
    except RuntimeError as error:  # a deadline, or a connection that broke; rank 0 tells whose
        print(f"preflight: rank {rank.rank}: {first_line(error)}", flush=True)
        return None
    dist.destroy_process_group()
    return total


def summary(reports: Sequence[RankReport]) -> str:
    """The hosts, how many ranks each has, and on what; a line each."""
    lines = []
    for host in dict.fromkeys(report.host for report in reports):
        ranks = [report for report in reports if report.host == host]
        devices = ", ".join(dict.fromkeys(r.device.partition(" ")[2] or r.device for r in ranks))
        lines.append(f"  {host}: ranks {ranks[0].rank}-{ranks[-1].rank} on {devices}")
    versions = ", ".join(f"{name} {version}" for name, version in reports[0].versions.items())
    return "\n".join([f"preflight: {len(reports)} processes met; {versions}", *lines])
