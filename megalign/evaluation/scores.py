"""Scores: one JSON line per metric, language, level and step; reports read only these."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from megalign.files import write_text
from megalign.training.metrics import drop_lines

# Metrics that are measured after a run's evaluation, by a step of their own.
LATER = frozenset({"nli_accuracy"})


@dataclass(frozen=True)
class Score:
    """A measured value with its 95 % interval over the `n` units it was measured on."""

    metric: str
    language: str | None
    level: int | None
    step: int
    value: float | None
    low: float | None
    high: float | None
    n: int
    unit: str


def append(path: Path, scores: Iterable[Score]) -> None:
    """Add scores measured in the middle of a run, in place of those of the same step."""
    scores = list(scores)
    steps = {score.step for score in scores}
    drop_lines(path, lambda line: line["step"] in steps)
    with path.open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(asdict(score)) + "\n" for score in scores)


def drop_from(path: Path, step: int) -> None:
    """Forget scores of `step` and later: the run will measure them again."""
    drop_lines(path, lambda line: line["step"] >= step)


def replace_final(path: Path, scores: Iterable[Score], step: int) -> None:
    """Write the final scores after those of earlier steps, in one go; scores of LATER at this step stay."""
    kept = []
    if path.exists():
        drop_lines(path, lambda line: line["step"] >= step and (line["step"] > step or line["metric"] not in LATER))
        kept = path.read_text(encoding="utf-8").splitlines(keepends=True)
    write_text(path, "".join(kept) + "".join(json.dumps(asdict(score)) + "\n" for score in scores))


def add(path: Path, scores: Iterable[Score]) -> None:
    """Add scores of a trained run, in place of those of the same metrics and steps."""
    scores = list(scores)
    known = {(score.metric, score.step) for score in scores}
    drop_lines(path, lambda line: (line["metric"], line["step"]) in known)
    with path.open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(asdict(score)) + "\n" for score in scores)


def told(scores: Iterable[Score]) -> list[str]:
    """A line for every metric and level, with the languages' values and intervals, for a person."""
    rows: dict[str, list[str]] = {}
    for score in scores:
        name = score.metric if score.level is None else f"{score.metric}, level {score.level}"
        value = "n/a" if score.value is None else f"{score.value:.4g}"
        interval = "" if score.low is None or score.high is None else f" [{score.low:.4g}, {score.high:.4g}]"
        rows.setdefault(name, []).append(f"{score.language or 'all'} {value}{interval}")
    width = max(map(len, rows), default=0)
    return [f"{name:<{width}}  {'  '.join(values)}" for name, values in rows.items()]
