"""Matrix products that the engine really computes, counted by torch."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from megalign.config.layout import Layout
from megalign.config.sections import ModelConfig, PrecisionConfig


def counted(layout: Layout, model: ModelConfig, vocab_size: int, rows: int) -> tuple[int, int]:
    """Operations of a forward pass that reads, and of a training step, over `rows` windows on this rank.

    Attention is composed of plain products here: torch does not count its fused kernel for CPUs. They are the same
    products, over the whole window.
    """
    from cases import cut, data_rank_of, engine_of, windows

    torch.set_num_threads(1)
    engine = engine_of(layout, model, precision=PrecisionConfig(), vocab_size=vocab_size)
    batch = cut(windows(1, rows, model.sequence_length), data_rank_of(layout), layout.parallel.data, 2)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        engine.score(batch)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as training:
        engine.step(batch, 1)
    return forward.get_total_flops(), training.get_total_flops()
