"""Rows of responses to compact arrays, with what is wrong in them found on the way."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import orjson

from megalign.clika.datasets import MAX_OPTIONS, DataSet
from megalign.clika.findings import Finding, some
from megalign.clika.parse import Codes, Parsed, first_two, label_codes, parse_pairs
from megalign.errors import DataError

Item = int | str

OPTION_STARTS = tuple(f"{chr(ord('A') + place)}." for place in range(MAX_OPTIONS))


@dataclass(frozen=True)
class AnswerSet:
    """What one model answered to one data set in one language.

    Attributes:
        path: the file, for messages.
        items: [n] the questions' names (uuid, else id), each once, in the file's order; the same object for files that agree.
        lines: [n] int32, the line of each row, counted from 1.
        labels: [n] uint8, the right option, 1 for A.
        parsed: the options the responses name.
    """

    model: str
    dataset: str
    language: str
    path: str
    items: tuple[Item, ...]
    lines: npt.NDArray[np.int32]
    labels: Codes
    parsed: Parsed


@dataclass
class Rows:
    """Rows of one cell while they are read; every fault is kept with its line."""

    dataset: DataSet
    items: list[Item] = field(default_factory=list)
    pairs: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    not_json: list[int] = field(default_factory=list)
    bad: dict[str, list[int]] = field(default_factory=dict)

    def add(self, line: int, item: Any, response: Any, label: Any) -> None:
        """Take one row if it can be used; a response that is no text counts as unparsed and stays in the denominator."""
        if type(item) not in (int, str):
            return self._fault("no item (uuid, id): an integer or a text", line)
        if not isinstance(label, str) or len(label) != 1 or label not in self.dataset.letters:
            return self._fault(f"label {str(label)[:20]!r} is none of {', '.join(self.dataset.letters)}", line)
        if not isinstance(response, str):
            self._fault("response is no text; counted as unparsed", line)
        self.items.append(item)
        self.pairs.append(first_two(response) if isinstance(response, str) else "  ")
        self.labels.append(label)
        self.lines.append(line)

    def add_block(self, rows: Sequence[dict[str, Any]], first_line: int, key: str) -> None:
        """Take many sound rows at once.

        Raises:
            KeyError, TypeError, AttributeError, ValueError: one is not sound; nothing was taken.
        """
        items = [row[key] for row in rows]
        pairs = [row["res"].lstrip()[:2].ljust(2) for row in rows]
        labels = [row["label"] for row in rows]
        if not set(map(type, items)) <= {int, str} or not set(labels) <= set(self.dataset.letters):
            raise ValueError
        self.items += items
        self.pairs += pairs
        self.labels += labels
        self.lines += range(first_line, first_line + len(rows))

    def finish(
        self, cell: tuple[str, str, str], path: str, *, accept_look_alikes: bool
    ) -> tuple[AnswerSet | None, list[Finding]]:
        """The rows of `cell` (model, data set, language) as arrays, each item once; None without rows. And what was wrong."""
        findings = []
        if self.not_json:
            findings.append(
                Finding("not_jsonl", path, tuple(self.not_json), f"{len(self.not_json)} line(s) are no JSON object")
            )
        for reason, lines in self.bad.items():
            findings.append(Finding("bad_row", path, tuple(lines), f"{len(lines)} row(s): {reason}"))
        keep: slice | npt.NDArray[np.int64] = slice(None)
        if len(set(self.items)) < len(self.items):
            seen: dict[Item, int] = {}
            keep = np.array([at for at, item in enumerate(self.items) if seen.setdefault(item, at) == at])
            again = np.setdiff1d(np.arange(len(self.items)), keep)
            repeated = tuple(self.lines[at] for at in again)
            text = f"{len(again)} row(s) repeat an item: {some([self.items[at] for at in again])}"
            findings.append(Finding("duplicated_rows", path, repeated, text))
            self.items = list(seen)
        if not self.items:
            return None, findings or [Finding("missing_rows", path, (), "the file has no rows")]
        parsed = parse_pairs(self.pairs, self.dataset.num_options, accept_look_alikes=accept_look_alikes)
        answers = AnswerSet(
            *cell,
            path,
            items=tuple(self.items),
            lines=np.array(self.lines, dtype=np.int32)[keep],
            labels=label_codes(self.labels, self.dataset.num_options)[keep],
            parsed=Parsed(parsed.released[keep], parsed.strict[keep], parsed.look_alike[keep]),
        )
        return answers, findings

    def _fault(self, reason: str, line: int) -> None:
        self.bad.setdefault(reason, []).append(line)


@dataclass
class Questions:
    """Looks at the options of every question once per language, however many models answered it."""

    _seen: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    _repeated: dict[str, list[tuple[int, str]]] = field(default_factory=dict)

    @property
    def findings(self) -> list[Finding]:
        """What was found so far, one finding per file."""
        findings = []
        for path, found in self._repeated.items():
            shown = some([f"line {line}: {text!r}" for line, text in found])
            text = f"{len(found)} question(s) offer an option twice: {shown}"
            findings.append(Finding("repeated_options", path, tuple(line for line, _ in found), text))
        return findings

    def look(
        self,
        rows: Sequence[dict[str, Any]],
        lines: Iterable[int],
        cell: tuple[str, str],
        path: str,
        dataset: DataSet,
    ) -> None:
        """Find questions of `cell` (data set, language) whose prompt, the column `input`, offers the same option twice."""
        seen = self._seen.setdefault(cell, set())
        # What follows the last line "A." are this question's options; examples shown before it are cut off.
        try:
            tails = [(prompt := row["input"])[prompt.rfind("\nA.") :] for row in rows]
        except (KeyError, TypeError, AttributeError):
            prompts = [row.get("input") for row in rows]
            tails = [prompt[prompt.rfind("\nA.") :] if isinstance(prompt, str) else "" for prompt in prompts]
        if seen.issuperset(tails):
            return
        for tail, line in zip(tails, lines, strict=True):
            if tail not in seen:
                seen.add(tail)
                if repeated := repeated_options(tail, dataset.num_options):
                    self._repeated.setdefault(path, []).append((line, repeated))


def repeated_options(tail: str, num_options: int) -> str:
    """The first option that stands twice in a prompt's end, which has a line `A. text` per option; empty where all differ."""
    texts = [
        line[2:].strip()
        for line, letter in zip(tail.split("\n")[1:], OPTION_STARTS[:num_options], strict=False)
        if line.startswith(letter)
    ]
    folded = [text.casefold() for text in texts]
    if len(set(folded)) == len(folded):
        return ""
    return next(text for place, text in enumerate(texts) if folded[place] in folded[:place])


def opened(path: Path) -> BinaryIO:
    """A file to read; DataError where that is not possible."""
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}.", fix="Mend the file or the link, or leave it out of the input."
        ) from None


def json_object(text: bytes) -> dict[str, Any] | None:
    """A line's JSON object; None where it is anything else. The mark that some editors write before a file's text is no fault."""
    try:
        content = orjson.loads(text.removeprefix(codecs.BOM_UTF8))
    except ValueError:
        return None
    return content if isinstance(content, dict) else None
