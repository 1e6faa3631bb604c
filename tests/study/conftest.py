"""The finished small study, shared with the other folders of tests."""

from __future__ import annotations

import pytest
import small_study

from megalign.study.expand import StudyFolder


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """A study that ran to its end; its files must not be changed."""
    return small_study.finished(tmp_path_factory.getbasetemp())
