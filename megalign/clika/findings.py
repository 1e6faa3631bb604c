"""What a check found in the data: a kind, the file, the lines, and a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from megalign.errors import DataError

MAX_LINES_SHOWN = 5

KINDS = {
    "not_jsonl": "lines that are not JSON objects; left out",
    "bad_row": "rows without a usable item, label or response",
    "missing_rows": "items that other files of the data set have and this one lacks",
    "unexpected_rows": "items that most files of the data set lack",
    "duplicated_rows": "items that stand twice in a file; the first counts",
    "out_of_order": "rows in another order than the data set's other files; scored by item, so no score changes",
    "different_labels": "labels that differ from those of most files; each row is scored by its own label",
    "repeated_options": "questions that offer the same option twice",
    "constant_answers": "models that answer nearly always with the same letter",
    "look_alike_letters": "answers that start with a letter that only looks like an option's",
    "no_english": "cells without English responses of the same model, so without consistency",
    "ignored_file": "files beside the responses that are not read",
}


@dataclass(frozen=True)
class Finding:
    """One thing found. `lines` count from 1 and are empty where the whole file is meant; of missing rows, where they would stand."""

    kind: str
    path: str
    lines: tuple[int, ...]
    message: str

    def __str__(self) -> str:
        where = f"{self.path}:{self.lines[0]}" if self.lines else self.path
        return f"{where}: {self.kind}: {self.message}"

    def row(self) -> dict[str, Any]:
        """The finding as written to findings.jsonl: `line` is the first of `lines`."""
        content = asdict(self)
        return {**content, "lines": list(self.lines), "line": self.lines[0] if self.lines else None}


def some(values: Sequence[object]) -> str:
    """The first few of many, for a message."""
    shown = ", ".join(str(value) for value in values[:MAX_LINES_SHOWN])
    rest = len(values) - MAX_LINES_SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown


def counted(number: int, noun: str) -> str:
    """A number with its noun: 1 finding, 2 findings."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def refuse(findings: Sequence[Finding]) -> None:
    """Make findings an error.

    Raises:
        DataError: there is at least one.
    """
    if findings:
        raise DataError(
            f"{counted(len(findings), 'finding')} in the data:\n  "
            + "\n  ".join(str(finding) for finding in findings[:20]),
            "They are errors because of --strict." + (" The first 20 are shown." if len(findings) > 20 else ""),
            "Mend the files, or score without --strict and read findings.jsonl beside the scores.",
        )
