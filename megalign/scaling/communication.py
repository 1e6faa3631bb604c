"""What a rank sends in a step: which operations of Megatron-Core, over which groups, how many bytes, over which links.

The list follows the engine's code paths and is tested against the operations that real ranks issue. Scalars (norms,
losses, counters) and the shapes that pipeline stages tell each other are left out.

Bytes that a rank sends are those of ring algorithms (Patarasuk and Yuan 2009), with n ranks and a tensor of b bytes:
2 b (n - 1) / n to all-reduce it, b (n - 1) / n to gather it from, or to reduce and scatter it to, all ranks; b to send it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

from megalign.config.layout import Layout
from megalign.config.sections import ModelConfig, PrecisionConfig
from megalign.errors import ConfigError
from megalign.scaling.activations import Activations, MicroBatch
from megalign.scaling.devices import Device
from megalign.scaling.memory import buffer_numel
from megalign.scaling.parameters import qkv_width, stage_chunks, stage_tensors

Group = Literal["tensor", "context", "data", "pipeline", "ends"]
Operation = Literal["all_reduce", "all_gather", "reduce_scatter", "send"]
Phase = Literal["forward", "backward", "recompute", "end"]


@dataclass(frozen=True)
class Transfer:
    """Equal operations of a rank.

    Attributes:
        group: ranks that take part: tensor; context; data (with context: they share gradients); pipeline: the next stage;
            ends: first and last stage, of tied rows.
        operation: which.
        phase: forward, backward or recomputed pass of a micro-batch, or the end of the step.
        num_bytes: of the whole tensor: what is reduced, sent, or made by gathering.
        count: operations.
        ranks: of the group.
        hidden: issued beside the matrix products of gradients, which hide it, or part of it.
        where: the layers, the first or the last stage, or what crosses stages.
    """

    group: Group
    operation: Operation
    phase: Phase
    num_bytes: int
    count: int
    ranks: int
    hidden: bool = False
    where: Literal["layer", "first", "last", "stages", "step"] = "layer"

    @property
    def sent_bytes(self) -> float:
        """What a rank sends, all operations together."""
        share = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0}.get(self.operation)
        each = self.num_bytes * (share * (self.ranks - 1) / self.ranks if share else 1.0)
        return self.count * each


@dataclass(frozen=True)
class Communication:
    """The transfers of one micro-batch in a layer and at the ends of the model, and of a step.

    Args:
        model, layout, precision: what is trained; the layout must divide the model.
        vocab_size: ids of the vocabulary, before padding.
        micro_batch: what goes through the model at once.
    """

    model: ModelConfig
    layout: Layout
    precision: PrecisionConfig
    vocab_size: int
    micro_batch: MicroBatch

    @cached_property
    def _sizes(self) -> Activations:
        return Activations(self.model, self.layout, self.precision, self.vocab_size, self.micro_batch)

    def layer(self) -> list[Transfer]:
        """One transformer layer and one micro-batch; those of recomputed passes too."""
        found = [*self._tensor_layer("forward"), *self._context_layer("forward")]
        found += [*self._tensor_layer("backward"), *self._context_layer("backward")]
        recompute = self.layout.parallel.recompute
        if recompute == "full":
            found += [*self._tensor_layer("recompute")]
        if recompute != "none":
            found += [*self._context_layer("recompute")]  # it stands within the core of the attention
        return found

    def _tensor_layer(self, phase: Phase) -> Iterator[Transfer]:
        parallel, size = self.layout.parallel, self._sizes.hidden_bytes
        if parallel.tensor == 1:
            return

        def transfer(operation: Operation, count: int = 2, hidden: bool = False) -> Transfer:
            return Transfer("tensor", operation, phase, size, count, parallel.tensor, hidden)

        backward = phase == "backward"
        if not parallel.sequence_parallel:
            # Forward: sums behind the layers whose inputs are cut; backward: of the input gradients of the other two.
            yield transfer("all_reduce", hidden=backward)
            return
        yield transfer("all_gather")
        yield transfer("reduce_scatter", hidden=backward)
        if backward:
            # What was gathered for the forward pass was not kept.
            yield transfer("all_gather", hidden=True)

    def _context_layer(self, phase: Phase) -> Iterator[Transfer]:
        parallel = self.layout.parallel
        if parallel.context == 1 or self.micro_batch.num_words:
            return
        kv_width = (qkv_width(self.model) - self.model.hidden_size) // parallel.tensor
        tokens = self.micro_batch.rows * self.micro_batch.width
        operation: Operation = "reduce_scatter" if phase == "backward" else "all_gather"
        size = tokens * kv_width * self._sizes.element_bytes
        yield Transfer("context", operation, phase, size, 1, parallel.context)

    def first_stage(self) -> list[Transfer]:
        """Embedding of a micro-batch: every tensor-parallel rank has some of the rows."""
        parallel, size = self.layout.parallel, self._sizes.hidden_bytes
        if parallel.tensor == 1:
            return []
        scattered = parallel.sequence_parallel and self.model.position_embedding == "rotary"
        operation: Operation = "reduce_scatter" if scattered else "all_reduce"
        found = [Transfer("tensor", operation, "forward", size, 1, parallel.tensor, where="first")]
        if parallel.sequence_parallel:
            found.append(Transfer("tensor", "all_gather", "backward", size, 1, parallel.tensor, where="first"))
        return found

    def last_stage(self) -> list[Transfer]:
        """Output rows and loss of a micro-batch."""
        parallel, sizes = self.layout.parallel, self._sizes
        if parallel.tensor == 1 or self.micro_batch.num_words:
            return []
        size, tensor = sizes.hidden_bytes, parallel.tensor
        # The largest logit, the label's, and the sum of exponentials.
        found = [Transfer("tensor", "all_reduce", "forward", sizes.num_tokens * 4, 3, tensor, where="last")]
        if not parallel.sequence_parallel:
            return [*found, Transfer("tensor", "all_reduce", "backward", size, 1, tensor, hidden=True, where="last")]
        return [
            *found,
            Transfer("tensor", "all_gather", "forward", size, 1, tensor, where="last"),
            Transfer("tensor", "all_gather", "backward", size, 1, tensor, hidden=True, where="last"),
            Transfer("tensor", "reduce_scatter", "backward", size, 1, tensor, hidden=True, where="last"),
        ]

    def boundary(self, stage: int) -> list[Transfer]:
        """What the stage sends for a micro-batch: hidden states to the next chunk, gradients to the one before."""
        parallel = self.layout.parallel
        if parallel.pipeline == 1:
            return []
        chunks = self.layout.num_chunks
        counts: dict[Phase, int] = {
            "forward": chunks - (stage == parallel.pipeline - 1),
            "backward": chunks - (stage == 0),
        }
        return [
            Transfer("pipeline", "send", phase, self._sizes.residual_bytes, count, 2, chunks > 1, "stages")
            for phase, count in counts.items()
            if count
        ]

    def end_of_step(self, stage: int) -> list[Transfer]:
        """Gradients and weights, once a step; the engine's DDP overlaps neither with computing."""
        parallel = self.layout.parallel
        tensors = stage_tensors(self.model, self.vocab_size, self.layout, stage)
        sharing = parallel.data * parallel.context
        found = []
        if sharing > 1 and parallel.distributed_optimizer:
            numel = buffer_numel(tensors, sharing)
            for operation, size in (("reduce_scatter", 4), ("all_gather", self._sizes.element_bytes)):
                found.append(Transfer("data", operation, "end", numel * size, 1, sharing, where="step"))  # type: ignore[arg-type]
        elif sharing > 1:
            num_bytes = 4 * sum(t.numel for t in tensors)
            found.append(Transfer("data", "all_reduce", "end", num_bytes, 1, sharing, where="step"))
        if parallel.sequence_parallel:
            # Norms and the biases behind sums: every rank has seen a slice of the sequence only.
            sliced = 4 * sum(t.numel for t in tensors if not t.cut and t.part != "position")
            found.append(Transfer("tensor", "all_reduce", "end", sliced, 1, parallel.tensor, where="step"))
        if self.model.tied_embeddings and parallel.pipeline > 1 and stage in (0, parallel.pipeline - 1):
            rows = self.model.padded_vocab_size(self.vocab_size) // parallel.tensor * self.model.hidden_size * 4
            found.append(Transfer("ends", "all_reduce", "end", rows, 1, 2, where="step"))
        return found

    def step(self, stage: int, num_micro_batches: int) -> list[Transfer]:
        """All transfers of a rank of pipeline stage `stage` in a step of equal micro-batches of text."""
        layers = sum(number for _, number in stage_chunks(self.model, self.layout, stage))
        found = [(transfer, layers) for transfer in self.layer()]
        found += [(transfer, 1) for transfer in self.boundary(stage)]
        if stage == 0:
            found += [(transfer, 1) for transfer in self.first_stage()]
        if stage == self.layout.parallel.pipeline - 1:
            found += [(transfer, 1) for transfer in self.last_stage()]
        return [times(transfer, num * num_micro_batches) for transfer, num in found] + self.end_of_step(stage)


