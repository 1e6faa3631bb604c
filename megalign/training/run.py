"""One run: injection where the method has it, then pretraining. Rerun to continue."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megalign.cluster.ranks import Rank
from megalign.config import RunConfig
from megalign.config.layout import Layout
from megalign.engine import checkpoint, groups
from megalign.engine.device import device_name
from megalign.errors import DataError
from megalign.files import read_json, write_json
from megalign.prealign.words import WordBatches
from megalign.scaling.devices import load_devices, recognise
from megalign.scaling.flops import achieved_flops, training_flops_per_token, utilisation
from megalign.training import loop
from megalign.training.guards import EventLog, Guards
from megalign.training.initial import Weights, initial_weights, start_from
from megalign.training.injection import InjectionMonitor
from megalign.training.inputs import RunFolder as RunFolder
from megalign.training.inputs import RunInputs as RunInputs
from megalign.training.losses import SourceLosses
from megalign.training.metrics import mean_speed
from megalign.training.samples import Samples, check_hit_rate
from megalign.training.stop import StopRequest
from megalign.training.switch_totals import SwitchTotals
from megalign.training.tracking import ProfileWindow, Tracker, check_installed, open_trackers
from megalign.training.watchdog import Watchdog


def train(config: RunConfig, rank: Rank, probe: loop.Probe | None = None) -> None:
    """Train a run to its end; called by every process of the layout.

    Args:
        config: the run.
        rank: this process.
        probe: measures alignment and perplexity every train.evaluate_interval steps of pretraining.

    Raises:
        StoppedOnRequest: a signal came; the state is saved.
        MegalignError: settings, data or the machine do not allow the run.
    """
    layout = Layout(config.parallel)
    layout.check(config.model)
    layout.check_world_size(rank.world_size)
    check_installed(config.track)
    inputs = RunInputs.open(config)
    start = initial_weights(inputs)
    folder = RunFolder(Path(config.folder))
    writes = rank.rank == 0
    if writes:
        folder.begin(config)
        folder.claim("train")
    started = time.monotonic()
    seconds = 0.0
    limit, margin = config.train.max_seconds, config.train.stop_margin_seconds
    watchdog = Watchdog(folder.hang, rank.rank, rank.world_size, config.guards.hang_seconds)
    try:
        with StopRequest(folder.path, max_seconds=limit, margin_seconds=margin) as stop, watchdog:
            if config.inject.steps:
                seconds += _inject(inputs, folder, layout, writes, stop, watchdog, start)
            seconds += _pretrain(inputs, folder, layout, writes, probe, stop, watchdog, start)
        if writes and (seconds or not folder.summary.exists()):
            _summarise(inputs, folder, layout, time.monotonic() - started, seconds)
    finally:
        folder.release()


def _inject(
    inputs: RunInputs,
    folder: RunFolder,
    layout: Layout,
    writes: bool,
    stop: StopRequest,
    watchdog: Watchdog,
    start: Weights | None,
) -> float:
    config, inject = inputs.config, inputs.config.inject
    where = folder.checkpoints("inject")
    if _finished(where, inject.steps):
        return 0.0
    checkpoint.settle(where)
    place = layout.coordinates(groups.rank())
    world = layout.parallel.data
    words = WordBatches(
        inputs.encoded,
        entries_per_batch=inject.entries_per_step,
        seed=config.seed,
        row_width_tokens=inject.row_width_tokens,
    )
    monitor = InjectionMonitor(inputs.encoded, inject)
    text = Samples(inputs.store, config.data, config.model.sequence_length, config.seed, name="inject")

    def batches(step: int) -> list[loop.Batch]:
        first = (step - 1) * inject.lm_batch_size
        size = inject.lm_batch_size // world
        windows = text.micro_batches(first, inject.lm_batch_size, rank=place.data, world=world, size=size)
        return [words.batch(step - 1, rank=place.data, world=world), *windows]

    def samples_after(steps: int) -> int:
        return steps * inject.lm_batch_size

    stage = loop.Stage(
        name="inject",
        num_steps=inject.steps,
        batches=batches,
        samples_after=samples_after,
        sequence_length=config.model.sequence_length,
        samples_of=lambda step: range(samples_after(step - 1), samples_after(step)),
        state=lambda samples: {
            "order": text.order.fingerprint(),
            "store": inputs.store.fingerprint,
            "table": inputs.table_fingerprint,
            "initial_weights": start and start.identity,
        },
        losses=SourceLosses([source.read_as for source in text.sources]),
        guards=_guards(inputs, folder, "inject", writes),
        watchdog=watchdog,
        log_interval=config.train.log_interval,
        **_saving(config, folder),
        **_tracking(config, folder, "inject", writes),
        inject=inject,
        measure=monitor.measure,
        ended=lambda: monitor.ended,
        checkpoint_extra=monitor.state,
        restore_extra=monitor.restore,
    )
    engine = inputs.engine(layout, "inject")
    if checkpoint.latest(where) is None:
        start_from(engine, start)
    return loop.run(stage, engine, where, folder.metrics if writes else None, stop)


def _pretrain(
    inputs: RunInputs,
    folder: RunFolder,
    layout: Layout,
    writes: bool,
    probe: loop.Probe | None,
    stop: StopRequest,
    watchdog: Watchdog,
    start: Weights | None,
) -> float:
    config, train_config = inputs.config, inputs.config.train
    where = folder.checkpoints("pretrain")
    if _finished(where, inputs.num_steps):
        return 0.0
    checkpoint.settle(where)
    place = layout.coordinates(groups.rank())
    samples, schedule = inputs.samples, inputs.batch_schedule
    check_hit_rate(samples, config)
    engine = inputs.engine(layout, "pretrain")
    if config.inject.steps and checkpoint.latest(where) is None:
        injected = checkpoint.latest(folder.checkpoints("inject"))
        assert injected is not None
        state = checkpoint.load(engine, injected, with_optimizer=False)
        if state["store"] != inputs.store.fingerprint:
            raise DataError(
                f"The injection {injected} was made on another token store than {config.data.store}.",
                "Its ids may mean other words.",
                f"Restore the store, or remove {folder.path} to start over.",
            )
    elif checkpoint.latest(where) is None:
        start_from(engine, start)

    def batches(step: int) -> list[loop.Batch]:
        return list(
            samples.micro_batches(
                schedule.first(step),
                schedule.size(step),
                rank=place.data,
                world=layout.parallel.data,
                size=config.micro_batch_size,
            )
        )

    counts = SwitchTotals(samples)
    stage = loop.Stage(
        name="pretrain",
        num_steps=inputs.num_steps,
        batches=batches,
        samples_after=schedule.taken,
        sequence_length=config.model.sequence_length,
        samples_of=lambda step: [
            samples.order.sample_at(p) for p in range(schedule.first(step), schedule.first(step + 1))
        ],
        mixture=lambda step: samples.order.mixture(samples.order.sample_at(schedule.first(step))),
        accept_changed_data=train_config.accept_changed_data,
        losses=SourceLosses([source.read_as for source in samples.sources]),
        guards=_guards(inputs, folder, "pretrain", writes),
        watchdog=watchdog,
        replica_check_interval=config.guards.replica_check_interval,
        state=lambda position: {
            "order": samples.order.fingerprint(position),
            "store": inputs.store.fingerprint,
            "table": inputs.table_fingerprint if samples.switcher else None,
            "initial_weights": start and start.identity,
        },
        log_interval=train_config.log_interval,
        **_saving(config, folder),
        **_tracking(config, folder, "pretrain", writes),
        consumed=lambda position: _consumed_tokens(samples, position),
        utilisation=_utilisation(inputs, layout),
        extra=counts.metrics,
        probe=probe,
        probe_interval=train_config.evaluate_interval,
        checkpoint_extra=counts.state,
        restore_extra=counts.restore,
    )
    return loop.run(stage, engine, where, folder.metrics if writes else None, stop)


def _guards(inputs: RunInputs, folder: RunFolder, stage: str, writes: bool) -> Guards:
    """The guards of a stage; events of steps that will be taken again are dropped."""
    path = checkpoint.latest(folder.checkpoints(stage))
    step = int(read_json(path / checkpoint.MARKER)["step"]) if path else 0
    events = EventLog(folder.events, stage, step) if writes else None
    return Guards(inputs.config.guards, stage, folder.path, groups.rank(), events)


def _saving(config: RunConfig, folder: RunFolder) -> dict[str, Any]:
    """How a stage saves."""
    names = (
        *("checkpoint_interval", "keep_checkpoints", "keep_permanent_interval"),
        *("async_checkpoint", "verify_checkpoints"),
    )
    return {"fence": folder.fence, **{name: getattr(config.train, name) for name in names}}


def _tracking(config: RunConfig, folder: RunFolder, stage: str, writes: bool) -> dict[str, Any]:
    """Where the metrics of a stage go, and what is traced; nothing on ranks that do not write."""
    if not writes:
        return {}

    def trackers(step: int) -> list[Tracker]:
        settings = config.model_dump(mode="json")
        return open_trackers(config.track, folder.path, stage, step, name=config.name, settings=settings)

    return {"trackers": trackers, "profile": ProfileWindow(config.track.profile_steps, folder.path / "profile", stage)}


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


def _consumed_tokens(samples: Samples, position: int) -> dict[str, int]:
    counts = samples.order.consumed(position)
    return {source.read_as: samples.length * n for source, n in zip(samples.sources, counts, strict=True)}


def _finished(folder: Path, num_steps: int) -> bool:
    """Whether the pointer names the last step's checkpoint, or one at which the stage ended early."""
    name = checkpoint.pointed_name(folder)
    if not name or not (folder / name / checkpoint.MARKER).exists():
        return False
    is_last = name == checkpoint.path_of(folder, num_steps).name
    return is_last or bool(read_json(folder / name / checkpoint.MARKER).get("ended"))


