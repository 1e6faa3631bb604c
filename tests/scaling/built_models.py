"""What Megatron-Core really builds: the parameters of a rank, of models of any size."""

from __future__ import annotations

import re

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from megalign.config.layout import Layout
from megalign.config.sections import ModelConfig, PrecisionConfig

Held = list[tuple[str, tuple[int, ...], bool]]


def parameters_of(layout: Layout, model: ModelConfig, vocab_size: int) -> tuple[Held, int]:
    """(name without the layer's number, shape, whether tensor-parallel ranks hold different parts), and the engine's total."""
    from megalign.engine.engine import Engine

    engine = Engine(model, layout, PrecisionConfig(), vocab_size=vocab_size, seed=0)
    return _held(engine.chunks), engine.num_parameters


def parameters_without_memory(layout: Layout, model: ModelConfig, vocab_size: int) -> Held:
    """The same of models too large for this machine: tensors have shapes and no content."""
    from megalign.engine import model as engine_model

    engine_model.initialise = lambda *_: None
    engine_model.GPTModel.to = lambda self, *_: self  # already there, and what has no content cannot be moved
    config = engine_model.transformer_config(model, layout, PrecisionConfig())
    with FakeTensorMode():
        return _held(engine_model.build_chunks(config, model, layout, vocab_size, 0))


def _held(chunks: list[torch.nn.Module]) -> Held:
    from megalign.engine.model import unwrapped

    return sorted(
        (plain_name(name), tuple(parameter.shape), bool(getattr(parameter, "tensor_model_parallel", False)))
        for chunk in map(unwrapped, chunks)
        for name, parameter in chunk.named_parameters()
    )


def plain_name(name: str) -> str:
    """Without the block's name and the layer's number, which counts from the chunk's first layer in Megatron."""
    return re.sub(r"layers\.\d+\.", "layers.", name.removeprefix("decoder."))
