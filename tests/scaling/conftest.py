"""The ranks and small models of the distributed tests, and the finished small study."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import small_study

from megalign.study.expand import StudyFolder

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "distributed"))


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """A study that ran to its end; its files must not be changed."""
    return small_study.finished(tmp_path_factory.getbasetemp())
