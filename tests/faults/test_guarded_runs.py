"""Runs that go wrong: values that are not finite, a loss that diverges, a rank that sleeps, weights that differ."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
from fault_workers import PATIENCE_SECONDS, Workers, checkpoints, last_step, run_to_end, steps_kept, tensors, write_run

TWO = {"parallel__data": 2}


def events_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def rank() -> int:
    return int(os.environ["RANK"])


def before_step(number: int, act: Any) -> None:
    """In this process: call `act(engine, batches)` at the beginning of step `number`."""
    from megalign.engine.engine import Engine

    step = Engine.step

    def with_fault(self: Any, batches: Any, at: int, **kwargs: Any) -> Any:
        if at == number:
            act(self, batches)
        return step(self, batches, at, **kwargs)

    Engine.step = with_fault  # type: ignore[method-assign]


def poison_a_batch() -> None:
    """Rank 1's batch of step 3 has a weight that is not a number."""

    def poison(engine: Any, batches: Any) -> None:
        batches[0].loss_mask[0, 5] = np.nan

    if rank() == 1:
        before_step(3, poison)


def poison_a_gradient() -> None:
    """The loss is finite, the gradient of one matrix of rank 0 is not."""

    def poison(engine: Any, batches: Any) -> None:
        name, parameter = "decoder.layers.1.mlp.linear_fc1.bias", None
        from megalign.engine.model import unwrapped

        parameter = dict(unwrapped(engine.chunks[0]).named_parameters())[name]
        handle = parameter.register_hook(lambda gradient: (handle.remove(), gradient * float("inf"))[1])

    if rank() == 0:
        before_step(3, poison)


