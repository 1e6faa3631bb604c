"""Score responses to CLiKA's questions (or your own) offline: performance, consistency with English, intervals, data checks.

  python tools/score_clika.py IN --out OUT                                  (IN/DATASET/LANGUAGE/MODEL_res*.jsonl)
  python tools/score_clika.py responses.parquet --out OUT                   (columns model, dataset, language, item, response, label)
  python tools/score_clika.py IN --out OUT --datasets mine.yml --compare base:tuned --strict

Writes scores.jsonl, a line per model, data set and language, and beside it intervals, comparisons, findings, CSV and report.html.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from _command import command

from megalign.clika import Comparison, ScoreOptions, load_protocol, score
from megalign.clika.findings import KINDS, counted


def score_clika(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Folder of responses, or parquet, csv or jsonl table.")],
    out: Annotated[Path, typer.Option(help="The folder to write into.")],
    datasets: Annotated[Path | None, typer.Option(help="YAML with more data sets, languages, comparisons.")] = None,
    top_model: Annotated[str | None, typer.Option(help="Its English accuracy is every data set's top.")] = None,
    files: Annotated[str, typer.Option(help="File names read, where a model has several.")] = "*_res*.jsonl",
    parse: Annotated[str, typer.Option(help="released (first character) or strict (no letter after it).")] = "released",
    accept_look_alikes: Annotated[bool, typer.Option(help="Count Cyrillic, Greek or full-width letters.")] = False,
    compare: Annotated[list[str] | None, typer.Option(help="BASE:OTHER, compared over items; may stand often.")] = None,
    strict: Annotated[bool, typer.Option(help="Any finding of the data checks is an error.")] = False,
    report: Annotated[bool, typer.Option(help="Write report.html.")] = True,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    resamples: Annotated[int, typer.Option(help="Bootstrap samples.")] = 1000,
    confidence: Annotated[float, typer.Option(help="Of the intervals.")] = 0.95,
) -> None:
    """Score a folder or table of responses."""
    protocol = load_protocol(datasets, top_model=top_model)
    pairs = tuple(map(Comparison.parse, compare or ()))
    look = accept_look_alikes
    options = ScoreOptions(protocol, files, parse, look, strict, pairs, report, seed, resamples, confidence)
    result = score(source, out, options)
    for kind, count in sorted(Counter(finding.kind for finding in result.findings).items()):
        print(f"{count:>6} x {kind}: {KINDS[kind]}")
    if hard := result.hardly_parsed:
        where = "{model} on {dataset} in {language}".format(**hard[0])
        print(
            f"{len(hard):>6} x less than half of the responses name an option, the fewest of {where} ({hard[0]['parse_rate']:.0%})"
        )
    print(f"{counted(len(result.scores), 'cell')} scored: {out / 'scores.jsonl'}")


if __name__ == "__main__":
    score_clika.__doc__ = __doc__
    command(score_clika)
