"""What the tests of faults share: a store with held-out text, and the helpers of the tests beside."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

for _beside in ("distributed", "training"):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / _beside))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, held-out text in it, and a table; read-only."""
    from fault_workers import build_data

    return build_data(tmp_path_factory.mktemp("data"))
