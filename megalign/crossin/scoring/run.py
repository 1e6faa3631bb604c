"""From prediction files to scores, intervals, comparisons, findings and a report."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import orjson

from megalign.crossin.scoring.answers import Answers
from megalign.crossin.scoring.bootstrap import Bootstrap, compare, interval_rows
from megalign.crossin.scoring.page import render_page
from megalign.crossin.scoring.read import is_score_file, read_file
from megalign.crossin.scoring.scores import Scores, accuracy_deviation, expected_released, score
from megalign.errors import ConfigError, DataError
from megalign.files import is_utf8, make_folder, read_json, write_bytes, write_text

Row = dict[str, Any]

WRITTEN = ("scores.jsonl", "intervals.jsonl", "comparisons.jsonl", "findings.jsonl", "scores.csv", "report.html")
# A process takes as long to start as a few files to score.
FILES_WORTH_A_WORKER = 20


@dataclass(frozen=True)
class ScoreOptions:
    """How files are scored.

    Attributes:
        first_line: keep only a response's first line: yes, no, or auto (where the file's name says five_shot).
        by: text, or likelihood (the choice with the highest `option_log_likelihoods`).
        released: accuracy, consistency and AC3 are SeaEval's, averaged over its draws, instead of those with invalid responses.
        comparisons: pairs of files as BASE:OTHER, named as given; of a table of several models "FILE (MODEL)".
        report: write report.html.
        workers: processes that read and score files; None for one per core, as far as that many are worth their start.
        bootstrap: how intervals are made.
    """

    first_line: str = "auto"
    by: str = "text"
    released: bool = False
    comparisons: tuple[str, ...] = ()
    report: bool = True
    workers: int | None = None
    bootstrap: Bootstrap = field(default_factory=Bootstrap)


@dataclass(frozen=True)
class Scored:
    """A file's answers, its line of scores.jsonl and its intervals."""

    answers: Answers
    row: Row
    intervals: list[Row]


@dataclass(frozen=True)
class Result:
    """What was written."""

    scored: list[Scored]
    comparisons: list[Row]
    skipped: list[str]

    @property
    def findings(self) -> list[Row]:
        """What is odd about the files: file, kind, message."""
        return [
            {"file": one.answers.name, "kind": kind, "message": message}
            for one in self.scored
            for kind, message in one.answers.findings
        ]


def score_files(files: Sequence[str], out: Path, options: ScoreOptions | None = None) -> Result:
    """Score prediction files and write the results to the folder `out`.

    Writes scores.jsonl (a line per file; per file and model for tables of several models), intervals.jsonl, comparisons.jsonl,
    findings.jsonl, scores.csv and report.html. SeaEval's own `*_score.json` are left out, so that a folder's files can all be named.

    Raises:
        DataError: a file that cannot be scored, nothing to score, a comparison of files with other questions.
        ConfigError: an unknown setting, a comparison of a file that is not scored, a file that its scores replace.
    """
    options = options or ScoreOptions()
    if options.workers is not None and options.workers < 1:
        raise ConfigError(f"{options.workers} workers do nothing.", fix="Give 1 or more.")
    named = list(dict.fromkeys(files))
    skipped = [name for name in named if is_score_file(Path(name))]
    wanted = [name for name in named if name not in skipped]
    if not wanted:
        raise DataError(
            "There is no prediction file to score.",
            "Files named *_score.json hold SeaEval's scores." if skipped else "",
            "Name files with predictions.",
        )
    _refuse_names(wanted, out)
    make_folder(out)
    result = Result(_score_all(wanted, options), [], skipped)
    by_name = {one.answers.name: one.answers for one in result.scored}
    for pair in options.comparisons:
        base, other = _sides(pair, set(by_name))
        result.comparisons.extend(compare(options.bootstrap, by_name[base], by_name[other]))
    _write(result, out, options)
    return result


def _refuse_names(files: Sequence[str], out: Path) -> None:
    """Let no file be replaced by its own scores, and none have a name that cannot be written."""
    written = {(out / name).resolve() for name in WRITTEN}
    for name in files:
        if not is_utf8(name):
            raise DataError(f"The name of {name!r} is no UTF-8.", "It could not be written.", "Rename the file.")
        if Path(name).resolve() in written:
            raise ConfigError(f"{name} would be replaced by the scores.", fix="Choose another folder for them.")


def _sides(pair: str, names: set[str]) -> tuple[str, str]:
    """The two names of BASE:OTHER; the colon may stand in a name too."""
    for place, character in enumerate(pair):
        if character == ":" and {pair[:place], pair[place + 1 :]} <= names:
            return pair[:place], pair[place + 1 :]
    raise ConfigError(
        f"{pair!r} is to be compared, and is no pair of files that are scored.",
        fix=f"Write BASE:OTHER with two of {', '.join(sorted(names)[:6])}.",
    )


