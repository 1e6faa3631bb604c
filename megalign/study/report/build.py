"""A study folder in, its report folder out."""

from __future__ import annotations

from pathlib import Path

from megalign.files import new_folder, write_bytes, write_text
from megalign.study.report.exports import aggregate_csv, curves_csv, summary_csv
from megalign.study.report.figures import draw_figures
from megalign.study.report.page import render_page
from megalign.study.report.results import Report, load


def build_report(study_folder: Path) -> Report:
    """Read a study folder and write STUDY/report/: index.html, the figures as PNG, summary.csv, aggregate.csv, curves.csv.

    The report folder appears whole or not at all, and replaces an older one. Runs that have not finished are named in it and count in
    no table of scores. The same files give the same bytes.

    Args:
        study_folder: holds study.json and runs/METHOD/seedN/{run.json, scores.jsonl, metrics.jsonl}.

    Raises:
        DataError: study.json is missing; a finished run has no scores; a line of a file is not as agreed (names file and line).
    """
    report = load(study_folder)
    figures = draw_figures(report)
    page = render_page(report, figures)
    with new_folder(report.folder) as folder:
        write_bytes(folder / "summary.csv", summary_csv(report))
        write_bytes(folder / "aggregate.csv", aggregate_csv(report))
        write_bytes(folder / "curves.csv", curves_csv(report))
        for figure in figures:
            write_bytes(folder / f"{figure.name}.png", figure.png)
        write_text(folder / "index.html", page)
    return report
