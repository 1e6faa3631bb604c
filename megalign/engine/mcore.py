"""The one door to Megatron-Core: installs the host adaptation, then imports every name the engine uses."""
# ruff: noqa: E402 - the hook must be installed before the first import from megatron

from __future__ import annotations

import os
import warnings

# Megatron warns at import of every optional package that is absent; `megalign doctor` says it better.
os.environ.setdefault("NVTE_TORCH_COMPILE", "0")
warnings.filterwarnings("ignore", module=r"megatron\.core.*")

from megalign.engine import megatron_on_cpu

ON_HOST = megatron_on_cpu.install()

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from megatron.core import __version__ as megatron_core_version
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.dist_checkpointing import serialization as checkpoint_serialization
    from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
    from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
    from megatron.core.dist_checkpointing.strategies import torch as torch_strategy
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
    from megatron.core.optimizer.optimizer_config import ParamKey, ParamPredicate
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.tensor_parallel import (
        gather_from_sequence_parallel_region,
        get_cuda_rng_tracker,
        reduce_from_tensor_model_parallel_region,
    )
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from megatron.core.transformer.module import Float16Module
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
    from megatron.core.transformer.transformer_config import TransformerConfig
    from megatron.core.utils import make_viewless_tensor

__all__ = [
    "ON_HOST",
    "CheckpointingConfig",
    "DistributedDataParallel",
    "DistributedDataParallelConfig",
    "DistributedOptimizer",
    "Float16Module",
    "GPTModel",
    "ModuleSpec",
    "OptimizerConfig",
    "OptimizerParamScheduler",
    "ParamKey",
    "ParamPredicate",
    "ShardedTensor",
    "TransformerBlockSubmodules",
    "TransformerConfig",
    "apply_factories",
    "checkpoint_serialization",
    "dist_checkpointing",
    "finalize_model_grads",
    "gather_from_sequence_parallel_region",
    "get_cuda_rng_tracker",
    "get_forward_backward_func",
    "get_gpt_layer_local_spec",
    "get_megatron_optimizer",
    "get_num_layers_to_build",
    "make_viewless_tensor",
    "megatron_core_version",
    "model_parallel_cuda_manual_seed",
    "nested_values",
    "parallel_state",
    "reduce_from_tensor_model_parallel_region",
    "save_config",
    "save_preprocess",
    "torch_strategy",
]
