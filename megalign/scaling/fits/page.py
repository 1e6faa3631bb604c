"""The report of a scaling fit: one HTML file, the pictures, the numbers as JSON and CSV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from megalign.errors import ConfigError
from megalign.files import new_folder, write_bytes, write_json, write_text
from megalign.pages import template
from megalign.scaling.fits.analysis import KNOWLEDGE, LOSS, Analysis, to_json
from megalign.scaling.fits.bootstrap import Estimate
from megalign.scaling.fits.figures import draw_figures
from megalign.scaling.fits.findings import Findings, findings, interval, size_name
from megalign.scaling.fits.measurements import Measurement, table_csv


@dataclass(frozen=True)
class TableRow:
    """Cells of a table, all text; the first is its heading."""

    cells: tuple[str, ...]


def write_report(found: Analysis, out: Path, title: str, notes: Sequence[str] = ()) -> Findings:
    """Write OUT/: index.html, the pictures as PNG, fits.json, measurements.csv.

    The folder appears whole or not at all, and replaces an older one; the same measurements give the same bytes.

    Args:
        found: the analysis.
        out: the folder.
        title: of the page.
        notes: what a reader should know of the measurements.

    Returns:
        the sentences of the report.

    Raises:
        ConfigError: something else than a report stands at `out`; it would be replaced as a whole.
    """
    if out.exists() and not (out / "fits.json").is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(
            f"{out} exists and is no report of scale.",
            "It would be replaced as a whole.",
            "Name a new folder, or remove this one yourself.",
        )
    said = findings(found)
    figures = draw_figures(found)
    by_section = {
        section: [figure.picture for figure in some] for section, some in groupby(figures, key=lambda one: one.section)
    }
    page = template(Path(__file__).parent, "scaling.html.j2").render(
        title=title,
        found=found,
        said=said,
        notes=notes,
        figures=by_section,
        axis="all parameters" if found.question.total_parameters else "parameters without embeddings",
        curves=_curves(found),
        gains=_gains(found),
        multipliers=_multipliers(found),
        knowledge=_knowledge(found),
        costs=_costs(found),
        results=_results(found),
        percent=f"{100 * found.question.fit.confidence:g}",
    )
    with new_folder(out) as folder:
        write_json(folder / "fits.json", {**to_json(found), "supported": said.supported})
        write_bytes(folder / "measurements.csv", table_csv(found.all_rows))
        for figure in figures:
            write_bytes(folder / f"{figure.name}.png", figure.picture.png)
        write_text(folder / "index.html", page)
    return said


def _cell(estimate: Estimate | None, digits: str = ".3f") -> str:
    return "n/a" if estimate is None else interval(estimate, digits)


def _curves(found: Analysis) -> list[TableRow]:
    rows = []
    for (method, language), fit in found.losses.items():
        held = fit.held_out
        rows.append(
            TableRow(
                (
                    f"{method}, {language}",
                    _cell(fit.estimates["E"]),
                    _cell(fit.estimates["A"], ".3g"),
                    _cell(fit.estimates["alpha"]),
                    "n/a" if fit.lack_of_fit is None else f"{fit.lack_of_fit:.2g}",
                    "n/a" if held is None else f"{held.measured:.3f}",
                    "n/a" if held is None else _cell(held.predicted),
                    "supported" if fit.supported else "not supported",
                )
            )
        )
    return rows


def _gains(found: Analysis) -> list[TableRow]:
    names = {size: name for name, size in found.sizes}
    rows = []
    for language, gain in found.gains.items():
        for size in gain.sizes:
            ratio = Estimate(np.exp(-size.estimate.value))
            if size.estimate.low is not None and size.estimate.high is not None:
                ratio = Estimate(ratio.value, np.exp(-size.estimate.high), np.exp(-size.estimate.low))
            rows.append(
                TableRow(
                    (
                        f"{language}, {names[size.parameters]}",
                        size_name(size.parameters),
                        str(len(size.by_seed)),
                        _cell(size.estimate),
                        _cell(ratio, ".2f"),
                    )
                )
            )
    return rows


def _multipliers(found: Analysis) -> list[TableRow]:
    names = {size: name for name, size in found.sizes}
    rows = []
    for language, some in found.multipliers.items():
        for one in some:
            if one.below_one:
                shown = "at most 1"
            else:
                shown = _cell(one.estimate, ".2f") if one.estimate else f"at least {one.at_least:.2g}"
            rows.append(
                TableRow(
                    (f"{language}, {names[one.parameters]}", size_name(one.parameters), str(one.num_points), shown)
                )
            )
    return rows


def _knowledge(found: Analysis) -> list[TableRow]:
    return [
        TableRow(
            (
                f"{method}, {language}",
                _knowledge_midpoint(fit.estimates["midpoint"]) if fit.supported else "n/a",
                _cell(fit.estimates["slope"], ".2f"),
                "supported" if fit.supported else "not supported",
            )
        )
        for (method, language), fit in found.knowledge.items()
    ]


def _knowledge_midpoint(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return size_name(estimate.value)
    return f"{size_name(estimate.value)} [{size_name(estimate.low)}, {size_name(estimate.high)}]"


def _mean(rows: Sequence[Measurement], name: str) -> float | None:
    values = [getattr(row, name) for row in rows]
    return float(np.mean(values)) if values and None not in values else None


def _costs(found: Analysis) -> list[TableRow]:
    rows = []
    for name, size in found.sizes:
        for method in found.methods:
            runs = {
                row.seed: row for row in found.rows if (row.method, row.parameters, row.metric) == (method, size, LOSS)
            }
            flops, seconds = _mean(list(runs.values()), "flops"), _mean(list(runs.values()), "seconds")
            if runs and (flops is not None or seconds is not None):
                rows.append(
                    TableRow(
                        (
                            f"{method}, {name}",
                            str(len(runs)),
                            "n/a" if flops is None else f"{flops:.3g}",
                            "n/a" if seconds is None else f"{seconds / 3600:.3g}",
                        )
                    )
                )
    return rows


def _results(found: Analysis) -> list[TableRow]:
    """Means over seeds, a row a method and size."""
    rows = []
    for name, size in found.sizes:
        for method in found.methods:
            cells = [f"{method}, {name}", size_name(size)]
            for language in found.languages:
                for metric in (LOSS, KNOWLEDGE):
                    values = [row.value for row in found.select(method, language, metric) if row.parameters == size]
                    if metric == LOSS:
                        cells += [f"{np.exp(np.mean(values)):.2f}" if values else "n/a"]
                    else:
                        cells += [f"{100 * np.mean(values):.1f}" if values else "n/a"]
            rows.append(TableRow(tuple(cells)))
    return rows
