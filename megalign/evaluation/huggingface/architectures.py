"""Which Hugging Face architecture a model of ours is, and the settings of one as those of the other.

What tells them apart: GPT-2 has learned positions; GPT-NeoX is the same with rotary positions (`use_parallel_residual` off,
`rotary_pct` 1); Llama has rotary positions, RMSNorm, SwiGLU, no biases, and may share keys and values between heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from megalign.config import ModelConfig, validate
from megalign.errors import ConfigError, DataError

_GELU = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}
_GELU_NAME = {"gelu": "gelu", "gelu_tanh": "gelu_new"}
_GPT: dict[str, tuple[Any, ...]] = {
    "normalization": ("LayerNorm",),
    "activation": ("gelu", "gelu_tanh"),
    "linear_bias": (True,),
}


@dataclass(frozen=True)
class Architecture:
    """A Hugging Face model class that computes what a model of ours computes.

    Attributes:
        model_type: its name in config.json.
        model_class, config_class: names in transformers.
        required: settings of ours -> values it can have.
        grouped: whether key-value heads may be fewer than heads.
        settings: model -> values of its configuration.
    """

    model_type: str
    model_class: str
    config_class: str
    required: Mapping[str, tuple[Any, ...]]
    grouped: bool
    settings: Callable[[ModelConfig], dict[str, Any]]

    def misfits(self, model: ModelConfig) -> list[str]:
        """The settings of a model that this architecture cannot have."""
        found = [
            f"{name} is {getattr(model, name)}, not {' or '.join(map(str, values))}"
            for name, values in self.required.items()
            if getattr(model, name) not in values
        ]
        if not self.grouped and num_groups(model) != model.num_attention_heads:
            found.append(f"num_query_groups is {model.num_query_groups}, not num_attention_heads")
        return found


def num_groups(model: ModelConfig) -> int:
    """Key-value heads."""
    return model.num_query_groups or model.num_attention_heads


def _gpt2(model: ModelConfig) -> dict[str, Any]:
    return {
        "n_positions": model.sequence_length,
        "n_embd": model.hidden_size,
        "n_layer": model.num_layers,
        "n_head": model.num_attention_heads,
        "n_inner": model.ffn_hidden_size,
        "activation_function": _GELU_NAME[model.activation],
        "layer_norm_epsilon": model.norm_epsilon,
        "resid_pdrop": model.hidden_dropout,
        "embd_pdrop": model.hidden_dropout,
        "attn_pdrop": model.attention_dropout,
    }


def _neox(model: ModelConfig) -> dict[str, Any]:
    # rotary_pct and rotary_emb_base are what transformers before version 5 reads.
    return {
        **_common(model),
        "hidden_act": _GELU_NAME[model.activation],
        "layer_norm_eps": model.norm_epsilon,
        "hidden_dropout": model.hidden_dropout,
        "use_parallel_residual": False,
        "attention_bias": True,
        "rotary_pct": 1.0,
        "rotary_emb_base": model.rotary_base,
    }


def _llama(model: ModelConfig) -> dict[str, Any]:
    return {
        **_common(model),
        "num_key_value_heads": num_groups(model),
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_epsilon,
        "rope_theta": float(model.rotary_base),
        "attention_bias": False,
        "mlp_bias": False,
    }


def _common(model: ModelConfig) -> dict[str, Any]:
    return {
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "max_position_embeddings": model.sequence_length,
        "attention_dropout": model.attention_dropout,
    }


ARCHITECTURES = (
    Architecture("gpt2", "GPT2LMHeadModel", "GPT2Config", {"position_embedding": ("learned",), **_GPT}, False, _gpt2),
    Architecture(
        "gpt_neox", "GPTNeoXForCausalLM", "GPTNeoXConfig", {"position_embedding": ("rotary",), **_GPT}, False, _neox
    ),
    Architecture(
        "llama",
        "LlamaForCausalLM",
        "LlamaConfig",
        {
            "position_embedding": ("rotary",),
            "normalization": ("RMSNorm",),
            "activation": ("swiglu",),
            "linear_bias": (False,),
        },
        True,
        _llama,
    ),
)


def architecture_of(model: ModelConfig) -> Architecture:
    """The architecture that computes what the model computes.

    Raises:
        ConfigError: there is none.
    """
    misfits = [(one, one.misfits(model)) for one in ARCHITECTURES]
    for one, found in misfits:
        if not found:
            return one
    told = "; ".join(f"{one.model_class}: {', '.join(found)}" for one, found in misfits)
    raise ConfigError(
        f"No Hugging Face architecture that megalign writes has these model settings: {told}.",
        "Its logits would be others.",
        "Train with the settings of one of them to export the model.",
    )


def named(model_type: str, name: str) -> Architecture:
    """The architecture of a Hugging Face model.

    Raises:
        DataError: it is not among those that are read.
    """
    for one in ARCHITECTURES:
        if one.model_type == model_type:
            return one
    raise DataError(
        f"{name} is a {model_type} model.",
        "Its layers compute something else than those of the models here.",
        f"Import one of {', '.join(one.model_type for one in ARCHITECTURES)}.",
    )


def model_from(config: Any, tokenizer_vocab_size: int, multiple: int | None, name: str) -> ModelConfig:
    """The model section of a Hugging Face configuration.

    Args:
        config: a transformers configuration.
        tokenizer_vocab_size: ids of the vocabulary, without padding.
        multiple: model.vocab_size_multiple; None: the largest power of 2 up to 128 that needs no padding.
        name: of the model, for messages.

    Raises:
        DataError: the model computes what ours do not.
        ConfigError: a value is none that our setting can have.
    """
    architecture = named(config.model_type, name)
    read = {"gpt2": _from_gpt2, "gpt_neox": _from_neox, "llama": _from_llama}[architecture.model_type]
    problems: list[str] = []
    values = read(config, problems)
    if problems:
        raise DataError(
            f"{name} cannot be imported: {'; '.join(problems)}.",
            "Models here do not compute that; the logits would be others.",
            "Import a model without it.",
        )
    if multiple is None:
        multiple = next(m for m in (128, 64, 32, 16, 8, 4, 2, 1) if tokenizer_vocab_size % m == 0)
    content = {
        **values,
        "tied_embeddings": bool(config.tie_word_embeddings),
        "init_std": float(config.initializer_range),
        "vocab_size_multiple": multiple,
    }
    return validate(ModelConfig, content, name)


def _from_gpt2(config: Any, problems: list[str]) -> dict[str, Any]:
    _refuse(problems, config, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    if config.resid_pdrop != config.embd_pdrop:
        problems.append(f"resid_pdrop {config.resid_pdrop} and embd_pdrop {config.embd_pdrop} differ")
    return {
        "num_layers": config.n_layer,
        "hidden_size": config.n_embd,
        "num_attention_heads": config.n_head,
        "ffn_hidden_size": config.n_inner or 4 * config.n_embd,
        "sequence_length": config.n_positions,
        "position_embedding": "learned",
        "activation": _gelu(config.activation_function, problems),
        "norm_epsilon": float(config.layer_norm_epsilon),
        "hidden_dropout": float(config.resid_pdrop),
        "attention_dropout": float(config.attn_pdrop),
    }


def _from_neox(config: Any, problems: list[str]) -> dict[str, Any]:
    _refuse(problems, config, use_parallel_residual=False, attention_bias=True)
    rope = _rope(config, problems)
    share = rope.get("partial_rotary_factor", getattr(config, "rotary_pct", 1.0))
    if share != 1:
        problems.append(f"rotary positions enter {share:g} of each head, not all of it")
    return {
        **_from_common(config),
        "rotary_base": _base(rope, problems),
        "activation": _gelu(config.hidden_act, problems),
        "norm_epsilon": float(config.layer_norm_eps),
        "hidden_dropout": float(config.hidden_dropout),
    }


def _from_llama(config: Any, problems: list[str]) -> dict[str, Any]:
    _refuse(problems, config, attention_bias=False, mlp_bias=False, hidden_act="silu")
    head = getattr(config, "head_dim", None)
    if head and head * config.num_attention_heads != config.hidden_size:
        problems.append(
            f"head_dim {head} x num_attention_heads {config.num_attention_heads} is not hidden_size {config.hidden_size}"
        )
    groups = config.num_key_value_heads
    return {
        **_from_common(config),
        "rotary_base": _base(_rope(config, problems), problems),
        "num_query_groups": None if groups == config.num_attention_heads else groups,
        "normalization": "RMSNorm",
        "activation": "swiglu",
        "linear_bias": False,
        "norm_epsilon": float(config.rms_norm_eps),
    }


def _from_common(config: Any) -> dict[str, Any]:
    return {
        "num_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "ffn_hidden_size": config.intermediate_size,
        "sequence_length": config.max_position_embeddings,
        "position_embedding": "rotary",
        "attention_dropout": float(config.attention_dropout or 0.0),
    }


def _refuse(problems: list[str], config: Any, **expected: Any) -> None:
    for name, value in expected.items():
        found = getattr(config, name, value)
        if found != value:
            problems.append(f"{name} is {found}, not {value}")


def _gelu(activation: str, problems: list[str]) -> str:
    if activation not in _GELU:
        problems.append(f"its activation is {activation}, not {' or '.join(_GELU)}")
    return _GELU.get(activation, "gelu")


def _rope(config: Any, problems: list[str]) -> dict[str, Any]:
    rope = dict(getattr(config, "rope_parameters", None) or {})
    if not rope:  # transformers before version 5
        base = getattr(config, "rope_theta", None) or getattr(config, "rotary_emb_base", 10000)
        rope = {**(getattr(config, "rope_scaling", None) or {}), "rope_theta": base}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        problems.append(f"its rotary positions are scaled ({kind})")
    return rope


def _base(rope: Mapping[str, Any], problems: list[str]) -> int:
    base = float(rope["rope_theta"])
    if not base.is_integer():
        problems.append(f"the base of its rotary frequencies is {base:g}, no whole number")
        return 0
    return int(base)
