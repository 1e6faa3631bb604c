"""What only shows when files are laid side by side: missing items, other orders, other labels, answers that never change."""

from __future__ import annotations

import numpy as np

from megalign.clika.datasets import Protocol
from megalign.clika.findings import Finding, some
from megalign.clika.panel import ENGLISH, Panel
from megalign.clika.rows import AnswerSet

CONSTANT_SHARE = 0.95
# Below this, a long run of one letter says little about the model.
MIN_ROWS_CONSTANT = 20


def check_answers(panels: dict[str, Panel], protocol: Protocol) -> list[Finding]:
    """Findings over the files of each data set.

    Which items a data set has, and which labels are right, is what most of its files say; an item is missing where at least half
    of the files have it.
    """
    findings = []
    for name, panel in panels.items():
        findings += _items(panel, protocol.dataset(name).num_items)
        findings += _labels(panel)
        for row, cell in enumerate(panel.cells):
            findings += _order(panel, row)
            findings += _letters(cell)
        for model in panel.models:
            if panel.english_of(model) is None:
                paths = [panel.cells[row].path for row in panel.rows_of(model)]
                text = f"{model} has no English responses to {name}: no consistency for {some(paths)}"
                findings.append(Finding("no_english", paths[0], (), text))
    return findings


def _items(panel: Panel, expected: int | None) -> list[Finding]:
    findings = []
    common = 2 * panel.present.sum(axis=0) >= len(panel.cells)
    for row, cell in enumerate(panel.cells):
        missing = np.flatnonzero(common & ~panel.present[row])
        if len(missing):
            donor = int(np.argmax(panel.present[:, missing[0]]))
            line = panel.cells[donor].lines[panel.positions[donor] == missing[0]][0]
            text = f"{len(missing)} item(s) have no row: {some([panel.items[at] for at in missing])}"
            text += f"; the first is {panel.cells[donor].path}:{line}"
            findings.append(Finding("missing_rows", cell.path, _gaps(cell, panel.positions[row], missing), text))
        odd = np.isin(panel.positions[row], np.flatnonzero(~common))
        if odd.any():
            names = [cell.items[at] for at in np.flatnonzero(odd)]
            text = f"{len(names)} item(s) that most files of {panel.dataset} lack: {some(names)}"
            findings.append(Finding("unexpected_rows", cell.path, _lines(cell, odd), text))
        if expected is not None and not len(missing) and len(cell.items) < expected:
            text = f"{len(cell.items)} rows; {panel.dataset} has {expected} questions"
            findings.append(Finding("missing_rows", cell.path, (), text))
    return findings


def _gaps(cell: AnswerSet, positions: np.ndarray, missing: np.ndarray) -> tuple[int, ...]:
    """The lines where rows that are missing would stand: those after the rows before them."""
    order = np.argsort(positions)
    before = np.searchsorted(positions[order], missing) - 1
    lines = np.where(before < 0, 1, cell.lines[order[np.maximum(before, 0)]] + 1)
    return tuple(int(line) for line in dict.fromkeys(lines))


def _labels(panel: Panel) -> list[Finding]:
    labels, present = panel.labels, panel.present
    highest = labels.max(axis=0, initial=0)
    disputed = np.flatnonzero((present & (labels != highest)).any(axis=0))
    if not len(disputed):
        return []
    usual = highest.copy()
    for at in disputed:
        given = labels[present[:, at], at]
        counts = np.bincount(given)
        # Ties go to what an English file says, as the other files were translated from it.
        english = [
            labels[row, at] for row, cell in enumerate(panel.cells) if cell.language == ENGLISH and present[row, at]
        ]
        best = np.flatnonzero(counts == counts.max())
        usual[at] = english[0] if english and english[0] in best else best[0]
    findings = []
    for row, cell in enumerate(panel.cells):
        wrong = (labels[row] != usual)[panel.positions[row]]
        if wrong.any():
            places = np.flatnonzero(wrong)
            shown = [
                f"{cell.items[at]} is {_letter(cell.labels[at])}, elsewhere {_letter(usual[panel.positions[row][at]])}"
                for at in places
            ]
            text = f"{len(places)} label(s) differ from most files: {some(shown)}"
            findings.append(Finding("different_labels", cell.path, _lines(cell, wrong), text))
    return findings


def _order(panel: Panel, row: int) -> list[Finding]:
    positions = panel.positions[row]
    # The column order is that of the first English file; a row is late where an item of a later column stands before it.
    late = positions < np.maximum.accumulate(positions)
    if not late.any():
        return []
    cell = panel.cells[row]
    names = [cell.items[at] for at in np.flatnonzero(late)]
    text = f"{len(names)} row(s) stand after items that follow them in other files: {some(names)}"
    return [Finding("out_of_order", cell.path, _lines(cell, late), text)]


def _letters(cell: AnswerSet) -> list[Finding]:
    findings = []
    alike = cell.parsed.look_alike > 0
    if alike.any():
        letters = "".join(sorted({_letter(code) for code in cell.parsed.look_alike[alike]}))
        counted = "counted as these" if cell.parsed.released[alike].any() else "counted as unparsed"
        text = f"{int(alike.sum())} answer(s) start with a letter that only looks like {', '.join(letters)}; {counted}"
        findings.append(Finding("look_alike_letters", cell.path, _lines(cell, alike), text))
    counts = np.bincount(cell.parsed.released, minlength=2)[1:]
    best = int(counts.argmax())
    if len(cell.items) >= MIN_ROWS_CONSTANT and counts[best] >= CONSTANT_SHARE * len(cell.items):
        right = float((cell.labels == best + 1).mean())
        text = f"{cell.model} answers {_letter(best + 1)} in {counts[best]} of {len(cell.items)} rows"
        text += f"; always answering so would reach {100 * right:.1f} %"
        findings.append(Finding("constant_answers", cell.path, (), text))
    return findings


def _letter(code: int | np.integer) -> str:
    return chr(ord("A") + int(code) - 1)


def _lines(cell: AnswerSet, which: np.ndarray) -> tuple[int, ...]:
    return tuple(int(line) for line in cell.lines[which])
