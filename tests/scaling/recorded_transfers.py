"""What the engine's ranks really send in a step, operation by operation, as torch dispatches them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from megalign.config.layout import Layout
from megalign.config.sections import ModelConfig, PrecisionConfig

VOCAB_SIZE = 2000
_OPERATIONS = {
    "allreduce_": "all_reduce",
    "allreduce_coalesced_": "all_reduce",
    "_allgather_base_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter",
    "send": "send",
}
_SMALL_BYTES = 256  # norms, losses, counters, shapes


class Recorder(TorchDispatchMode):
    """Counts (group, operation, bytes of the whole tensor)."""

    def __init__(self, groups: dict[str, str]) -> None:
        super().__init__()
        self.groups = groups
        self.found: Counter[tuple[str, str, int]] = Counter()
        self.unknown: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self._record(func._schema.name.removeprefix("c10d::"), args)
        return func(*args, **(kwargs or {}))

    def _record(self, name: str, args: Any) -> None:
        if name not in _OPERATIONS:
            self.unknown.add(name)
            return
        tensors = [t for arg in args[:2] for t in (arg if isinstance(arg, list | tuple) else [arg])]
        size = max(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
        group = next(dist.ProcessGroup.unbox(arg) for arg in args if isinstance(arg, torch.ScriptObject))
        if size > _SMALL_BYTES and group.size() > 1:
            # Between two stages, interleaving sends one direction over the group of all ranks.
            kind = "pipeline" if name == "send" else self.groups[group.group_name]
            self.found[kind, _OPERATIONS[name], size] += 1


def recorded(
    layout: Layout, model: ModelConfig, precision: PrecisionConfig, num_micro_batches: int, rows: int
) -> tuple[dict[tuple[str, str, int], int], set[str]]:
    """((group, operation, bytes) -> number) of this rank in a step, and operations of other kinds."""
    from cases import cut, data_rank_of, engine_of, windows
    from tracked_memory import masks_outside_of_modes

    from megalign.engine.mcore import parallel_state

    named = {
        "data": parallel_state.get_data_parallel_group(with_context_parallel=True),
        "tensor": parallel_state.get_tensor_model_parallel_group(),
        "context": parallel_state.get_context_parallel_group(),
        "pipeline": parallel_state.get_pipeline_model_parallel_group(),
        "ends": parallel_state.get_embedding_group(check_initialized=False),
    }
    # Where groups are the same, Megatron made one of them, and the first of the names that has several ranks tells it.
    groups: dict[str, str] = {}
    for name, group in named.items():
        if group is not None and not isinstance(group, list):
            groups.setdefault(group.group_name, name)
    engine = engine_of(layout, model, precision=precision, vocab_size=VOCAB_SIZE)
    data = layout.parallel.data
    batches = cut(
        windows(1, rows * num_micro_batches * data, model.sequence_length),
        data_rank_of(layout),
        data,
        num_micro_batches,
    )
    engine.step(batches, 1)  # the distributed optimizer gathers weights from its second step on like in every later one
    masks_outside_of_modes()
    with Recorder(groups) as recorder:
        engine.step(batches, 2)
    return dict(recorder.found), recorder.unknown
