"""The main table for a terminal, narrow enough for 80 columns."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from megalign.study.report.metrics import display_scale, number
from megalign.study.report.results import Report
from megalign.study.report.tables import interval_words, mean_tokens, token_scale, tokens_cell, value_cell

# Longer method names are cut, so that the numbers are not.
METHOD_WIDTH = 20
METRIC_TITLES = {
    "perplexity": "perplexity",
    "bits_per_byte": "bits/byte",
    "clka": "CLKA, %",
    "clka_control": "control, %",
}
WITH_INTERVAL = ("clka", "clka_control")


def console_table(report: Report) -> RichTable:
    """The paper's Table 1 with a block of rows for every language: tokens read, perplexity, bits per byte, CLKA, control facts.

    Text from files is shown as it stands, never read as markup.
    """
    study = report.study
    suffix = token_scale(report)[1]
    columns: dict[str, Callable[[str, str], str]] = {
        "seeds": lambda method, _: f"{len(report.finished(method))}/{len(study.seeds)}",
        f"tokens{f', {suffix}' if suffix else ''}": lambda method, language: tokens_cell(report, method, language).text,
    }
    for metric, title in METRIC_TITLES.items():
        if any(report.has(metric, language) for language in study.languages):
            columns[title] = partial(_metric_text, report, metric)
    table = RichTable(
        title=Text(study.title or study.name, style="bold"),
        caption=Text(_caption(report), style="dim"),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        # Only the box's own space stands between columns.
        padding=0,
        pad_edge=False,
    )
    table.add_column("method", no_wrap=True, max_width=METHOD_WIDTH)
    for title in columns:
        table.add_column(Text(title), justify="right", no_wrap=True)
    for language in (study.reference_language, *study.targets):
        table.add_row(Text(language, style="bold"))
        for method in study.methods:
            cells = [Text(cell(method.name, language)) for cell in columns.values()]
            table.add_row(Text(f" {method.label}"), *cells)
    return table


def _metric_text(report: Report, metric: str, method: str, language: str) -> str:
    item = report.get(method, metric, language)
    text = value_cell(item, interval=False).text
    if metric not in WITH_INTERVAL or item is None or item.low is None or item.high is None:
        return text
    low, high = (number(end * display_scale(item.unit), 0) for end in (item.low, item.high))
    interval = f"[{low},{high}]"
    # Padded, so that the values stand under each other whatever their intervals are.
    return f"{text} {interval:>8}"


def _caption(report: Report) -> str:
    suffix = token_scale(report)[1]
    injected = [
        f"{method.label} {tokens_cell(report, method.name, 'injection').text} {suffix}".strip()
        for method in report.study.methods
        if mean_tokens(report, method.name, "injection")
    ]
    sentences = [
        "Means over the finished seeds.",
        f"Read in the injection besides: {', '.join(injected)}." if injected else "",
        interval_words(report),
        "Chance is 25 % for CLKA and control facts." if any(key[1] == "clka" for key in report.aggregates) else "",
        f"{sum(not run.finished for run in report.runs)} of {len(report.runs)} runs have not finished."
        if any(not run.finished for run in report.runs)
        else "",
    ]
    return " ".join(sentence for sentence in sentences if sentence)
