"""The table that fits are made of: one row for each number that was measured of a trained model."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from megalign.errors import DataError

REQUIRED = ("method", "size", "parameters", "language", "metric", "value")


@dataclass(frozen=True)
class Measurement:
    """A number measured of one run.

    Attributes:
        method: what is compared, e.g. joint or prealign.
        size: name of the model's size.
        parameters: parameters that are no embeddings (Kaplan et al. 2020, arXiv 2001.08361): the axis of the fits.
        language: of the test text.
        metric: nll_per_token (nats), perplexity, or clka and clka_control (shares from 0 to 1).
        value: the number.
        seed: of data and weights; runs of one seed read the same data.
        target_ratio: source tokens for one token of a target language; None: not varied.
        target_tokens: target-language tokens read; None: unknown.
        total_parameters: embeddings included; None: unknown.
        flops: training FLOPs, injection included; None: unknown.
        seconds: processes x wall-clock seconds; None: unknown.
    """

    method: str
    size: str
    parameters: float
    language: str
    metric: str
    value: float
    seed: int = 0
    target_ratio: float | None = None
    target_tokens: float | None = None
    total_parameters: float | None = None
    flops: float | None = None
    seconds: float | None = None


COLUMNS = tuple(field.name for field in fields(Measurement))
_TEXT = ("method", "size", "language", "metric")


def read_table(path: Path) -> list[Measurement]:
    """The measurements of a CSV or JSON-lines file with the columns of `Measurement`; others are left out.

    Perplexities become nll_per_token, their logarithm.

    Raises:
        DataError: no such file, a required column is missing, or a cell is not what it must be (names the row).
    """
    if not path.is_file():
        raise DataError(f"There is no table {path}.", fix="Name a study's folder, or a CSV or JSON-lines file.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text.", fix="Name a CSV or JSON-lines file.") from None
    rows = list(_json_rows(text, path) if path.suffix == ".jsonl" else _csv_rows(text))
    if not rows:
        raise DataError(f"{path} has no rows.", "There is nothing to fit.")
    return [_measurement(row, f"{path}, row {number}") for number, row in enumerate(rows, start=1)]


def _csv_rows(text: str) -> Iterator[Mapping[str, object]]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return iter(csv.DictReader(lines))


def _json_rows(text: str, path: Path) -> Iterator[Mapping[str, object]]:
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number} is not JSON: {error.msg}.") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number} is not an object with the columns of a measurement.")
        yield row


def _measurement(row: Mapping[str, object], where: str) -> Measurement:
    missing = [name for name in REQUIRED if row.get(name) in (None, "")]
    if missing:
        raise DataError(
            f"{where} has no {', '.join(missing)}.",
            "Every row is one number measured of one model.",
            f"The columns are: {', '.join(COLUMNS)}; required: {', '.join(REQUIRED)}.",
        )
    texts = {name: str(row[name]) for name in _TEXT}
    numbers = {
        name: _number(row[name], name, where)
        for name in COLUMNS
        if name not in _TEXT and row.get(name) not in (None, "")
    }
    seed = numbers.pop("seed", 0.0)
    found = Measurement(**texts, seed=int(seed), **numbers)  # type: ignore[arg-type]
    return as_loss(_checked(found, where))


def _number(value: object, name: str, where: str) -> float:
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{where}: {name} is {value!r}, not a finite number.")
    return number


def _checked(found: Measurement, where: str) -> Measurement:
    if found.parameters <= 0:
        raise DataError(f"{where}: parameters is {found.parameters:g}.", "Fits are over its logarithm.")
    if found.metric in ("perplexity", "nll_per_token") and found.value <= (1 if found.metric == "perplexity" else 0):
        raise DataError(f"{where}: {found.metric} is {found.value:g}.", "A loss is above zero, a perplexity above one.")
    if found.metric.startswith("clka") and "margin" not in found.metric and not 0 <= found.value <= 1:
        raise DataError(
            f"{where}: {found.metric} is {found.value:g}.", "It is a share from 0 to 1.", "Divide percentages by 100."
        )
    return found


def as_loss(one: Measurement) -> Measurement:
    """A perplexity as nats a token; anything else as it is."""
    if one.metric != "perplexity":
        return one
    changed = {field.name: getattr(one, field.name) for field in fields(one)}
    return Measurement(**{**changed, "metric": "nll_per_token", "value": math.log(one.value)})


def table_csv(measurements: Iterable[Measurement]) -> bytes:
    """The measurements as CSV that `read_table` reads back to the same values."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in measurements:
        cells = (getattr(one, name) for name in COLUMNS)
        writer.writerow("" if cell is None else repr(cell) if isinstance(cell, float) else cell for cell in cells)
    return stream.getvalue().encode()
