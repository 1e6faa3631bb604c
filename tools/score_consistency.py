"""Score answers to the same questions in several languages: accuracy, consistency, AC3, with intervals and a report.

  python tools/score_consistency.py model/cross_mmlu/*.json --out OUT        (SeaEval's row format; *_score.json are left out)
  python tools/score_consistency.py answers.csv --out OUT                    (columns item, language, response, answer[, choices, model])
  python tools/score_consistency.py a.json b.json --out OUT --compare a.json:b.json

Writes OUT/scores.jsonl, a line per file: file, accuracy, accuracy_by_language, consistency (by s), ac3 (by s), invalid_rate. Where
invalid_rate is 0 these are SeaEval v0.1's very scores. Responses that name no option, or several equally, are invalid: wrong, and in
agreement with nothing; SeaEval draws an option for them at random, and the key `released` holds its scores averaged over the draws.
Beside it: intervals.jsonl, comparisons.jsonl, findings.jsonl, scores.csv and report.html.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from _command import command

from megalign.crossin.scoring import Bootstrap, ScoreOptions, score_files


def score_consistency(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Predictions: json, jsonl, csv or parquet.")],
    out: Annotated[Path, typer.Option(help="The folder to write into.")],
    first_line: Annotated[
        bool | None, typer.Option("--first-line/--whole", help="Default: for files named five_shot.")
    ] = None,
    by: Annotated[str, typer.Option(help="text, or likelihood (option_log_likelihoods).")] = "text",
    released: Annotated[
        bool, typer.Option("--released", help="Main scores as SeaEval's, averaged over draws.")
    ] = False,
    compare: Annotated[list[str] | None, typer.Option(help="BASE:OTHER, two of the files; may stand often.")] = None,
    report: Annotated[bool, typer.Option(help="Write report.html.")] = True,
    workers: Annotated[int | None, typer.Option(help="Processes; default: by cores and files.")] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    resamples: Annotated[int, typer.Option(help="Bootstrap samples.")] = 1000,
    confidence: Annotated[float, typer.Option(help="Of the intervals.")] = 0.95,
) -> None:
    """Score prediction files."""
    cut = {None: "auto", True: "yes", False: "no"}[first_line]
    bootstrap = Bootstrap(seed, resamples, confidence)
    options = ScoreOptions(cut, by, released, tuple(compare or ()), report, workers, bootstrap)
    result = score_files(files, out, options)
    for finding in result.findings:
        print(f"{finding['file']}: {finding['kind']}: {finding['message']}")
    if result.skipped:
        print(f"{len(result.skipped)} files named *_score.json hold scores and were left out.")
    print(f"{len(result.scored)} {'line' if len(result.scored) == 1 else 'lines'}: {out / 'scores.jsonl'}")


if __name__ == "__main__":
    score_consistency.__doc__ = __doc__
    command(score_consistency)
