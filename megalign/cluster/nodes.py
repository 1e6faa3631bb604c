"""Slurm's lists of nodes, and where the processes of a job step meet."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping

from megalign.errors import EnvironmentProblem

# Below the ports that Linux gives to outgoing connections; two for each job: torch.distributed's, and the preflight's.
FIRST_PORT, NUM_PORTS = 10_000, 20_000
_PART = re.compile(r"([^\[\],]*)\[([\d,-]+)\]|([^\[\],]+)")


def expand(nodelist: str) -> list[str]:
    """The names in a list as Slurm writes it: `a[01-03,7],b` is a01, a02, a03, a7, b.

    Raises:
        EnvironmentProblem: it is not such a list.
    """
    hosts = []
    for part in _split(nodelist):
        if not part or not re.fullmatch(rf"(?:{_PART.pattern})+", part):
            raise EnvironmentProblem(f"{nodelist!r} is not a list of nodes as Slurm writes it.")
        names = [""]
        for match in _PART.finditer(part):
            prefix, ranges, plain = match.groups()
            tails = [plain] if plain else [prefix + number for number in _numbers(ranges)]
            names = [name + tail for name in names for tail in tails]
        hosts += names
    return hosts


def _split(nodelist: str) -> list[str]:
    """At the commas outside brackets."""
    return re.split(r",(?![^\[]*\])", nodelist)


def _numbers(ranges: str) -> Iterator[str]:
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        for number in range(int(first), int(last or first) + 1):
            yield f"{number:0{len(first)}d}"


def hosts_of_ranks(environment: Mapping[str, str]) -> list[str] | None:
    """The node of every process of a step under srun's block distribution; None where Slurm does not say."""
    nodelist = environment.get("SLURM_STEP_NODELIST")
    counts = environment.get("SLURM_STEP_TASKS_PER_NODE")
    if not nodelist or not counts:
        return None
    tasks = []
    for part in counts.split(","):  # 2(x3),1 is 2, 2, 2, 1
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            return None
        tasks += [int(match[1])] * int(match[2] or 1)
    nodes = expand(nodelist)
    if len(nodes) != len(tasks):
        return None
    return [node for node, count in zip(nodes, tasks, strict=True) for _ in range(count)]


def address_of(node: str) -> str:
    """Where a node is reached: its name where that resolves, else the NodeAddr that Slurm knows."""
    try:
        socket.getaddrinfo(node, None)
    except OSError:
        return _node_addr(node) or node
    return node


def _node_addr(node: str) -> str | None:
    if shutil.which("scontrol") is None:
        return None
    try:
        done = subprocess.run(
            ["scontrol", "show", "node", "-o", node], capture_output=True, text=True, timeout=30, check=False
        )
    except subprocess.TimeoutExpired:
        return None
    match = re.search(r"\bNodeAddr=(\S+)", done.stdout)
    return match[1] if match else None


def meeting_port(environment: Mapping[str, str]) -> int:
    """A port that depends on job, restart and step only; the next one is free for this step, too.

    A restart has another port than the attempt before: on a node that lost touch its processes may still be there.
    """
    job = int(environment.get("SLURM_JOB_ID") or 0)
    restart = int(environment.get("SLURM_RESTART_COUNT") or 0)
    step = environment.get("SLURM_STEP_ID", "0")
    mixed = job * 131 + restart * 17 + (int(step) if step.isdigit() else 0)
    return FIRST_PORT + 2 * (mixed % (NUM_PORTS // 2))


def meeting_point(environment: Mapping[str, str]) -> tuple[str, str] | None:
    """(address, port) at which the processes of this Slurm step meet: on the step's first node. None outside Slurm."""
    nodelist = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if not nodelist or not environment.get("SLURM_JOB_ID"):
        return None
    return address_of(expand(nodelist)[0]), str(meeting_port(environment))
