"""The files of a study folder as checked values. Nothing is computed here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from megalign.errors import DataError

T = TypeVar("T")


@dataclass(frozen=True)
class Method:
    """One method of the study: `name` is its folder, `traits` are the parts it has, such as injection or codeswitch."""

    name: str
    title: str = ""
    description: str = ""
    traits: tuple[str, ...] | None = None

    @property
    def label(self) -> str:
        """What a reader is shown."""
        return self.title or self.name


@dataclass(frozen=True)
class Study:
    """study.json: what was to be run, in the order in which it is shown."""

    name: str
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    reference_language: str
    languages: tuple[str, ...]
    title: str = ""
    description: str = ""
    clone_of: dict[str, str] = field(default_factory=dict)
    facts: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def targets(self) -> tuple[str, ...]:
        """The languages that knowledge is carried into."""
        return tuple(language for language in self.languages if language != self.reference_language)


@dataclass(frozen=True)
class Score:
    """One line of scores.jsonl. `value` None means that the metric is not defined for this run."""

    metric: str
    step: int
    value: float | None
    language: str | None = None
    level: int | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    unit: str = ""

    @property
    def key(self) -> tuple[str, str | None, int | None]:
        """What is measured."""
        return self.metric, self.language, self.level


@dataclass(frozen=True)
class TokensSeen:
    """What a run was trained on: language-modelling tokens, and the tokens of the injection's words."""

    injection: int | None = None
    pretrain: dict[str, int] = field(default_factory=dict)
    words: int | None = None


@dataclass(frozen=True)
class Record:
    """run.json: how the run went."""

    status: str
    parameters: int | None = None
    tokens_seen: TokensSeen = TokensSeen()
    epochs: dict[str, float] = field(default_factory=dict)
    training_flops: float | None = None
    wall_seconds: float | None = None
    tokens_per_second: float | None = None
    codeswitch_rate: float | None = None
    embedding_init_std: float | None = None
    layout: dict[str, Any] = field(default_factory=dict)
    device: str | None = None
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingPoint:
    """The fields of a line of metrics.jsonl that the report draws."""

    stage: str
    step: int
    loss: float | None = None


@dataclass(frozen=True)
class Run:
    """One method with one seed. `record` is None where the folder or its run.json is not there (yet)."""

    method: str
    seed: int
    started: bool
    record: Record | None
    scores: tuple[Score, ...]
    training: tuple[TrainingPoint, ...]

    @property
    def finished(self) -> bool:
        """Whether the run's scores count."""
        return self.record is not None and self.record.status == "done"

    @property
    def status(self) -> str:
        """In words."""
        if self.record is not None:
            return self.record.status
        return "no run.json yet" if self.started else "not started"

    @property
    def last_step(self) -> int | None:
        """The largest step with scores."""
        return max((score.step for score in self.scores), default=None)

    @property
    def final_scores(self) -> tuple[Score, ...]:
        """The scores of the last step."""
        return tuple(score for score in self.scores if score.step == self.last_step)


def read_study(folder: Path) -> tuple[Study, tuple[Run, ...], tuple[str, ...]]:
    """The study, its runs in the order methods x seeds, and notes about what a reader should know of the files.

    Raises:
        DataError: study.json is missing or wrong; a finished run lacks its scores; a line of any file is broken.
    """
    path = folder / "study.json"
    study = _read_file(TypeAdapter(Study), path)
    _check_names(study, path)
    notes: list[str] = []
    runs = tuple(
        _read_run(folder / "runs" / method.name / f"seed{seed}", method.name, seed, notes)
        for method in study.methods
        for seed in study.seeds
    )
    _check_units(runs)
    return study, runs, tuple(notes)


