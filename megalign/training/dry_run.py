"""What a run would be: everything a start checks and counts, without processes, torch or a changed file.

What is machine-dependent (a GPU, TransformerEngine, whether a checkpoint's data fit) is left to the start.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megalign.config import RunConfig
from megalign.config.layout import Layout
from megalign.errors import ConfigError
from megalign.scaling.activations import Hardware, MicroBatch
from megalign.scaling.devices import Device
from megalign.scaling.flops import (
    hardware_flops_per_token,
    training_flops_per_token,
    utilisation,
    word_training_flops_per_token,
)
from megalign.scaling.memory import USABLE_SHARE, RankMemory, checkpoint_bytes, enough_micro_batches, estimate_memory
from megalign.scaling.parameters import count_parameters, count_rank
from megalign.scaling.schedule import bubble_share
from megalign.training.batch_schedule import BatchSchedule
from megalign.training.inputs import RunFolder, RunInputs
from megalign.training.metrics import mean_speed
from megalign.training.samples import Samples, check_hit_rate

# Muennighoff et al. 2023 (arXiv 2305.16264): up to 4 epochs, repeated text is worth almost as much as fresh text.
MANY_EPOCHS = 4.0
_LONG_BUBBLE = 0.25


@dataclass(frozen=True)
class Speed:
    """What the time is estimated from; see `speed_from`.

    Attributes:
        tokens_per_second: of pretraining, all ranks together; None: unknown.
        origin: where the number is from, or how to give one.
    """

    tokens_per_second: float | None
    origin: str


@dataclass(frozen=True)
class BatchPhase:
    """Steps of one global batch size.

    Attributes:
        first_step, last_step: from 1, both included.
        global_batch_size: windows a step, all ranks together.
        num_micro_batches: a step and data-parallel rank.
        tokens_per_step: all ranks together.
    """

    first_step: int
    last_step: int
    global_batch_size: int
    num_micro_batches: int
    tokens_per_step: int


@dataclass(frozen=True)
class SourceUse:
    """What pretraining reads of a source.

    Attributes:
        language: as the model sees it.
        tokens: read, repetitions included.
        share: of all pretraining tokens.
        available_tokens: of one epoch, in whole windows.
        epochs: tokens / available_tokens.
    """

    language: str
    tokens: int
    share: float
    available_tokens: int
    epochs: float


@dataclass(frozen=True)
class InjectionUse:
    """What the injection computes; words are those of its first batch.

    Attributes:
        when: before, during or after pretraining.
        steps: steps with words.
        entries: of the alignment table that can be aligned.
        words_per_step, word_tokens_per_step: all ranks together; tokens with the packing's padding.
        text_tokens_per_step: of the injection's own text, all ranks together.
    """

    when: str
    steps: int
    entries: int
    words_per_step: int
    word_tokens_per_step: int
    text_tokens_per_step: int


@dataclass(frozen=True)
class DryRun:
    """A run in numbers. Sizes in bytes, FLOPs of all ranks together, times in seconds.

    Attributes:
        parameters: by part, `total` and `non_embedding`, and `stages`: what a rank of each pipeline stage holds.
        stage_layers: for each pipeline stage the layers of its chunks.
        batch_phases: pretraining steps by batch size.
        steps, tokens: of the stages "inject" and "pretrain".
        flops: `per_token` of training (model FLOPs), `per_token_causal`, `per_token_hardware` (with recomputation), and
            totals "inject" (the words, and its own text) and "pretrain".
        memory: the peak of a rank of each pipeline stage, the larger one of injection and pretraining.
        checkpoints: `bytes` of each, `written` and `kept` of both stages, `bytes_kept`.
        steps_logged: steps that the folder's metrics already have, by stage.
        remaining_seconds, mfu: None where the speed or the peak is unknown.
        warnings: what a user should look at.
    """

    name: str
    folder: str
    vocab_size: int
    padded_vocab_size: int
    parameters: dict[str, Any]
    num_ranks: int
    stage_layers: list[list[int]]
    bubble: float
    batch_phases: list[BatchPhase]
    injection: InjectionUse | None
    steps: dict[str, int]
    tokens: dict[str, int]
    sources: list[SourceUse]
    flops: dict[str, float]
    memory: list[RankMemory]
    hardware: Hardware
    device: Device | None
    checkpoints: dict[str, Any]
    steps_logged: dict[str, int]
    speed: Speed
    mfu: float | None
    remaining_seconds: float | None
    warnings: list[str] = field(default_factory=list)

    @property
    def fullest(self) -> RankMemory:
        """The stage whose ranks need most."""
        return max(self.memory, key=lambda memory: memory.total)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            **asdict(self),
            "device": self.device.model_dump(mode="json") if self.device else None,
            "memory": [{**asdict(memory), "total": memory.total} for memory in self.memory],
        }


def speed_from(
    run: RunConfig,
    flops_per_token: float,
    *,
    tokens_per_second: float | None = None,
    device: Device | None = None,
    mfu: float | None = None,
) -> Speed:
    """The speed of pretraining: as given, or from a share of the devices' peak, or as the folder's metrics measured it.

    Args:
        run: the run.
        flops_per_token: model FLOPs of training.
        tokens_per_second: of all ranks together.
        device: what the ranks run on.
        mfu: share of its peak, 0 to 1.

    Raises:
        ConfigError: an MFU without a device, or a device without a peak in the run's dtype.
    """
    if tokens_per_second is not None:
        return Speed(tokens_per_second, "as given")
    if mfu is not None:
        peak = device.peak(run.precision) if device else None
        if device is None or peak is None:
            told = f"the peak of {device.title} in {run.precision.dtype} is" if device else "no device is"
            raise ConfigError(
                f"An MFU of {mfu:g} was given, but {told} known.",
                "The MFU is a share of a device's peak.",
                "Give --device, one whose table entry has peak_flops for this dtype, or --tokens-per-second.",
            )
        ranks = Layout(run.parallel).world_size
        return Speed(mfu * peak * ranks / flops_per_token, f"{mfu:.0%} MFU on {ranks} x {device.title}")
    metrics = RunFolder(Path(run.folder)).metrics
    measured = mean_speed(metrics) if metrics.exists() else None
    if measured:
        return Speed(measured, f"measured in {metrics}")
    return Speed(None, "unknown: give --tokens-per-second, or --device and --mfu")


def dry_run(
    config: RunConfig,
    *,
    device: Device | None = None,
    tokens_per_second: float | None = None,
    mfu: float | None = None,
    many_epochs: float = MANY_EPOCHS,
) -> DryRun:
    """Check and count a run.

    Args:
        config: the run.
        device: what each rank computes on; None: unknown.
        tokens_per_second, mfu: see `speed_from`.
        many_epochs: a warning where a source is read more often.

    Raises:
        MegalignError: what a start would raise for these settings and data.
    """
    layout = Layout(config.parallel)
    layout.check(config.model)
    if config.track.tensorboard or config.track.wandb_project:
        from megalign.training.tracking import check_installed  # imports torch

        check_installed(config.track)
    inputs = RunInputs.open(config)
    folder = RunFolder(Path(config.folder))
    folder.check(config)
    _check_start(inputs)
    check_hit_rate(inputs.samples, config)
    phases = _phases(config, inputs.batch_schedule, inputs.num_steps, layout)
    words = _words(inputs, layout) if config.inject.steps else []
    injection = _injection(inputs, words) if words else None

    model, vocab_size = config.model, inputs.store.vocabulary.size
    flops = _flops(config, vocab_size, inputs, injection)
    speed = speed_from(config, flops["per_token"], tokens_per_second=tokens_per_second, device=device, mfu=mfu)
    logged, left = _progress(folder, config, inputs, flops)
    parameters = count_parameters(model, vocab_size)
    hardware: Hardware = "gpu" if device or _has_gpu() else "cpu"
    result = DryRun(
        name=config.name,
        folder=config.folder,
        vocab_size=vocab_size,
        padded_vocab_size=model.padded_vocab_size(vocab_size),
        parameters={
            **asdict(parameters),
            "total": parameters.total,
            "non_embedding": parameters.non_embedding,
            "stages": [count_rank(model, vocab_size, layout, s).total for s in range(layout.parallel.pipeline)],
        },
        num_ranks=layout.world_size,
        stage_layers=[
            layout.layers_of_chunks(model.num_layers)[stage :: layout.parallel.pipeline]
            for stage in range(layout.parallel.pipeline)
        ],
        bubble=bubble_share(layout, phases[-1].num_micro_batches),
        batch_phases=phases,
        injection=injection,
        steps={"inject": config.inject.stage_steps, "pretrain": inputs.num_steps},
        tokens=_tokens(inputs, injection),
        sources=_sources(inputs),
        flops=flops,
        memory=_memory(config, vocab_size, phases, words, hardware),
        hardware=hardware,
        device=device,
        checkpoints=_checkpoints(config, parameters.total, inputs.num_steps),
        steps_logged=logged,
        speed=speed,
        mfu=utilisation(
            speed.tokens_per_second or 0.0,
            flops["per_token"],
            layout.world_size,
            device.peak(config.precision) if device and speed.tokens_per_second else None,
        ),
        remaining_seconds=left / (speed.tokens_per_second * flops["per_token"]) if speed.tokens_per_second else None,
    )
    result.warnings.extend(_warnings(config, result, many_epochs))
    return result


def _check_start(inputs: RunInputs) -> None:
    """The rows that the embedding starts from, or the weights that the model does."""
    inputs.store.vocabulary.row_sources()
    if inputs.config.initial_weights is not None:
        from megalign.training.initial import initial_weights  # imports torch

        initial_weights(inputs)


def _has_gpu() -> bool:
    """Whether this machine has one; asking torch would mean importing it."""
    return Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()


def _phases(config: RunConfig, schedule: BatchSchedule, num_steps: int, layout: Layout) -> list[BatchPhase]:
    """The batch sizes of the steps that are taken.

    Raises:
        ConfigError: interleaving does not divide the micro-batches.
    """
    found = []
    ends = [*(first - 1 for first in schedule.first_steps[1:]), num_steps]
    for size, first, end in zip(schedule.sizes, schedule.first_steps, ends, strict=True):
        if first > min(end, num_steps):
            continue
        num_micro_batches = layout.num_micro_batches(size, config.micro_batch_size)
        layout.check_micro_batches(num_micro_batches)
        if config.inject.steps_during_pretraining:
            layout.check_micro_batches(num_micro_batches + 1)
        tokens = size * config.model.sequence_length
        found.append(BatchPhase(first, min(end, num_steps), size, num_micro_batches, tokens))
    return found


def _words(inputs: RunInputs, layout: Layout) -> list[MicroBatch]:
    """The first batch of words of every data-parallel rank.

    Raises:
        ConfigError: the table is too small for a batch, or interleaving does not divide the micro-batches.
    """
    config = inputs.config
    batches = inputs.word_batches()
    if config.inject.stage_steps:
        # It reads an order of its own over the same store.
        Samples(inputs.store, config.data, config.model.sequence_length, config.seed, name="inject")
        layout.check_micro_batches(2)
    _ = inputs.word_schedule
    found = [batches.batch(0, rank, config.parallel.data) for rank in range(config.parallel.data)]
    return [MicroBatch(len(b.tokens), batches.width, b.num_words, len(b.entry)) for b in found]


def _injection(inputs: RunInputs, words: Sequence[MicroBatch]) -> InjectionUse:
    config = inputs.config
    text = 0 if config.inject.when == "during" else config.inject.lm_batch_size * config.model.sequence_length
    return InjectionUse(
        when=config.inject.when,
        steps=config.inject.steps,
        entries=len(inputs.encoded.batch_entries),
        words_per_step=words[0].num_all_words,
        word_tokens_per_step=sum(batch.rows * batch.width for batch in words),
        text_tokens_per_step=text,
    )


def _tokens(inputs: RunInputs, injection: InjectionUse | None) -> dict[str, int]:
    length = inputs.config.model.sequence_length
    return {
        "inject": injection.steps * injection.text_tokens_per_step if injection else 0,
        "pretrain": inputs.batch_schedule.taken(inputs.num_steps) * length,
    }


def _sources(inputs: RunInputs) -> list[SourceUse]:
    order, length = inputs.samples.order, inputs.config.model.sequence_length
    total = inputs.batch_schedule.taken(inputs.num_steps)
    return [
        SourceUse(
            language=source.language,
            tokens=taken * length,
            share=taken / total,
            available_tokens=source.num_windows * length,
            epochs=taken / source.num_windows,
        )
        for source, taken in zip(order.sources, order.consumed(total), strict=True)
    ]


def _flops(config: RunConfig, vocab_size: int, inputs: RunInputs, injection: InjectionUse | None) -> dict[str, float]:
    model = config.model
    per_token = training_flops_per_token(model, vocab_size)
    flops: dict[str, float] = {
        "per_token": per_token,
        "per_token_causal": training_flops_per_token(model, vocab_size, causal=True),
        "per_token_hardware": hardware_flops_per_token(model, vocab_size, config.parallel.recompute),
        "inject": 0.0,
        "pretrain": per_token * _tokens(inputs, injection)["pretrain"],
    }
    if injection:
        words = word_training_flops_per_token(model, vocab_size, config.inject.row_width_tokens)
        step = injection.word_tokens_per_step * words + injection.text_tokens_per_step * per_token
        flops["inject"] = injection.steps * step
    return flops


def _memory(
    config: RunConfig, vocab_size: int, phases: Sequence[BatchPhase], words: Sequence[MicroBatch], hardware: Hardware
) -> list[RankMemory]:
    layout, length = Layout(config.parallel), config.model.sequence_length
    num = enough_micro_batches(layout, max(phase.num_micro_batches for phase in phases))
    text = [MicroBatch(config.micro_batch_size, length)] * num
    steps = [(config.precision, text)]
    if words:
        largest = max(words, key=lambda batch: batch.rows)
        if config.inject.stage_steps:
            text = [MicroBatch(config.inject.lm_batch_size // config.parallel.data, length)]
        steps.append((config.precision.without_fp8(), [largest, *text]))
    peaks = [estimate_memory(config.model, layout, numbers, vocab_size, step, hardware) for numbers, step in steps]
    return [max(of_stage, key=lambda memory: memory.total) for of_stage in zip(*peaks, strict=True)]


def _checkpoints(config: RunConfig, num_parameters: int, num_steps: int) -> dict[str, Any]:
    train = config.train
    size = checkpoint_bytes(
        num_parameters, config.precision, distributed_optimizer=config.parallel.distributed_optimizer
    )
    written = kept = 0
    for steps in (config.inject.stage_steps, num_steps):
        saved = sorted({*range(train.checkpoint_interval or steps, steps + 1, train.checkpoint_interval or 1), steps})
        saved = saved if steps else []
        permanent = [s for s in saved if train.keep_permanent_interval and s % train.keep_permanent_interval == 0]
        written += len(saved)
        kept += len(permanent) + min(train.keep_checkpoints, len(saved) - len(permanent))
    return {"bytes": size, "written": written, "kept": kept, "bytes_kept": kept * size}


def _progress(
    folder: RunFolder, config: RunConfig, inputs: RunInputs, flops: dict[str, float]
) -> tuple[dict[str, int], float]:
    """Steps that the metrics have, by stage, and the FLOPs that remain."""
    logged = logged_steps(folder.metrics)
    schedule = inputs.batch_schedule
    total = schedule.taken(inputs.num_steps)
    done = {"pretrain": schedule.taken(min(logged["pretrain"], inputs.num_steps)) / total}
    done["inject"] = min(logged["inject"] / (config.inject.stage_steps or inputs.num_steps), 1.0)
    if config.inject.when == "during":
        done["inject"] = done["pretrain"]
    elif config.inject.when == "before" and logged["pretrain"]:
        done["inject"] = 1.0  # it may have ended early
    return logged, sum(flops[stage] * (1 - share) for stage, share in done.items())


def logged_steps(metrics: Path) -> dict[str, int]:
    """The last step of each stage that a file of metrics has; 0 where it has none."""
    last = {"inject": 0, "pretrain": 0}
    for text in metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []:
        line = json.loads(text)
        last[line["stage"]] = max(last.get(line["stage"], 0), int(line["step"]))
    return last


def _warnings(config: RunConfig, result: DryRun, many_epochs: float) -> list[str]:
    """What a user should look at before starting."""
    found = []
    need = result.fullest
    memory = result.device.memory_bytes if result.device else None
    if result.device and memory and need.total > USABLE_SHARE * memory:
        found.append(
            f"a rank of stage {need.stage} needs {need.total / 2**30:.3g} GiB ({need.moment}), and {result.device.title} "
            f"has {memory / 2**30:.3g} GiB, a tenth of which goes to what is not counted: lower train.micro_batch_size, "
            "set parallel.recompute=full or parallel.distributed_optimizer=true, or raise parallel.tensor or "
            "parallel.pipeline"
        )
    found += [
        f"{source.language} is read {source.epochs:.1f} times, more than {many_epochs:g} epochs: repeated text is worth "
        "less each time (train.max_epochs, or another weight)"
        for source in result.sources
        if source.epochs > many_epochs
    ]
    if result.steps["pretrain"] < config.train.steps:
        found.append(f"train.max_epochs ends pretraining at step {result.steps['pretrain']} of {config.train.steps}")
    if result.batch_phases[-1].global_batch_size != config.train.global_batch_size:
        found.append("train.batch_size_ramp does not reach train.global_batch_size before the last step")
    if result.bubble > _LONG_BUBBLE:
        found.append(
            f"pipeline stages wait {result.bubble:.0%} of the time they compute: more micro-batches a step "
            "(a larger train.global_batch_size, a smaller train.micro_batch_size) or parallel.virtual_pipeline shorten it"
        )
    free = shutil.disk_usage(_existing(Path(config.folder))).free
    if result.checkpoints["bytes_kept"] > free:
        found.append(
            f"checkpoints will take {result.checkpoints['bytes_kept'] / 1e9:.1f} GB where {free / 1e9:.1f} GB are free"
        )
    if config.precision.fp8:
        found.append("precision.fp8 needs TransformerEngine and a GPU, which is checked at the start")
    return found


def _existing(path: Path) -> Path:
    """The nearest folder upwards that exists."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())
