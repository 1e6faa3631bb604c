"""The numbers that the PreAlign paper prints (arXiv 2407.16222), for reading beside one's own; never thresholds."""

from __future__ import annotations

from megalign.study.report.metrics import number
from megalign.study.report.results import Report
from megalign.study.report.tables import NOTHING, Cell, Column, Table

CITATION = "PreAlign, arXiv 2407.16222"

# English and its clone, 10 B + 0.1 B tokens: method, LM en, LM clone, ZS-CLT en, ZS-CLT clone, CLKA clone.
CLONE_COLUMNS = ("LM en", "LM clone", "ZS-CLT en", "ZS-CLT clone", "CLKA clone")
CLONE_ROWS: tuple[tuple[str, tuple[float | None, ...]], ...] = (
    ("Joint training", (16.1, 21.6, 79.8, 74.9, 27.7)),
    ("On-the-fly alignment", (None, 22.1, None, 74.3, 26.5)),
    ("Alignment after pretraining", (None, 19.7, None, 75.5, 28.4)),
    ("Codeswitching only", (None, 19.7, None, 76.1, 30.2)),
    ("Injection only", (None, 17.1, None, 77.8, 85.7)),
    ("PreAlign", (15.9, 16.5, 80.1, 79.3, 90.3)),
    ("PreAlign, 75 % of the words", (None, 16.6, None, 78.8, 88.4)),
    ("PreAlign, 50 % of the words", (None, 16.8, None, 78.6, 83.1)),
    ("PreAlign, 25 % of the words", (None, 17.0, None, 78.2, 80.2)),
    ("PreAlign, vanilla codeswitching", (None, 17.1, None, None, None)),
    ("Only target", (None, 47.2, None, None, None)),
    ("Full target", (None, 16.2, None, None, None)),
)

# Real languages: model and method, perplexity and CLKA for zh, de, ar, ru.
REAL_LANGUAGES = ("zh", "de", "ar", "ru")
REAL_ROWS: tuple[tuple[str, tuple[float, ...], tuple[float, ...]], ...] = (
    ("150M, joint", (99.7, 43.5, 46.9, 49.8), (26.2, 25.1, 26.8, 26.3)),
    ("150M, PreAlign", (91.1, 39.8, 40.7, 44.6), (45.7, 48.2, 43.4, 46.0)),
    ("400M, joint", (79.8, 32.5, 34.8, 39.6), (37.8, 39.5, 36.1, 37.7)),
    ("400M, PreAlign", (75.2, 28.3, 30.7, 33.6), (63.8, 66.5, 64.7, 63.6)),
    ("1.3B, joint", (62.2, 24.0, 27.7, 31.2), (49.6, 44.1, 45.5, 48.0)),
    ("1.3B, PreAlign", (58.0, 23.3, 25.3, 29.4), (71.1, 73.9, 72.7, 72.5)),
)

CAUTION = (
    "Other data, and other models trained on about 10 B tokens: compare the order and the direction, not the numbers. The paper "
    "contradicts itself in places: its text gives a CLKA of 64.6 where its table prints 90.3, and its 24,000 steps of 1 M tokens are "
    "25 B tokens where it names 10.1 B."
)


def published_tables(report: Report) -> list[Table]:
    """The paper's numbers that belong beside this study's: of the clone, of real languages, or both."""
    real = [language for language in REAL_LANGUAGES if language in report.study.targets]
    tables = []
    if report.study.clone_of or not real:
        columns = (Column("Method", text=True), *(Column(title) for title in CLONE_COLUMNS))
        rows = tuple((Cell(name), *map(_cell, values)) for name, values in CLONE_ROWS)
        tables.append(Table("English and En-Clone, as printed (CLKA and ZS-CLT in %)", columns, rows))
    if real:
        places = [REAL_LANGUAGES.index(language) for language in real]
        columns = (
            Column("Model, method", text=True),
            *(Column(language, group) for group in ("Perplexity", "CLKA, %") for language in real),
        )
        rows = tuple(
            (Cell(name), *(_cell(values[place]) for values in (perplexity, clka) for place in places))
            for name, perplexity, clka in REAL_ROWS
        )
        tables.append(Table("Real languages, as printed", columns, rows))
    return tables


def _cell(value: float | None) -> Cell:
    return Cell(NOTHING if value is None else number(value, 1))
