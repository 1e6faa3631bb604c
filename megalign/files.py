"""Files that are whole or absent: write to a temporary name, fsync, rename."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from megalign.errors import ConfigError, DataError, EnvironmentProblem


def fsync_directory(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder that results can be written into.

    Raises:
        ConfigError: that is not possible, such as where a file has its name.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path} cannot be made a folder: {error.strerror}.", fix="Choose another folder.") from None


def lock(stream: IO[Any]) -> bool:
    """Hold an open file until it is closed, or this process ends; False where another process holds it.

    On storage without locks everybody holds it.
    """
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def only_process(path: Path) -> Iterator[None]:
    """Hold the folder of the lock file `path` for this process until the block ends.

    Raises:
        EnvironmentProblem: another process holds it.
    """
    with path.open("ab") as stream:
        if not lock(stream):
            raise EnvironmentProblem(
                f"Another process works in {path.parent}.",
                "Both would write the same files.",
                "Wait for it, or stop it: the same command then goes on.",
            )
        yield


def is_utf8(text: str) -> bool:
    """Whether a text can be written; a shell's bytes that are no UTF-8 come as lone surrogates."""
    return text == text.encode(errors="replace").decode()


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content`: a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def write_text(path: Path, content: str) -> None:
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """`write_bytes` for indented JSON with a final newline."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: the file is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not JSON: {error}.", "It may be half-written or damaged.") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """The content of a JSON file that is an object.

    Raises:
        DataError: the file is missing, not JSON, or holds something else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no JSON object.", "It was changed by hand or damaged.")
    return content


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears under its name only when the block ends without an error.

    An existing folder of that name is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".tmp-{path.name}-", dir=path.parent))
    try:
        temporary.chmod(0o755)
        yield temporary
        old = temporary.with_name(temporary.name + "-old")
        if path.exists():
            path.replace(old)  # two renames: the name is free for a moment only, and nothing is lost in it
        temporary.replace(path)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_directory(path.parent)
