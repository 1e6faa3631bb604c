"""Which process this is, from the variables of every launcher."""

from __future__ import annotations

import pytest

from megalign.cluster.ranks import Rank, discover
from megalign.errors import EnvironmentProblem

MEETING = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
METHOD = "tcp://node1:29500"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Rank(0, 1, 0, "", "single")),
        (MEETING, Rank(0, 1, 0, "", "single")),
        (
            {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", **MEETING},
            Rank(5, 8, 1, METHOD, "torchrun"),
        ),
        # torchrun inside a Slurm job: torchrun started this process.
        (
            {"RANK": "5", "WORLD_SIZE": "8", "SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", **MEETING},
            Rank(5, 8, 0, METHOD, "torchrun"),
        ),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Rank(0, 1, 0, "", "torchrun")),
        (
            {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0", **MEETING},
            Rank(3, 4, 1, METHOD, "slurm"),
        ),
        # The batch script itself, and an interactive shell, are no step of srun.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", **MEETING}, Rank(0, 1, 0, "", "single")),
        # srun with one task, started to run our own launcher.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"}, Rank(0, 1, 0, "", "single")),
        (
            {"PMI_RANK": "2", "PMI_SIZE": "4", "MPI_LOCALRANKID": "0", **MEETING},
            Rank(2, 4, 0, METHOD, "mpi"),
        ),
        ({"PMI_RANK": "2", "PMI_SIZE": "4", **MEETING}, Rank(2, 4, 2, METHOD, "mpi")),
        (
            {
                "OMPI_COMM_WORLD_RANK": "1",
                "OMPI_COMM_WORLD_SIZE": "2",
                "OMPI_COMM_WORLD_LOCAL_RANK": "1",
                **MEETING,
            },
            Rank(1, 2, 1, METHOD, "mpi"),
        ),
    ],
)
def test_the_place_of_a_process(environment: dict[str, str], expected: Rank) -> None:
    assert discover(environment) == expected


@pytest.mark.parametrize(
    ("environment", "origin"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "torchrun"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, "torchrun"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1"}, "torchrun"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "", "MASTER_PORT": "1"}, "torchrun"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}, "slurm"),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, "mpi"),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, "mpi"),
    ],
)
def test_several_processes_need_an_address_to_meet_at(environment: dict[str, str], origin: str) -> None:
    with pytest.raises(EnvironmentProblem) as caught:
        discover(environment)
    assert str(caught.value) == (
        f"2 processes were started by {origin}, but MASTER_ADDR and MASTER_PORT are not set. They cannot find each "
        "other. Export both in the job script, e.g. MASTER_ADDR=<first host> MASTER_PORT=29500."
    )
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, "rank 'x' of '2' (local rank '0')"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "rank '2' of '2' (local rank '0')"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "rank '-1' of '2' (local rank '0')"),
        ({"OMPI_COMM_WORLD_RANK": "1"}, "rank '1' of '' (local rank '0')"),
    ],
)
def test_variables_that_make_no_rank_are_shown(environment: dict[str, str], shown: str) -> None:
    with pytest.raises(EnvironmentProblem) as caught:
        discover({**environment, **MEETING})
    assert f"variables say {shown}, which is no place among the processes." in str(caught.value)


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", **MEETING}.items():
        monkeypatch.setenv(name, value)
    assert discover() == Rank(1, 2, 1, METHOD, "torchrun")