def times(transfer: Transfer, number: int) -> Transfer:
    """The transfer so many times."""
    return Transfer(**{**transfer.__dict__, "count": transfer.count * number})


@dataclass(frozen=True)
class Link:
    """What the ranks of a group talk over.

    Attributes:
        bytes_per_second: that a rank can send, peak.
        crosses_nodes: whether the group has ranks on several nodes.
    """

    bytes_per_second: float
    crosses_nodes: bool


@dataclass(frozen=True)
class Cluster:
    """The devices of a run. Ranks stand on them in order, node after node: tensor, context, data, pipeline (`Layout`).

    Attributes:
        device: each.
        num_devices: all together.
        devices_per_node: of each node; the last may have fewer.
    """

    device: Device
    num_devices: int
    devices_per_node: int

    def __post_init__(self) -> None:
        for name in ("memory_bytes", "memory_bytes_per_second", "link_bytes_per_second", "network_bytes_per_second"):
            if getattr(self.device, name) is None:
                raise ConfigError(
                    f"The table of devices does not say {name} of {self.device.title}.",
                    "Without it nothing can be said of memory and time.",
                    "Add it to the device's entry in the file given by --devices.",
                )

    @property
    def memory_bytes(self) -> float:
        """Of a device."""
        return self.device.memory_bytes or 0.0

    def link(self, layout: Layout, group: Group) -> Link:
        """The slowest link among the layout's groups of this kind.

        A ring enters and leaves a node over as many network links as it has ranks there, each rank's device having its own.
        """
        p = layout.parallel
        model_ranks = p.tensor * p.context
        stride, size = {
            "tensor": (1, p.tensor),
            "context": (p.tensor, p.context),
            "data": (p.tensor, p.context * p.data),
            "pipeline": (model_ranks * p.data, p.pipeline),
            "ends": (model_ranks * p.data, p.pipeline),
        }[group]
        inside, network = self.device.link_bytes_per_second or 0.0, self.device.network_bytes_per_second or 0.0
        members = _members_on_a_node(stride, size, layout.world_size, self.devices_per_node)
        if members == size:
            return Link(inside, False)
        return Link(network if group in ("pipeline", "ends") else min(inside, members * network), True)


@lru_cache(maxsize=4096)
def _members_on_a_node(stride: int, size: int, num_ranks: int, devices_per_node: int) -> int:
    """The fewest ranks that a group has on any of its nodes; groups are `size` ranks `stride` apart, and tile all ranks."""
    fewest = size
    for block in range(0, num_ranks, stride * size):
        for first in range(block, block + stride):
            nodes = [rank // devices_per_node for rank in range(first, first + stride * size, stride)]
            if nodes[0] != nodes[-1]:
                fewest = min(fewest, *Counter(nodes).values())
    return fewest
