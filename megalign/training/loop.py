"""The loop: steps from where the checkpoint stands to the end of a stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megalign.config import InjectConfig
from megalign.engine import checkpoint, groups
from megalign.engine.device import peak_memory_bytes
from megalign.engine.engine import Engine, LanguageBatch, NonFiniteStep, StepResult
from megalign.engine.replicas import check_replicas
from megalign.errors import DataError, StoppedOnRequest
from megalign.prealign.words import WordBatch
from megalign.training.guards import Guards
from megalign.training.losses import SourceLosses
from megalign.training.metrics import MetricsLog
from megalign.training.prefetch import Prefetch
from megalign.training.stop import StopRequest
from megalign.training.tracking import ProfileWindow, Tracker
from megalign.training.watchdog import Watchdog

Batch = LanguageBatch | WordBatch
StepData = tuple[Sequence[Batch], Callable[[], None]]
# Measures, and returns what writes the results down, on the rank that does.
Probe = Callable[[Engine, int], Callable[[], None] | None]


@dataclass
class Stage:
    """What a stage of training does at each step.

    Attributes:
        name: "inject" or "pretrain".
        number: its place among the run's stages, from 0.
        num_steps: length.
        batches: step (from 1) -> this rank's micro-batches. Called one step ahead, in another thread.
        counted: called after `batches`, there; what it returns is called when the step is taken.
        samples_after: steps taken -> training windows read, all ranks together.
        sequence_length: tokens of a window.
        samples_of: step -> numbers of the samples of its global batch.
        state: samples read -> values a checkpoint must agree with when the stage resumes (fingerprints).
        losses: of each source.
        guards: what is watched.
        watchdog: told where this rank is.
        extra: values added to every line of metrics.
        inject: settings of the contrastive loss; None without words.
        lm_weight: weight of the language-modelling loss.
        probe: called with the engine and the step where `probe_interval` says, and before the first step.
        measure: called with the engine and the step after every step; the values go into its line of metrics.
        ended: whether the stage is over before `num_steps`; asked after `measure`, equal on all ranks.
        mixture: step -> number of its mixture of sources; losses of one are not compared with those of another.
        accept_changed_data: resume although the checkpoint's data are others.
        keep_permanent_interval, async_checkpoint, verify_checkpoints: see checkpoint.Saver.
        consumed: samples read -> tokens of each source that were read.
        utilisation: tokens a second -> values that follow from them.
        trackers: steps taken before -> where metrics go besides the file; called on the rank that writes.
        profile: the steps that the rank that writes traces.
        fence: raises where this process may not publish any more; called before checkpoints, metrics and scores.
    """

    name: str
    number: int
    num_steps: int
    batches: Callable[[int], Sequence[Batch]]
    samples_after: Callable[[int], int]
    sequence_length: int
    samples_of: Callable[[int], Sequence[int]]
    state: Callable[[int], dict[str, Any]]
    losses: SourceLosses
    guards: Guards
    watchdog: Watchdog
    log_interval: int
    checkpoint_interval: int | None
    keep_checkpoints: int
    counted: Callable[[], Callable[[], None]] = field(default=lambda: lambda: None)
    extra: Callable[[], dict[str, Any]] = dict
    inject: InjectConfig | None = None
    lm_weight: float = 1.0
    probe: Probe | None = None
    probe_interval: int | None = None
    measure: Callable[[Engine, int], dict[str, Any]] = field(default=lambda engine, step: {})
    ended: Callable[[], bool] = field(default=lambda: False)
    replica_check_interval: int | None = None
    mixture: Callable[[int], int] = field(default=lambda step: 0)
    accept_changed_data: bool = False
    keep_permanent_interval: int | None = None
    async_checkpoint: bool = False
    verify_checkpoints: bool = False
    consumed: Callable[[int], dict[str, int]] | None = None
    utilisation: Callable[[float], dict[str, Any]] = field(default=lambda tokens_per_second: {})
    trackers: Callable[[int], Sequence[Tracker]] = field(default=lambda step: ())
    profile: ProfileWindow | None = None
    fence: Callable[[], None] = field(default=lambda: None)
    checkpoint_extra: Callable[[], dict[str, Any]] = dict
    restore_extra: Callable[[dict[str, Any]], None] = field(default=lambda state: None)


def resume(stage: Stage, engine: Engine, folder: Path) -> tuple[int, bool]:
    """Load the stage's newest checkpoint, if there is one; its files were checked before (`checkpoint.settle`).

    Returns:
        the steps taken, and whether the measurement after the last of them was broken off.

    Raises:
        DataError: the checkpoint belongs to other data or settings.
    """
    path = checkpoint.latest(folder)
    if path is None:
        return 0, False
    state = checkpoint.load(engine, path, checked=True)
    for name, value in stage.state(int(state["samples"])).items():
        if state.get(name) == value:
            continue
        told = f"The checkpoint {path} was written with {name} {state.get(name)!r}, this run has {value!r}."
        if not stage.accept_changed_data:
            raise DataError(
                told,
                "Its samples would not be continued but others read.",
                "Restore the data and settings it was started with, or remove "
                f"{folder} to start over. train.accept_changed_data=true continues all the same: samples may then be read "
                "twice or never, and the run cannot be repeated.",
            )
        stage.guards.record("changed_data", int(state["step"]), told)
    stage.guards.restore(state)
    stage.losses.restore(state)
    stage.restore_extra(state)
    return int(state["step"]), bool(state.get("unmeasured"))


def run(stage: Stage, engine: Engine, folder: Path, metrics_path: Path | None, stop: StopRequest) -> float:
    """Take the stage's remaining steps, save at the end. Returns the seconds spent computing steps (rank 0).

    Args:
        stage: what to do.
        engine: the model, its weights and optimizer fresh or about to be resumed.
        folder: the stage's checkpoints.
        metrics_path: where this rank writes metrics; None: it does not.
        stop: asked before every step, the first included, and while measuring.

    Raises:
        StoppedOnRequest: a signal, a file or the clock said so; the state is saved.
        SupersededError: another process took the run over.
        TrainingProblem: the loss is not finite, the run diverges, or ranks' weights differ.
    """
    step, unmeasured = resume(stage, engine, folder)
    if metrics_path is None:
        with _ahead(stage) as data:
            _take_steps(stage, engine, data, folder, stop, None, step, unmeasured)
        return 0.0
    log = MetricsLog(
        metrics_path,
        stage.name,
        step=step,
        total_steps=stage.num_steps,
        tokens=stage.samples_after(step) * stage.sequence_length,
        trackers=stage.trackers(step),
        utilisation=stage.utilisation,
    )
    try:
        with _ahead(stage) as data:
            _take_steps(stage, engine, data, folder, stop, log, step, unmeasured)
    finally:
        log.close()
    return log.compute_seconds


def _ahead(stage: Stage) -> Prefetch[StepData]:
    return Prefetch(lambda step: (stage.batches(step), stage.counted()), stage.num_steps)


def _take_steps(
    stage: Stage,
    engine: Engine,
    data: Prefetch[StepData],
    folder: Path,
    stop: StopRequest,
    log: MetricsLog | None,
    step: int,
    unmeasured: bool,
) -> None:
    """The loop itself; `step` were taken before."""

    def interrupt() -> None:
        stage.watchdog.at(stage.name, step, "measure")  # a long measurement gets on with every batch
        stop.interrupt()

    engine.interrupt = interrupt
    saver = checkpoint.Saver(
        folder,
        keep=stage.keep_checkpoints,
        permanent_interval=stage.keep_permanent_interval,
        background=stage.async_checkpoint,
        verify=stage.verify_checkpoints,
        fence=stage.fence,
    )
    saved = step
    if step == 0 or unmeasured:
        unmeasured = _probe(stage, engine, step, log)
    while step < stage.num_steps and not stage.ended():
        decision = stop.decide(busy=saver.busy)
        if (decision.stop or decision.save) and step > saved:
            _save(stage, engine, saver, step, unmeasured, log)
            saved = step
        if saver.pending and (decision.stop or not (decision.busy or decision.save)):
            saver.finish()
        if decision.stop:
            raise StoppedOnRequest(
                f"Asked to stop: {stage.name} is saved at step {step} of {stage.num_steps}.",
                decision.stop,
                "Run the same command again to continue.",
            )
        result = _step(stage, engine, data, step + 1, log)
        step += 1
        measured = _measure(stage, engine, step, log)
        if result and (measured or step % stage.log_interval == 0 or step in (1, stage.num_steps)):
            values = {**_values(stage, step, result), **measured, **_over_ranks(engine)}
            if log:
                stage.fence()
                log.write(step, values)
        if stage.replica_check_interval and step % stage.replica_check_interval == 0:
            check_replicas(engine.chunks, step)
        stage.watchdog.at(stage.name, step, "measure")
        unmeasured = _probe(stage, engine, step, log)
        if stage.ended() and step < stage.num_steps:
            stage.guards.record("ended_early", step, f"{stage.name} is over after {step} of {stage.num_steps} steps.")
        if (
            step == stage.num_steps
            or stage.ended()
            or (stage.checkpoint_interval and step % stage.checkpoint_interval == 0)
        ):
            _save(stage, engine, saver, step, unmeasured, log)
            saved = step
    saver.finish()


def _step(
    stage: Stage, engine: Engine, data: Prefetch[StepData], step: int, log: MetricsLog | None
) -> StepResult | None:
    """Take a step; None where it was left out because something was not finite."""
    stage.watchdog.at(stage.name, step, "data")
    started = time.monotonic()
    engine.timer.begin()
    batches, count = data.take(step)
    count()
    if log:
        log.waited_for_data(time.monotonic() - started)
    stage.watchdog.at(stage.name, step, "compute")
    if stage.profile:
        stage.profile.before(step)
    try:
        result = engine.step(
            batches, step, lm_weight=stage.lm_weight, inject=stage.inject, num_sources=len(stage.losses.names)
        )
    except NonFiniteStep as error:
        stage.guards.not_finite(error, engine, batches, stage.samples_of(step))
        return None
    if stage.profile and (trace := stage.profile.after(step, last=step == stage.num_steps)):
        print(f"{stage.name} step {step}: trace written to {trace}", flush=True)
    if step > 1 and stage.mixture(step) != stage.mixture(step - 1):
        stage.guards.spikes.reset()
    stage.losses.add(result)
    stage.guards.loss(step, result.loss, stage.samples_of(step))
    return result


def _measure(stage: Stage, engine: Engine, step: int, log: MetricsLog | None) -> dict[str, Any]:
    stage.watchdog.at(stage.name, step, "measure")
    started = time.monotonic()
    values = stage.measure(engine, step)
    if log and values:
        log.pause(time.monotonic() - started)
    return values


def _over_ranks(engine: Engine) -> dict[str, Any]:
    """How much longer the slowest rank works than the median one, which it is, and the largest memory. A collective."""
    seconds, memory_bytes = groups.gather_from_all([engine.timer.take_seconds(), float(peak_memory_bytes())]).T
    ratio = float(seconds.max() / max(float(np.median(seconds)), 1e-9))
    return {
        "slowest_over_median": round(ratio, 4),
        "slowest_rank": int(seconds.argmax()),
        "peak_memory_bytes": int(memory_bytes.max()),
    }


def _values(stage: Stage, step: int, result: StepResult) -> dict[str, Any]:
    values: dict[str, Any] = {
        "samples": stage.samples_after(step),
        "tokens": stage.samples_after(step) * stage.sequence_length,
        "loss": result.loss,
        "grad_norm": result.grad_norm,
        "lr": result.lr,
        **stage.losses.take(),
    }
    if stage.consumed:
        values["tokens_by_source"] = stage.consumed(stage.samples_after(step))
    if result.level_losses:
        values["contrastive"] = sum(result.level_losses) / len(result.level_losses)
        values["contrastive_by_level"] = result.level_losses
    return {**values, **stage.extra()}


def _probe(stage: Stage, engine: Engine, step: int, log: MetricsLog | None) -> bool:
    """Measure where it is due. Says whether a request to stop broke it off, so that it is due again."""
    if stage.probe is None or stage.probe_interval is None or step % stage.probe_interval or step == stage.num_steps:
        return False
    started = time.monotonic()
    try:
        publish = stage.probe(engine, step)
    except StoppedOnRequest:
        return True
    if publish:
        stage.fence()
        publish()
    if log:
        log.pause(time.monotonic() - started)
    return False


def _save(
    stage: Stage, engine: Engine, saver: checkpoint.Saver, step: int, unmeasured: bool, log: MetricsLog | None
) -> None:
    started = time.monotonic()
    stage.watchdog.at(stage.name, step, "save")
    samples = stage.samples_after(step)
    state = {
        "stage": stage.name,
        "stage_number": stage.number,
        "samples": samples,
        "unmeasured": unmeasured,
        **stage.state(samples),
        **stage.guards.state(),
        **stage.losses.state(),
        **stage.checkpoint_extra(),
    }
    saver.save(engine, step, state)
    if log:
        log.pause(time.monotonic() - started)
