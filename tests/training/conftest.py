"""The files that several tests of training read, built once, and the helper that starts ranks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from training_data import build_files

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "distributed"))


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store and a table; read-only."""
    return build_files(tmp_path_factory.mktemp("files"))
