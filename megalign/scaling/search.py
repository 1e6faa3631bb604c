"""All layouts of a training run on a number of devices: which are legal and fit, how fast each is, why others fall."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from megalign.config.layout import Layout
from megalign.config.sections import ModelConfig, ParallelConfig, PrecisionConfig
from megalign.errors import ConfigError
from megalign.scaling.activations import MicroBatch
from megalign.scaling.communication import Cluster
from megalign.scaling.memory import USABLE_SHARE, RankMemory, StageMemory, enough_micro_batches
from megalign.scaling.step_time import Assumptions, StepModel, StepTime

Recompute = Literal["none", "selective", "full"]
RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")


@dataclass(frozen=True)
class InjectionLoad:
    """An injection's batch of words, for its memory.

    Attributes:
        num_words: of a step, all ranks together.
        tokens_per_word: with the packing's padding.
        row_width_tokens: of the rows into which they are packed.
        windows_per_replica: of text beside them.
        during: in steps of pretraining, whose micro-batches stand beside them, instead of a stage of its own.
    """

    num_words: int
    tokens_per_word: float = 3.0
    row_width_tokens: int = 32
    windows_per_replica: int = 1
    during: bool = False

    def words(self, data: int) -> MicroBatch:
        """Those of one of `data` data-parallel ranks."""
        own = -(-self.num_words // data)
        rows = max(-(-int(own * self.tokens_per_word) // self.row_width_tokens), 1)
        return MicroBatch(rows, self.row_width_tokens, own, self.num_words)


@dataclass(frozen=True)
class Goal:
    """What is to be trained, and on what.

    Attributes:
        model, precision: as in a run.
        vocab_size: ids of the vocabulary, before padding.
        cluster: the devices; all of them are used.
        global_batch_size: windows of a step, all ranks together.
        tokens: to train on.
        recompute: ways to search.
        uneven_stages: search stages that differ by one layer too.
        injection: None: none.
        assumptions: of the step's time.
    """

    model: ModelConfig
    precision: PrecisionConfig
    vocab_size: int
    cluster: Cluster
    global_batch_size: int
    tokens: float
    recompute: tuple[Recompute, ...] = RECOMPUTE
    uneven_stages: bool = False
    injection: InjectionLoad | None = None
    assumptions: Assumptions = field(default_factory=Assumptions)

    @property
    def tokens_per_step(self) -> int:
        """Of all ranks together."""
        return self.global_batch_size * self.model.sequence_length

    @property
    def steps(self) -> int:
        """That reach the tokens."""
        return max(-(-round(self.tokens) // self.tokens_per_step), 1)

    @property
    def usable_bytes(self) -> float:
        """Of a device's memory."""
        return USABLE_SHARE * self.cluster.memory_bytes


@dataclass(frozen=True)
class Plan:
    """A layout that is legal and fits.

    Attributes:
        layout, micro_batch_size, num_micro_batches: how.
        memory: of a rank of the stage that needs most.
        time: of a step.
        tokens_per_second: of all ranks together.
        mfu: model FLOPs as a share of the dense peak.
        training_seconds: for all tokens.
    """

    layout: Layout
    micro_batch_size: int
    num_micro_batches: int
    memory: RankMemory
    time: StepTime
    tokens_per_second: float
    mfu: float
    training_seconds: float

    @property
    def device_hours(self) -> float:
        """Of all devices."""
        return self.training_seconds * self.layout.world_size / 3600


@dataclass(frozen=True)
class Refusal:
    """Why layouts fall.

    Attributes:
        reason: with the values of one of them.
        count: how many; a layout that breaks a rule counts once, whatever its micro-batch and recomputation.
    """

    reason: str
    count: int


@dataclass(frozen=True)
class Search:
    """Result of a search.

    Attributes:
        plans: that fit, fastest first.
        refusals: most frequent first.
    """

    plans: list[Plan]
    refusals: list[Refusal]

    @property
    def num_layouts(self) -> int:
        """All that were looked at."""
        return len(self.plans) + sum(refusal.count for refusal in self.refusals)


