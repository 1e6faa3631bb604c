"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from megalign import files
from megalign.errors import DataError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_bytes_text_and_json_are_written_with_their_folders(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "f"
    files.write_bytes(target, b"\x00\xff")
    assert target.read_bytes() == b"\x00\xff"
    files.write_text(target, "ä\n")
    assert target.read_bytes() == "ä\n".encode()
    files.write_json(target, {"ß": [1, 2.5, None]})
    assert target.read_text(encoding="utf-8") == '{\n  "ß": [\n    1,\n    2.5,\n    null\n  ]\n}\n'
    assert files.read_json(target) == {"ß": [1, 2.5, None]}
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    assert names(target.parent) == ["f"]


@pytest.mark.parametrize("failing", ["fsync", "replace", "chmod"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    target = tmp_path / "f"
    files.write_bytes(target, b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_bytes(target, b"new")
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["f"]


def test_content_is_durable_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def traced_fsync(descriptor: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def traced_replace(source: str, target: str) -> None:
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(os, "replace", traced_replace)
    files.write_bytes(tmp_path / "f", b"x")
    assert calls == ["file", "rename", "folder"]


def test_values_that_are_not_json_write_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        files.write_json(tmp_path / "f", {"a": {1}})
    assert names(tmp_path) == []


def test_reading_json_that_is_missing_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    with pytest.raises(DataError) as caught:
        files.read_json(path)
    assert str(caught.value) == f"{path} does not exist."
    assert caught.value.exit_code == 3
    for content in (b"", json.dumps({"a": 1}).encode()[:-1], b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"f\.json is not JSON: .* It may be half-written or damaged\.$"):
            files.read_json(path)


def test_a_folder_appears_when_its_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "x" / "out"
    with files.new_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
        assert folder.parent == target.parent
    assert (target / "a").read_text() == "1"
    assert stat.S_IMODE(target.stat().st_mode) == 0o755
    with files.new_folder(target) as folder:
        (folder / "b").write_text("2")
        assert names(target) == ["a"]
    assert names(target) == ["b"]
    assert names(target.parent) == ["out"]


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_a_folder_does_not_appear_when_its_block_fails(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "out"
    with files.new_folder(target) as folder:
        (folder / "a").write_text("1")

    def fail() -> None:
        with files.new_folder(target) as folder:
            (folder / "b").write_text("2")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert names(target) == ["a"]
    assert names(tmp_path) == ["out"]
