"""What the engine really allocates on the CPU, measured in two ways.

*Live tensors*: a dispatch mode sees every operation, those of the backward pass included, notes the storages of its
results and drops those whose last reference is gone. What a kernel allocates and releases inside itself is not seen.

*Allocator*: torch's profiler reports every allocation and release of the CPU allocator, temporaries inside kernels
included, but only on the thread it runs on. Collectives release their buffers on other threads, so it is right for one
process only; there it bounds what the other measure may miss.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from megalign.config.layout import Layout
from megalign.config.sections import ModelConfig, PrecisionConfig

VOCAB_SIZE = 2000  # padded to 2048 by vocab_size_multiple 128


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of all storages that are alive.

    Attributes:
        lasting, peak: bytes now, and the most so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.lasting = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.sweep()
        return result

    def sweep(self) -> None:
        """Drop storages that are gone."""
        self._storages = {key: value for key, value in self._storages.items() if not value[0].expired()}
        self.lasting = sum(size for _, size in self._storages.values())
        self.peak = max(self.peak, self.lasting)


def _allocated(profiler: Any) -> list[int]:
    """Bytes allocated in total after every allocation and release, in order."""
    events = []
    waiting = list(profiler.profiler.kineto_results.experimental_event_tree())
    while waiting:
        node = waiting.pop()
        waiting.extend(node.children)
        if node.tag.name == "Allocation":
            events.append((node.start_time_ns, node.extra_fields.total_allocated))
    return [total for _, total in sorted(events, key=lambda event: event[0])]


def two_steps(
    layout: Layout, model: ModelConfig, precision: PrecisionConfig, num_micro_batches: int, rows: int, num_entries: int
) -> tuple[Any, dict[str, int]]:
    """Build the engine and take two steps; the engine, and the sizes of the batch of words.

    Args:
        layout, model, precision: what is built.
        num_micro_batches: of text, a step and rank.
        rows: windows of each.
        num_entries: entries of an injection's batch of words, which comes before them; 0: none.
    """
    from cases import INJECT, cut, data_rank_of, engine_of, windows, word_batches

    data, length = layout.parallel.data, model.sequence_length
    words = word_batches(num_entries) if num_entries else None
    sizes: dict[str, int] = {}
    engine = engine_of(layout, model, precision=precision, vocab_size=VOCAB_SIZE)
    for step in (1, 2):
        text = windows(step, rows * num_micro_batches * data, length)
        batches: list[Any] = cut(text, data_rank_of(layout), data, num_micro_batches)
        if words is not None:
            words.entries_per_batch = num_entries
            first = words.batch(0, data_rank_of(layout), data)
            sizes = {"rows": len(first.tokens), "width": words.width, "own": first.num_words, "all": len(first.entry)}
            batches = [first, *batches]
        engine.step(batches, step, inject=INJECT if words else None)
    return engine, sizes


def masks_outside_of_modes() -> None:
    """Let context parallelism make its masks under a dispatch mode: they are a subclass of tensors."""
    from megalign.engine import specs

    made = specs.causal_lower_right

    def causal_lower_right(*lengths: int) -> Any:
        with _disable_current_modes():
            return made(*lengths)

    specs.causal_lower_right = causal_lower_right


def live_tensors(layout: Layout, *case: Any) -> dict[str, int]:
    """Peak and lasting bytes of this rank's tensors over the building of the engine and two steps (`two_steps`)."""
    masks_outside_of_modes()
    with LiveTensors() as live:
        engine, sizes = two_steps(layout, *case)
        live.sweep()
    parameters = sum(p.numel() for chunk in engine.chunks for p in chunk.parameters())
    return {"peak": live.peak, "lasting": live.lasting, "parameters": parameters, **sizes}


def allocator(layout: Layout, *case: Any) -> dict[str, int]:
    """The same by the allocator's own account; for one process."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        _engine, _ = two_steps(layout, *case)
    totals = _allocated(profiler)
    return {"peak": max(totals), "lasting": totals[-1]}
