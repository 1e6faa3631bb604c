"""Bytes that a rank needs, by part, at the moment of a step when they are most.

Nothing here is fitted. Weights, gradients and the optimizer's state follow from the list of parameters
(`megalign.scaling.parameters`), what the backward pass keeps from the list of activations (`megalign.scaling.activations`),
how many micro-batches are kept at once from the order of the pipeline's schedule (`megalign.scaling.schedule`). Of the
temporaries, those that are live together at the candidates for the peak are counted:

- *loss forward*: the logits, in bfloat16 twice (the loss is computed on a float32 copy);
- *output gradient*: the gradient of the logits beside that of the output rows, all layers still kept;
- *last layer*: a feed-forward layer's gradients, all lower layers still kept; under full recomputation, the layer itself;
- *embedding*: the gradient of the embedding rows, which is as large as they are;
- *contrast*: similarities of an injection's words;
- *optimizer*: the state alone, with no activations;
- *reduction*: on CPUs, gloo's copy of the gradients that the distributed optimizer reduces and scatters;
- *start*: the distributed optimizer's copy of the weights into its buffer.

In FP8, TransformerEngine keeps 8-bit copies of the matrices of the layers over all micro-batches of a step, one for each
direction (Megatron-Core tells it which micro-batch is the first), and 8-bit inputs of the linear layers.

What is not counted: the CUDA context and the communication library's buffers (1 to 2 GB a GPU), fragmentation of the
caching allocator, workspaces of kernels, 8-bit copies of gradients, a checkpoint's copy in host memory. `USABLE_SHARE` of
a device's memory leaves room for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import lcm

from megalign.config.layout import Layout
from megalign.config.sections import ModelConfig, PrecisionConfig
from megalign.scaling.activations import Activations, Hardware, MicroBatch, total_bytes
from megalign.scaling.parameters import ParameterTensor, stage_chunks, stage_tensors
from megalign.scaling.schedule import stage_order

# Buffers of the distributed optimizer: every parameter starts at a multiple of this, ...
_PARAMETER_ALIGNMENT = 64
# ... and the buffer ends at a multiple of this and of the number of ranks that share it.
_BUFFER_ALIGNMENT = 128
# Of a device's memory; the rest goes to what the estimate does not count.
USABLE_SHARE = 0.9


@dataclass(frozen=True)
class RankMemory:
    """Bytes of a rank at its peak, by part.

    Attributes:
        stage: pipeline stage, from 0; all ranks of a stage need as much (but for the distributed optimizer's last part).
        moment: when it is, see the module.
        weights: parameters in the model's dtype.
        gradients: the buffer they are summed in: float32.
        optimizer: Adam's moments, and a float32 copy of bfloat16 parameters; this rank's part under the distributed
            optimizer.
        fp8_weights: 8-bit copies of the layers' matrices.
        activations: what all micro-batches on their way keep for the backward pass.
        logits: logits, their loss and its gradient.
        words: of an injection: pooled vectors, keys, similarities.
        buffers: of communication: what sequence parallelism gathers, what pipeline stages received last.
        temporaries: gradients of activations and of single parameters, recomputed layers.
    """

    stage: int
    moment: str
    weights: int
    gradients: int
    optimizer: int
    fp8_weights: int = 0
    activations: int = 0
    logits: int = 0
    words: int = 0
    buffers: int = 0
    temporaries: int = 0

    @property
    def parts(self) -> dict[str, int]:
        """The parts in order."""
        return {name: getattr(self, name) for name in MEMORY_PARTS}

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.parts.values())


MEMORY_PARTS = (
    *("weights", "gradients", "optimizer", "fp8_weights"),
    *("activations", "logits", "words", "buffers", "temporaries"),
)


@dataclass(frozen=True)
class _Chunk:
    """A model chunk of the stage; `num_fp8_layers` of its layers compute in FP8."""

    number: int
    num_layers: int
    num_fp8_layers: int
    is_last: bool

    @property
    def is_first(self) -> bool:
        return self.number == 0


@dataclass(frozen=True)
class StageMemory:
    """Memory of the ranks of one pipeline stage.

    Args:
        model, layout, precision: what is trained; the layout must divide the model.
        vocab_size: ids of the vocabulary, before padding.
        stage: pipeline stage, from 0.
        hardware: see `Activations`.
    """

    model: ModelConfig
    layout: Layout
    precision: PrecisionConfig
    vocab_size: int
    stage: int
    hardware: Hardware = "gpu"

    @cached_property
    def tensors(self) -> Sequence[ParameterTensor]:
        """Parameters of a rank."""
        return stage_tensors(self.model, self.vocab_size, self.layout, self.stage)

    @cached_property
    def _chunks(self) -> list[_Chunk]:
        counts = self.layout.layers_of_chunks(self.model.num_layers)
        fp8 = fp8_layers(self.model, self.precision)

        def chunk(number: int, num_layers: int) -> _Chunk:
            first = sum(counts[:number])
            num_fp8 = len(range(max(first, fp8.start), min(first + num_layers, fp8.stop)))
            return _Chunk(number, num_layers, num_fp8, number == len(counts) - 1)

        return [chunk(*found) for found in stage_chunks(self.model, self.layout, self.stage)]

    @property
    def _element_bytes(self) -> int:
        return 2 if self.precision.dtype == "bfloat16" else 4

    @cached_property
    def static(self) -> RankMemory:
        """Weights, gradients and optimizer state: what is there all the time after the first step."""
        num = sum(t.numel for t in self.tensors)
        # A float32 copy of bfloat16 weights, and two moments.
        state_bytes = 12 if self.precision.dtype == "bfloat16" else 8
        sharing = self.layout.parallel.data * self.layout.parallel.context
        buffer, own = num, num
        if self.layout.parallel.distributed_optimizer:
            buffer = buffer_numel(self.tensors, sharing)
            own = min(num, -(-buffer // sharing))
        return RankMemory(
            stage=self.stage,
            moment="optimizer",
            weights=(buffer if self.layout.parallel.distributed_optimizer else num) * self._element_bytes,
            gradients=buffer * 4,
            optimizer=own * state_bytes,
            fp8_weights=self._fp8_weights if self.precision.fp8 else 0,
        )

    @property
    def _fp8_weights(self) -> int:
        layers = fp8_layers(self.model, self.precision)
        matrices = (t for t in self.tensors if len(t.shape) == 2 and t.layer in layers)
        return sum(_fp8_copies(t.numel, self.precision) for t in matrices)

    def peak(self, micro_batches: Sequence[MicroBatch]) -> RankMemory:
        """The most that is needed in a step.

        Args:
            micro_batches: of the step on a data-parallel rank, in order.
        """
        candidates = [self.static, *self._between_steps(), *self._during(micro_batches)]
        return max(candidates, key=lambda memory: memory.total)

    def _between_steps(self) -> Iterator[RankMemory]:
        parallel = self.layout.parallel
        if parallel.distributed_optimizer:
            yield replace(self.static, moment="start", optimizer=0, temporaries=self.static.weights)
            if self.hardware == "cpu" and parallel.data * parallel.context > 1:
                yield replace(self.static, moment="reduction", temporaries=self.static.gradients)

    def _during(self, micro_batches: Sequence[MicroBatch]) -> Iterator[RankMemory]:
        shapes = {batch: self._passes(batch) for batch in set(micro_batches)}
        buffers = max(self._buffers(batch) for batch in shapes)
        kept = words = 0  # of all micro-batches that are between their forward and backward passes
        most: dict[tuple[str, _Pass], tuple[int, int]] = {}
        for work in stage_order(self.layout, self.stage, len(micro_batches)):
            own = shapes[micro_batches[work.micro_batch]][work.chunk]
            if work.kind == "backward":
                kept, words = kept - own.kept, words - own.words
            most[work.kind, own] = max(most.get((work.kind, own), (0, 0)), (kept, words), key=sum)
            if work.kind == "forward":
                kept, words = kept + own.kept, words + own.words
        for (kind, own), (kept, words) in most.items():
            for moment in own.moments(kind):
                yield replace(
                    self.static,
                    moment=moment.name,
                    activations=kept + moment.activations,
                    logits=moment.logits,
                    words=words + moment.words,
                    buffers=buffers,
                    temporaries=moment.temporaries,
                )

    def _passes(self, batch: MicroBatch) -> list[_Pass]:
        """Of the chunks; inner chunks with as many layers share one."""
        made: dict[_Chunk, _Pass] = {}
        passes = []
        for chunk in self._chunks:
            kind = chunk if chunk.is_first or chunk.is_last else replace(chunk, number=1)
            if kind not in made:
                made[kind] = _Pass(self, chunk, batch)
            passes.append(made[kind])
        return passes

    def _buffers(self, batch: MicroBatch) -> int:
        sizes = Activations(self.model, self.layout, self.precision, self.vocab_size, batch, self.hardware)
        gathered = sizes.hidden_bytes if self.layout.parallel.sequence_parallel else 0
        receiving = sum(not chunk.is_first for chunk in self._chunks)
        # 1F1B keeps the gradient it sent last; interleaved 1F1B every chunk's last input and its gradient.
        return gathered + receiving * sizes.residual_bytes * (2 if self.layout.parallel.virtual_pipeline else 1)


def buffer_numel(tensors: Sequence[ParameterTensor], sharing: int) -> int:
    """Numbers of the distributed optimizer's buffer: parameters and what aligns them."""
    end = 0
    for tensor in reversed(tensors):  # the order of the backward pass
        end = -(-end // _PARAMETER_ALIGNMENT) * _PARAMETER_ALIGNMENT + tensor.numel
    multiple = lcm(_BUFFER_ALIGNMENT, sharing)
    return -(-end // multiple) * multiple


def fp8_layers(model: ModelConfig, precision: PrecisionConfig) -> range:
    """The layers that compute in FP8; none without it."""
    if not precision.fp8:
        return range(0)
    return range(precision.bf16_layers_at_start, model.num_layers - precision.bf16_layers_at_end)


def _fp8_copies(numel: int, precision: PrecisionConfig) -> int:
    """Bytes of a matrix's 8-bit copies, as it stands and transposed; MXFP8 has a scale of 8 bits for 32 numbers."""
    return 2 * (numel + (numel // 32 if precision.fp8 == "mxfp8" else 0))


@dataclass(frozen=True)
class _Moment:
    """What a pass needs beside the static parts and the other micro-batches."""

    name: str
    activations: int
    logits: int = 0
    words: int = 0
    temporaries: int = 0


class _Pass:
    """A micro-batch in a chunk.

    Attributes:
        kept: bytes from the forward to the backward pass, logits and words apart.
        words: the same of the words' vectors.
    """

    def __init__(self, stage: StageMemory, chunk: _Chunk, batch: MicroBatch) -> None:
        self.stage, self.chunk = stage, chunk
        self.sizes = sizes = Activations(
            stage.model, stage.layout, stage.precision, stage.vocab_size, batch, stage.hardware
        )
        self.layer = total_bytes(sizes.layer(fp8=chunk.num_fp8_layers == chunk.num_layers))
        self.layers = sum(
            number * total_bytes(sizes.checkpointed_layer(fp8=fp8))
            for fp8, number in ((True, chunk.num_fp8_layers), (False, chunk.num_layers - chunk.num_fp8_layers))
            if number
        )
        self.final = total_bytes(sizes.norm("final_norm")) if chunk.is_last else 0
        self.kept = self.layers + self.final + self._boundaries()
        levels = chunk.num_layers + chunk.is_first + chunk.is_last
        self.words = levels * total_bytes(sizes.words()) if batch.num_words else 0

    def _boundaries(self) -> int:
        """Hidden states held for the pipeline: what was sent, until its gradient comes back; dropout of the embedding."""
        sent = 0 if self.chunk.is_last else self.sizes.residual_bytes
        return sent + (total_bytes(self.sizes.dropout(1)) if self.chunk.is_first else 0)

    def moments(self, kind: str) -> Iterator[_Moment]:
        """The candidates for the peak of a forward or backward pass."""
        if kind == "forward":
            yield from self._forward()
        else:
            yield from self._backward()

    def _forward(self) -> Iterator[_Moment]:
        logits = self.sizes.logits if self.chunk.is_last else 0
        copies = 4 + (2 if self.sizes.element_bytes == 2 else 0)
        again = self.layer if self.stage.layout.parallel.recompute == "full" else 0
        contrast = self.sizes.contrast_bytes() if self.words else 0
        yield _Moment("loss forward", self.kept, logits * copies, self.words + contrast)
        if again:
            yield _Moment("recomputed layer", self.kept, 0, self.words, again)

    def _backward(self) -> Iterator[_Moment]:
        sizes, model, layout = self.sizes, self.stage.model, self.stage.layout
        element, parallel = sizes.element_bytes, layout.parallel
        rows_bytes = model.padded_vocab_size(self.stage.vocab_size) // parallel.tensor * model.hidden_size * element
        gathered = sizes.hidden_bytes if parallel.sequence_parallel else 0
        # Tied rows on one rank: the gradient of the output waits for that of the embedding to be added to it.
        waiting = rows_bytes if self.chunk.is_last and model.tied_embeddings and parallel.pipeline == 1 else 0
        if self.chunk.is_last and sizes.logits:
            if element == 2:
                yield _Moment("loss backward", self.kept, sizes.logits * 6)
            temporaries = rows_bytes + sizes.hidden_bytes + (sizes.residual_bytes if gathered else 0)
            yield _Moment("output gradient", self.kept, sizes.logits * element, 0, temporaries)
            if self.final:
                # The norm's float32 or bfloat16 gradient beside that of the residual stream.
                yield _Moment("last norm", self.kept, 0, 0, waiting + 2 * sizes.residual_bytes)
        temporaries = waiting + sizes.residual_bytes + max(self._feed_forward())
        if parallel.recompute == "full":
            temporaries += self.layer + sizes.residual_bytes
        yield _Moment("last layer", self.kept - self.final, 0, self.words, temporaries)
        if self.chunk.is_first:
            # Their sum is a third tensor.
            temporaries = 2 * waiting + rows_bytes + sizes.residual_bytes + gathered
            yield _Moment("embedding", 0, 0, 0, temporaries)

    def _feed_forward(self) -> list[int]:
        """Temporaries of the feed-forward layer's backward pass beside the gradient that comes in, all still kept."""
        sizes, model, parallel = self.sizes, self.stage.model, self.stage.layout.parallel
        gathered = sizes.hidden_bytes if parallel.sequence_parallel else 0
        weight = model.ffn_hidden_size // parallel.tensor * model.hidden_size * sizes.element_bytes
        inner = sizes.feed_forward_bytes
        return [inner + weight + gathered, inner * (2 if model.activation == "swiglu" else 1) + gathered]


def estimate_memory(
    model: ModelConfig,
    layout: Layout,
    precision: PrecisionConfig,
    vocab_size: int,
    micro_batches: Sequence[MicroBatch],
    hardware: Hardware = "gpu",
) -> list[RankMemory]:
    """The peak of a rank of every pipeline stage.

    Args:
        model, layout, precision: what is trained.
        vocab_size: ids of the vocabulary, before padding.
        micro_batches: of a step on a data-parallel rank, in order. Beyond a few times as many as there are stages and
            chunks, equal ones add nothing.
        hardware: see `Activations`.
    """
    return [
        StageMemory(model, layout, precision, vocab_size, stage, hardware).peak(micro_batches)
        for stage in range(layout.parallel.pipeline)
    ]


def enough_micro_batches(layout: Layout, num_micro_batches: int) -> int:
    """So many of a step's equal micro-batches already fill the pipeline: more do not change the peak.

    Warming up takes up to 2 (p - 1) + (v - 1) p forward passes through one of v chunks, less than 2 p micro-batches; then
    every p of them are alike.
    """
    return min(num_micro_batches, 4 * layout.parallel.pipeline)


def checkpoint_bytes(num_parameters: int, precision: PrecisionConfig, *, distributed_optimizer: bool) -> int:
    """Size of a checkpoint on disk, but for its index and marker: weights, moments, and the optimizer's float32 weights.

    The distributed optimizer writes float32 weights in any case, the others only those of bfloat16 parameters. Tied rows
    and what ranks hold in common are written once.
    """
    half = precision.dtype == "bfloat16"
    return num_parameters * ((2 if half else 4) + 8 + (4 if half or distributed_optimizer else 0))
