"""Model presets: functions that return the values of a ModelConfig.

150m, 400m and 1.3b are the shapes of PreAlign section 4.3 (GPT-2 style, context 1024); `tiny` is the model on which the
method's effect was measured on two CPU cores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from megalign.errors import ConfigError


def _gpt2(num_layers: int, hidden_size: int, num_attention_heads: int) -> dict[str, Any]:
    return {
        "num_layers": num_layers,
        "hidden_size": hidden_size,
        "num_attention_heads": num_attention_heads,
        "ffn_hidden_size": 4 * hidden_size,
        "sequence_length": 1024,
    }


def tiny() -> dict[str, Any]:
    """1.0 M parameters with a vocabulary of 3072: 3 layers of 128, rotary positions, context 128."""
    return {**_gpt2(3, 128, 4), "sequence_length": 128, "position_embedding": "rotary"}


def gpt_150m() -> dict[str, Any]:
    """151.0 M non-embedding parameters: 12 layers of 1024 (PreAlign's default). Biases and norms, 0.1 %, not counted."""
    return _gpt2(12, 1024, 16)


def gpt_400m() -> dict[str, Any]:
    """302.0 M non-embedding parameters, called 400M in the paper: 24 layers of 1024."""
    return _gpt2(24, 1024, 16)


def gpt_1_3b() -> dict[str, Any]:
    """1.21 B non-embedding parameters: 24 layers of 2048."""
    return _gpt2(24, 2048, 16)


MODELS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "tiny": tiny,
    "150m": gpt_150m,
    "400m": gpt_400m,
    "1.3b": gpt_1_3b,
}


def model_preset(name: str) -> dict[str, Any]:
    """The values of a preset, its name included.

    Raises:
        ConfigError: no preset of that name.
    """
    if name not in MODELS:
        near = get_close_matches(name, MODELS, n=1)
        raise ConfigError(
            f"model.preset: there is no model preset {name!r}.",
            fix=f"Did you mean {near[0]!r}?" if near else f"Choose one of {', '.join(MODELS)}.",
        )
    return {"preset": name, **MODELS[name]()}