def test_a_poisoned_batch_ends_the_run_before_the_update_and_is_dumped(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = write_run(data, folder, train__steps=6, **TWO)
    with Workers(["train", str(config)], tmp_path / "log", world_size=2, fault=poison_a_batch) as workers:
        assert workers.wait() == [5, 5], workers.output
    dump = folder / "debug" / "pretrain-step3"
    assert "Step 3: loss nan, gradient norm nan: not finite. Samples [[8, 11]]." in workers.output
    assert f"The step was not taken; the weights are those of the step before. What every rank held is in {dump}." in (
        workers.output
    )
    assert "Traceback" not in workers.output
    assert last_step(folder) == 2, "the checkpoint before stays the latest"
    (event,) = events_of(folder)
    assert (event["event"], event["step"], event["samples"]) == ("not_finite", 3, [[8, 11]])
    for number in range(2):
        facts = json.loads((dump / f"rank{number}.json").read_text(encoding="utf-8"))
        assert facts["samples_of_the_global_batch"] == [[8, 11]]
        assert facts["weights_not_finite"] == []
        assert "embedding.word_embeddings.weight" in facts["gradients_not_finite"]
        with np.load(dump / f"rank{number}.npz", allow_pickle=False) as arrays:
            assert arrays["0.tokens"].shape == (2, 32)
            assert np.isnan(arrays["0.loss_mask"]).any() == (number == 1), "the dump shows whose batch it was"


def test_a_gradient_that_is_not_finite_is_found_although_the_loss_is(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = write_run(data, folder, train__steps=6)
    with Workers(["train", str(config)], tmp_path / "log", fault=poison_a_gradient) as workers:
        assert workers.wait() == [5], workers.output
    assert re.search(r"Step 3: loss \d\.\d+, gradient norm (inf|nan): not finite", workers.output)
    facts = json.loads((folder / "debug" / "pretrain-step3" / "rank0.json").read_text(encoding="utf-8"))
    assert facts["gradients_not_finite"] == ["decoder.layers.1.mlp.linear_fc1.bias"]
    assert last_step(folder) == 2


def test_within_a_budget_the_step_is_left_out_and_recorded(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    changes = {**TWO, "train__steps": 6, "train__keep_checkpoints": 9, "guards__max_nonfinite_steps": 1}
    config = write_run(data, folder, **changes)
    output = run_to_end(["train", str(config)], tmp_path / "log", world_size=2, fault=poison_a_batch)
    assert "Left out, 1 of at most 1" in output
    assert steps_kept(folder) == [1, 2, 3, 4, 5, 6]
    (event,) = events_of(folder)
    assert (event["event"], event["step"], event["samples"]) == ("left_out", 3, [[8, 11]])
    assert [line["step"] for line in metrics_of(folder)] == [1, 2, 4, 5, 6]
    assert [line["samples"] for line in metrics_of(folder)] == [4, 8, 16, 20, 24], "its samples are consumed"
    state = json.loads((checkpoints(folder) / "step_00000006" / "state.json").read_text(encoding="utf-8"))
    assert state["guards"]["left_out"] == [{"step": 3, "samples": [[8, 11]]}]
    before, after, later = (
        ranks.run(tensors, ranks.layout_of(), checkpoints(folder) / f"step_{step:08d}")[0] for step in (2, 3, 4)
    )
    assert all(np.array_equal(before[name], after[name]) for name in before), "weights and moments alike"
    assert not all(np.array_equal(after[name], later[name]) for name in after)


def test_a_loss_that_diverges_ends_the_run(data: Path, tmp_path: Path) -> None:
    """The learning rate grows until the model breaks: nothing is planted."""
    folder = tmp_path / "run"
    changes = {
        "train__steps": 400,
        "train__checkpoint_interval": 20,
        "train__optimizer__lr": 20.0,
        "train__optimizer__warmup_fraction": 1.0,
        "guards__spike_window_steps": 16,
        "guards__spike_patience_steps": 4,
    }
    config = write_run(data, folder, **changes)
    with Workers(["train", str(config)], tmp_path / "log") as workers:
        assert workers.wait() == [5], workers.output[-2000:]
    spikes = [event for event in events_of(folder) if event["event"] == "loss_spike"]
    assert len(spikes) >= 4
    last = spikes[-1]["step"]
    assert (
        f"pretrain diverged: steps {last - 3} to {last} all have losses more than 6 deviations above" in workers.output
    )
    losses = {line["step"]: line["loss"] for line in metrics_of(folder)}
    assert min(losses.values()) < losses[1] - 0.5, "it had learned something before"
    assert losses[last - 1] > min(losses.values()) + 0.5
    assert spikes[-1]["samples"] == [[4 * last - 4, 4 * last - 1]]


def sleep_in_step_three() -> None:
    def sleep(engine: Any, batches: Any) -> None:
        time.sleep(1000)

    if rank() == 1:
        before_step(3, sleep)


def stop_in_step_three() -> None:
    def stop(engine: Any, batches: Any) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    if rank() == 1:
        before_step(3, stop)


def test_a_sleeping_rank_is_named_with_the_line_it_sleeps_in(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = write_run(data, folder, train__steps=6, guards__hang_seconds=6.0, **TWO)
    with Workers(["train", str(config)], tmp_path / "log", world_size=2, fault=sleep_in_step_three) as workers:
        assert workers.wait() == [4, 4], workers.output
    assert "error: The run hangs: rank 1 on " in workers.output
    assert "is in compute of pretrain step 3 for " in workers.output
    assert "test_guarded_runs.py" in workers.output, "the line where it sleeps"
    assert "1 others wait for it." in workers.output
    assert workers.output.count("error:") == 1, "one rank speaks"
    stacks = {number: (folder / "hang" / f"stacks{number}.txt").read_text(encoding="utf-8") for number in range(2)}
    assert "in sleep" in stacks[1]
    assert "torch/distributed" in stacks[0]
    assert last_step(folder) == 2


def test_a_rank_that_does_not_answer_is_named(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = write_run(data, folder, train__steps=6, guards__hang_seconds=6.0, **TWO)
    with Workers(["train", str(config)], tmp_path / "log", world_size=2, fault=stop_in_step_three) as workers:
        workers.processes[0].join(60)
        assert workers.processes[0].exitcode == 4, workers.output
        assert workers.processes[1].exitcode is None
    assert re.search(r"The run hangs: rank 1 on \S+ does not answer, last seen in ", workers.output)


def change_a_weight_of(one: int, name: str) -> None:
    def change(engine: Any, batches: Any) -> None:
        from megalign.engine.model import unwrapped

        parameter = dict(unwrapped(engine.chunks[0]).named_parameters())[name]
        parameter.data.view(-1)[3] += 1e-6  # one value, in its last places

    if rank() == one:
        before_step(3, change)


def change_an_embedding() -> None:
    change_a_weight_of(2, "embedding.word_embeddings.weight")


def change_a_norm() -> None:
    change_a_weight_of(1, "decoder.final_layernorm.weight")


@pytest.mark.parametrize(
    ("layout", "fault", "told"),
    [
        pytest.param(
            {"parallel__data": 3, "train__global_batch_size": 6},
            change_an_embedding,
            "embedding.word_embeddings.weight on rank 2 among the data-parallel ranks 0, 1, 2",
            id="DP3",
        ),
        pytest.param(
            {"parallel__tensor": 2},
            change_a_norm,
            "on rank 0, 1 among the tensor-parallel ranks 0, 1",  # one step later others differ too
            id="TP2",
        ),
    ],
)
def test_replicas_that_differ_are_found_and_named(
    data: Path, tmp_path: Path, layout: dict[str, Any], fault: Any, told: str
) -> None:
    folder = tmp_path / "run"
    settings = {"train__steps": 8, "train__checkpoint_interval": None, "guards__replica_check_interval": 2, **layout}
    config = write_run(data, folder, **settings)
    size = layout.get("parallel__data", 1) * layout.get("parallel__tensor", 1)
    with Workers(["train", str(config)], tmp_path / "log", world_size=size, fault=fault) as workers:
        assert workers.wait() == [5] * size, workers.output
    assert "Step 4: ranks that must hold equal weights differ: " in workers.output
    assert told in workers.output
    assert steps_kept(folder) == []


@pytest.mark.parametrize(
    "layout",
    [
        {"parallel__data": 2, "parallel__distributed_optimizer": True},
        {"parallel__tensor": 2, "parallel__sequence_parallel": True},
        {"parallel__pipeline": 2},
    ],
    ids=["DP2-DO", "TP2-SP", "PP2"],
)
def test_equal_replicas_pass(data: Path, tmp_path: Path, layout: dict[str, Any]) -> None:
    config = write_run(data, tmp_path / "run", train__steps=4, guards__replica_check_interval=1, **layout)
    run_to_end(["train", str(config)], tmp_path / "log", world_size=2)


def be_slow() -> None:
    from megalign.engine import engine

    loss = engine._language_loss

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.1)
        return loss(*args, **kwargs)

    if rank() == 1:
        engine._language_loss = slow


def test_a_slow_rank_is_told(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = write_run(data, folder, train__steps=4, **TWO)
    output = run_to_end(["train", str(config)], tmp_path / "log", world_size=2, fault=be_slow)
    assert [line["slowest_rank"] for line in metrics_of(folder)] == [1] * 4
    assert all(1.3 < line["slowest_over_median"] <= 2.0 for line in metrics_of(folder)[1:])
    assert "rank 1 takes " in output


def ask_for_too_much() -> None:
    import torch

    from megalign.engine import engine

    loss = engine._language_loss

    def large(*args: Any, **kwargs: Any) -> Any:
        if rank() == 1:
            torch.empty(2**55, dtype=torch.uint8)
        return loss(*args, **kwargs)

    engine._language_loss = large


def test_a_rank_without_memory_says_what_to_lower(data: Path, tmp_path: Path) -> None:
    config = write_run(data, tmp_path / "run", train__steps=4, **TWO)
    with Workers(["train", str(config)], tmp_path / "log", world_size=2, fault=ask_for_too_much) as workers:
        workers.processes[1].join(PATIENCE_SECONDS)
        assert workers.processes[1].exitcode == 4, workers.output
    assert "error: Rank 1 has no memory left on its cpu (tried to allocate 36028797018963968 bytes)." in workers.output
    assert "Set train.micro_batch_size lower" in workers.output
    assert "Traceback" not in workers.output