def _read_run(folder: Path, method: str, seed: int, notes: list[str]) -> Run:
    if not folder.is_dir():
        return Run(method, seed, started=False, record=None, scores=(), training=())
    record_path, scores_path = folder / "run.json", folder / "scores.jsonl"
    record = _read_file(TypeAdapter(Record), record_path) if record_path.exists() else None
    finished = record is not None and record.status == "done"
    if finished and not scores_path.exists():
        raise DataError(
            f"{scores_path} does not exist, but run.json says that the run is done.",
            "Without it the run has nothing to report.",
            "Evaluate the run again, or delete its folder and rerun the study.",
        )
    name = f"{method}, seed {seed}"
    scores = tuple(_read_lines(scores_path, TypeAdapter(Score), finished, name, notes))
    if finished and not scores:
        raise DataError(
            f"{scores_path} is empty, but run.json says that the run is done.",
            "The run would count among the finished seeds without a score.",
            "Evaluate the run again, or delete its folder and rerun the study.",
        )
    latest = {(score.key, score.step): score for score in scores}
    if len(latest) < len(scores):
        notes.append(f"{name}: {len(scores) - len(latest)} line(s) of scores.jsonl repeat a step; the last one counts.")
    training = tuple(_read_lines(folder / "metrics.jsonl", TypeAdapter(TrainingPoint), finished, name, notes))
    run = Run(method, seed, True, record, tuple(latest.values()), training)
    measured = {score.metric for score in run.scores} - {score.metric for score in run.final_scores}
    if finished and measured:
        notes.append(f"{name}: not measured at the last step, so in the curves only: {', '.join(sorted(measured))}.")
    return run


def _read_file(adapter: TypeAdapter[T], path: Path) -> T:
    if not path.is_file():
        raise DataError(
            f"{path} does not exist.", "A report is made of a study's folder.", "Name the study's run folder."
        )
    return _checked(adapter, path.read_bytes(), str(path))


def _read_lines(path: Path, adapter: TypeAdapter[T], finished: bool, name: str, notes: list[str]) -> Iterator[T]:
    """The checked lines of a JSON-lines file; none where it does not exist.

    A run that is still writing, or was killed, may leave a part of a line at the end: it is left out with a note.
    """
    if not path.exists():
        return
    lines = path.read_bytes().split(b"\n")
    tail = lines.pop()
    for number, line in enumerate(lines, start=1):
        yield _checked(adapter, line, f"{path}, line {number}")
    if tail and not finished:
        notes.append(f"{name}: the last line of {path.name} is not complete; it is left out.")
    elif tail:
        yield _checked(adapter, tail, f"{path}, line {len(lines) + 1}")


def _checked(adapter: TypeAdapter[T], content: bytes, where: str) -> T:
    try:
        # Strict as JSON is strict: "3" is not a number, 3 is also a float, a list is also a tuple.
        return adapter.validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
    if first["type"] == "json_invalid":
        raise DataError(f"{where} is not JSON: {first['msg']}.", "The file may be damaged.", "Write it again.")
    name = ".".join(str(part) for part in first["loc"]) or "content"
    raise DataError(
        f"{where}: {name}: {first['msg']} (found {str(first['input'])[:80]!r}).",
        "The report reads only files of the agreed form.",
        "Write the file again with the program that made it.",
    )


def _check_names(study: Study, path: Path) -> None:
    for method in study.methods:
        # Method names become folders below runs/.
        if not method.name or method.name.startswith(".") or re.search(r"[/\\\x00]", method.name):
            raise DataError(f"{path}: {method.name!r} cannot be a method's name.", "It names a folder below runs/.")
    for what, items in (
        ("method", [m.name for m in study.methods]),
        ("seed", study.seeds),
        ("language", study.languages),
    ):
        if len(set(items)) < len(items):
            raise DataError(f"{path} names a {what} twice: {', '.join(map(str, items))}.")
    for language in study.languages:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", language):
            raise DataError(f"{path}: {language!r} cannot be a language's name.", "It becomes part of file names.")
    if study.reference_language not in study.languages:
        raise DataError(f"{path}: the reference language {study.reference_language!r} is not one of the languages.")


def _check_units(runs: tuple[Run, ...]) -> None:
    units: dict[str, str] = {}
    for run in runs:
        for score in run.scores:
            if units.setdefault(score.metric, score.unit) != score.unit:
                raise DataError(
                    f"{score.metric} has the unit {score.unit!r} in {run.method}, seed {run.seed}, "
                    f"but {units[score.metric]!r} before.",
                    "Numbers of different units cannot stand in one column.",
                    "Evaluate all runs with one version.",
                )
