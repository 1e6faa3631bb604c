"""Model presets: functions that return the values of a ModelConfig.

150m, 400m and 1.3b are the shapes of PreAlign section 4.3 (GPT-2 style, context 1024); `tiny` is the model on which the
method's effect was measured on two CPU cores. Larger ones have published shapes: GPT-3's (Brown et al. 2020, arXiv
2005.14165, Table 2.1; context 2048) and those of LLaMA (Touvron et al. 2023, arXiv 2302.13971, Table 2, with Llama 2's
grouped queries and context 4096, arXiv 2307.09288).
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


def gpt_2_7b() -> dict[str, Any]:
    """2.65 B parameters with a vocabulary of 50k: GPT-3 2.7B, 32 layers of 2560."""
    return {**_gpt2(32, 2560, 32), "sequence_length": 2048}


def gpt_6_7b() -> dict[str, Any]:
    """6.7 B parameters: GPT-3 6.7B, 32 layers of 4096."""
    return {**_gpt2(32, 4096, 32), "sequence_length": 2048}


def gpt_13b() -> dict[str, Any]:
    """12.9 B parameters: GPT-3 13B, 40 layers of 5120 (the paper prints 5140, which its heads do not divide)."""
    return {**_gpt2(40, 5120, 40), "sequence_length": 2048}


def gpt_30b() -> dict[str, Any]:
    """30.0 B parameters: OPT 30B (Zhang et al. 2022, arXiv 2205.01068, Table 1), 48 layers of 7168."""
    return {**_gpt2(48, 7168, 56), "sequence_length": 2048}


def gpt_70b() -> dict[str, Any]:
    """71.3 B parameters: GPT-3's form at Llama 2 70B's width: 88 layers of 8192 make up for the narrower layers."""
    return {**_gpt2(88, 8192, 64), "sequence_length": 2048}


def _llama(
    num_layers: int,
    hidden_size: int,
    num_attention_heads: int,
    ffn_hidden_size: int,
    num_query_groups: int | None = None,
) -> dict[str, Any]:
    return {
        "num_layers": num_layers,
        "hidden_size": hidden_size,
        "num_attention_heads": num_attention_heads,
        "num_query_groups": num_query_groups,
        "ffn_hidden_size": ffn_hidden_size,
        "sequence_length": 4096,
        "position_embedding": "rotary",
        "normalization": "RMSNorm",
        "activation": "swiglu",
        "linear_bias": False,
        "tied_embeddings": False,
    }


def llama_2_7b() -> dict[str, Any]:
    """2.7 B parameters with a vocabulary of 32k: GPT-3 2.7B's depth and width in Llama's form (none was published)."""
    return _llama(32, 2560, 32, 6912)


def llama_6_7b() -> dict[str, Any]:
    """6.7 B parameters: Llama 2 7B."""
    return _llama(32, 4096, 32, 11008)


def llama_13b() -> dict[str, Any]:
    """13.0 B parameters: Llama 2 13B."""
    return _llama(40, 5120, 40, 13824)


def llama_30b() -> dict[str, Any]:
    """32.5 B parameters: LLaMA 33B."""
    return _llama(60, 6656, 52, 17920)


def llama_70b() -> dict[str, Any]:
    """69.0 B parameters: Llama 2 70B, 8 key-value heads."""
    return _llama(80, 8192, 64, 28672, 8)


MODELS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "tiny": tiny,
    "150m": gpt_150m,
    "400m": gpt_400m,
    "1.3b": gpt_1_3b,
    "2.7b": gpt_2_7b,
    "6.7b": gpt_6_7b,
    "13b": gpt_13b,
    "30b": gpt_30b,
    "70b": gpt_70b,
    "llama-2.7b": llama_2_7b,
    "llama-6.7b": llama_6_7b,
    "llama-13b": llama_13b,
    "llama-30b": llama_30b,
    "llama-70b": llama_70b,
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
