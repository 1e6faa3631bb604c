"""Answers that were paid for, kept: a JSON-lines file that a stopped run continues."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

import orjson

from megalign.errors import DataError


class Cache:
    """Values by key, each written to the file as soon as it is known.

    A torn last line, as a crash leaves, is dropped. Safe for threads of one process; one process at a time.

    Raises:
        DataError: a line before the last is no entry.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values: dict[str, Any] = {}
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            self._read()

    def _read(self) -> None:
        end = 0
        with self.path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    entry = orjson.loads(line)
                    self._values[entry["key"]] = entry["value"]
                except (orjson.JSONDecodeError, KeyError, TypeError):
                    raise DataError(
                        f"{self.path}:{number} is no entry of a cache.",
                        "The file was changed or damaged.",
                        "Remove the line, or the file: what is missing is asked again.",
                    ) from None
                end += len(line)
        if end < self.path.stat().st_size:
            with self.path.open("r+b") as stream:
                stream.truncate(end)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str) -> Any:
        """The value of a key; None where there is none."""
        return self._values.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep a value, in the file before this returns."""
        line = orjson.dumps({"key": key, "value": value}, option=orjson.OPT_APPEND_NEWLINE)
        with self._lock:
            with self.path.open("ab") as stream:
                stream.write(line)
            self._values[key] = value


def key_of(*parts: Any) -> str:
    """A key that is equal exactly where all parts are."""
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]
