"""`megalign checkpoint`: look into checkpoints, check them, write them again under another layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from megalign.engine.checkpoint.describe import Description

app = typer.Typer(no_args_is_help=True, help="Checkpoints: what is in them, whether they hold, other layouts.")

Where = Annotated[
    Path, typer.Argument(help="A checkpoint (step_...), a stage's folder, or a run's folder: its latest.")
]


@app.command("inspect")
def inspect_checkpoint(
    path: Where,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor: name, shape, dtype, parts.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, all tensors included.")] = False,
) -> None:
    """Say what a checkpoint holds: stage, step, samples, layout it was written under, parameters, sizes, fingerprints.

    Reads the marker and the index, not the tensors. Nothing that a doctored checkpoint may hold is run.
    """
    from megalign.engine.checkpoint.describe import describe, find

    found = describe(find(path))
    if as_json:
        print(json.dumps(_as_json(found), indent=2, ensure_ascii=False))
        return
    for name, value in _summary(found).items():
        print(f"{name:<16}{value}")
    if tensors:
        width = max(len(tensor.name) for tensor in found.tensors)
        print()
        for tensor in found.tensors:
            shape = " x ".join(map(str, tensor.shape))
            parts = f"{tensor.num_parts} part{'s' if tensor.num_parts > 1 else ''}"
            print(f"{tensor.name:<{width}}  {shape:<24}  {tensor.dtype:<9}  {parts}")


def _summary(found: Description) -> dict[str, str]:
    facts, state = found.facts, found.state
    plain = {
        k: v for k, v in state.items() if isinstance(v, str | int | float) and k not in ("stage", "step", "samples")
    }
    degrees = {name: degree for name, degree in facts["parallel"].items() if degree not in (None, False, "none")}
    return {
        "checkpoint": str(found.path),
        "stage": str(state.get("stage", "unknown")),
        "step": str(state["step"]),
        "samples": str(state.get("samples", "unknown")),
        "written under": ", ".join(f"{name} {degree}" for name, degree in degrees.items()),
        "parameters": f"{facts['parameters']:,}",
        "model": _megabytes(found.num_bytes(of_optimizer=False)),
        "optimizer": _megabytes(found.num_bytes(of_optimizer=True))
        + (f", Adam step {facts['adam_step']}" if facts["adam_step"] is not None else ""),
        "files": f"{len(facts['files'])}, {_megabytes(found.num_file_bytes)}",
        "tensors": str(len(found.tensors)),
        "written by": ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        **{name: str(value) for name, value in plain.items()},
    }


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"


def _as_json(found: Description) -> dict[str, Any]:
    tensors = [{"name": t.name, "shape": t.shape, "dtype": t.dtype, "parts": t.num_parts} for t in found.tensors]
    return {"path": str(found.path), "state": found.state, "checkpoint": found.facts, "tensors": tensors}


@app.command("verify")
def verify_checkpoint(path: Where) -> None:
    """Check a checkpoint: files and checksums, every tensor whole and finite, moments for every weight.

    Reads everything. Ends with 3 and says what is wrong where something is.
    """
    from megalign.engine.checkpoint.describe import find, find_problems
    from megalign.errors import DataError

    found = find(path)
    problems = find_problems(found)
    for problem in problems:
        print(problem)
    if problems:
        raise DataError(
            f"{found} has {len(problems)} problem{'s' if len(problems) > 1 else ''}.",
            fix="Restore it from a copy, or go on from an older one: a run does so by itself where a file is damaged.",
        )
    print(f"{found}: no problem found")


@app.command("reshard")
def reshard_checkpoint(
    run: Annotated[Path, typer.Argument(help="A run's folder; its config.yaml says what the model is.")],
    target: Annotated[Path, typer.Argument(help="New folder that gets the checkpoint.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="The layout to write under, e.g. parallel.tensor=1 parallel.data=2.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint to read; unset: the run's latest.")] = None,
    without_optimizer: Annotated[bool, typer.Option("--without-optimizer", help="Write weights only.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads each process computes with.")] = 1,
) -> None:
    """Write a checkpoint again from the processes of another layout, every number as it was.

    A run does not need this to change its layout: checkpoints hold whole tensors and load under any tensor, pipeline and
    data parallel degrees, optimizer included. Use it to get fewer or more files (one for every process that holds a part
    of its own; parallel.tensor=1 parallel.pipeline=1 gives one), or one without the optimizer, a third of the size or
    less. parallel.distributed_optimizer must stay as it was. The copy is read back and compared.

    Starts the processes of the layout on this machine; under torchrun or srun it joins those.
    """
    from megalign.cli.processes import run_worker
    from megalign.config import load_run
    from megalign.config.layout import Layout
    from megalign.engine.checkpoint.describe import find
    from megalign.engine.checkpoint.reshard import check_target

    config = load_run(run / "config.yaml", overrides or [])
    layout = Layout(config.parallel)
    layout.check(config.model)
    source = find(checkpoint or run)
    check_target(target)
    kept = "weights" if without_optimizer else "all"
    arguments = ["reshard", str(run / "config.yaml"), str(source), str(target), kept, *(overrides or [])]
    if run_worker(arguments, layout, threads):
        print(f"{source} was written to {find(target)}")
