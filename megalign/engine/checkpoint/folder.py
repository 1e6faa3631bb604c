"""A folder of checkpoints as files: names, the marker, the pointer, checksums, which ones may go. No processes here.

`FOLDER/step_00000100/{shards/, state.json}`; `FOLDER/latest` names the newest one. Everything is written under a temporary
name, then state.json (the marker), then the folder is renamed, then the pointer is replaced. The marker holds the size
and the crc32c of every file, and its own crc32c.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import google_crc32c

from megalign.errors import DataError
from megalign.files import fsync_directory, read_json, write_json, write_text

MARKER = "state.json"
POINTER = "latest"
FORMAT = 2
_STEP = re.compile(r"step_(\d{8})\Z")
_BLOCK_BYTES = 1 << 22
# Keys of the marker that are ours; the others are the caller's.
_OWN = ("checkpoint", "crc32c")

Files = dict[str, dict[str, Any]]


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` stands."""
    return folder / f"step_{step:08d}"


def step_of(path: Path) -> int:
    """The step a checkpoint's name says."""
    match = _STEP.match(path.name)
    if match is None:
        raise ValueError(f"{path.name} is no name of a checkpoint")
    return int(match[1])


def complete(folder: Path) -> list[Path]:
    """Checkpoints that have a marker, oldest first; whether their files hold is not looked at."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _STEP.match(path.name) and (path / MARKER).exists())


def pointed_name(folder: Path) -> str:
    """What the pointer says; empty where there is none."""
    pointer = folder / POINTER
    return pointer.read_text(encoding="utf-8", errors="replace").strip() if pointer.exists() else ""


def latest(folder: Path) -> Path | None:
    """The checkpoint that the pointer names, or None where there is no pointer.

    Raises:
        DataError: it names a checkpoint that is not there or not complete.
    """
    pointer = folder / POINTER
    if not pointer.exists():
        return None
    name = pointed_name(folder)
    path = folder / name
    if not _STEP.match(name) or not (path / MARKER).exists():
        raise DataError(
            f"{pointer} names {name!r}, which is not a complete checkpoint.",
            "The folder was changed by hand or damaged.",
            f"Write the name of a complete checkpoint (one with a {MARKER}) into {pointer}, or remove {folder} to start over.",
        )
    return path


def newest(folders: Sequence[Path]) -> Path | None:
    """The latest checkpoint of the stage that came last, by its `stage_number`; None where no folder has one.

    Args:
        folders: of the stages of one run, in the order that holds where checkpoints do not say theirs.

    Raises:
        DataError: a pointer or a marker is damaged.
    """
    found = [(number, path) for number, folder in enumerate(folders) if (path := latest(folder)) is not None]
    numbered = [(int(read_marker(path)[0].get("stage_number", number)), number, path) for number, path in found]
    return max(numbered, key=lambda one: one[:2])[2] if numbered else None


def candidates(folder: Path) -> list[Path]:
    """Checkpoints a run may go on from, best first: the one the pointer names, then older ones.

    Without a pointer, or where it names none, all complete ones. Newer ones than the pointer's were left behind by going
    back by hand.
    """
    paths = complete(folder)[::-1]
    name = pointed_name(folder)
    return [path for path in paths if not _STEP.match(name) or path.name <= name]


# --- the marker


def _own_crc(content: dict[str, Any]) -> str:
    text = json.dumps({k: v for k, v in content.items() if k != "crc32c"}, sort_keys=True, ensure_ascii=True)
    return f"{google_crc32c.value(text.encode()):08x}"


def write_marker(path: Path, state: dict[str, Any], facts: dict[str, Any]) -> None:
    """Make `path` a complete checkpoint.

    Args:
        path: its folder, all files written.
        state: the caller's JSON values.
        facts: what the checkpoint says of itself, `files` among it.
    """
    values = {key: value for key, value in state.items() if key not in _OWN}
    # As JSON gives them back (tuples become lists), or the checksum would not be that of what is read.
    content = json.loads(json.dumps({**values, "checkpoint": {"format": FORMAT, **facts}}))
    write_json(path / MARKER, {**content, "crc32c": _own_crc(content)})


def read_marker(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The caller's values and the checkpoint's facts.

    Raises:
        DataError: there is no marker, or it is damaged or of another format.
    """
    if not (path / MARKER).exists():
        raise DataError(f"{path} is not a complete checkpoint: it has no {MARKER}.")
    content = read_json(path / MARKER)
    facts = content.get("checkpoint") if isinstance(content, dict) else None
    facts = facts if isinstance(facts, dict) else {}
    if facts.get("format") != FORMAT:
        raise DataError(
            f"{path / MARKER} is of format {facts.get('format')!r}, this version of megalign reads {FORMAT}.",
            "It has no list of checksums that the files could be held against.",
        )
    if content.get("crc32c") != _own_crc(content):
        raise DataError(f"{path / MARKER} does not have the crc32c it says: its content changed.")
    return {key: value for key, value in content.items() if key not in _OWN}, facts


