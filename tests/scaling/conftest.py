"""The ranks and small models of the distributed tests, and the finished small study."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import small_study
from small_study import SEED

from megalign.study.data import build_data
from megalign.study.expand import StudyFolder

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "distributed"))


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """A study that ran to its end; its files must not be changed."""
    return small_study.finished(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store and a table of English and its clone."""
    folder = tmp_path_factory.mktemp("data")
    build_data(small_study.study(folder), SEED, folder)
    return folder


@pytest.fixture
def content(data: Path, tmp_path: Path) -> dict[str, Any]:
    """A run over them that injects and switches."""
    return {
        "name": "dry",
        "folder": str(tmp_path / "run"),
        "method": "prealign",
        "model": dict(small_study.CONTENT["model"]),
        "data": {
            "store": str(data / "store"),
            "table": str(data / "table.parquet"),
            "sources": [{"language": "en", "weight": 5.0}, {"language": "en", "weight": 1.0, "as_clone": "en-clone"}],
        },
        "train": {"steps": 12, "global_batch_size": 4, "micro_batch_size": 2},
        "inject": {"steps": 4, "entries_per_step": 16, "lm_batch_size": 2},
        "codeswitch": {"ratio": 0.05},
    }