class _Refused:
    """Counts reasons, alike but for their numbers."""

    def __init__(self) -> None:
        self._found: dict[str, Refusal] = {}
        self._least_bytes: float | None = None
        self.num_too_large = 0

    def rule(self, reason: str) -> None:
        kind = re.sub(r"\d+", "N", reason)
        before = self._found.get(kind, Refusal(reason.rstrip("."), 0))
        self._found[kind] = Refusal(before.reason, before.count + 1)

    def too_large(self, needed_bytes: float) -> None:
        self.num_too_large += 1
        self._least_bytes = min(needed_bytes, self._least_bytes or needed_bytes)

    def result(self, goal: Goal) -> list[Refusal]:
        found = list(self._found.values())
        if self._least_bytes is not None:
            all_bytes = goal.cluster.memory_bytes
            reason = (
                f"does not fit: needs {self._least_bytes / 2**30:.4g} GiB or more of {goal.usable_bytes / 2**30:.4g} "
                f"({USABLE_SHARE:.0%} of {all_bytes / 2**30:.4g})"
            )
            found.append(Refusal(reason, self.num_too_large))
        return sorted(found, key=lambda refusal: -refusal.count)


def search(goal: Goal) -> Search:
    """All layouts of the goal's devices: tensor x context x pipeline x data degrees whose product they are, chunks, sequence
    parallelism on and off, micro-batches that divide a replica's part of the batch, recomputation.

    Sharing gradients, ranks cut the optimizer's state too: it costs neither memory nor time. Ties go to less memory.

    Raises:
        ConfigError: no peak of the device in the precision.
    """
    refused, plans = _Refused(), []
    layers: dict[Any, Any] = {}
    for layout in _layouts(goal, refused):
        share = goal.global_batch_size // layout.parallel.data
        for recompute in goal.recompute:
            one = Layout(layout.parallel.model_copy(update={"recompute": recompute}))
            fits = True
            for micro_batch_size in _divisors(share):
                num = one.num_micro_batches(goal.global_batch_size, micro_batch_size)
                try:
                    one.check_micro_batches(num)
                    if goal.injection and goal.injection.during:
                        one.check_micro_batches(num + 1)
                except ConfigError as error:
                    refused.rule(error.what)
                    continue
                # Larger micro-batches need more: once one does not fit, none above it does.
                memory = _memory(goal, one, micro_batch_size, num) if fits else None
                if memory is None or memory.total > goal.usable_bytes:
                    refused.too_large(memory.total if memory else float("inf"))
                    fits = False
                    continue
                plans.append(_plan(goal, one, micro_batch_size, num, memory, layers))
    plans.sort(key=lambda plan: (-plan.tokens_per_second, plan.memory.total))
    return Search(plans, refused.result(goal))


