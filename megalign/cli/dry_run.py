"""`megalign train --dry-run`: what a run would be, as tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from megalign.config import RunConfig, load_run, read_yaml
from megalign.errors import ConfigError
from megalign.files import write_json
from megalign.scaling.devices import load_devices, named_device
from megalign.scaling.memory import RankMemory
from megalign.training.dry_run import DryRun, dry_run
from megalign.training.metrics import format_seconds


@dataclass(frozen=True)
class Assumptions:
    """What the command line says of the machine."""

    device: str | None = None
    mfu: float | None = None
    tokens_per_second: float | None = None
    json_file: Path | None = None


def show(config: Path, overrides: list[str], given: Assumptions, console: Console) -> None:
    """Print what a run would be, and write it as JSON where asked.

    Raises:
        ConfigError: `config` is a study's file.
        MegalignError: what a start would raise.
    """
    refuse_study(config)
    run = load_run(config, overrides)
    devices = load_devices(Path(run.track.devices) if run.track.devices else None)
    result = dry_run(
        run,
        device=named_device(given.device, devices) if given.device else None,
        mfu=given.mfu,
        tokens_per_second=given.tokens_per_second,
    )
    if given.json_file:
        write_json(given.json_file, result.to_json())
    console.print(rendered(run, result), highlight=False)


def refuse_study(config: Path) -> None:
    """A study has many runs, and no data before it has begun.

    Raises:
        ConfigError: the file is a study's.
    """
    if {"corpus", "methods"} <= set(read_yaml(config)):
        raise ConfigError(
            f"{config} is a study, not a run.",
            "Its runs read data that the study builds, and differ by method.",
            "Start it with `megalign study run`, and dry-run one of its runs: "
            "`megalign train runs/STUDY/runs/METHOD/seedN/config.yaml --dry-run`.",
        )


def rendered(run: RunConfig, result: DryRun) -> Group:
    """The report."""
    where = result.device.title if result.device else {"cpu": "a CPU", "gpu": "a GPU"}[result.hardware]
    sections: dict[str, Table] = {
        f"{result.name}: {run.method}, in {result.folder}": _rows(_model(run, result) + _layout(run, result)),
        "steps": _rows(_steps(run, result)),
        "text of pretraining": _sources(result),
        "work and time": _rows(_work(result)),
        f"memory of a rank at its peak, on {where}": _memory(result),
    }
    parts: list[Any] = []
    for title, table in sections.items():
        parts += [Text(title, style="bold underline"), table, ""]
    parts += [Text(f"warning: {text}", style="yellow") for text in result.warnings]
    return Group(*parts)


def _table() -> Table:
    return Table(box=None, pad_edge=False)


def _rows(rows: list[tuple[str, str]]) -> Table:
    table = _table()
    table.show_header = False
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))
    return table


def count(number: float, unit: str = "") -> str:
    """A number with three digits and a prefix, e.g. 1.31 TFLOP."""
    for prefix, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}".strip()


def _mebibytes(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def _model(run: RunConfig, result: DryRun) -> list[tuple[str, str]]:
    model, parameters = run.model, result.parameters
    form = f"{model.num_layers} layers of {model.hidden_size}, {model.num_attention_heads} heads"
    if model.num_query_groups:
        form += f" ({model.num_query_groups} of keys and values)"
    preset = f"{model.preset}: " if model.preset else ""
    parts = ", ".join(
        f"{name.replace('_', ' ')} {parameters[name]:,}"
        for name in ("embedding", "position", "attention", "feed_forward", "norm", "output")
        if parameters[name]
    )
    return [
        ("model", f"{preset}{form}, feed-forward {model.ffn_hidden_size}, {model.activation}, {model.normalization}"),
        ("vocabulary", f"{result.vocab_size:,} ids, padded to {result.padded_vocab_size:,}"),
        ("parameters", f"{parameters['total']:,}, without embeddings {parameters['non_embedding']:,}"),
        ("", parts),
        ("of a rank", f"at most {max(parameters['stages']):,}"),
    ]


def _layout(run: RunConfig, result: DryRun) -> list[tuple[str, str]]:
    p = run.parallel
    flags = [
        name
        for name, on in (
            ("sequence parallel", p.sequence_parallel),
            ("distributed optimizer", p.distributed_optimizer),
            (f"recompute {p.recompute}", p.recompute != "none"),
        )
        if on
    ]
    degrees = f"tensor {p.tensor} x context {p.context} x data {p.data} x pipeline {p.pipeline}"
    ranks = f"{result.num_ranks} rank{'s' if result.num_ranks > 1 else ''}: {degrees}"
    precision = f"{run.precision.dtype}{f', FP8 {run.precision.fp8}' if run.precision.fp8 else ''}"
    rows = [("layout", ", ".join([ranks, *flags, precision]))]
    if p.pipeline > 1:
        stages = "; ".join(" + ".join(map(str, chunks)) for chunks in result.stage_layers)
        rows.append(("stages", f"layers {stages}; waiting {result.bubble:.1%} of the computing time"))
    return rows


def _steps(run: RunConfig, result: DryRun) -> list[tuple[str, str]]:
    rows = []
    if result.injection:
        use = result.injection
        text = f" and {use.text_tokens_per_step:,} tokens of text" if use.text_tokens_per_step else ""
        rows.append(
            (
                "injection" if use.when == "before" else f"injection, {use.when} pretraining",
                f"{use.steps:,} steps of {run.inject.entries_per_step} of {use.entries:,} entries (about "
                f"{use.words_per_step:,} words in {use.word_tokens_per_step:,} tokens){text}",
            )
        )
    for phase in result.batch_phases:
        rows.append(
            (
                "pretraining" if phase is result.batch_phases[0] else "",
                f"steps {phase.first_step:,} to {phase.last_step:,}: {phase.global_batch_size} windows of "
                f"{run.model.sequence_length} = {phase.tokens_per_step:,} tokens a step; {phase.num_micro_batches} "
                f"micro-batches of {run.micro_batch_size} a rank",
            )
        )
    rows.append(("tokens", f"{result.tokens['pretrain']:,} of pretraining"))
    if result.tokens["inject"]:
        rows[-1] = ("tokens", f"{rows[-1][1]}, {result.tokens['inject']:,} of text during injection")
    saved = result.checkpoints
    rows.append(
        (
            "checkpoints",
            f"{saved['written']} of {saved['bytes'] / 1e9:.3g} GB written, {saved['kept']} kept: "
            f"{saved['bytes_kept'] / 1e9:.3g} GB",
        )
    )
    done = ", ".join(f"{stage} {step:,}" for stage, step in result.steps_logged.items() if step)
    if done:
        rows.append(("done before", f"the folder's metrics reach step {done}"))
    return rows


def _sources(result: DryRun) -> Table:
    table = _table()
    table.add_column("source")
    for name in ("tokens", "share", "available", "epochs"):
        table.add_column(name, justify="right")
    for source in result.sources:
        table.add_row(
            source.language,
            f"{source.tokens:,}",
            f"{source.share:.2%}",
            f"{source.available_tokens:,}",
            f"{source.epochs:.3f}",
        )
    return table


def _work(result: DryRun) -> list[tuple[str, str]]:
    flops, speed = result.flops, result.speed
    each = f"{count(flops['per_token'], 'FLOP')} (attention over the whole window; causal {count(flops['per_token_causal'])}"
    if flops["per_token_hardware"] != flops["per_token"]:
        each += f"; with recomputation {count(flops['per_token_hardware'])}"
    total = f"{count(flops['inject'] + flops['pretrain'], 'FLOP')}"
    if flops["inject"]:
        total += f", {flops['inject'] / (flops['inject'] + flops['pretrain']):.1%} of it injection"
    rows = [("a token of training", each + ")"), ("all steps", total)]
    if speed.tokens_per_second is None or result.remaining_seconds is None:
        return [*rows, ("time", speed.origin)]
    told = f"{speed.tokens_per_second:,.0f} tokens/s ({speed.origin})"
    if result.num_ranks > 1:
        told += ", all ranks together"
    if result.mfu is not None:
        told += f", MFU {result.mfu:.1%}"
    left = format_seconds(result.remaining_seconds)
    hours = result.remaining_seconds * result.num_ranks / 3600
    what = "left" if any(result.steps_logged.values()) else "in all"
    return [
        *rows,
        ("speed", told),
        ("time", f"{left} {what}, {hours:,.1f} device hours, but for measuring and saving"),
    ]


def _memory(result: DryRun) -> Table:
    table = _table()
    table.add_column("part")
    shown = result.memory if len(result.memory) <= 4 else [result.memory[0], result.fullest, result.memory[-1]]
    shown = list(dict.fromkeys(shown))
    for memory in shown:
        table.add_column(f"stage {memory.stage}" if len(result.memory) > 1 else "", justify="right")
    for name in RankMemory(0, "", 0, 0, 0).parts:
        if any(memory.parts[name] for memory in shown):
            table.add_row(name, *(_mebibytes(memory.parts[name]) for memory in shown))
    table.add_row("together", *(_mebibytes(memory.total) for memory in shown), style="bold")
    if result.device and result.device.memory_bytes:
        available = result.device.memory_bytes
        table.add_row("of the device", *(f"{memory.total / available:.1%}" for memory in shown))
    table.add_row("when", *(memory.moment for memory in shown))
    return table


def refuse_without_dry_run(given: Assumptions) -> None:
    """The assumptions only mean something in a dry run.

    Raises:
        ConfigError: one was given.
    """
    if given != Assumptions():
        raise ConfigError("--device, --mfu, --tokens-per-second and --json belong to --dry-run.", fix="Add --dry-run.")
