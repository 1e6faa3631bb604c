"""The stages of a run's training: what each of them does at every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megalign.config import RunConfig
from megalign.config.layout import Layout
from megalign.engine import checkpoint, groups
from megalign.engine.device import device_name
from megalign.files import read_json
from megalign.scaling.devices import load_devices, recognise
from megalign.scaling.flops import achieved_flops, training_flops_per_token, utilisation
from megalign.training import loop
from megalign.training.guards import EventLog, Guards
from megalign.training.initial import Weights
from megalign.training.injection import InjectionMonitor
from megalign.training.inputs import RunFolder, RunInputs
from megalign.training.losses import SourceLosses
from megalign.training.samples import Samples, check_hit_rate
from megalign.training.switch_totals import SwitchTotals
from megalign.training.tracking import ProfileWindow, Tracker, open_trackers
from megalign.training.watchdog import Watchdog


@dataclass(frozen=True)
class RunContext:
    """What the stages of a run share.

    Attributes:
        inputs, folder, layout: the run.
        writes: whether this rank writes metrics and scores.
        watchdog: told where this rank is.
        start: the weights the first stage starts from; None: random ones.
        probe: see `training.run.train`.
    """

    inputs: RunInputs
    folder: RunFolder
    layout: Layout
    writes: bool
    watchdog: Watchdog
    start: Weights | None
    probe: loop.Probe | None

    @property
    def config(self) -> RunConfig:
        """The run's settings."""
        return self.inputs.config

    @property
    def place(self) -> int:
        """This rank's place among the data-parallel ranks."""
        return self.layout.coordinates(groups.rank()).data


def build_stage(context: RunContext, name: str) -> loop.Stage:
    """A stage of the run by its name.

    Raises:
        MegalignError: settings or data do not allow it.
    """
    return {"inject": _injection, "pretrain": _pretraining}[name](context)


def _injection(context: RunContext) -> loop.Stage:
    inputs, config = context.inputs, context.config
    inject, rank, world = config.inject, context.place, config.parallel.data
    words = inputs.word_batches()
    monitor = InjectionMonitor(inputs.encoded, inject)
    text = Samples(inputs.store, config.data, config.model.sequence_length, config.seed, name="inject")

    def batches(step: int) -> list[loop.Batch]:
        first = (step - 1) * inject.lm_batch_size
        size = inject.lm_batch_size // world
        windows = text.micro_batches(first, inject.lm_batch_size, rank=rank, world=world, size=size)
        return [words.batch(step - 1, rank=rank, world=world), *windows]

    def samples_after(steps: int) -> int:
        return steps * inject.lm_batch_size

    # Before pretraining nothing is measured: its step 0 shows what the injection gave.
    follows = config.stages.index("inject") > 0
    return loop.Stage(
        name="inject",
        num_steps=inputs.stage_steps("inject"),
        batches=batches,
        samples_after=samples_after,
        samples_of=lambda step: range(samples_after(step - 1), samples_after(step)),
        state=lambda samples: {
            "order": text.order.fingerprint(),
            "store": inputs.store.fingerprint,
            "table": inputs.table_fingerprint,
            "initial_weights": context.start and context.start.identity,
        },
        losses=SourceLosses([source.read_as for source in text.sources]),
        **_shared(context, "inject"),
        inject=inject,
        lm_weight=inject.lm_weight,
        measure=monitor.measure,
        ended=lambda: monitor.ended,
        probe=_later(context.probe, inputs) if follows else None,
        probe_interval=config.train.evaluate_interval,
        checkpoint_extra=monitor.state,
        restore_extra=monitor.restore,
    )


def _later(probe: loop.Probe | None, inputs: RunInputs) -> loop.Probe | None:
    """The probe, for steps of the injection that follow those of pretraining."""
    if probe is None:
        return None
    return lambda engine, step: probe(engine, inputs.steps_since_pretraining_began("inject", step))


