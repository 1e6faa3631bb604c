"""Tiny models and knowledge for the tests of teaching."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from megalign.clika.fictional import WorldSettings, invent, knowledge_of
from megalign.clika.knowledge import Knowledge, write_knowledge

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "examples" / "clika" / "tiny_run.py"


def knowledge(folder: Path, *languages: str) -> Knowledge:
    """Four places on two continents, written to a folder; the last language's is returned."""
    world = invent(WorldSettings(places=4, continents=2, variants=2, seed=2))
    for language in languages:
        content = knowledge_of(world, language)
        write_knowledge(content, folder)
    return content


def run(folder: Path, steps: int = 2) -> Path:
    """The folder of a run that was trained for a few steps, made as the example makes it."""
    base = folder / "tiny"
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--out", str(base), "--worlds", "1", "--steps", str(steps)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    path = base / "config.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["model"] |= {"num_layers": 2, "hidden_size": 32, "ffn_hidden_size": 64}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    train(path)
    return base / "run"


def train(config: Path) -> None:
    """Train through the command line."""
    done = megalign("train", config)
    assert done.returncode == 0, done.stderr


def megalign(*arguments: Any, timeout_seconds: float = 400) -> subprocess.CompletedProcess[str]:
    """The installed command."""
    import small_study

    return small_study.megalign(*map(str, arguments), timeout_seconds=timeout_seconds)
