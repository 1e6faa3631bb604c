"""The page: one self-contained HTML file that any browser opens, without scripts and without the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from megalign.pages import png_uri, template
from megalign.study.report import inventory, published, tables
from megalign.study.report.dynamics import dynamics_table
from megalign.study.report.figures import Figure
from megalign.study.report.findings import findings
from megalign.study.report.results import Report
from megalign.study.report.tables import Table

SECTION_NOTES = {
    "perplexity": "Dots are means over the finished seeds; bars are the 95 % intervals of the tables.",
    "nli": "Dots are means over the finished seeds; bars are the 95 % intervals of the tables.",
    "dynamics": "Every period of pretraining states new facts, each as often as the row says, and they are asked right after it. Columns: "
    "the language that stated a fact, and the one that asks.",
    "alignment": "Lines are means over seeds, bands reach from the lowest to the highest seed. Dotted: random pairs of words.",
    "perplexity_steps": "Lines are means over seeds, bands reach from the lowest to the highest seed.",
    "training_loss": "Means over stretches of steps. In the injection stage the loss includes the contrastive part.",
}


@dataclass(frozen=True)
class HeaderGroup:
    """`span` neighbouring columns under one heading."""

    title: str
    span: int


def render_page(report: Report, figures: Sequence[Figure]) -> str:
    """The whole page as HTML. Everything that comes from files is escaped by the template engine."""
    filters: dict[str, Callable[..., Any]] = {"header_groups": header_groups, "png_uri": png_uri}
    study = report.study
    unfinished = [run for run in report.runs if not run.finished]
    return template(Path(__file__).parent, "report.html.j2", filters).render(
        study=study,
        report=report,
        clone_words=", ".join(f"{clone} is a clone of {original}" for clone, original in study.clone_of.items()),
        findings=findings(report),
        unfinished=unfinished,
        labels={method.name: method.label for method in study.methods},
        main=tables.main_table(report),
        comparison=tables.comparison_table(report),
        ablation=tables.ablation_table(report),
        alignments=[
            table
            for language in study.targets
            for table in (tables.alignment_table(report, language), tables.sentence_table(report, language))
            if table
        ],
        mass=tables.mass_table(report),
        likelihood=tables.likelihood_table(report),
        pairs=tables.pairs_table(report),
        seen=tables.seen_table(report),
        learned=dynamics_table(report),
        other=tables.other_table(report),
        seeds=inventory.seeds_table(report),
        reading=inventory.reading_table(report),
        making=inventory.making_table(report),
        settings=inventory.settings_table(report),
        metrics=inventory.measured_metrics(report),
        published=published.published_tables(report),
        published_caution=published.CAUTION,
        citation=published.CITATION,
        figures={section: list(some) for section, some in groupby(figures, key=lambda figure: figure.section)},
        notes=SECTION_NOTES,
    )


def header_groups(table: Table) -> list[HeaderGroup]:
    """The upper header row of a table; empty where no column belongs to a group."""
    if not any(column.group for column in table.columns):
        return []
    groups = []
    for title, columns in groupby(table.columns, key=lambda column: column.group):
        groups.append(HeaderGroup(title, len(list(columns))))
    return groups
