"""The files that several tests of training read, built once."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_data import build_files


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store and a table; read-only."""
    return build_files(tmp_path_factory.mktemp("files"))
