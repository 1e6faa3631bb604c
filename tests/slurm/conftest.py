"""One private Slurm for all tests of this folder; every test finds it whole, and leaves no job."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import mini_slurm
import pytest

for _beside in ("distributed", "training", "faults"):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / _beside))


@pytest.fixture(scope="session")
def _cluster() -> Iterator[mini_slurm.MiniSlurm]:
    why = mini_slurm.missing()
    if why:
        pytest.skip(f"no private Slurm: {why}")
    cluster = mini_slurm.MiniSlurm(num_nodes=4, max_array_size=4)
    try:
        yield cluster.start()
    finally:
        cluster.stop()


@pytest.fixture
def slurm(_cluster: mini_slurm.MiniSlurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[mini_slurm.MiniSlurm]:
    """The cluster, all nodes idle; Slurm's commands of this process speak to it."""
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, _cluster.environment[name])
    _cluster.heal()
    yield _cluster
    _cluster.heal()


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, held-out text in it, and a table; read-only."""
    from fault_workers import build_data

    return build_data(tmp_path_factory.mktemp("data"))
