"""From a folder or table of responses to scores, intervals, comparisons, findings and a report."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from megalign.clika.bootstrap import Bootstrap, compare_models, interval_rows
from megalign.clika.checks import check_answers
from megalign.clika.datasets import Comparison, Protocol
from megalign.clika.findings import Finding, refuse
from megalign.clika.page import Report, render_page
from megalign.clika.panel import panels
from megalign.clika.read import DEFAULT_FILES, read_answers
from megalign.clika.scores import METRICS, hardly_parsed, parsing_rows, score_rows
from megalign.errors import ConfigError
from megalign.files import make_folder, write_bytes, write_text

PARSE_MODES = ("released", "strict")
RESULTS = (
    "scores.jsonl",
    "report.html",
    "intervals.jsonl",
    "comparisons.jsonl",
    "parsing.jsonl",
    "scores.csv",
    "knowledge.csv",
)


@dataclass(frozen=True)
class ScoreOptions:
    """How responses are scored.

    Attributes:
        protocol: the data sets' constants, names of languages and pairs to compare.
        files: file names read from a folder.
        parse: released (the first character of the stripped response) or strict (and no letter after it).
        accept_look_alikes: count letters that only look like an option's.
        fail_on_findings: any finding is an error.
        comparisons: pairs to compare beside the protocol's; these must be there.
        report: write report.html, which takes longer than everything else.
        seed, num_resamples, confidence: of the bootstrap.
    """

    protocol: Protocol
    files: str = DEFAULT_FILES
    parse: str = "released"
    accept_look_alikes: bool = False
    fail_on_findings: bool = False
    comparisons: tuple[Comparison, ...] = ()
    report: bool = True
    seed: int = 0
    num_resamples: int = 1000
    confidence: float = 0.95


@dataclass(frozen=True)
class Scores:
    """What was written: rows of scores.jsonl, intervals.jsonl, comparisons.jsonl, parsing.jsonl and findings."""

    scores: list[dict[str, Any]]
    intervals: list[dict[str, Any]]
    comparisons: list[dict[str, Any]]
    parsing: list[dict[str, Any]]
    findings: list[Finding]

    @property
    def hardly_parsed(self) -> list[dict[str, Any]]:
        """Rows of scores that say little of knowledge; see `megalign.clika.scores.hardly_parsed`."""
        return hardly_parsed(self.scores)


def score(source: Path, out: Path, options: ScoreOptions) -> Scores:
    """Score the responses of `source` and write the results to the folder `out`.

    Writes scores.jsonl (a line per model, data set and language), scores.csv (the same with intervals), knowledge.csv (means over the
    data sets of a type of knowledge), intervals.jsonl, comparisons.jsonl, parsing.jsonl, findings.jsonl and report.html.

    Raises:
        DataError: nothing that can be scored; or a finding, with `fail_on_findings` (findings.jsonl is written first).
        ConfigError: an unknown way of parsing, impossible settings of the bootstrap, a comparison of a model without responses,
            `out` is no folder that can be written into.
    """
    if options.parse not in PARSE_MODES:
        raise ConfigError(f"There is no way of parsing {options.parse!r}.", fix=f"Choose {' or '.join(PARSE_MODES)}.")
    answers, findings = read_answers(
        source, options.protocol, files=options.files, accept_look_alikes=options.accept_look_alikes
    )
    sides = panels(answers)
    findings = [*findings, *check_answers(sides, options.protocol)]
    make_folder(out)
    # What an earlier scoring left must not stand beside these findings, nor look whole when this one is stopped.
    for name in RESULTS:
        (out / name).unlink(missing_ok=True)
    _write_jsonl(out / "findings.jsonl", (finding.row() for finding in findings))
    if options.fail_on_findings:
        refuse(findings)
    strict = options.parse == "strict"
    bootstrap = Bootstrap(
        sides, options.protocol, options.seed, options.num_resamples, options.confidence, strict=strict
    )
    result = Scores(
        scores=score_rows(sides, options.protocol, strict=strict),
        intervals=list(interval_rows(bootstrap)),
        comparisons=_comparisons(bootstrap, options),
        parsing=parsing_rows(sides, options.protocol),
        findings=findings,
    )
    _write_jsonl(out / "intervals.jsonl", result.intervals)
    _write_jsonl(out / "comparisons.jsonl", result.comparisons)
    _write_jsonl(out / "parsing.jsonl", result.parsing)
    for level, name in (("dataset", "scores.csv"), ("knowledge", "knowledge.csv")):
        write_text(out / name, _wide_csv([row for row in result.intervals if row["level"] == level], level))
    if options.report:
        report = Report(
            source.resolve().name, options.protocol, options.parse, options.num_resamples, options.confidence
        )
        page = render_page(report, result.scores, result.intervals, result.comparisons, result.parsing, findings)
        write_text(out / "report.html", page)
    _write_jsonl(out / "scores.jsonl", result.scores)
    return result


def _comparisons(bootstrap: Bootstrap, options: ScoreOptions) -> list[dict[str, Any]]:
    rows = []
    models = set(bootstrap.models)
    for pair in options.protocol.comparisons:
        if {pair.base, pair.other} <= models:
            rows += compare_models(bootstrap, pair.base, pair.other, pair.name)
    for pair in options.comparisons:
        rows += compare_models(bootstrap, pair.base, pair.other, pair.name)
    return rows


def _write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    # Joining would keep a roomy buffer per row: 80 MB where this takes 5.
    content = bytearray()
    for row in rows:
        content += orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
    write_bytes(path, bytes(content))


def _wide_csv(rows: Sequence[dict[str, Any]], level: str) -> str:
    """A line per model, group and language, with value, low and high of every metric as columns."""
    lines: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in rows:
        key = (row["model"], row["name"], row["language"])
        line = lines.setdefault(key, {"model": key[0], level: key[1], "language": key[2], "n": row["n"]})
        line |= {row["metric"]: row["value"], f"{row['metric']}_low": row["low"], f"{row['metric']}_high": row["high"]}
    stream = io.StringIO()
    columns = ["model", level, "language", "n", *(f"{m}{end}" for m in METRICS for end in ("", "_low", "_high"))]
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines.values())
    return stream.getvalue()