def _layouts(goal: Goal, refused: _Refused) -> Iterator[Layout]:
    """Those that no rule forbids, without recomputation."""
    num, model = goal.cluster.num_devices, goal.model
    for tensor in _divisors(num):
        for context in _divisors(num // tensor):
            for pipeline in _divisors(num // tensor // context):
                data = num // tensor // context // pipeline
                for sequence_parallel in (False, True)[: 2 if tensor > 1 else 1]:
                    for chunks in (None, *range(2, model.num_layers // pipeline + 1))[: None if pipeline > 1 else 1]:
                        layout = Layout(
                            ParallelConfig(
                                tensor=tensor,
                                context=context,
                                pipeline=pipeline,
                                data=data,
                                virtual_pipeline=chunks,
                                sequence_parallel=sequence_parallel,
                                distributed_optimizer=data * context > 1,
                                uneven_stages=goal.uneven_stages and model.num_layers % (pipeline * (chunks or 1)) > 0,
                            )
                        )
                        if (reason := _forbidden(goal, layout)) is None:
                            yield layout
                        else:
                            refused.rule(reason)


def _forbidden(goal: Goal, layout: Layout) -> str | None:
    """The rule that a layout breaks: of the layout itself, or of the machine."""
    if goal.cluster.link(layout, "tensor").crosses_nodes:
        return (
            f"parallel.tensor {layout.parallel.tensor} does not stay inside a node of {goal.cluster.devices_per_node} "
            "devices"
        )
    try:
        layout.check(goal.model)
        layout.check_fp8(goal.model, goal.precision)
        layout.num_micro_batches(goal.global_batch_size)
    except ConfigError as error:
        return error.what
    try:
        if goal.injection and not goal.injection.during:
            layout.check_micro_batches(2)  # words, text
    except ConfigError as error:
        return f"injection: {error.what}"
    return None


def _memory(goal: Goal, layout: Layout, micro_batch_size: int, num_micro_batches: int) -> RankMemory:
    """Of the stage that needs most: the first (most micro-batches under way), the second, or the last (logits)."""
    pipeline = layout.parallel.pipeline
    text = [MicroBatch(micro_batch_size, goal.model.sequence_length)] * enough_micro_batches(layout, num_micro_batches)
    steps = [(goal.precision, text)]
    if goal.injection:
        if not goal.injection.during:
            text = [MicroBatch(goal.injection.windows_per_replica, goal.model.sequence_length)]
        steps.append((goal.precision.without_fp8(), [goal.injection.words(layout.parallel.data), *text]))
    peaks = [
        StageMemory(goal.model, layout, precision, goal.vocab_size, stage).peak(batches)
        for precision, batches in steps
        for stage in sorted({0, min(1, pipeline - 1), pipeline - 1})
    ]
    return max(peaks, key=lambda memory: memory.total)


def _plan(
    goal: Goal,
    layout: Layout,
    micro_batch_size: int,
    num_micro_batches: int,
    memory: RankMemory,
    layers: dict[Any, Any],
) -> Plan:
    model = StepModel(
        goal.model,
        layout,
        goal.precision,
        goal.vocab_size,
        MicroBatch(micro_batch_size, goal.model.sequence_length),
        num_micro_batches,
        goal.cluster,
        goal.assumptions,
        layers,
    )
    time = model.step()
    tokens_per_second = model.tokens_per_step / time.seconds
    return Plan(
        layout=layout,
        micro_batch_size=micro_batch_size,
        num_micro_batches=num_micro_batches,
        memory=memory,
        time=time,
        tokens_per_second=tokens_per_second,
        mfu=model.mfu(time.seconds) or 0.0,
        training_seconds=goal.steps * time.seconds,
    )


def run_sections(goal: Goal, plan: Plan) -> dict[str, Any]:
    """The sections of a run's configuration that a plan decides; the rest of train, and data, are the user's."""
    model = goal.model
    sections: dict[str, Any] = {
        "parallel": _changed(plan.layout.parallel),
        "precision": _changed(goal.precision),
        "train": {
            "steps": goal.steps,
            "global_batch_size": goal.global_batch_size,
            "micro_batch_size": plan.micro_batch_size,
        },
    }
    if model.preset:
        sections = {"model": {"preset": model.preset, "sequence_length": model.sequence_length}, **sections}
    if goal.injection and not goal.injection.during:
        windows = goal.injection.windows_per_replica * plan.layout.parallel.data
        sections["inject"] = {"lm_batch_size": windows, "row_width_tokens": goal.injection.row_width_tokens}
    return sections


def _changed(section: ParallelConfig | PrecisionConfig) -> dict[str, Any]:
    """The values that are not the defaults."""
    return section.model_dump(exclude_defaults=True)


@lru_cache(maxsize=1 << 12)
def _divisors(number: int) -> tuple[int, ...]:
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return tuple(sorted({*small, *(number // d for d in small)}))
