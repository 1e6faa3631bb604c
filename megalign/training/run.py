"""One run: its stages of training one after the other. Rerun to continue."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from megalign.cluster.ranks import Rank
from megalign.config import RunConfig
from megalign.config.layout import Layout
from megalign.engine import checkpoint
from megalign.engine.device import device_name
from megalign.engine.engine import Engine
from megalign.errors import DataError
from megalign.files import read_json, write_json
from megalign.scaling.flops import training_flops_per_token, word_training_flops_per_token
from megalign.training import loop
from megalign.training.initial import initial_weights, start_from
from megalign.training.inputs import RunFolder as RunFolder
from megalign.training.inputs import RunInputs as RunInputs
from megalign.training.metrics import mean_speed
from megalign.training.stages import RunContext, build_stage, consumed_tokens
from megalign.training.stop import StopRequest
from megalign.training.tracking import check_installed
from megalign.training.watchdog import Watchdog


def train(config: RunConfig, rank: Rank, probe: loop.Probe | None = None) -> None:
    """Train a run to its end; called by every process of the layout.

    Args:
        config: the run.
        rank: this process.
        probe: measures alignment and perplexity every train.evaluate_interval steps, from the beginning of pretraining on.

    Raises:
        StoppedOnRequest: a signal came; the state is saved.
        MegalignError: settings, data or the machine do not allow the run.
    """
    layout = Layout(config.parallel)
    layout.check(config.model)
    layout.check_world_size(rank.world_size)
    check_installed(config.track)
    inputs = RunInputs.open(config)
    start = initial_weights(inputs)
    folder = RunFolder(Path(config.folder))
    writes = rank.rank == 0
    if writes:
        folder.begin(config)
        folder.claim("train")
    started = time.monotonic()
    seconds = 0.0
    limit, margin = config.train.max_seconds, config.train.stop_margin_seconds
    watchdog = Watchdog(folder.hang, rank.rank, rank.world_size, config.guards.hang_seconds, config.stages)
    context = RunContext(inputs, folder, layout, writes, watchdog, start, probe)
    try:
        with StopRequest(folder.path, max_seconds=limit, margin_seconds=margin) as stop, watchdog:
            for number, name in enumerate(config.stages):
                seconds += _run_stage(context, name, config.stages[number - 1] if number else None, stop)
        if writes and (seconds or not folder.summary.exists()):
            _summarise(context, time.monotonic() - started, seconds)
        elif writes:
            print(f"{folder.path} has finished training: nothing to do", flush=True)
    finally:
        folder.release()


def _run_stage(context: RunContext, name: str, previous: str | None, stop: StopRequest) -> float:
    """Take a stage's remaining steps. Returns the seconds spent computing them (on the rank that writes)."""
    where = context.folder.checkpoints(name)
    if _is_finished(where, context.inputs.stage_steps(name)):
        return 0.0
    checkpoint.settle(where)
    stage = build_stage(context, name)
    engine = context.inputs.engine(context.layout, name)
    if checkpoint.latest(where) is None:
        if previous is None:
            start_from(engine, context.start)
        else:
            _go_on_from(context, engine, previous)
    return loop.run(stage, engine, where, context.folder.metrics if context.writes else None, stop)


def _go_on_from(context: RunContext, engine: Engine, previous: str) -> None:
    """Load the weights that the previous stage ended with; the optimizer begins anew."""
    path = checkpoint.latest(context.folder.checkpoints(previous))
    assert path is not None
    state = checkpoint.load(engine, path, with_optimizer=False)
    if state["store"] != context.inputs.store.fingerprint:
        raise DataError(
            f"The checkpoint {path} was made on another token store than {context.config.data.store}.",
            "Its ids may mean other words.",
            f"Restore the store, or remove {context.folder.path} to start over.",
        )


def is_trained(inputs: RunInputs, folder: RunFolder) -> bool:
    """Whether all stages are over."""
    return all(_is_finished(folder.checkpoints(name), inputs.stage_steps(name)) for name in inputs.config.stages)


def _is_finished(folder: Path, num_steps: int) -> bool:
    """Whether the pointer names the last step's checkpoint, or one at which the stage ended early."""
    name = checkpoint.pointed_name(folder)
    if not name or not (folder / name / checkpoint.MARKER).exists():
        return False
    is_last = name == checkpoint.path_of(folder, num_steps).name
    return is_last or bool(read_json(folder / name / checkpoint.MARKER).get("ended"))


def _state(folder: RunFolder, stage: str) -> dict[str, Any]:
    """What the newest checkpoint of a stage says."""
    path = checkpoint.latest(folder.checkpoints(stage))
    assert path is not None
    content: dict[str, Any] = read_json(path / checkpoint.MARKER)
    return content


def _summarise(context: RunContext, wall_seconds: float, seconds: float) -> None:
    """Write run.json: what was seen, at what cost and speed, in which layout, on what, by which versions."""
    inputs, config, folder = context.inputs, context.config, context.folder
    samples, state = inputs.samples, _state(folder, "pretrain")
    words, _, switched = state["words_seen_covered_switched"]
    position = int(state["samples"])
    consumed = samples.order.consumed(position)
    injected = int(_state(folder, "inject")["step"]) if "inject" in config.stages else 0
    injected_text = injected * config.inject.lm_batch_size * config.model.sequence_length
    pretrained = consumed_tokens(samples, position)
    num_batches = injected + config.inject.steps_during_pretraining
    num_words, word_tokens = inputs.word_batches().num_read(num_batches) if num_batches else (0, 0)
    model, vocab_size = config.model, inputs.store.vocabulary.size
    flops = training_flops_per_token(model, vocab_size) * (injected_text + sum(pretrained.values()))
    flops += word_training_flops_per_token(model, vocab_size, config.inject.row_width_tokens) * word_tokens
    before = read_json(folder.summary) if folder.summary.exists() else {}
    write_json(
        folder.summary,
        {
            "status": "trained",
            "method": config.method,
            "seed": config.seed,
            "parameters": before.get("parameters"),
            "tokens_seen": {"injection": injected_text, "pretrain": pretrained, "words": word_tokens},
            "words_seen": num_words,
            "training_flops": flops,
            "epochs": {
                s.read_as: n / o.num_windows
                for s, o, n in zip(samples.sources, samples.order.sources, consumed, strict=True)
            },
            "steps": {"inject": injected, "pretrain": inputs.num_steps},
            "codeswitch_rate": switched / words if words else 0.0,
            "embedding_init_std": config.model.embedding_init_std or config.model.init_std,
            "layout": config.parallel.model_dump(),
            "device": device_name(),
            "versions": state["checkpoint"]["versions"],
            "wall_seconds": round(before.get("wall_seconds", 0.0) + wall_seconds, 1),
            "tokens_per_second": mean_speed(folder.metrics),
        },
    )
