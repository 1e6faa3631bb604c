"""What a checkpoint holds: weights and optimizer as Megatron's sharded tensors, and whether they are sound."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist

from megalign.engine.engine import Engine
from megalign.engine.mcore import ShardedTensor, nested_values
from megalign.engine.model import unwrapped
from megalign.engine.optimizer import inner_optimizers
from megalign.engine.weights import sharding_metadata
from megalign.errors import DataError, MegalignError

MOMENTS = ("exp_avg", "exp_avg_sq")


def sharded_state(engine: Engine, *, loading: bool, with_optimizer: bool) -> dict[str, Any]:
    """This rank's part of the checkpoint, as Megatron's dist_checkpointing takes it."""
    models = [unwrapped(chunk).sharded_state_dict(metadata=sharding_metadata()) for chunk in engine.chunks]
    for tensor in nested_values(models):
        if isinstance(tensor, ShardedTensor):
            # Megatron would cut or fill up the rows of another vocabulary, silently: its padding depends on the layout.
            tensor.allow_shape_mismatch = False
    state: dict[str, Any] = (
        {"model": models[0]} if len(models) == 1 else {f"model{number}": model for number, model in enumerate(models)}
    )
    if with_optimizer:
        reference = models[0] if len(models) == 1 else state.copy()
        state["optimizer"] = engine.optimizer.sharded_state_dict(
            reference, is_loading=loading, metadata=sharding_metadata()
        )
    return state


def optimizer_states(optimizer: Any) -> Iterator[tuple[torch.Tensor, dict[str, Any]]]:
    """(parameter, its state) of every parameter this rank steps."""
    for inner in inner_optimizers(optimizer):
        if inner.optimizer is not None:
            for group in inner.optimizer.param_groups:
                for parameter in group["params"]:
                    yield parameter, inner.optimizer.state.get(parameter, {})


def step_counters(optimizer: Any) -> list[float]:
    """The distinct step counters of this rank's Adam: one value in a healthy optimizer."""
    counters = {float(state["step"]) for _, state in optimizer_states(optimizer) if "step" in state}
    if not counters:  # TransformerEngine's and Apex's Adam count by group
        groups = chain.from_iterable(o.optimizer.param_groups for o in inner_optimizers(optimizer) if o.optimizer)
        counters = {float(group["step"]) for group in groups if "step" in group}
    return sorted(counters)


def refuse_unsound(engine: Engine, step: int) -> int | None:
    """Refuse to save weights or moments that are not finite, or step counters that differ. All ranks call this.

    Returns:
        Adam's step counter (0 before its first step), or None without an optimizer.

    Raises:
        MegalignError: on all ranks.
    """
    named = [
        (f"chunk {number}: {name}" if len(engine.chunks) > 1 else name, parameter)
        for number, chunk in enumerate(map(unwrapped, engine.chunks))
        for name, parameter in chunk.named_parameters()
    ]
    weights = {id(parameter) for _, parameter in named}
    moments = [
        value
        for parameter, state in (optimizer_states(engine.optimizer) if engine.optimizer is not None else ())
        for value in (None if id(parameter) in weights else parameter, *(state.get(name) for name in MOMENTS))
        if value is not None
    ]
    counters = step_counters(engine.optimizer) if engine.optimizer is not None else []
    bad = [name for (name, _), holds in zip(named, _finite([t for _, t in named]), strict=True) if not holds]
    bad_moments = _finite(moments).count(False)
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (len(bad), bad[:3], bad_moments, counters))
    num_weights, num_moments = (sum(rank[n] for rank in everyone) for n in (0, 2))
    if num_weights or num_moments:
        names = list(dict.fromkeys(name for rank in everyone for name in rank[1]))[:3]
        raise MegalignError(
            f"Step {step}: {num_weights} weights and {num_moments} tensors of the optimizer hold values that are not "
            f"finite{' (' + ', '.join(names) + ')' if names else ''}; no checkpoint was written.",
            "It would replace a good one.",
            "Resume from the last checkpoint with a lower learning rate.",
        )
    found = sorted({counter for rank in everyone for counter in rank[3]})
    if len(found) > 1:
        raise MegalignError(
            f"Step {step}: Adam's step counters are {found[:5]}, not one number; no checkpoint was written.",
            "The bias corrections of the parameters would differ: the optimizer's state is not that of any one step.",
            "Resume from the last checkpoint; please report this.",
        )
    if engine.optimizer is None:
        return None
    return int(found[0]) if found else 0


def _finite(tensors: list[torch.Tensor]) -> list[bool]:
    """Whether each tensor is finite, with one wait for the device."""
    if not tensors:
        return []
    flags: list[bool] = torch.stack([torch.isfinite(t.detach()).all() for t in tensors]).tolist()
    return flags


def verify_moments(engine: Engine, where: object, adam_step: int | None) -> None:
    """Refuse an optimizer whose moments did not arrive whole. All ranks call this, after loading.

    Every parameter must have moments of its shape, finite, the second not negative, and a step counter of its own that
    says what the checkpoint says. Moments that were dropped silently start at 0; counters that share a tensor advance
    once per parameter.

    Raises:
        DataError: on all ranks.
    """
    problems = []
    states = list(optimizer_states(engine.optimizer))
    if adam_step:
        for name in MOMENTS:
            lacking = sum(name not in s or s[name].shape != p.shape for p, s in states)
            if lacking:
                problems.append(f"{lacking} of {len(states)} parameters have no {name} of their shape")
        moments = [s[name] for _, s in states for name in MOMENTS if name in s]
        if not all(_finite(moments)):
            problems.append("moments are not finite")
        if any(bool((s["exp_avg_sq"] < 0).any()) for _, s in states if "exp_avg_sq" in s):
            problems.append("second moments are negative")
    counters = step_counters(engine.optimizer)
    if counters and counters != [float(adam_step or 0)]:
        problems.append(f"Adam counts steps {counters[:5]}, the checkpoint says {adam_step}")
    tensors = [s["step"] for _, s in states if torch.is_tensor(s.get("step"))]
    if len({t.data_ptr() for t in tensors}) < len(tensors):
        problems.append("parameters share a step counter, which would advance once for each of them")
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, problems)
    told = [f"rank {rank}: {'; '.join(found)}" for rank, found in enumerate(everyone) if found]
    if told:
        raise DataError(
            f"The optimizer loaded from {where} is not whole: {' | '.join(told[:4])}.",
            "Training on would be another run.",
            "Resume from another checkpoint.",
        )
