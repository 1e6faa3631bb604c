"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
_TABLE = pytest.StashKey[list[str]]()
_WORKER_KEY = "measured"


def pytest_configure() -> None:
    """Hypothesis tries the same examples everywhere, and fails none because the machine is busy."""
    try:
        from hypothesis import HealthCheck, settings
    except ImportError:  # the tests of a GPU do without it
        return
    settings.register_profile("tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("tests")


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """The folder of reference data (real text, dictionaries, released outputs); skips where there is none."""
    named = os.environ.get("MEGALIGN_REFERENCE_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no reference data: {folder} does not exist (set MEGALIGN_REFERENCE_DATA)")
    return folder


@pytest.fixture(scope="session")
def measured(request: pytest.FixtureRequest) -> list[str]:
    """Lines that are printed at the end of the test run."""
    return request.config.stash.setdefault(_TABLE, [])


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist hands its lines over."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput[_WORKER_KEY] = session.config.stash.get(_TABLE, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """The lines of a worker that has ended."""
    node.config.stash.setdefault(_TABLE, []).extend(getattr(node, "workeroutput", {}).get(_WORKER_KEY, []))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.get(_TABLE, [])
    if lines:
        terminalreporter.section("layouts against one process, largest differences")
        for line in lines:
            terminalreporter.line(line)
