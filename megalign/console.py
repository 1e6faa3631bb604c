"""Standard output and error that outlive their reader: a closed terminal or pipe does not end a run."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any, TextIO

# What writing to a pipe without a reader gives, and to a terminal that was closed.
_GONE = frozenset({errno.EPIPE, errno.EIO})


class _Lasting:
    """A stream whose writes go to nowhere once nobody reads them."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._let_go(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._let_go(error)

    def _let_go(self, error: OSError) -> None:
        if error.errno not in _GONE:
            raise error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def tell(text: str) -> None:
    """Write a message to standard error in one go, so that those of several processes do not mix within lines."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def outlive_reader() -> None:
    """From now on this process's output may lose its reader. What matters is also in files: metrics, logs, reports."""
    sys.stdout, sys.stderr = _Lasting(sys.stdout), _Lasting(sys.stderr)  # type: ignore[assignment]
