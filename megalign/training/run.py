"""One run: injection where the method has it, then pretraining. Rerun to continue."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from megalign.cluster.ranks import Rank
from megalign.config import RunConfig
from megalign.config.layout import Layout
from megalign.engine import checkpoint, groups
from megalign.errors import DataError
from megalign.files import read_json, write_json
from megalign.prealign.words import WordBatches
from megalign.training import loop
from megalign.training.guards import EventLog, Guards
from megalign.training.inputs import RunFolder as RunFolder
from megalign.training.inputs import RunInputs as RunInputs
from megalign.training.samples import Samples, check_hit_rate
from megalign.training.stop import StopRequest
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
    inputs = RunInputs.open(config)
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
                seconds += _inject(inputs, folder, layout, writes, stop, watchdog)
            seconds += _pretrain(inputs, folder, layout, writes, probe, stop, watchdog)
        if writes and (seconds or not folder.summary.exists()):
            _summarise(inputs, folder, layout, time.monotonic() - started, seconds)
    finally:
        folder.release()


def _inject(
    inputs: RunInputs, folder: RunFolder, layout: Layout, writes: bool, stop: StopRequest, watchdog: Watchdog
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
        },
        guards=_guards(inputs, folder, "inject", writes),
        watchdog=watchdog,
        log_interval=config.train.log_interval,
        **_saving(config, folder),
        inject=inject,
    )
    return loop.run(stage, inputs.engine(layout, "inject"), where, folder.metrics if writes else None, stop)


def _pretrain(
    inputs: RunInputs,
    folder: RunFolder,
    layout: Layout,
    writes: bool,
    probe: loop.Probe | None,
    stop: StopRequest,
    watchdog: Watchdog,
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

    def batches(step: int) -> list[loop.Batch]:
        return list(
            samples.micro_batches(
                schedule.first(step),
                schedule.size(step),
                rank=place.data,
                world=layout.parallel.data,
                size=train_config.micro_batch_size,
            )
        )

    counts = _SwitchTotals(inputs)
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
        guards=_guards(inputs, folder, "pretrain", writes),
        watchdog=watchdog,
        replica_check_interval=config.guards.replica_check_interval,
        state=lambda position: {
            "order": samples.order.fingerprint(position),
            "store": inputs.store.fingerprint,
            "table": inputs.table_fingerprint if samples.switcher else None,
        },
        log_interval=train_config.log_interval,
        **_saving(config, folder),
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


class _SwitchTotals:
    """Words switched so far by all data-parallel ranks, kept over resumes."""

    def __init__(self, inputs: RunInputs) -> None:
        self.samples = inputs.samples
        self.before = [0, 0, 0]

    def metrics(self) -> dict[str, Any]:
        """The rate on this rank's windows (each rank reads a fair share)."""
        return {"codeswitch_rate": self.samples.counts.rate} if self.samples.switcher else {}

    def state(self) -> dict[str, Any]:
        """Totals over ranks, a collective."""
        counts = self.samples.counts
        own = groups.sum_counts([counts.words, counts.covered, counts.switched])
        return {"words_seen_covered_switched": [a + b for a, b in zip(self.before, own, strict=True)]}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.before = list(state.get("words_seen_covered_switched", self.before))


def _saving(config: RunConfig, folder: RunFolder) -> dict[str, Any]:
    """How a stage saves."""
    names = (
        *("checkpoint_interval", "keep_checkpoints", "keep_permanent_interval"),
        *("async_checkpoint", "verify_checkpoints"),
    )
    return {"fence": folder.fence, **{name: getattr(config.train, name) for name in names}}


def _finished(folder: Path, num_steps: int) -> bool:
    """Whether the pointer names the last step's checkpoint."""
    path = checkpoint.path_of(folder, num_steps)
    return checkpoint.pointed_name(folder) == path.name and (path / checkpoint.MARKER).exists()


def _summarise(inputs: RunInputs, folder: RunFolder, layout: Layout, wall_seconds: float, seconds: float) -> None:
    """Write run.json: what was seen, at what speed, in which layout."""
    config, samples = inputs.config, inputs.samples
    path = checkpoint.latest(folder.checkpoints("pretrain"))
    assert path is not None
    state = read_json(path / checkpoint.MARKER)
    words, _, switched = state["words_seen_covered_switched"]
    length = config.model.sequence_length
    consumed = samples.order.consumed(int(state["samples"]))
    lm_tokens = config.inject.steps * config.inject.lm_batch_size * length
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
                "pretrain": {s.read_as: n * length for s, n in zip(samples.sources, consumed, strict=True)},
            },
            "epochs": {
                s.read_as: n / o.num_windows
                for s, o, n in zip(samples.sources, samples.order.sources, consumed, strict=True)
            },
            "steps": {"inject": config.inject.steps, "pretrain": inputs.num_steps},
            "codeswitch_rate": switched / words if words else 0.0,
            "embedding_init_std": config.model.embedding_init_std or config.model.init_std,
            "layout": config.parallel.model_dump(),
            "wall_seconds": round(before.get("wall_seconds", 0.0) + wall_seconds, 1),
            "tokens_per_second": _mean_speed(folder.metrics),
        },
    )


def _mean_speed(metrics: Path) -> float | None:
    """Mean tokens a second over the logged lines of pretraining."""
    speeds = []
    for text in metrics.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if line["stage"] == "pretrain" and line["step"] > 1:
            speeds.append(line["tokens_per_second"])
    return round(len(speeds) / sum(1 / speed for speed in speeds), 1) if speeds else None
