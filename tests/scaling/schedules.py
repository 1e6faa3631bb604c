"""The order in which the engine's stages really compute."""

from __future__ import annotations

from functools import partial
from typing import Any

from megalign.config.layout import Layout
from megalign.config.sections import ModelConfig


def passes(layout: Layout, model: ModelConfig, num_micro_batches: int) -> list[tuple[str, int, int]]:
    """(kind, chunk, micro-batch) of every pass of a step on this rank."""
    from cases import cut, engine_of, windows

    engine = engine_of(layout, model)
    log: list[tuple[str, int, int]] = []

    def forward(chunk: int, module: Any, inputs: Any, output: Any) -> None:
        number = sum(kind == "forward" and which == chunk for kind, which, _ in log)
        log.append(("forward", chunk, number))
        output.register_hook(lambda gradient: log.append(("backward", chunk, number)))

    for number, chunk in enumerate(engine.chunks):
        chunk.register_forward_hook(partial(forward, number))
    engine.step(cut(windows(1, num_micro_batches), 0, 1, num_micro_batches), 1)
    return log
