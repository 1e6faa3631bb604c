"""Which rows of a task become documents of the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict

import numpy as np
import numpy.typing as npt
import orjson
import regex

from megalign.corpus.preprocess.settings import PreprocessSettings
from megalign.corpus.readers import BadRow, Document
from megalign.errors import DataError

_EARLY_ROWS = 1000


class Selection:
    """Filters rows and counts what happens to them.

    Args:
        settings: of the run.
        duplicates: places within the task (counted from 0 over all its rows) of texts met before, increasing.

    Attributes:
        counts: rows, kept, bad, and one count per reason for leaving a document out.
        quarantine: bad rows as JSON lines.
    """

    def __init__(self, settings: PreprocessSettings, duplicates: npt.NDArray[np.int64] | None = None) -> None:
        self._settings = settings
        self._keep = [regex.compile(pattern) for pattern in settings.keep_urls]
        self._drop = [regex.compile(pattern) for pattern in settings.drop_urls]
        self._duplicates = frozenset(duplicates.tolist()) if duplicates is not None else frozenset()
        self.counts: Counter[str] = Counter()
        self.quarantine: list[bytes] = []

    def keep(self, rows: Iterable[tuple[int, Document | BadRow]]) -> Iterator[tuple[int, Document]]:
        """The documents to keep, with their places.

        Raises:
            DataError: a row is bad and bad rows are errors.
        """
        for place, row in rows:
            self.counts["rows"] += 1
            if isinstance(row, BadRow):
                self._bad(row)
            elif reason := self._reason(row):
                self.counts[reason] += 1
            elif place in self._duplicates:
                self.counts["duplicate"] += 1
            else:
                self.counts["kept"] += 1
                yield place, row

    def _bad(self, row: BadRow) -> None:
        if self._settings.on_bad_row == "error":
            raise DataError(
                f"{row.place} has no usable text: {row.reason}.",
                fix="Remove or repair the row, or set on_bad_row to skip or quarantine.",
            )
        self.counts["bad"] += 1
        if self._settings.on_bad_row == "quarantine":
            self.quarantine.append(orjson.dumps(asdict(row), option=orjson.OPT_APPEND_NEWLINE))

    def _reason(self, document: Document) -> str | None:
        """Why a document is left out, or None."""
        settings, url = self._settings, document.url or ""
        if len(document.text) < settings.min_length_chars:
            return "short"
        if settings.collections and document.collection not in settings.collections:
            return "collection"
        if self._keep and not any(pattern.search(url) for pattern in self._keep):
            return "url"
        if any(pattern.search(url) for pattern in self._drop):
            return "url"
        return None


def say_bad_rows(language: str, counts: Mapping[str, int], say: Callable[[str], None]) -> None:
    """Say how many rows of a language were bad, if any were.

    Raises:
        DataError: no row was kept.
    """
    if not counts.get("kept"):
        raise no_document(language, counts)
    if bad := counts.get("bad"):
        say(f"{language}: {bad} of {counts['rows']} rows have no usable text and were left out")


def no_document(language: str, counts: Mapping[str, int]) -> DataError:
    """The error of a language of which no row was kept."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()) if reason != "rows")
    return DataError(
        f"No document of {language} is left of {counts.get('rows', 0)} rows" + (f" ({reasons})." if reasons else "."),
        fix="Look at the input and at the filters.",
    )


def check_bad_rows(counts: Mapping[str, int], settings: PreprocessSettings, finished: bool = True) -> None:
    """Fail where too many rows were bad.

    Before the end, a thousand rows must have been seen and twice the share be exceeded: what was read first may be worse than
    the rest.

    Raises:
        DataError: with the counts.
    """
    bad, rows = counts.get("bad", 0), counts.get("rows", 0)
    allowed = settings.max_bad_fraction * (1 if finished else 2)
    if bad > allowed * rows and (finished or rows >= _EARLY_ROWS):
        raise DataError(
            f"{bad} of {rows} rows are bad, more than max_bad_fraction = {settings.max_bad_fraction} allows.",
            "The input is probably damaged or of another kind.",
            "Look at the quarantined rows (on_bad_row=quarantine), or allow more.",
        )
