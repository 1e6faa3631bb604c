"""What a checkpoint really takes on disk."""

from __future__ import annotations

from pathlib import Path

from megalign.config.layout import Layout
from megalign.config.sections import ModelConfig, PrecisionConfig


def saved(layout: Layout, model: ModelConfig, precision: PrecisionConfig, folder: str) -> int:
    """Take a step and save; the engine's number of parameters."""
    from cases import cut, data_rank_of, engine_of, windows

    from megalign.engine import checkpoint

    engine = engine_of(layout, model, precision=precision, vocab_size=2000)
    text = windows(1, 4, model.sequence_length)
    engine.step(cut(text, data_rank_of(layout), layout.parallel.data, 1), 1)
    checkpoint.save(engine, Path(folder), 1, {"samples": 4}, keep=1)
    return engine.num_parameters
