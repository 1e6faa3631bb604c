"""The table of measured differences, printed at the end of the test run."""

from __future__ import annotations

import pytest

_TABLE = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def measured(request: pytest.FixtureRequest) -> list[str]:
    """Lines that are printed at the end of the test run."""
    return request.config.stash.setdefault(_TABLE, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.get(_TABLE, [])
    if lines:
        terminalreporter.section("layouts against one process, largest differences")
        for line in lines:
            terminalreporter.line(line)
