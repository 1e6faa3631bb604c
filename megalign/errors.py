"""Errors that a user can act on. Each says what is wrong, why it matters, and what to set."""

from __future__ import annotations

import errno
import os

from megalign.console import tell


class MegalignError(Exception):
    """An error the command line prints without a traceback.

    Args:
        what: what is wrong, with the offending values.
        why: why it matters; may be empty where it is evident.
        fix: what to set, run or look at.
    """

    exit_code = 1

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        self.what, self.why, self.fix = what, why, fix
        super().__init__(" ".join(part for part in (what, why, fix) if part))


class ConfigError(MegalignError):
    """A wrong setting or a wrong combination of settings."""

    exit_code = 2


class DataError(MegalignError):
    """Data that is missing, damaged or does not fit the run."""

    exit_code = 3


class EnvironmentProblem(MegalignError):
    """Something this machine lacks."""

    exit_code = 4


class TrainingProblem(MegalignError):
    """Training itself went wrong: not finite, diverging, ranks that differ. Starting again would meet it again."""

    exit_code = 5


class SupersededError(MegalignError):
    """Another process took the run over: this one may not publish any more."""

    exit_code = 6


class StoppedOnRequest(MegalignError):
    """The run was asked to stop and saved its state: start the same command again to continue."""

    exit_code = 75


def first_line(error: BaseException) -> str:
    """A library's error: its kind and the first line of what it says, without a full stop."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0].rstrip('.') if text else 'no message'}"


_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_RIGHTS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_PATH = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP})
_STORAGE = frozenset({errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE})


def report_error(error: MegalignError | OSError, rank: int = 0) -> int:
    """Print an error for a person.

    Args:
        error: one of the operating system that is not about files is raised again.
        rank: that met it. Requests to stop reach all ranks, and rank 0 tells.

    Returns:
        the exit code.
    """
    if isinstance(error, OSError):
        problem = of_storage(error)
        if problem is None:
            raise error
        error = problem
    if rank == 0 or error.exit_code != StoppedOnRequest.exit_code:
        lines = [f"error: {error.what}", *(f"  {part}" for part in (error.why, error.fix) if part)]
        tell("\n".join(lines))
    return error.exit_code


def of_storage(error: OSError) -> EnvironmentProblem | None:
    """What the file system says, for a person; None where it is not about a file: that is our fault, with a traceback."""
    if error.errno not in _SPACE | _RIGHTS | _PATH | _STORAGE or (error.errno in _PATH and error.filename is None):
        return None
    where = f"{error.filename}: " if error.filename is not None else ""
    fix = "Check this path and the storage it is on."
    if error.errno in _SPACE:
        fix = "Free space there, or choose another folder; the same command goes on where it stopped."
    elif error.errno in _RIGHTS:
        fix = "Choose a folder that you may write to, or change its permissions."
    return EnvironmentProblem(f"{where}{os.strerror(error.errno)}.", "", fix)
