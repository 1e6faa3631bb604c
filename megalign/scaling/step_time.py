"""How long a step takes: a simple model, every assumption of which stands in `Assumptions`.

- A matrix product takes the longer of its operations at a share of the device's dense peak and its operands' bytes at a
  share of the memory's bandwidth (roofline). The core of the attention, fused, takes its causal operations at a share of
  the bfloat16 peak, 2 products forward and 5 backward (Dao et al. 2022, arXiv 2205.14135).
- What stands between takes its bytes, counted for the engine's unfused operations (`_Layer.elementwise_bytes`).
- A layer takes no less than the host needs to launch it.
- Communication (`megalign.scaling.communication`) takes its bytes over the slowest link of its group and a fixed time an
  operation. What is issued beside the products of gradients, or of other micro-batches (interleaving), is hidden by a
  share of them; everything else is waited for. The engine overlaps neither gradients nor weights of data-parallel ranks.
- Stages pass micro-batches as `megalign.scaling.schedule.pipeline_seconds` says.

Not modelled: data loading, saving and measuring, slow ranks, contention between groups for links, fusion by compilers.

Four of the assumptions (slowdown, attention, memory and the A100's share of its peak) were adjusted on 21 published
measurements on A100 and H100 (tests/scaling/test_step_time.py; 1B to 1T parameters, other code bases among them), which the
model then meets within -15 % to +28 % of tokens a second: a fit, not a test on machines it has not seen. Long windows and
FP8, where attention and conversions weigh most, are told too fast. Calibrate (`megalign.scaling.calibrate`) where it matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from megalign.config.layout import Layout
from megalign.config.sections import ModelConfig, PrecisionConfig
from megalign.errors import ConfigError
from megalign.scaling.activations import Activations, MicroBatch
from megalign.scaling.communication import Cluster, Communication, Link, Transfer
from megalign.scaling.flops import training_flops_per_token, utilisation
from megalign.scaling.memory import fp8_layers
from megalign.scaling.parameters import fc1_width, qkv_width, stage_chunks, stage_tensors
from megalign.scaling.schedule import pipeline_seconds

# Bytes of device memory that the loss reads and writes for a logit, besides the product: the bfloat16 logits are read and
# written as float32, and on these run the largest, the difference, the exponential, the sum and the quotient.
_LOSS_FORWARD_BYTES = 36
_LOSS_BACKWARD_BYTES = 14  # the gradient is scaled, and written in bfloat16
# A gradient of a matrix is read and added to the float32 buffer, for every micro-batch.
_ACCUMULATION_BYTES = 10
# Adam reads gradient, weight and moments and writes the last three, the bfloat16 weight besides; the norm reads the
# gradient, clipping rewrites it.
_OPTIMIZER_BYTES = 42
_ZEROING_BYTES = 4


@dataclass(frozen=True)
class Assumptions:
    """Shares of the hardware's peaks that are reached, and fixed times.

    Attributes:
        matmul: of the dense peak by bfloat16 and float32 products large enough to be bound by it, where the table of
            devices has no `reached_shares`.
        fp8_matmul: the same of FP8 products, the conversion of their inputs apart.
        attention: of the bfloat16 peak by the fused core of the attention.
        memory: of the memory's bandwidth.
        link, network: of the links' peaks, inside a node and between nodes.
        overlap: of the time of the products that communication is issued beside, how much hides it.
        launch_seconds: a layer's pass on the host.
        link_seconds, network_seconds: of an operation of communication beside its bytes.
        slowdown: computing takes so many times as long as its parts by themselves: power limits, gaps between kernels, links
            and kernels that share memory. Calibration sets it.
    """

    matmul: float = 0.75
    fp8_matmul: float = 0.60
    attention: float = 0.30
    memory: float = 0.75
    link: float = 0.75
    network: float = 0.80
    overlap: float = 0.70
    launch_seconds: float = 2.5e-4
    link_seconds: float = 1.5e-5
    network_seconds: float = 4e-5
    slowdown: float = 1.1

    def __post_init__(self) -> None:
        for name, value in self.__dict__.items():
            if not value > 0:
                raise ConfigError(f"The assumption {name} must be above 0, not {value}.")


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step on the slowest stage.

    Attributes:
        matmul, attention, elementwise: computing; `launch` is what the host takes longer than the device.
        tensor, context, pipeline: communication that is waited for.
        bubble: waiting for other stages.
        data: gradients and weights between data-parallel ranks, and tied rows.
        optimizer: its update.
    """

    matmul: float
    attention: float
    elementwise: float
    launch: float
    tensor: float
    context: float
    pipeline: float
    bubble: float
    data: float
    optimizer: float

    @property
    def parts(self) -> dict[str, float]:
        """Seconds by part."""
        return {part.name: getattr(self, part.name) for part in fields(self)}

    @property
    def seconds(self) -> float:
        """All of it."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class _Work:
    """Seconds by part of one micro-batch, forward and backward."""

    matmul: float = 0.0
    attention: float = 0.0
    elementwise: float = 0.0
    launch: float = 0.0
    tensor: float = 0.0
    context: float = 0.0
    pipeline: float = 0.0

    @property
    def seconds(self) -> float:
        return sum(self.values)

    @property
    def values(self) -> tuple[float, ...]:
        return (
            *(self.matmul, self.attention, self.elementwise, self.launch),
            *(self.tensor, self.context, self.pipeline),
        )

    def __add__(self, other: _Work) -> _Work:
        return _Work(*(a + b for a, b in zip(self.values, other.values, strict=True)))

    def __mul__(self, number: float) -> _Work:
        return _Work(*(number * value for value in self.values))


@dataclass(frozen=True)
class StepModel:
    """The time of a step of equal micro-batches of text.

    Args:
        model, layout, precision: what is trained; the layout must divide the model.
        vocab_size: ids of the vocabulary, before padding.
        micro_batch: what a rank computes at once.
        num_micro_batches: of a step on a data-parallel rank.
        cluster: what it runs on.
        assumptions: see the class.
        known_layers: filled and read by models that differ in `pipeline`, `virtual_pipeline` and `data` only: what a layer
            takes does not depend on them.

    Raises:
        ConfigError: the table of devices lacks the peak in this precision.
    """

    model: ModelConfig
    layout: Layout
    precision: PrecisionConfig
    vocab_size: int
    micro_batch: MicroBatch
    num_micro_batches: int
    cluster: Cluster
    assumptions: Assumptions = Assumptions()
    known_layers: dict[tuple[Any, ...], _Work] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        for precision in {self.precision, self.precision.without_fp8()}:
            if self.cluster.device.peak(precision) is None:
                raise ConfigError(
                    f"The table of devices has no peak of {self.cluster.device.title} in "
                    f"{'FP8' if precision.fp8 else precision.dtype}.",
                    "Either the device cannot compute in it, or nobody has told.",
                    "Choose another precision, or add the peak to a file given by --devices.",
                )

    @cached_property
    def _sizes(self) -> Activations:
        return Activations(self.model, self.layout, self.precision, self.vocab_size, self.micro_batch)

    @cached_property
    def _communication(self) -> Communication:
        return Communication(self.model, self.layout, self.precision, self.vocab_size, self.micro_batch)

    def _matmul(self, rows: int, columns: int, inner: int, fp8: bool = False) -> float:
        """Seconds of a product of [rows, inner] and [inner, columns]."""
        precision = self.precision if fp8 else self.precision.without_fp8()
        assumed = self.assumptions.fp8_matmul if fp8 else self.assumptions.matmul
        share = self.cluster.device.reached_share(precision) or assumed
        operations = 2 * rows * columns * inner / ((self.cluster.device.peak(precision) or 0.0) * share)
        element = self._sizes.element_bytes
        read = (rows + columns) * inner * (1 if fp8 else element)
        # Inputs of FP8 products are converted first: read once, written once in 8 bits.
        converted = rows * inner * (element + 1) if fp8 else 0
        return max(operations, self._moved(read + rows * columns * element)) + self._moved(converted)

    def _moved(self, num_bytes: float) -> float:
        """Seconds to read or write so much of the device's memory."""
        return num_bytes / ((self.cluster.device.memory_bytes_per_second or 0.0) * self.assumptions.memory)

    def _transfer(self, transfer: Transfer) -> tuple[float, float]:
        """Seconds of the bytes, and fixed ones, all operations together."""
        link: Link = self.cluster.link(self.layout, transfer.group)
        given = self.assumptions
        share, fixed = (
            (given.network, given.network_seconds) if link.crosses_nodes else (given.link, given.link_seconds)
        )
        # Stages tell each other the shape before they send.
        operations = transfer.count * (2 if transfer.operation == "send" else 1)
        return transfer.sent_bytes / (link.bytes_per_second * share), operations * fixed

    def transfer_seconds(self, transfer: Transfer) -> float:
        """Seconds of communication by itself, all operations together."""
        return sum(self._transfer(transfer))

    def _waited(self, transfers: Sequence[Transfer], group: str, hiding: float) -> float:
        """Seconds of the group's transfers that are waited for; `hiding`: of the products beside hidden ones."""
        own = [transfer for transfer in transfers if transfer.group == group]
        open_ = sum(self.transfer_seconds(transfer) for transfer in own if not transfer.hidden)
        hidden = sum(self.transfer_seconds(transfer) for transfer in own if transfer.hidden)
        return open_ + max(hidden - self.assumptions.overlap * hiding, 0.0)

    @cached_property
    def layer_matrices(self) -> list[tuple[int, int]]:
        """(outputs, inputs) of a layer's matrices on a rank."""
        model, tensor = self.model, self.layout.parallel.tensor
        return [
            (qkv_width(model) // tensor, model.hidden_size),
            (model.hidden_size, model.hidden_size // tensor),
            (fc1_width(model) // tensor, model.hidden_size),
            (model.hidden_size, model.ffn_hidden_size // tensor),
        ]

    def elementwise_bytes(self) -> float:
        """Bytes that a layer's forward pass reads and writes between its products."""
        model, sizes, tensor = self.model, self._sizes, self.layout.parallel.tensor
        bias = 2 if model.linear_bias else 0
        # Two norms (read, write); two residual sums (two reads, a write) with a bias before each.
        residual = 2 * 2 + 2 * (3 + bias)
        qkv = qkv_width(model) / tensor
        # Split into queries, keys and values; heads joined again.
        attention = (bias + 2) * qkv + 2 * model.hidden_size / tensor
        if model.position_embedding == "rotary":
            # Turned halves are built, two products and a sum follow.
            attention += 9 * (qkv + model.hidden_size / tensor) / 2
        # SwiGLU: the gate's silu, the other half's offset (see Activations.feed_forward), their product.
        inner = 7 if model.activation == "swiglu" else 2
        feed_forward = (bias * fc1_width(model) + inner * model.ffn_hidden_size) / tensor
        numbers = sizes.num_residual_tokens * residual * model.hidden_size
        return sizes.element_bytes * (numbers + sizes.num_tokens * (attention + feed_forward))

    def layer(self, fp8: bool) -> _Work:
        """One layer, forward, backward and what is recomputed."""
        parallel = self.layout.parallel
        key = (parallel.tensor, parallel.sequence_parallel, parallel.context, parallel.recompute, self.micro_batch, fp8)
        if key not in self.known_layers:
            self.known_layers[key] = self._layer(fp8)
        return self.known_layers[key]

    def _layer(self, fp8: bool) -> _Work:
        given, parallel, sizes = self.assumptions, self.layout.parallel, self._sizes
        tokens, recompute = sizes.num_tokens, parallel.recompute
        forward_matmul = sum(self._matmul(tokens, n, k, fp8) for n, k in self.layer_matrices)
        gradients = sum(
            self._matmul(tokens, k, n, fp8) + self._matmul(n, k, tokens, fp8) + self._moved(n * k * _ACCUMULATION_BYTES)
            for n, k in self.layer_matrices
        )
        seen = (self.micro_batch.width + 1) / 2
        operations = 4 * tokens * seen * self.model.hidden_size / parallel.tensor
        peak = self.cluster.device.peak(self.precision.without_fp8()) or 0.0
        forward_attention = operations / (peak * given.attention)
        forward_moved = self._moved(self.elementwise_bytes())
        whole, core = recompute == "full", recompute != "none"
        matmul = forward_matmul * (1 + whole) + gradients
        attention = forward_attention * (1 + core + 2.5)
        elementwise = forward_moved * (1 + whole + 2)
        device = given.slowdown * (matmul + attention + elementwise)
        host = given.slowdown * given.launch_seconds * (2 + whole)
        transfers = self._communication.layer()
        return _Work(
            matmul=given.slowdown * matmul,
            attention=given.slowdown * attention,
            elementwise=given.slowdown * elementwise,
            launch=max(host - device, 0.0),
            tensor=self._waited(transfers, "tensor", given.slowdown * gradients),
            context=self._waited(transfers, "context", 0.0),
        )

    def first_stage(self) -> _Work:
        """Embedding: rows are looked up; backward, a gradient of all rows is made and added to the buffer."""
        model, tensor, element = self.model, self.layout.parallel.tensor, self._sizes.element_bytes
        rows = model.padded_vocab_size(self.vocab_size) // tensor * model.hidden_size
        moved = 4 * self._sizes.hidden_bytes + rows * (element + _ACCUMULATION_BYTES)
        tensor_seconds = self._waited(self._communication.first_stage(), "tensor", 0.0)
        return _Work(elementwise=self.assumptions.slowdown * self._moved(moved), tensor=tensor_seconds)

    def last_stage(self) -> _Work:
        """Last norm, output rows, loss."""
        sizes, slowdown = self._sizes, self.assumptions.slowdown
        rows = self.model.padded_vocab_size(self.vocab_size) // self.layout.parallel.tensor
        one = self._matmul(sizes.num_tokens, rows, self.model.hidden_size)
        matmul = slowdown * 3 * one
        moved = sizes.logits * (_LOSS_FORWARD_BYTES + _LOSS_BACKWARD_BYTES) + 6 * sizes.residual_bytes
        moved += rows * self.model.hidden_size * _ACCUMULATION_BYTES
        tensor_seconds = self._waited(self._communication.last_stage(), "tensor", slowdown * 2 * one)
        return _Work(matmul=matmul, elementwise=slowdown * self._moved(moved), tensor=tensor_seconds)

    def stage(self, stage: int) -> _Work:
        """A micro-batch, forward and backward, on pipeline stage `stage`."""
        pipeline, work = self.layout.parallel.pipeline, _Work()
        counts, in_fp8 = self.layout.layers_of_chunks(self.model.num_layers), fp8_layers(self.model, self.precision)
        for number, layers in stage_chunks(self.model, self.layout, stage):
            first = sum(counts[:number])
            num_fp8 = len(range(max(first, in_fp8.start), min(first + layers, in_fp8.stop)))
            for fp8, num in ((True, num_fp8), (False, layers - num_fp8)):
                if num:
                    work += self.layer(fp8) * num
        if stage == 0:
            work += self.first_stage()
        if stage == pipeline - 1:
            work += self.last_stage()
        return work + _Work(pipeline=self._sends(stage, work.matmul))

    def _sends(self, stage: int, hiding: float) -> float:
        """Seconds that sends between stages are waited for: of the shapes always, of what interleaving hides in part."""
        sends = self._communication.boundary(stage)
        moved, fixed = (
            (sum(column) for column in zip(*map(self._transfer, sends), strict=True)) if sends else (0.0, 0.0)
        )
        hidden = self.assumptions.overlap * hiding if self.layout.num_chunks > 1 else 0.0
        return float(fixed + max(moved - hidden, 0.0))

    def _end(self, stage: int) -> tuple[float, float]:
        """(communication, optimizer) after the last pass."""
        parallel = self.layout.parallel
        transfers = self._communication.end_of_step(stage)
        sharing = parallel.data * parallel.context if parallel.distributed_optimizer else 1
        numel = sum(t.numel for t in stage_tensors(self.model, self.vocab_size, self.layout, stage))
        moved = numel * (_OPTIMIZER_BYTES / sharing + _ZEROING_BYTES)
        return sum(map(self.transfer_seconds, transfers)), self.assumptions.slowdown * self._moved(moved)

    def step(self) -> StepTime:
        """The step."""
        parallel = self.layout.parallel
        # Inner stages with as many layers take as long.
        known: dict[tuple[bool, bool, int], _Work] = {}
        stages = []
        counts = self.layout.layers_of_chunks(self.model.num_layers)
        fp8_differs = bool(self.precision.bf16_layers_at_start or self.precision.bf16_layers_at_end)
        for stage in range(parallel.pipeline):
            layers = sum(counts[stage :: parallel.pipeline])
            key = (stage == 0, stage == parallel.pipeline - 1, stage if fp8_differs else -layers)
            if key not in known:
                known[key] = self.stage(stage)
            stages.append(known[key])
        slowest = max(stages, key=lambda work: work.seconds)
        seconds = [work.seconds for work in stages]
        _, bubble = pipeline_seconds(seconds, self.num_micro_batches, self.layout.num_chunks)
        ends = [self._end(stage) for stage in {0, parallel.pipeline - 1}]
        data, optimizer = max(ends, key=sum)
        parts = (slowest * self.num_micro_batches).__dict__
        return StepTime(**parts, bubble=bubble, data=data, optimizer=optimizer)

    @property
    def tokens_per_step(self) -> int:
        """Of all ranks together."""
        own = self.micro_batch.rows * self.micro_batch.width * self.num_micro_batches
        return own * self.layout.parallel.data

    def mfu(self, seconds: float) -> float | None:
        """Model FLOPs of a step of so many seconds, as a share of the devices' dense peak."""
        per_token = training_flops_per_token(self.model, self.vocab_size)
        peak = self.cluster.device.peak(self.precision)
        return utilisation(self.tokens_per_step / seconds, per_token, self.layout.world_size, peak)
