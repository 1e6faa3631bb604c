"""Models that are built once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from small_models import KINDS, write_model

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "distributed"))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of a tiny model of every kind; read-only."""
    folder = tmp_path_factory.mktemp("models")
    return {kind: write_model(folder / kind, kind) for kind in KINDS}
