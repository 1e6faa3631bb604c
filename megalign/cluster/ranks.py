"""Which of the run's processes this is, and where the others are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from megalign.cluster.nodes import meeting_point
from megalign.errors import EnvironmentProblem


@dataclass(frozen=True)
class Rank:
    """A process of a run.

    Attributes:
        rank: number among all processes.
        world_size: number of processes.
        local_rank: number on this host.
        init_method: how the processes find each other, for torch.distributed.
        origin: who started them: "torchrun", "slurm", "mpi" or "single".
    """

    rank: int
    world_size: int
    local_rank: int
    init_method: str
    origin: str


def discover(environment: Mapping[str, str] | None = None) -> Rank:
    """Read the place of this process from torchrun's (and our launcher's), Slurm's or MPI's variables.

    Processes of srun need no MASTER_ADDR and MASTER_PORT: they meet on the first node of their step.

    Raises:
        EnvironmentProblem: more than one process, and no address to meet at; or the variables make no sense.
    """
    env = os.environ if environment is None else environment
    if "RANK" in env and "WORLD_SIZE" in env:
        found = ("torchrun", env["RANK"], env["WORLD_SIZE"], env.get("LOCAL_RANK", "0"))
    elif "SLURM_PROCID" in env and "SLURM_STEP_ID" in env and env.get("SLURM_NTASKS", "1") != "1":
        found = ("slurm", env["SLURM_PROCID"], env["SLURM_NTASKS"], env.get("SLURM_LOCALID", "0"))
    elif "PMI_RANK" in env and "PMI_SIZE" in env:
        found = ("mpi", env["PMI_RANK"], env["PMI_SIZE"], env.get("MPI_LOCALRANKID", env["PMI_RANK"]))
    elif "OMPI_COMM_WORLD_RANK" in env:
        found = (
            "mpi",
            env["OMPI_COMM_WORLD_RANK"],
            env.get("OMPI_COMM_WORLD_SIZE", ""),
            env.get("OMPI_COMM_WORLD_LOCAL_RANK", "0"),
        )
    else:
        return Rank(0, 1, 0, "", "single")
    origin, (rank, world_size, local_rank) = found[0], _numbers(*found)
    address, port = env.get("MASTER_ADDR"), env.get("MASTER_PORT")
    if world_size > 1 and origin == "slurm" and not (address or port):
        address, port = meeting_point(env) or (None, None)
    if world_size > 1 and not (address and port):
        raise EnvironmentProblem(
            f"{world_size} processes were started by {origin}, but MASTER_ADDR and MASTER_PORT are not set.",
            "They cannot find each other.",
            "Export both in the job script, e.g. MASTER_ADDR=<first host> MASTER_PORT=29500.",
        )
    method = f"tcp://{address}:{port}" if world_size > 1 else ""
    return Rank(rank, world_size, local_rank, method, origin)


def _numbers(origin: str, rank: str, world_size: str, local_rank: str) -> tuple[int, int, int]:
    try:
        numbers = int(rank), int(world_size), int(local_rank)
    except ValueError:
        numbers = -1, 0, 0
    if not 0 <= numbers[0] < numbers[1]:
        raise EnvironmentProblem(
            f"The {origin} variables say rank {rank!r} of {world_size!r} (local rank {local_rank!r}), "
            "which is no place among the processes.",
            fix="Start the processes with one launcher, in an environment without another's variables.",
        )
    return numbers
