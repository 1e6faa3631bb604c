"""What several tests of training need: files built once, a process group of one, and the helper that starts ranks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from training_data import build_files, run_config

from megalign.config.layout import Layout
from megalign.engine import groups

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "distributed"))


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store and a table; read-only."""
    return build_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def world_of_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """This process is the only rank, on one thread, so that sums do not depend on the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    meeting = tmp_path_factory.mktemp("meeting") / "rendezvous"
    layout = Layout(run_config(Path("unused"), Path("unused")).parallel)
    groups.start(layout, rank=0, world_size=1, local_rank=0, init_method=f"file://{meeting}")
    yield
    groups.stop()
    torch.set_num_threads(before)
