"""Slurm's lists of nodes, the meeting point, and which rank is where."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from megalign.cluster.nodes import address_of, expand, hosts_of_ranks, meeting_point, meeting_port
from megalign.cluster.ranks import Rank, discover
from megalign.errors import EnvironmentProblem


@pytest.mark.parametrize(
    ("nodelist", "names"),
    [
        ("n1", ["n1"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("a[01-03,7],b", ["a01", "a02", "a03", "a7", "b"]),
        ("gpu-a[098-101],login.site.org", ["gpu-a098", "gpu-a099", "gpu-a100", "gpu-a101", "login.site.org"]),
        ("r[1-2]n[3-4]", ["r1n3", "r1n4", "r2n3", "r2n4"]),
        ("x[2]-ib", ["x2-ib"]),
    ],
)
def test_a_list_of_nodes_is_expanded(nodelist: str, names: list[str]) -> None:
    assert expand(nodelist) == names


@pytest.mark.parametrize("nodelist", ["", "n[1-", "n[a-b]", "n1,,n2"])
def test_what_is_no_list_of_nodes_is_refused(nodelist: str) -> None:
    with pytest.raises(EnvironmentProblem, match="is not a list of nodes as Slurm writes it"):
        expand(nodelist)


@pytest.mark.parametrize(
    ("nodelist", "counts", "hosts"),
    [
        ("n[1-2]", "2(x2)", ["n1", "n1", "n2", "n2"]),
        ("n[1-3]", "2(x2),1", ["n1", "n1", "n2", "n2", "n3"]),
        ("n[1-3]", "2(x2)", None),
        ("n1", "many", None),
        ("", "1", None),
    ],
)
def test_the_host_of_every_rank(nodelist: str, counts: str, hosts: list[str] | None) -> None:
    assert hosts_of_ranks({"SLURM_STEP_NODELIST": nodelist, "SLURM_STEP_TASKS_PER_NODE": counts}) == hosts


def test_jobs_restarts_and_steps_have_ports_of_their_own() -> None:
    ports = [
        meeting_port({"SLURM_JOB_ID": str(job), "SLURM_RESTART_COUNT": str(restart), "SLURM_STEP_ID": str(step)})
        for job in range(1000, 1007)
        for restart in range(5)
        for step in range(3)
    ]
    assert len(set(ports)) == len(ports)
    assert all(10_000 <= port < 30_000 and port % 2 == 0 for port in ports)  # the next one is the preflight's


def test_a_node_whose_name_resolves_is_reached_by_it() -> None:
    assert address_of("localhost") == "localhost"


def test_a_node_whose_name_does_not_resolve_is_reached_at_its_node_addr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> None:
        raise socket.gaierror("unknown")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert address_of("n7") == "n7"  # no scontrol either
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\necho "NodeName=$5 NodeAddr=10.0.0.7 NodeHostName=h"\n')
    scontrol.chmod(0o755)
    assert address_of("n7") == "10.0.0.7"


def test_ranks_of_srun_need_no_master_address() -> None:
    environment = {
        "SLURM_JOB_ID": "12",
        "SLURM_PROCID": "3",
        "SLURM_NTASKS": "4",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": "localhost,n2",
        "SLURM_JOB_NODELIST": "n0,localhost,n2",
    }
    assert meeting_point(environment) == ("localhost", str(meeting_port(environment)))
    assert discover(environment) == Rank(3, 4, 1, f"tcp://localhost:{meeting_port(environment)}", "slurm")
    given = {**environment, "MASTER_ADDR": "elsewhere", "MASTER_PORT": "1234"}
    assert discover(given).init_method == "tcp://elsewhere:1234"
    assert meeting_point({"SLURM_JOB_ID": "12"}) is None
