"""A run of two hosts: network namespaces, each with an interface, a loopback and an /etc/hosts of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from small_study import clean_environment, command, json_lines, megalign
from training_data import build_files, run_config

from megalign.cluster.network import interface_to, use_interface_to

SETUP = """
ip netns add {a} && ip netns add {b} && ip link add {a} netns {a} type veth peer name {b} netns {b}
for host in "{a} 1" "{b} 2"; do
    set -- $host
    ip -n $1 address add 10.77.0.$2/24 dev $1 && ip -n $1 link set $1 up && ip -n $1 link set lo up
done
ip -n {a} route add default via 10.77.0.2
ip netns exec {a} mount --bind /etc/hosts /etc/hosts
"""
# As Debian has it: a host's own name means itself.
ETC_HOSTS = ("127.0.0.1 localhost\n127.0.1.1 first\n", "127.0.0.1 localhost\n127.0.1.1 second\n10.77.0.1 first\n")


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[str, str]]:
    """The names of two network namespaces, linked: 10.77.0.1 and 10.77.0.2."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and iproute2")
    names = f"mga{os.getpid()}", f"mgb{os.getpid()}"
    made = subprocess.run(["sh", "-ec", SETUP.format(a=names[0], b=names[1])], capture_output=True, text=True)
    try:
        if made.returncode:
            pytest.skip(f"no network namespaces here: {made.stderr.strip()}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_files(tmp_path_factory.mktemp("data"))


def write_run(data: Path, folder: Path) -> Path:
    config = run_config(data, folder, parallel__data=2, inject__steps=2, train__steps=4)
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    return path


def losses(folder: Path) -> list[tuple[str, int, float, float]]:
    return [(one["stage"], one["step"], one["loss"], one["grad_norm"]) for one in json_lines(folder / "metrics.jsonl")]


@pytest.fixture(scope="module")
def of_one_host(data: Path) -> list[tuple[str, int, float, float]]:
    folder = data / "local"
    subprocess.run(command("train", write_run(data, folder)), env=clean_environment(), check=True, timeout=400)
    return losses(folder)


def start(number: int, name: str, master: str, config: Path) -> subprocess.Popen[str]:
    """One rank of two, on a host."""
    etc_hosts = config.with_name(f"hosts{number}")
    etc_hosts.write_text(ETC_HOSTS[number], encoding="utf-8")
    environment = clean_environment(
        RANK=str(number), WORLD_SIZE="2", LOCAL_RANK="0", MASTER_ADDR=master, MASTER_PORT="29500"
    )
    inside = ["sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(etc_hosts), *command("train", config)]
    return subprocess.Popen(
        ["ip", "netns", "exec", name, *inside],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("master", ["10.77.0.1", "first"])
def test_two_hosts_train_as_one_does(
    hosts: tuple[str, str],
    data: Path,
    tmp_path: Path,
    of_one_host: list[tuple[str, int, float, float]],
    master: str,
) -> None:
    """Also where each host's own name is a loopback address, at which gloo would listen."""
    config = write_run(data, tmp_path / "run")
    processes = [start(number, name, master, config) for number, name in enumerate(hosts)]
    try:
        told = [process.communicate(timeout=400)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], told
    assert losses(tmp_path / "run") == of_one_host


def test_one_host_needs_no_interface() -> None:
    for address in ("127.0.0.1", "localhost", "::1", "no.such.host.invalid"):
        assert interface_to(address) is None


def test_an_interface_that_is_set_stays() -> None:
    environment = {"GLOO_SOCKET_IFNAME": "ib0"}
    use_interface_to("192.0.2.1", environment)
    assert environment == {"GLOO_SOCKET_IFNAME": "ib0"}


def test_a_meeting_point_that_is_taken_is_told(data: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = megalign(
            "train", write_run(data, tmp_path / "run"),
            RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        )  # fmt: skip
    assert done.returncode == 4
    assert f"could not join the other processes at tcp://127.0.0.1:{port}: " in done.stderr
    assert "MASTER_PORT to a free port" in done.stderr
