"""The preflight between real processes: all meet, one does not come, versions differ, the all-reduce hangs."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import pytest

from megalign.cluster import preflight as module
from megalign.cluster.local import free_port
from megalign.cluster.preflight import preflight, summary
from megalign.cluster.ranks import Rank
from megalign.errors import EnvironmentProblem, first_line

SLURM = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_TASKS_PER_NODE": "1,2"}
Fault = Callable[[int], None]


def process(rank: int, world_size: int, port: int, seconds: float, fault: Fault | None, told: Connection) -> None:
    if fault:
        fault(rank)
    try:
        reports = preflight(
            Rank(rank, world_size, 0, "", "slurm"), "127.0.0.1", port, seconds=seconds, environment=SLURM
        )
        told.send(summary(reports))
    except EnvironmentProblem as error:
        told.send(f"error: {error}")


def outcomes(*ranks: int, seconds: float = 30, fault: Fault | None = None, silent: int = 0) -> list[str]:
    """What preflight says on each of these ranks of three, but for the last `silent` of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed", "megalign.cluster.preflight"])
    port = free_port()
    started = []
    for rank in ranks:
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=process, args=(rank, 3, port, seconds, fault, theirs))
        worker.start()
        theirs.close()
        started.append((worker, ours))
    try:
        return [ours.recv() if ours.poll(90) else "silent" for _, ours in started[: len(started) - silent]]
    finally:
        for worker, _ in started:
            worker.kill()
            worker.join()


def of_its_node(rank: int) -> None:
    import os

    os.environ["SLURMD_NODENAME"] = "n1" if rank == 0 else "n2"


def test_all_meet() -> None:
    told = outcomes(0, 1, 2, fault=of_its_node)
    assert len(set(told)) == 1
    assert told[0].startswith("preflight: 3 processes met; megalign ")
    assert told[0].splitlines()[1:] == ["  n1: ranks 0-0 on cpu", "  n2: ranks 1-2 on cpu"]


def test_a_rank_that_does_not_come_is_named_with_its_host() -> None:
    told = outcomes(0, 2, seconds=10)
    assert told[0].startswith("error: 1 of 3 processes did not come within 10 s: rank 1 on n2. The others would wait")
    assert told[1] == told[0]


def test_without_rank_0_the_others_say_where_they_looked() -> None:
    (told,) = outcomes(1, seconds=3)
    assert "error: Rank 1 on " in told
    assert "did not reach rank 0 at 127.0.0.1:" in told


def other_torch(rank: int) -> None:
    of_its_node(rank)
    if rank == 2:
        describe = module.describe_process

        def described(place: Rank) -> Any:
            report = describe(place)
            report.versions["torch"] = "1.0"
            return report

        module.describe_process = described


def test_other_software_is_refused() -> None:
    import torch

    told = outcomes(0, 1, 2, fault=other_torch)
    assert set(told) == {told[0]}
    assert f"Rank 2 on n2 has torch 1.0, rank 0 on n1 has {torch.__version__}." in told[0]


def hanging(rank: int) -> None:
    of_its_node(rank)
    if rank == 1:
        import time

        def asleep(*_: object) -> None:
            time.sleep(120)

        module._all_reduce = asleep  # type: ignore[assignment]


def test_a_rank_that_hangs_in_the_all_reduce_is_named() -> None:
    told = outcomes(0, 2, 1, seconds=10, fault=hanging, silent=1)
    assert "The all-reduce of 3 processes did not end within 10 s on rank 1 on n2 (cpu). " in told[0]
    assert told[1] == told[0]


def wrong(rank: int) -> None:
    of_its_node(rank)
    if rank == 2:
        reduce = module._all_reduce

        def reduced(*arguments: Any) -> float:
            assert reduce(*arguments) == 6.0
            return 5.0

        module._all_reduce = reduced


def test_a_wrong_sum_is_told() -> None:
    told = outcomes(0, 1, 2, fault=wrong)
    assert set(told) == {"error: The all-reduce should give 6, but rank 2 on n2 has 5."}


def test_the_first_line_of_an_error_is_kept() -> None:
    assert first_line(RuntimeError("one.\ntwo")) == "RuntimeError: one"
    assert first_line(RuntimeError()) == "RuntimeError: no message"


@pytest.mark.parametrize(("missing", "named"), [([1], "rank 1 on n2"), ([0, 2], "rank 0 on n1, rank 2 on n2")])
def test_hosts_of_missing_ranks(missing: list[int], named: str) -> None:
    problem = module._missing_ranks(missing, 3, 5.0, ["n1", "n2", "n2"])["problem"]
    assert problem[0].endswith(f"did not come within 5 s: {named}.")
    unknown = module._missing_ranks(missing, 3, 5.0, ["n1"])["problem"]
    assert " on n" not in unknown[0]
