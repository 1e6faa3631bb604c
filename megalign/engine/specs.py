"""Layer specs: which module stands where in Megatron-Core's transformer.

Everywhere but on GPUs with TransformerEngine: Megatron's own tensor-parallel linear layers, torch's fused attention and
torch's norms. On GPUs with TransformerEngine: its linear layers (FP8) and norms, torch's fused attention (which takes the
block-diagonal masks of packed words), or TransformerEngine's attention under context parallelism.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

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

    `attention_mask` None means causal; otherwise it is the whole mask (causality included), bool, True = hidden.
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
        """query, key, value [sequence, batch, heads, head size] -> [sequence, batch, heads x head size]."""
        if packed_seq_params is not None or attention_bias is not None:
            raise ValueError("FusedAttention takes masks, neither packed sequences nor attention biases")
        dropout = self.dropout if self.training else 0.0
        if dropout and not self.sequence_parallel:
            # Tensor-parallel ranks hold different heads and must draw differently; under sequence parallelism the
            # block has switched generators already.
            with get_cuda_rng_tracker().fork():
                context = self._attend(query, key, value, attention_mask, dropout)
        else:
            context = self._attend(query, key, value, attention_mask, dropout)
        return context.permute(2, 0, 1, 3).reshape(query.size(0), query.size(1), -1)

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, dropout: float
    ) -> torch.Tensor:
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if mask is None else ~mask,
            is_causal=mask is None,
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
        if config.context_parallel_size == 1:
            layer.submodules.self_attention.submodules.core_attention = FusedAttention
        final_norm: Any = TENorm
    else:
        layer = get_gpt_layer_local_spec(normalization=config.normalization)
        layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = Norm
        layer.submodules.self_attention.submodules.core_attention = FusedAttention
        final_norm = Norm
    num_layers = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=final_norm)