def _pretraining(context: RunContext) -> loop.Stage:
    inputs, config = context.inputs, context.config
    samples, schedule, rank, world = inputs.samples, inputs.batch_schedule, context.place, config.parallel.data
    check_hit_rate(samples, config)
    word_schedule = inputs.word_schedule
    words = inputs.word_batches() if word_schedule.num_batches else None
    if words:
        for size in schedule.sizes:
            context.layout.check_micro_batches(size // (config.micro_batch_size * world) + 1)

    def batches(step: int) -> list[loop.Batch]:
        first, size = schedule.first(step), schedule.size(step)
        windows = samples.micro_batches(first, size, rank=rank, world=world, size=config.micro_batch_size)
        number = word_schedule.batch_of(step)
        if words is None or number is None:
            return list(windows)
        return [words.batch(number, rank=rank, world=world), *windows]

    counts = SwitchTotals(samples)
    monitor = InjectionMonitor(inputs.encoded, config.inject) if words else None
    return loop.Stage(
        name="pretrain",
        num_steps=inputs.num_steps,
        batches=batches,
        samples_after=schedule.taken,
        samples_of=lambda step: [
            samples.order.sample_at(p) for p in range(schedule.first(step), schedule.first(step + 1))
        ],
        mixture=lambda step: samples.order.mixture(samples.order.sample_at(schedule.first(step))),
        accept_changed_data=config.train.accept_changed_data,
        losses=SourceLosses([source.read_as for source in samples.sources]),
        **_shared(context, "pretrain"),
        replica_check_interval=config.guards.replica_check_interval,
        state=lambda position: {
            "order": samples.order.fingerprint(position),
            "store": inputs.store.fingerprint,
            "table": inputs.table_fingerprint if samples.switcher or words else None,
            "periods": samples.periods and samples.periods.fingerprint,
            "initial_weights": context.start and context.start.identity,
        },
        inject=config.inject if words else None,
        measure=monitor.measure if monitor else lambda engine, step: {},
        consumed=lambda position: consumed_tokens(samples, position),
        utilisation=_utilisation(inputs, context.layout),
        counted=counts.counted,
        extra=counts.metrics,
        probe=context.probe,
        probe_interval=config.train.evaluate_interval,
        checkpoint_extra=counts.state,
        restore_extra=counts.restore,
    )


def consumed_tokens(samples: Samples, position: int) -> dict[str, int]:
    """Tokens of each source that the samples before `position` have."""
    counts = samples.order.consumed(position)
    return {source.read_as: samples.length * n for source, n in zip(samples.sources, counts, strict=True)}


def _shared(context: RunContext, stage: str) -> dict[str, Any]:
    """What all stages have: how they save, log and are watched."""
    config, folder = context.config, context.folder
    saving = (
        *("checkpoint_interval", "keep_checkpoints", "keep_permanent_interval"),
        *("async_checkpoint", "verify_checkpoints"),
    )
    return {
        "number": config.stages.index(stage),
        "sequence_length": config.model.sequence_length,
        "guards": _guards(context, stage),
        "watchdog": context.watchdog,
        "log_interval": config.train.log_interval,
        "fence": folder.fence,
        **{name: getattr(config.train, name) for name in saving},
        **_tracking(context, stage),
    }


def _guards(context: RunContext, stage: str) -> Guards:
    """The guards of a stage; events of steps that will be taken again are dropped."""
    folder = context.folder
    path = checkpoint.latest(folder.checkpoints(stage))
    step = int(read_json(path / checkpoint.MARKER)["step"]) if path else 0
    events = EventLog(folder.events, stage, step) if context.writes else None
    return Guards(context.config.guards, stage, folder.path, groups.rank(), events)


def _tracking(context: RunContext, stage: str) -> dict[str, Any]:
    """Where the metrics of a stage go, and what is traced; nothing on ranks that do not write."""
    if not context.writes:
        return {}
    config, path = context.config, context.folder.path

    def trackers(step: int) -> list[Tracker]:
        settings = config.model_dump(mode="json")
        return open_trackers(config.track, path, stage, step, name=config.name, settings=settings)

    return {"trackers": trackers, "profile": ProfileWindow(config.track.profile_steps, path / "profile", stage)}


def _utilisation(inputs: RunInputs, layout: Layout) -> Callable[[float], dict[str, Any]]:
    """Tokens a second -> TFLOP/s of a device, and their share of its dense peak (null where that is unknown)."""
    config = inputs.config
    flops = training_flops_per_token(config.model, inputs.store.vocabulary.size)
    table = load_devices(Path(config.track.devices) if config.track.devices else None)
    device = recognise(device_name(), table)
    peak = device.peak(config.precision) if device else None

    def values(tokens_per_second: float) -> dict[str, Any]:
        used = utilisation(tokens_per_second, flops, layout.world_size, peak)
        return {
            "tflops_per_device": round(achieved_flops(tokens_per_second, flops, layout.world_size) / 1e12, 6),
            "mfu": None if used is None else round(used, 5),
        }

    return values
