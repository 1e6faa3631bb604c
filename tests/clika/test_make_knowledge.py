"""The tool that invents knowledge: what it writes, that it is the same every time, what it refuses."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from megalign.clika.fictional import WorldSettings, invent, knowledge_of
from megalign.clika.knowledge import languages_in, read_knowledge
from megalign.errors import ConfigError

TOOL = Path(__file__).resolve().parents[2] / "tools" / "make_knowledge.py"


def make(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_set_is_written_as_the_library_invents_it(tmp_path: Path) -> None:
    options = ("--places", 16, "--continents", 2, "--variants", 2, "--roots", "own", "--seed", 5)
    for name in ("a", "b"):
        done = make("--out", tmp_path / name, "--language", "he", "--language", "ja", "--language", "he", *options)
        assert done.returncode == 0, done.stderr
        assert "16 places on 2 continents in English and he, ja" in done.stdout
    assert languages_in(tmp_path / "a") == ["he", "ja"]
    world = invent(WorldSettings(places=16, continents=2, variants=2, roots="own", seed=5))
    assert read_knowledge(tmp_path / "a", "ja") == (knowledge_of(world, "ja"), [])
    assert json.loads((tmp_path / "a" / "knowledge.json").read_text())["seed"] == 5
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.json*"))
    assert len(files) == 8
    assert all((tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes() for path in files)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--places", 30, "30 places cannot be shared out over 20 continents"),
        ("--language", "xx", "There is no invented knowledge in 'xx'"),
        ("--roots", "odd", "roots"),
        ("--translations", "odd", "directions"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, option: str, value: object, message: str) -> None:
    done = make("--out", tmp_path / "set", option, value)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "set").exists()


def test_only_knowledge_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(TOOL.parent)
    make_knowledge = importlib.import_module("make_knowledge").make_knowledge
    size = {"language": ["de"], "places": 8, "continents": 2, "variants": 1}
    text = tmp_path / "mine" / "thesis.txt"
    text.parent.mkdir()
    text.write_text("words")
    for out in (text.parent, text):
        with pytest.raises(ConfigError, match=r"exists and holds no invented knowledge\. It would be replaced"):
            make_knowledge(out, **size)
    with pytest.raises(ConfigError, match="cannot be made a folder"):
        make_knowledge(text / "set", **size)
    assert text.read_text() == "words"
    for seed in (0, 1):
        make_knowledge(tmp_path / "set", seed=seed, **size)
        assert json.loads((tmp_path / "set" / "knowledge.json").read_text())["seed"] == seed
