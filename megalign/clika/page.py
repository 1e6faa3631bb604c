"""The page: one self-contained HTML file that any browser opens, without scripts and without the network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megalign.clika.datasets import Protocol
from megalign.clika.figures import Point, heat_map, scatter
from megalign.clika.findings import KINDS, Finding
from megalign.clika.scores import hardly_parsed
from megalign.pages import Picture, template

Row = dict[str, Any]

HEAT_METRICS = {"ra": "RA", "en_co": "en-CO"}
COMPARED = ("accuracy", "ra", "en_co")
MAX_FINDINGS_SHOWN = 200
UNDEFINED = "n/a"


@dataclass(frozen=True)
class Report:
    """What the page says about how the scores were made."""

    title: str
    protocol: Protocol
    parse: str
    num_resamples: int
    confidence: float


def render_page(
    report: Report,
    scores: Sequence[Row],
    intervals: Sequence[Row],
    comparisons: Sequence[Row],
    parsing: Sequence[Row],
    findings: Sequence[Finding],
) -> str:
    """The whole page as HTML. Everything that comes from files is escaped by the template engine."""
    bounds = {(row["level"], row["name"], row["model"], row["language"], row["metric"]): row for row in intervals}
    datasets = sorted({row["dataset"] for row in scores})
    changed = [row for row in parsing if row["accuracy_difference"] or row["parse_rate_difference"]]
    return template(Path(__file__).parent, "page.html.j2", {"share": share, "percent": percent}).render(
        report=report,
        scores=scores,
        num_models=len({row["model"] for row in scores}),
        languages=sorted({row["language"] for row in scores}, key=language_order),
        constants={name: report.protocol.dataset(name) for name in datasets},
        heat_maps=heat_maps(intervals, "dataset"),
        knowledge_maps=heat_maps(intervals, "knowledge"),
        scatters=knowledge_figures(intervals),
        bounds=bounds,
        comparisons=compared_rows(comparisons),
        compared=COMPARED,
        num_comparisons=len(comparisons),
        parsing=changed,
        hardly_parsed=hardly_parsed(scores),
        counts=Counter(finding.kind for finding in findings),
        kinds=KINDS,
        findings=findings[:MAX_FINDINGS_SHOWN],
        num_findings=len(findings),
    )


def heat_maps(intervals: Sequence[Row], level: str) -> dict[str, list[Picture]]:
    """For each group of a level (a data set, a type of knowledge): a heat map of RA and one of en-CO."""
    maps: dict[str, list[Picture]] = {}
    for group in sorted({row["name"] for row in intervals if row["level"] == level}):
        rows = [row for row in intervals if row["level"] == level and row["name"] == group]
        models = list(dict.fromkeys(row["model"] for row in rows))
        languages = sorted({row["language"] for row in rows}, key=language_order)
        for metric, name in HEAT_METRICS.items():
            shown = [language for language in languages if metric == "ra" or language != "en"]
            values = {(row["model"], row["language"]): row["value"] for row in rows if row["metric"] == metric}
            if shown:
                title = f"{name}, {group}"
                alt = f"{title}, by model and language; the numbers are in the table of scores"
                maps.setdefault(group, []).append(Picture(heat_map(title, values, models, shown), alt))
    return maps


def compared_rows(comparisons: Sequence[Row]) -> list[tuple[Row, dict[str, Row]]]:
    """Comparisons on the means of types of knowledge: a row per pair, knowledge and language, with its scores by name."""
    lines: dict[tuple[str, ...], tuple[Row, dict[str, Row]]] = {}
    for row in comparisons:
        if row["level"] == "knowledge" and row["metric"] in COMPARED:
            key = tuple(row[name] for name in ("comparison", "base", "other", "name", "language"))
            lines.setdefault(key, (row, {}))[1][row["metric"]] = row
    return list(lines.values())


def knowledge_figures(intervals: Sequence[Row]) -> list[Picture]:
    """RA against en-CO, a picture per type of knowledge."""
    values = {
        (row["name"], row["model"], row["language"], row["metric"]): row["value"]
        for row in intervals
        if row["level"] == "knowledge"
    }
    figures = []
    for knowledge in sorted({key[0] for key in values}):
        points = []
        for (kind, model, language, metric), en_co in values.items():
            if kind == knowledge and metric == "en_co" and en_co is not None:
                ra = values[kind, model, language, "ra"]
                if ra is not None:
                    points.append(Point(model, language, ra, en_co))
        if points:
            title = f"Performance and consistency, {knowledge} knowledge"
            figures.append(Picture(scatter(title, points), f"{title}: a dot per model and language"))
    return figures


def language_order(language: str) -> tuple[bool, str]:
    """English first, then by code."""
    return language != "en", language


def share(value: float | None) -> str:
    """A score as three decimals; n/a where it is undefined."""
    return UNDEFINED if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    """A percentage as one decimal; n/a where it is undefined."""
    return UNDEFINED if value is None else f"{value:.1f}"
