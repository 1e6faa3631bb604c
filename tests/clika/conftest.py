"""Fixtures of the scoring tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_responses import write_responses

from megalign.clika import Protocol, load_protocol


@pytest.fixture
def responses(tmp_path: Path) -> Path:
    return write_responses(tmp_path / "responses")


@pytest.fixture
def protocol(tmp_path: Path) -> Protocol:
    """The released constants, with as many items as the invented set has."""
    path = tmp_path / "datasets.yml"
    path.write_text(
        "datasets:\n"
        "  x_copa: {knowledge: basic, num_options: 2, top_percent: 96.4, num_items: 24}\n"
        "  x_geo: {knowledge: factual, num_options: 4, top_percent: 97.0, num_items: 24}\n",
        encoding="utf-8",
    )
    return load_protocol(path)
