"""What `megalign plan` prints and writes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import yaml
from rich.console import Group
from rich.table import Table
from rich.text import Text

from megalign.cli.dry_run import count
from megalign.scaling.activations import MicroBatch
from megalign.scaling.calibrate import Calibration
from megalign.scaling.communication import Communication
from megalign.scaling.memory import MEMORY_PARTS, USABLE_SHARE
from megalign.scaling.parameters import count_parameters
from megalign.scaling.search import Goal, Plan, Search, run_sections
from megalign.training.metrics import format_seconds

_GIB = 2**30
_TOO_FAST = ": more than all of it, so the device's peak_flops, or what was measured, is wrong"
_GROUPS = {
    "tensor": "tensor parallel",
    "context": "context parallel",
    "pipeline": "between stages",
    "data": "data parallel",
    "ends": "tied rows",
}


def rendered(
    goal: Goal, found: Search, calibration: Calibration | None, *, top: int, price_per_gpu_hour: float | None
) -> Group:
    """The report: the goal, the fastest layouts, the best one in parts, its YAML, and why others fall."""
    parts: list[Any] = [_title("goal"), _rows(_goal(goal, calibration)), ""]
    if found.plans:
        best = found.plans[0]
        parts += [_title(f"fastest of {len(found.plans):,} layouts that fit"), _plans(goal, found, top), ""]
        parts += [_title("the best one"), _rows(_best(goal, best, price_per_gpu_hour)), ""]
        parts += [_title("for the run's file"), Text(yaml.safe_dump(run_sections(goal, best), sort_keys=False))]
    else:
        parts += [Text("No layout fits.", style="bold red"), Text(_advice(goal)), ""]
    if found.refusals:
        parts += [_title("why others fall"), _refusals(found)]
    return Group(*parts)


def _title(text: str) -> Text:
    return Text(text, style="bold underline")


def _rows(rows: list[tuple[str, str]]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))
    return table


def _goal(goal: Goal, calibration: Calibration | None) -> list[tuple[str, str]]:
    model, cluster, device = goal.model, goal.cluster, goal.cluster.device
    peak = device.peak(goal.precision) or 0.0
    nodes = -(-cluster.num_devices // cluster.devices_per_node)
    parameters = count_parameters(model, goal.vocab_size)
    rows = [
        (
            "model",
            f"{model.preset or 'own'}: {parameters.total:,} parameters ({parameters.non_embedding:,} without embeddings), "
            f"{model.num_layers} layers of {model.hidden_size}, vocabulary {goal.vocab_size:,}",
        ),
        (
            "devices",
            f"{cluster.num_devices} x {device.title} on {nodes} node{'s' if nodes > 1 else ''}: "
            f"{peak / 1e12:,.4g} TFLOP/s dense in {_numbers(goal)}, {cluster.memory_bytes / _GIB:.1f} GiB, "
            f"{(device.link_bytes_per_second or 0) / 1e9:g} GB/s inside a node, "
            f"{(device.network_bytes_per_second or 0) / 1e9:g} GB/s between nodes",
        ),
        (
            "training",
            f"{count(goal.tokens)} tokens = {goal.steps:,} steps of {goal.global_batch_size:,} windows of "
            f"{model.sequence_length:,} ({goal.tokens_per_step:,} tokens)",
        ),
    ]
    if goal.injection:
        beside = "pretraining's micro-batches" if goal.injection.during else "a window a replica"
        rows.append(("injection", f"{goal.injection.num_words:,} words a step beside {beside}, counted in the memory"))
    rows.append(
        ("time", calibration.told if calibration else "modelled, not calibrated: see --help and --from-metrics")
    )
    return rows


def _numbers(goal: Goal) -> str:
    return f"FP8 ({goal.precision.fp8})" if goal.precision.fp8 else goal.precision.dtype


def _plans(goal: Goal, found: Search, top: int) -> Table:
    table = Table(box=None, pad_edge=False)
    columns = ["TP", "PP", "VPP", "DP", "CP", "SP", "micro", "m", "recompute", "GiB", "bubble", "s/step", "tokens/s"]
    for name in ["#", *columns, "MFU", "days"]:
        table.add_column(name, justify="left" if name in ("SP", "recompute") else "right", no_wrap=True)
    for number, plan in enumerate(found.plans[:top], 1):
        p = plan.layout.parallel
        table.add_row(
            str(number),
            *(str(degree) for degree in (p.tensor, p.pipeline, p.virtual_pipeline or "-", p.data, p.context)),
            "yes" if p.sequence_parallel else "-",
            str(plan.micro_batch_size),
            str(plan.num_micro_batches),
            p.recompute,
            f"{plan.memory.total / _GIB:.3g}",
            f"{plan.time.bubble / plan.time.seconds:.1%}",
            f"{plan.time.seconds:.3g}",
            f"{plan.tokens_per_second:,.0f}",
            f"{plan.mfu:.1%}",
            f"{plan.training_seconds / 86400:.3g}",
            style="bold" if number == 1 else None,
        )
    return table


def _best(goal: Goal, plan: Plan, price_per_gpu_hour: float | None) -> list[tuple[str, str]]:
    memory, time = plan.memory, plan.time
    sizes = [(name.replace("_", " "), getattr(memory, name)) for name in MEMORY_PARTS]
    seconds = sorted(time.parts.items(), key=lambda item: -item[1])
    cost = f"{format_seconds(plan.training_seconds)}, {plan.device_hours:,.0f} GPU hours"
    if price_per_gpu_hour is not None:
        cost += f", {plan.device_hours * price_per_gpu_hour:,.0f} at {price_per_gpu_hour:g} an hour"
    return [
        (
            "memory",
            f"{memory.total / _GIB:.3g} GiB of {goal.usable_bytes / _GIB:.3g} ({USABLE_SHARE:.0%} of a device), stage "
            f"{memory.stage}, when: {memory.moment}",
        ),
        ("", ", ".join(f"{name} {size / _GIB:.3g}" for name, size in sizes if size)),
        ("step", f"{time.seconds:.4g} s, MFU {plan.mfu:.1%}{_TOO_FAST if plan.mfu > 1 else ''}"),
        ("", ", ".join(f"{name} {value / time.seconds:.1%}" for name, value in seconds if value > 5e-4 * time.seconds)),
        *_traffic(goal, plan),
        ("all of it", cost),
    ]


def _traffic(goal: Goal, plan: Plan) -> list[tuple[str, str]]:
    """Bytes that a rank of the first stage sends in a step, by group."""
    batch = MicroBatch(plan.micro_batch_size, goal.model.sequence_length)
    told = Communication(goal.model, plan.layout, goal.precision, goal.vocab_size, batch)
    transfers = told.step(0, plan.num_micro_batches)
    rows = []
    for group, title in _GROUPS.items():
        own = [transfer for transfer in transfers if transfer.group == group]
        if own:
            where = "the network" if goal.cluster.link(plan.layout, own[0].group).crosses_nodes else "links of a node"
            sent = sum(transfer.sent_bytes for transfer in own)
            rows.append(f"{title} {sent / 1e9:.3g} GB over {where}")
    return [("a rank sends", "; ".join(rows) + " a step")] if rows else []


def _refusals(found: Search) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for refusal in found.refusals:
        table.add_row(f"{refusal.count:,}", Text(refusal.reason + ("" if refusal.count == 1 else " (and the like)")))
    return table


def _advice(goal: Goal) -> str:
    return (
        f"A tenth of {goal.cluster.device.title} is left for what is not counted. More devices, --recompute full, "
        "--uneven-stages, a shorter --sequence or another --global-batch-tokens give the search more layouts."
    )


def to_json(goal: Goal, found: Search, price_per_gpu_hour: float | None = None) -> dict[str, Any]:
    """JSON values: sizes in bytes, times in seconds, cost in the price's currency."""

    def values(plan: Plan) -> dict[str, Any]:
        return {
            "parallel": plan.layout.parallel.model_dump(),
            "micro_batch_size": plan.micro_batch_size,
            "num_micro_batches": plan.num_micro_batches,
            "memory_bytes": {**plan.memory.parts, "total": plan.memory.total},
            "memory_moment": plan.memory.moment,
            "step_seconds": {**plan.time.parts, "total": plan.time.seconds},
            "tokens_per_second": plan.tokens_per_second,
            "mfu": plan.mfu,
            "training_seconds": plan.training_seconds,
            "device_hours": plan.device_hours,
            "cost": None if price_per_gpu_hour is None else plan.device_hours * price_per_gpu_hour,
        }

    return {
        "model": goal.model.model_dump(),
        "parameters": count_parameters(goal.model, goal.vocab_size).total,
        "precision": goal.precision.model_dump(),
        "vocab_size": goal.vocab_size,
        "device": goal.cluster.device.model_dump(),
        "num_devices": goal.cluster.num_devices,
        "devices_per_node": goal.cluster.devices_per_node,
        "global_batch_size": goal.global_batch_size,
        "steps": goal.steps,
        "assumptions": asdict(goal.assumptions),
        "plans": [values(plan) for plan in found.plans],
        "refusals": [asdict(refusal) for refusal in found.refusals],
    }
