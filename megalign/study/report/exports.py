"""The numbers as CSV files, for scripts: floats by repr, so that nothing is lost; no timings; a fixed order of rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from megalign.study.report.results import Report, sort_key

SUMMARY_COLUMNS = ("method", "seed", "metric", "language", "level", "value", "low", "high", "n", "unit")
AGGREGATE_COLUMNS = (
    "method",
    "metric",
    "language",
    "level",
    "mean",
    "low",
    "high",
    "num_seeds",
    "interval_over",
    "num_items",
    "unit",
)
CURVE_COLUMNS = (
    "method",
    "seed",
    "status",
    "metric",
    "language",
    "level",
    "step",
    "value",
    "low",
    "high",
    "n",
    "unit",
)


def summary_csv(report: Report) -> bytes:
    """The final scores of every finished run."""
    rows = []
    for run in report.runs:
        for score in sorted(run.final_scores, key=lambda score: sort_key(*score.key)) if run.finished else ():
            rows.append((run.method, run.seed, *score.key, score.value, score.low, score.high, score.n, score.unit))
    return _csv(SUMMARY_COLUMNS, rows)


def aggregate_csv(report: Report) -> bytes:
    """Means over finished seeds; `interval_over` says whether low and high are over seeds or over one run's items."""
    rows = [
        (
            *item.key,
            item.mean,
            item.low,
            item.high,
            item.num_seeds,
            item.interval_over,
            item.num_items,
            item.unit,
        )
        for item in report.aggregates.values()
    ]
    return _csv(AGGREGATE_COLUMNS, rows)


def curves_csv(report: Report) -> bytes:
    """The scores of every step of every run, finished or not; `status` tells which."""
    rows = []
    for run in report.runs:
        for score in sorted(run.scores, key=lambda score: (sort_key(*score.key), score.step)):
            values = (score.value, score.low, score.high, score.n, score.unit)
            rows.append((run.method, run.seed, run.status, *score.key, score.step, *values))
    return _csv(CURVE_COLUMNS, rows)


def _csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(
        ["" if item is None else repr(item) if isinstance(item, float) else item for item in row] for row in rows
    )
    return stream.getvalue().encode("utf-8")
