"""AdamW and its schedule: Megatron-Core's, with repairs for its distributed optimizer."""

from __future__ import annotations

import functools
from typing import Any

import torch

from megalign.config.sections import OptimizerConfig as OptimizerSettings
from megalign.engine.device import DEVICE
from megalign.engine.mcore import (
    DistributedOptimizer,
    OptimizerConfig,
    OptimizerParamScheduler,
    ParamKey,
    ParamPredicate,
    TransformerConfig,
    get_megatron_optimizer,
)


def _is_vector(parameter: torch.Tensor) -> bool:
    return parameter.dim() == 1


def build_optimizer(
    settings: OptimizerSettings,
    config: TransformerConfig,
    chunks: list[torch.nn.Module],
    *,
    distributed_optimizer: bool,
) -> Any:
    """Megatron's optimizer over the chunks: embedding rows and vectors in groups of their own.

    Args:
        settings: learning rates, weight decays, clipping.
        config: from `transformer_config`; its `grad_scale_func` is set.
        chunks: under DDP.
        distributed_optimizer: cut the state over data-parallel ranks.
    """
    min_lr = settings.lr * settings.min_lr_ratio
    base_decay = max(settings.weight_decay, settings.embedding_weight_decay)
    share = {
        name: (value / base_decay if base_decay else 0.0)
        for name, value in (("matrix", settings.weight_decay), ("embedding", settings.embedding_weight_decay))
    }
    multiplier = settings.embedding_lr_multiplier
    overrides: dict[Any, dict[str, float | bool]] = {
        ParamKey(name="*.bias", predicate=ParamPredicate(name="vector", fn=_is_vector)): {"wd_mult": 0.0},
        ParamKey(attr="is_embedding_or_output_parameter"): {
            # When loading, Megatron tells groups apart by this and the multipliers, not by learning rates: without the
            # mark a checkpoint's groups would be exchanged.
            "is_decoupled_lr": True,
            "wd_mult": share["embedding"],
            "max_lr": settings.lr * multiplier,
            "min_lr": min_lr * multiplier,
        },
    }
    if share["matrix"] != 1.0:
        overrides[ParamKey(predicate=ParamPredicate(name="matrix", fn=_is_hidden_matrix))] = {
            "wd_mult": share["matrix"]
        }
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=settings.lr,
            min_lr=min_lr,
            weight_decay=base_decay,
            adam_beta1=settings.beta1,
            adam_beta2=settings.beta2,
            adam_eps=settings.eps,
            clip_grad=settings.clip_grad,
            bf16=bool(config.bf16),
            params_dtype=config.params_dtype,
            fp8_recipe=config.fp8_recipe if config.fp8 else None,
            use_distributed_optimizer=distributed_optimizer,
        ),
        chunks,
        config_overrides=overrides,
        use_gloo_process_groups=False,
    )
    config.grad_scale_func = optimizer.scale_loss
    for inner in inner_optimizers(optimizer):
        inner.config.clip_grad = settings.clip_grad
        if DEVICE.type == "cpu" and inner.optimizer is not None:
            for group in inner.optimizer.param_groups:
                group["fused"] = True  # one kernel over all parameters instead of a Python loop
    return optimizer


def _is_hidden_matrix(parameter: torch.Tensor) -> bool:
    return parameter.dim() > 1 and not getattr(parameter, "is_embedding_or_output_parameter", False)


def build_scheduler(settings: OptimizerSettings, optimizer: Any, num_steps: int) -> OptimizerParamScheduler:
    """Linear warm-up and decay over `num_steps` optimizer steps; a pure function of the step."""
    warmup = min(round(settings.warmup_fraction * num_steps), num_steps - 1)
    base_decay = max(settings.weight_decay, settings.embedding_weight_decay)
    style = {"trapezoid": "WSD"}.get(settings.decay, settings.decay)
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=settings.lr,
        min_lr=settings.lr * settings.min_lr_ratio,
        lr_warmup_steps=warmup,
        lr_decay_steps=num_steps,
        lr_decay_style=style,
        start_wd=base_decay,
        end_wd=base_decay,
        wd_incr_steps=0,
        wd_incr_style="constant",
        wsd_decay_steps=max(1, num_steps // 2) if style == "WSD" else None,
        lr_wsd_decay_style="linear" if style == "WSD" else None,
    )


