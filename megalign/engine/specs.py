"""Layer specs: which module stands where in Megatron-Core's transformer.

Everywhere but on GPUs with TransformerEngine: Megatron's own tensor-parallel linear layers, torch's fused attention and
torch's norms. On GPUs with TransformerEngine: its linear layers (FP8) and norms, and torch's fused attention, which takes
the block-diagonal masks of packed words.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

from megalign.engine import context
from megalign.engine.device import transformer_engine_available
from megalign.engine.mcore import (
    TransformerBlockSubmodules,
    TransformerConfig,
    get_cuda_rng_tracker,
    get_gpt_layer_local_spec,
    get_num_layers_to_build,
)


class Norm(torch.nn.Module):
    """torch's LayerNorm or RMSNorm under Megatron-Core's calling convention.

    Megatron's own wrapper refuses sequence parallelism. The mark `sequence_parallel` on the parameters makes Megatron
    sum their gradients over tensor-parallel ranks, each of which sees a slice of the sequence.
    """

    def __new__(cls, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> Any:
        kind = torch.nn.RMSNorm if config.normalization == "RMSNorm" else torch.nn.LayerNorm
        norm = kind(hidden_size, eps=eps, dtype=config.params_dtype)
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        return norm


class FusedAttention(torch.nn.Module):
    """Core attention by `torch.nn.functional.scaled_dot_product_attention`. It has no parameters.

    `attention_mask` None means causal, over windows that context-parallel ranks share (see `megalign.engine.context`);
    otherwise it is the whole mask (causality included), bool, True = hidden, and the rows are not shared.
    """

    def __init__(
        self,
        config: Any,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        self.sequence_parallel = config.sequence_parallel
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.scale = softmax_scale

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: Any = None,
        attention_bias: Any = None,
        packed_seq_params: Any = None,
    ) -> torch.Tensor:
        """query, key, value [own part of the sequence, batch, heads, head size] -> [own part, batch, heads x head size]."""
        if packed_seq_params is not None or attention_bias is not None:
            raise ValueError("FusedAttention takes masks, neither packed sequences nor attention biases")
        dropout = self.dropout if self.training else 0.0
        if dropout and not self.sequence_parallel:
            # Tensor-parallel ranks hold different heads and must draw differently; under sequence parallelism the
            # block has switched generators already.
            with get_cuda_rng_tracker().fork():
                attended = self._attend(query, key, value, attention_mask, dropout)
        else:
            attended = self._attend(query, key, value, attention_mask, dropout)
        return attended.permute(2, 0, 1, 3).reshape(query.size(0), query.size(1), -1)

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, dropout: float
    ) -> torch.Tensor:
        """[batch, heads, own part of the sequence, head size]"""
        if mask is not None:
            return self._fused(query, key, value, ~mask, dropout)
        if context.size() == 1:
            return self._fused(query, key, value, None, dropout)
        key, value = context.gather_keys_and_values(key, value)
        # The fused kernels know no mask of two chunks, but that of a last chunk: a call for each, with the keys up to it.
        chunk_length = len(query) // 2
        parts = []
        for own, chunk in zip(query.split(chunk_length), context.own_chunks(), strict=True):
            seen = (chunk + 1) * chunk_length
            last = causal_lower_right(chunk_length, seen)
            parts.append(self._fused(own, key[:seen], value[:seen], last, dropout))
        return torch.cat(parts, dim=2)

    def _fused(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible: torch.Tensor | None, dropout: float
    ) -> torch.Tensor:
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=visible,
            is_causal=visible is None,
            dropout_p=dropout,
            scale=self.scale,
            enable_gqa=query.size(1) != key.size(1),
        )


def block_spec(config: TransformerConfig, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """The layers a stage builds."""
    if transformer_engine_available():
        from megatron.core.extensions.transformer_engine import TENorm
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec

        layer = get_gpt_layer_with_transformer_engine_spec()
        final_norm: Any = TENorm
    else:
        layer = get_gpt_layer_local_spec(normalization=config.normalization)
        layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = Norm
        final_norm = Norm
    layer.submodules.self_attention.submodules.core_attention = FusedAttention
    num_layers = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=final_norm)