def _score_all(files: list[str], options: ScoreOptions) -> list[Scored]:
    work = partial(_score_file, options=options)
    workers = options.workers or min(len(os.sched_getaffinity(0)), 1 + len(files) // FILES_WORTH_A_WORKER)
    if workers == 1 or len(files) == 1:
        return [one for name in files for one in work(name)]
    # Threads of a parent do not survive a fork; spawned children start clean.
    context = get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(files)), mp_context=context) as pool:
        return [one for found in pool.map(work, files, chunksize=4) for one in found]


def _score_file(name: str, options: ScoreOptions) -> list[Scored]:
    scored = []
    for answers in read_file(Path(name), first_line=options.first_line, by=options.by, name=name):
        row = score_row(answers, released=options.released)
        difference = _published_difference(Path(name), row)
        if difference is not None:
            row["published_difference"] = difference
        scored.append(Scored(answers, row, list(interval_rows(options.bootstrap, answers))))
    return scored


def score_row(answers: Answers, *, released: bool = False) -> Row:
    """A line of scores.jsonl: file, accuracy, accuracy_by_language, consistency and ac3 by s, invalid_rate, and what stands behind them.

    `released` has SeaEval's scores, averaged over its draws; `drawn` responses, `accuracy_deviation` (the standard deviation of its
    accuracy over the draws), and `exact`, true where nothing is drawn and the scores are SeaEval's to the last digits.
    """
    mine, theirs = score(answers), expected_released(answers)
    parts: dict[bool, Row] = {True: _row_of(theirs), False: _row_of(mine)}
    drawn = len(answers.undecided)
    return {
        "file": answers.file,
        **({"model": answers.model} if answers.model else {}),
        **parts[released],
        "invalid_rate": answers.invalid_rate,
        "mode": "released" if released else "deterministic",
        "languages": list(answers.languages),
        "num_questions": len(answers.items),
        "deterministic": parts[False],
        "released": {
            **parts[True],
            "drawn": drawn,
            "accuracy_deviation": accuracy_deviation(answers),
            "exact": drawn == 0,
        },
    }


def _row_of(scores: Scores) -> Row:
    return {
        "accuracy": scores.accuracy,
        "accuracy_by_language": scores.accuracy_by_language,
        "consistency": {str(s): value for s, value in scores.consistency.items()},
        "ac3": {str(s): value for s, value in scores.ac3.items()},
    }


def _published_difference(path: Path, row: Row) -> float | None:
    """The largest difference between SeaEval's scores beside the file and those of `released`; None where there are none.

    Where responses are drawn the two differ by the luck of one run.
    """
    beside = path.with_name(f"{path.stem}_score.json")
    if path.suffix != ".json" or not beside.is_file():
        return None
    theirs, ours = read_json(beside), row["released"]
    try:
        pairs = [(ours["accuracy"], theirs["overall_acc"])]
        pairs += [(value, theirs["language_acc"][name]) for name, value in ours["accuracy_by_language"].items()]
        pairs += [(value, theirs[f"consistency_score_{s}"]) for s, value in ours["consistency"].items()]
        pairs += [(value, theirs[f"AC3_{s}"]) for s, value in ours["ac3"].items()]
        return max(abs(float(one) - float(other)) for one, other in pairs)
    except (KeyError, TypeError, ValueError):
        return None


def _write(result: Result, out: Path, options: ScoreOptions) -> None:
    # What an earlier scoring left must not stand beside the new scores, nor look whole when this one is stopped.
    for name in ("scores.jsonl", "report.html"):
        (out / name).unlink(missing_ok=True)
    _write_jsonl(out / "intervals.jsonl", (row for one in result.scored for row in one.intervals))
    _write_jsonl(out / "comparisons.jsonl", result.comparisons)
    _write_jsonl(out / "findings.jsonl", result.findings)
    write_text(out / "scores.csv", _wide_csv(result.scored))
    if options.report:
        write_text(out / "report.html", render_page(result.scored, result.comparisons, result.findings, options))
    _write_jsonl(out / "scores.jsonl", (one.row for one in result.scored))


def _write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    write_bytes(path, b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows))


def _wide_csv(scored: Sequence[Scored]) -> str:
    """A line per file: accuracy, consistency_s, ac3_s with their intervals, and accuracy by language."""
    lines: list[Row] = []
    columns: dict[str, None] = {}
    for one in scored:
        line: Row = {"file": one.answers.file, "model": one.answers.model, "n": len(one.answers.items)}
        for row in one.intervals:
            name = "_".join(str(part) for part in (row["metric"], row["s"], row["language"]) if part is not None)
            line |= {name: row["value"], f"{name}_low": row["low"], f"{name}_high": row["high"]}
        lines.append(line)
        columns |= dict.fromkeys(line)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(columns), lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()