def set_step(scheduler: OptimizerParamScheduler, step: int) -> None:
    """Set the learning rates of step `step` (1 is the first: it has a rate above 0)."""
    scheduler.num_steps = step
    scheduler.step(0)


def inner_optimizers(optimizer: Any) -> list[Any]:
    """The optimizers a chain holds."""
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))


def allocate_state(optimizer: Any) -> None:
    """Make Adam's state before the first step.

    torch's Adam makes it in its first step, but loading a checkpoint into the distributed optimizer reads it before.
    """
    for inner in inner_optimizers(optimizer):
        if inner.optimizer is None:
            continue
        inner.init_state_fn(inner.optimizer, inner.config)
        for state in inner.optimizer.state.values():
            state.setdefault("step", torch.zeros((), dtype=torch.float32))


def separate_steps(optimizer: Any) -> None:
    """Give every parameter a step counter of its own.

    After loading all parameters share one tensor, which torch's Adam would advance once per parameter, silently.
    """
    for inner in inner_optimizers(optimizer):
        if inner.optimizer is None:
            continue
        for state in inner.optimizer.state.values():
            if torch.is_tensor(state.get("step")):
                state["step"] = state["step"].clone()


def adam_steps(optimizer: Any) -> set[float]:
    """The distinct step counters of all parameters; one value in a healthy optimizer."""
    return {
        float(state["step"])
        for inner in inner_optimizers(optimizer)
        if inner.optimizer is not None
        for state in inner.optimizer.state.values()
        if "step" in state
    }


def _keep_step_when_loading() -> None:
    """Let the distributed optimizer load checkpoints without a per-parameter 'step'.

    Megatron writes none (TransformerEngine's Adam keeps none) but asks for every tensor of the state when loading.
    torch's Adam has one, set from the parameter groups before: it is handed back.
    """
    original = DistributedOptimizer._set_main_param_and_optimizer_states

    @torch.no_grad()
    def with_step(self: Any, model_param: Any, tensors: dict[str, Any]) -> None:
        group, position = self.model_param_group_index_map[model_param]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][position]]
        original(self, model_param, {**tensors, "step": state["step"]} if "step" in state else tensors)

    DistributedOptimizer._set_main_param_and_optimizer_states = with_step


def _save_beyond_padding() -> None:
    """Let the distributed optimizer save the right numbers where its buffer has several buckets.

    When saving, Megatron joins the buckets without the padding at their ends, but then cuts parameters out at their places
    with it: what stands behind the first padded bucket is shifted, silently, in weights and moments alike. A shared
    embedding under pipeline parallelism has a bucket of its own, so this comes to pass in common layouts.
    """
    original = DistributedOptimizer.sharded_param_state_fully_reshardable

    @functools.wraps(original)
    def at_unpadded_places(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = [buffer.param_index_map for buffer in self.buffers]
        for buffer in self.buffers:
            padding = [bucket.grad_data.numel() - bucket.numel_unpadded for bucket in buffer.buckets]
            buffer.param_index_map = {
                parameter: (start - sum(padding[:bucket]), end - sum(padding[:bucket]), bucket)
                for parameter, (start, end, bucket) in buffer.param_index_map.items()
            }
        try:
            return original(self, *args, **kwargs)
        finally:
            for buffer, index_map in zip(self.buffers, before, strict=True):
                buffer.param_index_map = index_map

    DistributedOptimizer.sharded_param_state_fully_reshardable = at_unpadded_places


_keep_step_when_loading()
_save_beyond_padding()