# --- checksums


def crc_of(path: Path, *, from_storage: bool = False) -> str:
    """crc32c of a file as 8 hex digits.

    Args:
        path: the file.
        from_storage: let the kernel forget its copy first, so that the bytes come from the storage.
    """
    crc = 0
    with path.open("rb") as stream:
        if from_storage and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while block := stream.read(_BLOCK_BYTES):
            crc = google_crc32c.extend(crc, block)
    return f"{crc:08x}"


def describe_files(path: Path, known: dict[str, str]) -> Files:
    """Name within the checkpoint -> bytes and crc32c of every file but the marker.

    Args:
        path: the checkpoint's folder.
        known: checksums taken while writing; the others are read.
    """
    names = sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file() and p.name != MARKER)
    return {
        name: {"bytes": (path / name).stat().st_size, "crc32c": known.get(name) or crc_of(path / name)}
        for name in names
    }


def damage(path: Path, files: Files, names: Iterable[str], *, from_storage: bool = False) -> list[str]:
    """What is wrong with the named files of a checkpoint, a sentence for each."""
    problems = []
    for name in names:
        facts = files[name]
        try:
            size = (path / name).stat().st_size
            if size != facts["bytes"]:
                problems.append(f"{name} has {size} bytes instead of {facts['bytes']}")
            elif crc_of(path / name, from_storage=from_storage) != facts["crc32c"]:
                problems.append(f"{name} does not have the crc32c {facts['crc32c']}: its content changed")
        except FileNotFoundError:
            problems.append(f"{name} is missing")
        except OSError as error:
            problems.append(f"{name} cannot be read: {error}")
    return problems


# --- publishing, and what may go


def sync(path: Path) -> None:
    """Make a checkpoint's files and folders durable."""
    for inner in path.rglob("*"):
        if inner.is_dir():
            fsync_directory(inner)
        else:
            with inner.open("rb") as stream:
                os.fsync(stream.fileno())
    fsync_directory(path)


def publish(temporary: Path, final: Path) -> None:
    """Give a checkpoint its name and point at it."""
    folder = final.parent
    old = folder / f".old-{final.name}"
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.replace(old)  # not removed before the new one stands
    temporary.replace(final)
    fsync_directory(folder)
    write_text(folder / POINTER, final.name + "\n")
    shutil.rmtree(old, ignore_errors=True)


def clean(folder: Path) -> None:
    """Undo what a crash left: finish or take back an interrupted replacement, remove what was never published."""
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith(".old-step_"):
            final = folder / path.name.removeprefix(".old-")
            if final.exists():
                shutil.rmtree(path)
            else:
                path.replace(final)
        elif path.name.startswith(".tmp-step_"):
            shutil.rmtree(path, ignore_errors=True)


def removable(folder: Path, step: int, keep: int, permanent_interval: int | None) -> tuple[list[Path], list[Path]]:
    """(checkpoints older than the newest `keep` up to `step`, those that stay, newest first).

    Those of every `permanent_interval`-th step stay and do not count. Later ones than `step`, left by going back by hand,
    do not count either.
    """
    upto = [path for path in complete(folder) if step_of(path) <= step]
    rolling = [path for path in upto if not permanent_interval or step_of(path) % permanent_interval]
    old = rolling[:-keep]
    return old, [path for path in reversed(upto) if path not in old]


def remove(paths: list[Path]) -> None:
    """Remove checkpoints."""
    for path in paths:
        shutil.rmtree(path)


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint so that nothing takes it for a good one; it can still be looked at."""
    target = path.with_name(f"damaged-{path.name}")
    shutil.rmtree(target, ignore_errors=True)
    path.replace(target)
    return target


def point_at(path: Path) -> None:
    """Let the pointer name `path`."""
    write_text(path.parent / POINTER, path.name + "\n")
