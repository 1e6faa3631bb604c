"""The device the engine computes on, and what this machine offers."""

from __future__ import annotations

import importlib.util

import torch

from megalign.config.sections import ParallelConfig, PrecisionConfig
from megalign.errors import EnvironmentProblem

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BACKEND = "nccl" if DEVICE.type == "cuda" else "gloo"


def transformer_engine_available() -> bool:
    """Whether TransformerEngine's layers can be used: installed, and on a GPU."""
    return DEVICE.type == "cuda" and importlib.util.find_spec("transformer_engine") is not None


def check_precision(precision: PrecisionConfig, parallel: ParallelConfig) -> None:
    """Refuse what Megatron-Core would accept and silently ignore, or cannot do, on this machine.

    Raises:
        EnvironmentProblem: FP8 or context parallelism without TransformerEngine.
    """
    if transformer_engine_available():
        return
    lacking = "there is no CUDA device" if DEVICE.type == "cpu" else "transformer_engine is not installed"
    if precision.fp8:
        raise EnvironmentProblem(
            f"precision.fp8 is {precision.fp8!r}, but {lacking}.",
            "Without TransformerEngine's layers Megatron-Core accepts FP8 and silently computes without it.",
            "Unset precision.fp8, or run on a GPU with `pip install megalign[gpu]`.",
        )
    if parallel.context > 1:
        raise EnvironmentProblem(
            f"parallel.context is {parallel.context}, but {lacking}.",
            "Context parallelism needs TransformerEngine's attention.",
            "Set parallel.context to 1.",
        )
