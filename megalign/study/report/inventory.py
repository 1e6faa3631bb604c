"""Tables of what was run: every run with its data and speed, its own scores, and the settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from megalign.study.report.metrics import display_unit, info, number, shown, shown_interval
from megalign.study.report.read import Run
from megalign.study.report.results import Report
from megalign.study.report.tables import BESIDES, NOTHING, Cell, Column, Table


def reading_table(report: Report) -> Table:
    """One row per planned run, unfinished ones too: how far it came, what it read and how often."""
    languages = report.study.languages
    columns = (
        Column("Method", text=True),
        Column("seed"),
        Column("status", text=True),
        Column("last step"),
        *(Column(name, "Tokens read") for name in (*BESIDES, *languages)),
        *(Column(language, "Epochs") for language in languages),
        Column("words switched, %"),
    )
    rows = []
    for run in report.runs:
        cells = [Cell("finished" if run.finished else run.status), _count(run.last_step)]
        record = run.record
        if record is None:
            cells += [Cell(NOTHING)] * (1 + len(BESIDES) + 2 * len(languages))
        else:
            rate = record.codeswitch_rate
            cells += [_count(getattr(record.tokens_seen, name)) for name in BESIDES]
            cells += [_count(record.tokens_seen.pretrain.get(language)) for language in languages]
            cells += [_fixed(record.epochs.get(language), 2) for language in languages]
            cells.append(_fixed(None if rate is None else rate * 100, 2))
        rows.append((*_run_names(report, run), *cells))
    return Table(
        "What every run read",
        columns,
        tuple(rows),
        "Tokens of text, repetitions counted; injection: text that the injection reads besides; words: tokens of the "
        "alignment table's words. Epochs are passes over the text of a language.",
    )


def making_table(report: Report) -> Table | None:
    """One row per run that said how it was made: size, initial weights, layout, device, speed; None before any did."""
    columns = (
        Column("Method", text=True),
        Column("seed"),
        Column("parameters"),
        Column("initial std of embeddings"),
        Column("layout", text=True),
        Column("device", text=True),
        Column("tokens/s"),
        Column("wall time"),
    )
    rows = tuple(
        (
            *_run_names(report, run),
            _count(record.parameters),
            Cell(NOTHING if record.embedding_init_std is None else f"{record.embedding_init_std:g}"),
            Cell(_layout(record.layout) or NOTHING),
            Cell(record.device or NOTHING),
            _fixed(record.tokens_per_second, 0),
            Cell(NOTHING if record.wall_seconds is None else _duration(record.wall_seconds)),
        )
        for run in report.runs
        if (record := run.record) is not None
    )
    if not rows:
        return None
    footnote = f"Speed and time depend on the machine and on what else ran on it. {_made_with(report)}"
    return Table("How every run was made", columns, rows, footnote.strip())


def _made_with(report: Report) -> str:
    """The programs' versions, all of them where runs were made with different ones."""
    versions = [run.record.versions for run in report.runs if run.record and run.record.versions]
    sets = dict.fromkeys(", ".join(f"{name} {version}" for name, version in made.items()) for made in versions)
    return f"Made with {'; or with '.join(sets)}." if sets else ""


def seeds_table(report: Report) -> Table | None:
    """The headline scores of every finished run with the run's own intervals; None before any run finished."""
    languages = report.study.languages
    wanted = [
        (metric, language)
        for metric in ("perplexity", "clka", "clka_control")
        for language in languages
        if report.has(metric, language)
    ]
    finished = [run for run in report.runs if run.finished]
    if not finished or not wanted:
        return None
    columns = [Column("Method", text=True), Column("seed")]
    for metric, language in wanted:
        unit = display_unit(report.unit(metric))
        columns.append(Column(language, info(metric).title + (", %" if unit == "%" else "")))
    rows = []
    for run in finished:
        scores = {score.key: score for score in run.final_scores}
        cells = []
        for metric, language in wanted:
            score = scores.get((metric, language, None))
            if score is None:
                cells.append(Cell(NOTHING))
                continue
            interval = ""
            if score.low is not None and score.high is not None:
                interval = shown_interval(metric, score.low, score.high, score.unit)
            cells.append(Cell(shown(metric, score.value, score.unit), interval))
        rows.append((*_run_names(report, run), *cells))
    items = {
        info(score.metric).title: score.n
        for run in finished
        for score in run.final_scores
        if score.metric in ("clka", "clka_control") and score.n is not None
    }
    counts = " ".join(f"{title}: n = {count:,} a run." for title, count in items.items())
    return Table(
        "Every seed",
        tuple(columns),
        tuple(rows),
        f"In brackets the run's own 95 % interval over its test items. {counts}".strip(),
    )


def settings_table(report: Report) -> Table | None:
    """The settings of the study as they were given; None where there are none."""
    if not report.study.settings:
        return None
    rows = tuple((Cell(name), Cell(_written(value))) for name, value in report.study.settings.items())
    return Table("Settings", (Column("Setting", text=True), Column("Value", text=True)), rows)


def measured_metrics(report: Report) -> list[tuple[str, str]]:
    """Title and meaning of the metrics that this study measured and that are known here."""
    measured = {score.metric for run in report.runs for score in run.scores}
    known = [info(metric) for metric in sorted(measured, key=lambda name: info(name).title)]
    return [(item.title, item.meaning) for item in known if item.meaning]


def _run_names(report: Report, run: Run) -> tuple[Cell, Cell]:
    label = next(method.label for method in report.study.methods if method.name == run.method)
    return Cell(label), Cell(str(run.seed))


def _layout(layout: Mapping[str, Any]) -> str:
    """The degrees above 1 and what is turned on, so that a plain run reads as plain."""
    said = [
        name.replace("_", " ") if value is True else f"{name.replace('_', ' ')} {value}"
        for name, value in layout.items()
        if value is True or value not in (None, 1, False, "none")
    ]
    return ", ".join(said) if said or not layout else "1 process"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _count(count: int | None) -> Cell:
    return Cell(NOTHING if count is None else f"{count:,}")


def _fixed(value: float | None, decimals: int) -> Cell:
    return Cell(NOTHING if value is None else number(value, decimals))


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
