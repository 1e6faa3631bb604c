"""The GPT model of a rank: Megatron-Core's GPTModel cut by the layout."""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from megalign.config.layout import Layout
from megalign.config.sections import ModelConfig, PrecisionConfig
from megalign.engine.classification import attach_head
from megalign.engine.device import DEVICE
from megalign.engine.mcore import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    Float16Module,
    GPTModel,
    TransformerConfig,
    parallel_state,
)
from megalign.engine.precision import FORMATS, check_precision
from megalign.engine.specs import block_spec
from megalign.engine.weights import initialise

_ACTIVATIONS = {"gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh"), "swiglu": F.silu}


def transformer_config(model: ModelConfig, layout: Layout, precision: PrecisionConfig) -> TransformerConfig:
    """Megatron-Core's configuration for this model, layout and precision.

    Raises:
        ConfigError, EnvironmentProblem: the layout does not divide the model, or the machine lacks what is asked for.
    """
    layout.check(model)
    p = layout.parallel
    check_precision(model, layout, precision)
    dtype = torch.bfloat16 if precision.dtype == "bfloat16" else torch.float32
    recompute: dict[str, Any] = {}
    if p.recompute == "selective":
        recompute = {"recompute_granularity": "selective"}
    elif p.recompute == "full":
        recompute = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    uneven: dict[str, Any] = {}
    if model.num_layers % (p.pipeline * layout.num_chunks):
        uneven = {"pipeline_model_parallel_layout": _stages(layout.layers_of_chunks(model.num_layers))}
    fp8: dict[str, Any] = {}
    if precision.fp8:
        ends = (precision.bf16_layers_at_start, precision.bf16_layers_at_end)
        fp8 = {
            "fp8": FORMATS[precision.fp8],
            "fp8_recipe": precision.fp8,
            "first_last_layers_bf16": any(ends),
            "num_layers_at_start_in_bf16": ends[0],
            "num_layers_at_end_in_bf16": ends[1],
        }
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_query_groups,
        ffn_hidden_size=model.ffn_hidden_size,
        normalization=model.normalization,
        gated_linear_unit=model.activation == "swiglu",
        activation_func=_ACTIVATIONS[model.activation],
        layernorm_epsilon=model.norm_epsilon,
        add_bias_linear=model.linear_bias,
        hidden_dropout=model.hidden_dropout,
        attention_dropout=model.attention_dropout,
        tensor_model_parallel_size=p.tensor,
        pipeline_model_parallel_size=p.pipeline,
        virtual_pipeline_model_parallel_size=p.virtual_pipeline,
        context_parallel_size=p.context,
        sequence_parallel=p.sequence_parallel,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        # The engine divides by the global number of targets itself, so Megatron must only sum (see Engine.step).
        calculate_per_token_loss=True,
        # Injection sends micro-batches of two shapes through the pipeline. The default dispatcher of experts, which there
        # are none of, would be refused with that.
        variable_seq_lengths=p.pipeline > 1,
        moe_token_dispatcher_type="alltoall",
        # Megatron-LM enforces this pair for interleaving, Megatron-Core does not: without it, activations and gradients
        # between the same two ranks are swapped, silently.
        overlap_p2p_comm=p.virtual_pipeline is not None,
        batch_p2p_comm=p.virtual_pipeline is None,
        # With False the tensor-parallel marks are never set, and the gradient norm counts one rank's shards, silently.
        perform_initialization=True,
        use_cpu_initialization=DEVICE.type == "cpu",
        attention_softmax_in_fp32=True,
        masked_softmax_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        # Linear layers add to the gradient buffer in their matrix product: apex's extension, or host_kernels.
        gradient_accumulation_fusion=gradient_fusion_available(),
        **recompute,
        **uneven,
        **fp8,
    )


def _stages(num_layers: list[int]) -> list[list[str]]:
    """What each chunk holds, as Megatron's pipeline_model_parallel_layout takes it."""
    stages = [["decoder"] * number for number in num_layers]
    return [["embedding", *stages[0]], *stages[1:-1], [*stages[-1], "loss"]]


def build_chunks(
    config: TransformerConfig,
    model: ModelConfig,
    layout: Layout,
    vocab_size: int,
    seed: int,
    row_sources: np.ndarray | None = None,
    num_labels: int = 0,
) -> list[torch.nn.Module]:
    """This rank's model chunks, initialised by name, below DDP.

    Args:
        config: from `transformer_config`.
        model: the model.
        layout: the layout the process groups were started with.
        vocab_size: ids of the vocabulary, before padding.
        seed: seed of the weights.
        row_sources: golden alignment, see `megalign.engine.weights.initialise`.
        num_labels: labels of the classification head on the last chunk; 0: none.
    """
    chunks: list[torch.nn.Module] = []
    for stage in range(layout.num_chunks):
        vp_stage = stage if layout.parallel.virtual_pipeline else None
        chunk = GPTModel(
            config=config,
            transformer_layer_spec=block_spec(config, vp_stage),
            vocab_size=model.padded_vocab_size(vocab_size),
            max_sequence_length=model.sequence_length,
            pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
            post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
            position_embedding_type="rope" if model.position_embedding == "rotary" else "learned_absolute",
            rotary_base=model.rotary_base,
            share_embeddings_and_output_weights=model.tied_embeddings,
            vp_stage=vp_stage,
        )
        if chunk.post_process:
            # Its rows are also gathered by the embedding and by the contrastive loss: autograd must see their gradient.
            chunk.output_layer.gradient_accumulation_fusion = False
        if num_labels and chunk.post_process:
            attach_head(chunk, config, num_labels)
        chunks.append(chunk.to(DEVICE))
    initialise(chunks, model, seed, row_sources)
    return [Float16Module(config, chunk) for chunk in chunks] if config.bf16 else chunks


def gradient_fusion_available() -> bool:
    """Whether a linear layer's backward pass can add to the gradient buffer by itself."""
    return DEVICE.type == "cpu" or importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is not None


def wrap_for_training(
    config: TransformerConfig, chunks: list[torch.nn.Module], *, distributed_optimizer: bool
) -> list[torch.nn.Module]:
    """The chunks under Megatron's DDP: contiguous gradient buffers, reduced over data-parallel ranks."""
    ddp = DistributedDataParallelConfig(
        grad_reduce_in_fp32=bool(config.bf16), use_distributed_optimizer=distributed_optimizer
    )
    return [
        DistributedDataParallel(config, ddp, chunk, disable_bucketing=number > 0) for number, chunk in enumerate(chunks)
    ]


def unwrapped(chunk: torch.nn.Module) -> Any:
    """The GPTModel below DDP and Float16Module: state-dict keys have no 'module.' there."""
    inner: Any = chunk
    while hasattr(inner, "module"):
        inner = inner.module
    return inner
