"""The engine's tests in one process."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.append(str(Path(__file__).resolve().parent.parent / "distributed"))  # cases.py, ranks.py


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """Process groups of a single process, inside the test's own."""
    import torch
    from ranks import layout_of

    from megalign.engine import groups

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    groups.start(layout_of(), rank=0, world_size=1, local_rank=0, init_method=f"file://{tmp_path}/meeting")
    yield
    groups.stop()
    torch.set_num_threads(threads)
