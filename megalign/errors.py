"""Errors that a user can act on. Each says what is wrong, why it matters, and what to set."""

from __future__ import annotations


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
