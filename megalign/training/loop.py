"""The loop: steps from where the checkpoint stands to the end of a stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megalign.config import InjectConfig
from megalign.engine import checkpoint
from megalign.engine.engine import Engine, LanguageBatch, StepResult
from megalign.errors import DataError, StoppedOnRequest
from megalign.prealign.words import WordBatch
from megalign.training.metrics import MetricsLog
from megalign.training.stop import StopRequest

Batch = LanguageBatch | WordBatch
Probe = Callable[[Engine, int], None]


@dataclass
class Stage:
    """What a stage of training does at each step.

    Attributes:
        name: "inject" or "pretrain".
        num_steps: length.
        batches: step (from 1) -> this rank's micro-batches.
        samples_per_step: training windows of a step, all ranks together.
        tokens_per_step: tokens of a step, all ranks together, for the speed.
        state: values a checkpoint must agree with when the stage resumes (fingerprints).
        extra: values added to every line of metrics.
        inject: settings of the contrastive loss; None without words.
        probe: called with the engine and the step where `probe_interval` says, and before the first step.
    """

    name: str
    num_steps: int
    batches: Callable[[int], Sequence[Batch]]
    samples_per_step: int
    tokens_per_step: int
    state: dict[str, Any]
    log_interval: int
    checkpoint_interval: int | None
    keep_checkpoints: int
    extra: Callable[[], dict[str, Any]] = dict
    inject: InjectConfig | None = None
    probe: Probe | None = None
    probe_interval: int | None = None
    checkpoint_extra: Callable[[], dict[str, Any]] = dict
    restore_extra: Callable[[dict[str, Any]], None] = field(default=lambda state: None)


def resume(stage: Stage, engine: Engine, folder: Path) -> int:
    """Load the stage's newest checkpoint, if there is one. Returns the steps taken.

    Raises:
        DataError: the checkpoint belongs to other data or settings.
    """
    path = checkpoint.latest(folder)
    if path is None:
        return 0
    state = checkpoint.load(engine, path)
    for name, value in stage.state.items():
        if state.get(name) != value:
            raise DataError(
                f"The checkpoint {path} was written with {name} {state.get(name)!r}, this run has {value!r}.",
                "Its samples would not be continued but others read.",
                f"Restore the data and settings it was started with, or remove {folder} to start over.",
            )
    stage.restore_extra(state)
    return int(state["step"])


def run(stage: Stage, engine: Engine, folder: Path, metrics_path: Path | None, stop: StopRequest) -> float:
    """Take the stage's remaining steps, save at the end. Returns the seconds spent computing steps (rank 0).

    Args:
        stage: what to do.
        engine: the model, its weights and optimizer fresh or about to be resumed.
        folder: the stage's checkpoints.
        metrics_path: where this rank writes metrics; None: it does not.
        stop: asked before every step, the first included.

    Raises:
        StoppedOnRequest: a signal came; the state is saved.
        MegalignError: the loss is not finite.
    """
    step = resume(stage, engine, folder)
    log = None
    if metrics_path is not None:
        log = MetricsLog(
            metrics_path, stage.name, step=step, total_steps=stage.num_steps, tokens_per_step=stage.tokens_per_step
        )
    saved = step
    if step == 0:
        _probe(stage, engine, 0, log)
    while step < stage.num_steps:
        if stop.agreed():
            if step > saved:
                _save(stage, engine, folder, step, log)
            raise StoppedOnRequest(
                f"Asked to stop: {stage.name} is saved at step {step} of {stage.num_steps}.",
                fix="Run the same command again to continue.",
            )
        started = time.monotonic()
        batches = stage.batches(step + 1)
        if log:
            log.waited_for_data(time.monotonic() - started)
        lm_weight = stage.inject.lm_weight if stage.inject else 1.0
        result = engine.step(batches, step + 1, lm_weight=lm_weight, inject=stage.inject)
        step += 1
        if log and (step % stage.log_interval == 0 or step in (1, stage.num_steps)):
            log.write(step, _values(stage, step, result))
        _probe(stage, engine, step, log)
        if step == stage.num_steps or (stage.checkpoint_interval and step % stage.checkpoint_interval == 0):
            _save(stage, engine, folder, step, log)
            saved = step
    if log:
        log.close()
    return log.compute_seconds if log else 0.0


def _values(stage: Stage, step: int, result: StepResult) -> dict[str, Any]:
    values: dict[str, Any] = {
        "samples": step * stage.samples_per_step,
        "tokens": step * stage.tokens_per_step,
        "loss": result.loss,
        "grad_norm": result.grad_norm,
        "lr": result.lr,
    }
    if result.level_losses:
        values["contrastive"] = sum(result.level_losses) / len(result.level_losses)
        values["contrastive_by_level"] = result.level_losses
    return {**values, **stage.extra()}


def _probe(stage: Stage, engine: Engine, step: int, log: MetricsLog | None) -> None:
    if stage.probe is None or stage.probe_interval is None or step % stage.probe_interval or step == stage.num_steps:
        return
    started = time.monotonic()
    stage.probe(engine, step)
    if log:
        log.pause(time.monotonic() - started)


def _save(stage: Stage, engine: Engine, folder: Path, step: int, log: MetricsLog | None) -> None:
    started = time.monotonic()
    state = {"stage": stage.name, "samples": step * stage.samples_per_step, **stage.state, **stage.checkpoint_extra()}
    checkpoint.save(engine, folder, step, state, keep=stage.keep_checkpoints)
    if log:
        log.pause(time.monotonic() - started)