def _injected_steps(folder: RunFolder) -> int:
    """Steps of injection that were taken."""
    path = checkpoint.latest(folder.checkpoints("inject"))
    return int(read_json(path / checkpoint.MARKER)["step"]) if path else 0


def _summarise(inputs: RunInputs, folder: RunFolder, layout: Layout, wall_seconds: float, seconds: float) -> None:
    """Write run.json: what was seen, at what speed, in which layout."""
    config, samples = inputs.config, inputs.samples
    path = checkpoint.latest(folder.checkpoints("pretrain"))
    assert path is not None
    state = read_json(path / checkpoint.MARKER)
    words, _, switched = state["words_seen_covered_switched"]
    length = config.model.sequence_length
    consumed = samples.order.consumed(int(state["samples"]))
    injected = _injected_steps(folder) if config.inject.steps else 0
    lm_tokens = injected * config.inject.lm_batch_size * length
    before = read_json(folder.summary) if folder.summary.exists() else {}
    write_json(
        folder.summary,
        {
            "status": "trained",
            "method": config.method,
            "seed": config.seed,
            "parameters": before.get("parameters"),
            "tokens_seen": {
                "injection": lm_tokens,
                "pretrain": _consumed_tokens(samples, int(state["samples"])),
            },
            "epochs": {
                s.read_as: n / o.num_windows
                for s, o, n in zip(samples.sources, samples.order.sources, consumed, strict=True)
            },
            "steps": {"inject": injected, "pretrain": inputs.num_steps},
            "codeswitch_rate": switched / words if words else 0.0,
            "embedding_init_std": config.model.embedding_init_std or config.model.init_std,
            "layout": config.parallel.model_dump(),
            "wall_seconds": round(before.get("wall_seconds", 0.0) + wall_seconds, 1),
            "tokens_per_second": mean_speed(folder.metrics),
        },
    )
