"""The command line."""

from megalign.cli.app import main

__all__ = ["main"]
