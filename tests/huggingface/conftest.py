"""A store and runs over it, made once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

_TESTS = Path(__file__).resolve().parent.parent
for _name in ("distributed", "training"):
    sys.path.insert(0, str(_TESTS / _name))

import saved_runs  # noqa: E402

KINDS = {
    "learned": (saved_runs.LEARNED, {}),
    "rotary": (saved_runs.ROTARY, {"tensor": 2, "pipeline": 2}),
    "llama": (saved_runs.LLAMA, {"tensor": 2}),
}


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a token store with English and its clone."""
    return saved_runs.build_files(tmp_path_factory.mktemp("huggingface-files"))


@pytest.fixture(scope="session")
def runs(files: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each architecture, each written under another layout; read-only."""
    folder = tmp_path_factory.mktemp("huggingface-runs")
    return {
        kind: saved_runs.write_run(files, folder / kind, parallel, **model) for kind, (model, parallel) in KINDS.items()
    }
