"""A finished ladder as the table that scaling fits are made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megalign.config import RunConfig, load_run
from megalign.errors import DataError, MegalignError
from megalign.files import read_json
from megalign.scaling.fits.measurements import Measurement
from megalign.scaling.flops import forward_flops, training_flops_per_token
from megalign.scaling.parameters import count_parameters
from megalign.study.report.read import Run, read_study

_METRICS = ("nll_per_token", "clka", "clka_control")


@dataclass(frozen=True)
class LadderResults:
    """What a ladder's folder holds.

    Attributes:
        measurements: of the finished runs.
        notes: what is missing, in sentences.
        name: title of the study.
        source_language: the language with most text.
    """

    measurements: list[Measurement]
    notes: list[str]
    name: str
    source_language: str


def read_ladder(folder: Path) -> LadderResults:
    """Every finished run of a study with a ladder.

    FLOPs are model FLOPs (scaling/flops.py) of pretraining and of the injection's text and words; the words' number is
    computed from the data of the study, and FLOPs of methods that inject are left out where those are gone.

    Raises:
        DataError: no ladder, no finished run, or a file is broken.
    """
    study, runs, _ = read_study(folder)
    rungs = {one["name"]: one.get("ladder") for one in read_json(folder / "study.json")["methods"]}
    if not all(rungs.values()):
        raise DataError(
            f"{folder} is a study without a ladder.",
            "Its runs are of one size, and no curve goes through one point.",
            "Give the study a section `ladder` (see examples/scaling/ladder.yaml), or fit a table of measurements.",
        )
    finished = [run for run in runs if run.finished]
    if not finished:
        raise DataError(f"{folder} has no finished run.", fix="Run the study; a rerun continues it.")
    words: dict[tuple[int, int, int], int | None] = {}
    measurements = []
    for run in finished:
        rung = rungs[run.method]
        assert rung is not None
        measurements += _measurements(folder, run, rung, study.reference_language, words)
    notes = []
    if len(finished) < len(runs):
        notes.append(f"{len(runs) - len(finished)} of {len(runs)} runs have not finished; they are left out.")
    if any(value is None for value in words.values()):
        notes.append(
            "The study's data cannot be read from here: the injection's FLOPs are unknown, and so is the cost of its methods."
        )
    return LadderResults(measurements, notes, study.title or study.name, study.reference_language)


def _measurements(
    folder: Path, run: Run, rung: dict[str, Any], source: str, words: dict[tuple[int, int, int], int | None]
) -> list[Measurement]:
    config = load_run(folder / "runs" / run.method / f"seed{run.seed}" / "config.yaml")
    record = run.record
    assert record is not None
    total = record.parameters
    tokens = record.tokens_seen.pretrain
    ranks = 1
    for degree in ("tensor", "pipeline", "data", "context"):
        ranks *= int(record.layout.get(degree, 1))
    seconds = None if record.wall_seconds is None else record.wall_seconds * ranks
    return [
        Measurement(
            method=rung["method"],
            size=rung["size"],
            parameters=float(count_parameters(config.model, 1).non_embedding),
            language=score.language or "",
            metric=score.metric,
            value=float(score.value),
            seed=run.seed,
            target_ratio=float(rung["target_ratio"]),
            target_tokens=float(tokens[score.language])
            if score.language in tokens and score.language != source
            else None,
            total_parameters=None if total is None else float(total),
            flops=None
            if total is None
            else _flops(config, total, sum(tokens.values()), record.tokens_seen.injection, words),
            seconds=seconds,
        )
        for score in run.final_scores
        if score.metric in _METRICS and score.value is not None and score.language
    ]


def _flops(
    config: RunConfig, total: int, pretraining: int, injected: int | None, words: dict[tuple[int, int, int], int | None]
) -> float | None:
    model = config.model
    counts = count_parameters(model, 1)
    rows = (total - counts.non_embedding - counts.position) // (model.hidden_size * (1 if model.tied_embeddings else 2))
    per_token = training_flops_per_token(model, rows)
    flops = (pretraining + (injected or 0)) * per_token
    if not config.inject.steps:
        return flops
    key = config.seed, config.inject.entries_per_step, config.inject.row_width_tokens
    if key not in words:
        words[key] = _word_tokens_per_step(config)
    found = words[key]
    if found is None:
        return None
    per_word = 3 * forward_flops(model, rows, sequence_length=config.inject.row_width_tokens).layers
    return flops + config.inject.steps * found * per_word


def _word_tokens_per_step(config: RunConfig) -> int | None:
    """Tokens of the injection's first batch of words, padding included; None where the data are gone."""
    from megalign.training.dry_run import dry_run

    try:
        use = dry_run(config).injection
    except (MegalignError, OSError):
        return None
    return use.word_tokens_per_step if use else 0
