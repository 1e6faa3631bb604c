"""All answers to one data set side by side: every array has a row per cell and a column per item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from megalign.clika.parse import Codes
from megalign.clika.rows import AnswerSet, Item

ENGLISH = "en"


@dataclass(frozen=True)
class Panel:
    """The answers to one data set, aligned by item.

    Attributes:
        items: [items] every item of any file; English files' order first.
        cells: the answer sets, ordered by model and language.
        positions: for each cell, [its rows] int64, the column of each of its rows.
        present: [cells, items] bool, the cell has a row for the item.
        released, strict: [cells, items] uint8, the option the response names, 0 for none, by either way of parsing.
        labels: [cells, items] uint8, the right option; 0 where absent.
    """

    dataset: str
    items: tuple[Item, ...]
    cells: tuple[AnswerSet, ...]
    positions: tuple[npt.NDArray[np.int64], ...]
    present: npt.NDArray[np.bool_]
    released: Codes
    strict: Codes
    labels: Codes

    @property
    def models(self) -> list[str]:
        """Models in their order, each once."""
        return list(dict.fromkeys(cell.model for cell in self.cells))

    def rows_of(self, model: str) -> list[int]:
        """The rows of a model's cells."""
        return [row for row, cell in enumerate(self.cells) if cell.model == model]

    def english_of(self, model: str) -> int | None:
        """The row of a model's English cell."""
        return next((row for row in self.rows_of(model) if self.cells[row].language == ENGLISH), None)


def panels(answers: Sequence[AnswerSet]) -> dict[str, Panel]:
    """A panel per data set, in the order of names."""
    ordered = sorted(answers, key=lambda one: (one.dataset, one.model, one.language))
    return {name: _panel(name, tuple(cells)) for name, cells in groupby(ordered, key=lambda one: one.dataset)}


def _panel(dataset: str, cells: tuple[AnswerSet, ...]) -> Panel:
    column: dict[Item, int] = {}
    known: dict[int, npt.NDArray[np.int64]] = {}
    for cell in sorted(cells, key=lambda one: one.language != ENGLISH):
        # Files that agree share one tuple of items (see read_answers), so most cells cost nothing here.
        if id(cell.items) not in known:
            places = (column.setdefault(item, len(column)) for item in cell.items)
            known[id(cell.items)] = np.fromiter(places, dtype=np.int64, count=len(cell.items))
    positions = tuple(known[id(cell.items)] for cell in cells)
    shape = (len(cells), len(column))
    present = np.zeros(shape, dtype=np.bool_)
    released, strict, labels = (np.zeros(shape, dtype=np.uint8) for _ in range(3))
    for row, (cell, at) in enumerate(zip(cells, positions, strict=True)):
        present[row, at] = True
        released[row, at] = cell.parsed.released
        strict[row, at] = cell.parsed.strict
        labels[row, at] = cell.labels
    return Panel(dataset, tuple(column), cells, positions, present, released, strict, labels)
