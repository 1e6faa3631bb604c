"""FP8: which combinations are refused, and why. Megatron-Core accepts several of them and ignores what it cannot do.

Sources: Megatron-Core's transformer_config.py and fp8_utils.py (recipes, versions, layers in bfloat16), and
TransformerEngine's documentation (hardware of each recipe, sizes of the matrix products).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from packaging.version import Version

from megalign.config.layout import Layout
from megalign.config.sections import ModelConfig, PrecisionConfig
from megalign.engine.device import DEVICE
from megalign.errors import ConfigError, EnvironmentProblem, MegalignError

# Recipe -> Megatron's number format: e4m3 forward and e5m2 backward where one scale serves a whole tensor.
FORMATS = {"delayed": "hybrid", "tensorwise": "hybrid", "blockwise": "e4m3", "mxfp8": "e4m3"}
# Recipe -> least TransformerEngine, least compute capability.
_NEEDS = {
    "delayed": ("2.0", (8, 9)),
    "tensorwise": ("2.2", (8, 9)),
    "blockwise": ("2.3", (9, 0)),
    "mxfp8": ("2.1", (10, 0)),
}


@dataclass(frozen=True)
class Machine:
    """What FP8 depends on: TransformerEngine's version and the GPU's compute capability, None where there is none."""

    transformer_engine: Version | None
    capability: tuple[int, int] | None

    @classmethod
    def here(cls) -> Machine:
        """This process's machine."""
        capability = torch.cuda.get_device_capability() if DEVICE.type == "cuda" else None
        found = importlib.util.find_spec("transformer_engine") is not None
        return cls(Version(importlib.metadata.version("transformer-engine")) if found else None, capability)


@dataclass(frozen=True)
class _Asked:
    model: ModelConfig
    layout: Layout
    precision: PrecisionConfig
    machine: Machine


def check_precision(
    model: ModelConfig, layout: Layout, precision: PrecisionConfig, machine: Machine | None = None
) -> None:
    """Refuse what would be ignored or fail late.

    Args:
        model, layout, precision: what is asked for.
        machine: None: this one.

    Raises:
        ConfigError: settings that do not go together.
        EnvironmentProblem: the machine lacks something.
    """
    asked = _Asked(model, layout, precision, machine or Machine.here())
    for rule in _RULES:
        if error := rule(asked):
            raise error


def _ends_without_fp8(asked: _Asked) -> MegalignError | None:
    ends = asked.precision.bf16_layers_at_start + asked.precision.bf16_layers_at_end
    if asked.precision.fp8 or not ends:
        return None
    return ConfigError(
        "precision.bf16_layers_at_start or bf16_layers_at_end is set without precision.fp8.",
        "Without FP8 all layers compute in precision.dtype; Megatron-Core would ignore it silently.",
        "Set precision.fp8, or leave them at 0.",
    )


def _without_gpu_or_library(asked: _Asked) -> MegalignError | None:
    machine = asked.machine
    if not asked.precision.fp8 or (machine.capability and machine.transformer_engine):
        return None
    lacking = "there is no CUDA device" if machine.capability is None else "transformer_engine is not installed"
    return EnvironmentProblem(
        f"precision.fp8 is {asked.precision.fp8!r}, but {lacking}.",
        "Without TransformerEngine's layers Megatron-Core accepts FP8 and silently computes without it.",
        "Unset precision.fp8, or run on a GPU with `pip install megalign[gpu]`.",
    )


def _old_library(asked: _Asked) -> MegalignError | None:
    fp8, found = asked.precision.fp8, asked.machine.transformer_engine
    if not fp8 or found is None or found >= Version(_NEEDS[fp8][0]):
        return None
    return EnvironmentProblem(
        f"precision.fp8 {fp8!r} needs TransformerEngine {_NEEDS[fp8][0]}; {found} is installed.",
        fix="Upgrade it, or choose another recipe.",
    )


def _old_gpu(asked: _Asked) -> MegalignError | None:
    fp8, found = asked.precision.fp8, asked.machine.capability
    if not fp8 or found is None or found >= _NEEDS[fp8][1]:
        return None
    able = [name for name, (_, needed) in _NEEDS.items() if found >= needed]
    needed = _NEEDS[fp8][1]
    return EnvironmentProblem(
        f"precision.fp8 {fp8!r} needs a GPU of compute capability {needed[0]}.{needed[1]}; this one has "
        f"{found[0]}.{found[1]}.",
        fix=f"Choose {' or '.join(able)}." if able else "Unset precision.fp8.",
    )


def _full_precision_weights(asked: _Asked) -> MegalignError | None:
    if not asked.precision.fp8 or asked.precision.dtype == "bfloat16":
        return None
    return ConfigError(
        f"precision.fp8 is {asked.precision.fp8!r} with precision.dtype {asked.precision.dtype}.",
        "What is not computed in FP8 would be computed in float32, and cost more than FP8 gains.",
        "Set precision.dtype to bfloat16.",
    )


def _ends(asked: _Asked) -> MegalignError | None:
    precision, layers = asked.precision, asked.model.num_layers
    ends = precision.bf16_layers_at_start + precision.bf16_layers_at_end
    if not ends:
        return None
    if precision.fp8 == "delayed":
        return ConfigError(
            "precision.fp8 'delayed' is set with layers in bfloat16.",
            "Delayed scaling spans all layers at once: Megatron-Core cannot leave some out.",
            "Choose tensorwise, or set bf16_layers_at_start and bf16_layers_at_end to 0.",
        )
    if ends >= layers:
        return ConfigError(
            f"precision leaves {ends} of {layers} layers in bfloat16.", "No layer would compute in FP8.", "Lower them."
        )
    return None


def _sizes(asked: _Asked) -> MegalignError | None:
    try:
        asked.layout.check_fp8(asked.model, asked.precision)
    except ConfigError as error:
        return error
    return None


_RULES: tuple[Callable[[_Asked], MegalignError | None], ...] = (
    _ends_without_fp8,
    _without_gpu_or_library,
    _full_precision_weights,
    _old_library,
    _old_gpu,
    _ends,
    _sizes,
)
