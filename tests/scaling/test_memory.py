"""Memory against what the real engine allocates (see tracked_memory.py for the two ways it is measured).

Tolerances. Without pipelines, the lasting part (weights, gradients, optimizer, buffers) is exact but for a few kilobytes of
frequencies and counters: 0.5 %. Peaks are within 2 % in all cases; asked for are 10 %, allowed here are 3 %. An error of
the method is larger: a forgotten micro-batch, moment or copy of the logits is 5 % and more of every case it concerns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from ranks import layout_of, run
from tracked_memory import VOCAB_SIZE, allocator, live_tensors

from megalign.config import ModelConfig, ParallelConfig, PrecisionConfig, model_preset
from megalign.config.layout import Layout
from megalign.scaling.activations import Activations, MicroBatch, total_bytes
from megalign.scaling.memory import StageMemory, enough_micro_batches, estimate_memory
from megalign.scaling.parameters import count_parameters

_SHAPE: dict[str, Any] = {
    "num_layers": 4,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "ffn_hidden_size": 512,
    "sequence_length": 128,
}
GPT = ModelConfig(**_SHAPE)
LLAMA = ModelConfig(
    **{**_SHAPE, "ffn_hidden_size": 384},
    num_query_groups=2,
    position_embedding="rotary",
    normalization="RMSNorm",
    activation="swiglu",
    linear_bias=False,
    tied_embeddings=False,
)


@dataclass(frozen=True)
class Case:
    """A model under a layout, and the micro-batches of a step."""

    model: ModelConfig
    parallel: dict[str, Any] = field(default_factory=dict)
    dtype: Any = "float32"
    num_micro_batches: int = 2
    rows: int = 8
    num_entries: int = 0


ALONE = {
    "gpt": Case(GPT),
    "gpt, many small micro-batches": Case(GPT, num_micro_batches=8, rows=1),
    "gpt bfloat16": Case(GPT, dtype="bfloat16"),
    "gpt, full recomputation": Case(GPT, {"recompute": "full"}),
    "gpt, dropout": Case(GPT.model_copy(update={"hidden_dropout": 0.1})),
    "gpt, injection": Case(GPT, num_micro_batches=1, rows=2, num_entries=200),
    "llama": Case(LLAMA),
    "llama bfloat16": Case(LLAMA, dtype="bfloat16"),
    "llama, selective recomputation": Case(LLAMA, {"recompute": "selective"}),
    "llama bfloat16, full recomputation": Case(LLAMA, {"recompute": "full"}, "bfloat16"),
}
TOGETHER = {
    "gpt TP2": Case(GPT, {"tensor": 2}),
    "gpt TP2 SP": Case(GPT, {"tensor": 2, "sequence_parallel": True}),
    "llama bfloat16 TP2 SP": Case(LLAMA, {"tensor": 2, "sequence_parallel": True}, "bfloat16"),
    "gpt PP2": Case(GPT, {"pipeline": 2}, num_micro_batches=4),
    "llama bfloat16 PP2": Case(LLAMA, {"pipeline": 2}, "bfloat16", num_micro_batches=4),
    "gpt PP2 VP2": Case(GPT, {"pipeline": 2, "virtual_pipeline": 2}, num_micro_batches=4),
    "gpt PP3 uneven": Case(GPT, {"pipeline": 3, "uneven_stages": True}, num_micro_batches=4),
    "llama DP2, distributed optimizer": Case(LLAMA, {"data": 2, "distributed_optimizer": True}, rows=4),
    "gpt bfloat16 DP2, distributed optimizer": Case(GPT, {"data": 2, "distributed_optimizer": True}, "bfloat16"),
    "gpt DP4, distributed optimizer, little text": Case(
        GPT.model_copy(update={"sequence_length": 4}), {"data": 4, "distributed_optimizer": True}, rows=1
    ),
    "gpt CP2": Case(GPT, {"context": 2}),
    "llama CP2, selective recomputation": Case(LLAMA, {"context": 2, "recompute": "selective"}),
    "llama CP2": Case(LLAMA, {"context": 2}),
    "llama bfloat16 CP2, distributed optimizer": Case(
        LLAMA, {"context": 2, "distributed_optimizer": True}, "bfloat16", num_micro_batches=1
    ),
    "gpt CP2, injection": Case(GPT, {"context": 2}, num_micro_batches=1, rows=2, num_entries=200),
    "gpt bfloat16 DP4, little text": Case(
        GPT.model_copy(update={"sequence_length": 4}), {"data": 4}, "bfloat16", rows=1
    ),
    "llama DP2, injection": Case(LLAMA, {"data": 2}, num_micro_batches=1, rows=2, num_entries=200),
    "llama PP2, injection": Case(LLAMA, {"pipeline": 2}, num_micro_batches=1, rows=2, num_entries=200),
}


def estimate(case: Case, layout: Layout, stage: int, measured: dict[str, int]) -> tuple[int, int]:
    """(lasting, peak) bytes."""
    batches = [MicroBatch(case.rows, case.model.sequence_length)] * case.num_micro_batches
    if case.num_entries:
        words = MicroBatch(measured["rows"], measured["width"], measured["own"], measured["all"])
        batches = [words, *batches]
    memory = StageMemory(case.model, layout, PrecisionConfig(dtype=case.dtype), VOCAB_SIZE, stage, "cpu")
    return memory.static.total, memory.peak(batches).total


def measure(case: Case, how: Any) -> list[dict[str, int]]:
    precision = PrecisionConfig(dtype=case.dtype)
    text = (case.num_micro_batches, case.rows, case.num_entries)
    return run(how, layout_of(**case.parallel), case.model, precision, *text)


QUICK = {
    "gpt",
    "gpt bfloat16",
    "gpt, full recomputation",
    "gpt, injection",
    "llama",
    "gpt TP2 SP",
    "gpt PP2 VP2",
    "llama DP2, distributed optimizer",
    "llama CP2",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in {**ALONE, **TOGETHER}]
)
def test_the_estimate_is_what_the_engine_s_tensors_take(name: str) -> None:
    case = {**ALONE, **TOGETHER}[name]
    layout = layout_of(**case.parallel)
    for rank, measured in enumerate(measure(case, live_tensors)):
        lasting, peak = estimate(case, layout, layout.coordinates(rank).pipeline, measured)
        print(f"{name}, rank {rank}: estimated {peak:,} bytes, measured {measured['peak']:,}")
        assert peak == pytest.approx(measured["peak"], rel=0.03)
        if layout.parallel.pipeline == 1 and not layout.parallel.sequence_parallel:
            assert lasting == pytest.approx(measured["lasting"], rel=0.005)
        assert lasting <= measured["lasting"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ALONE)
def test_the_allocator_tells_the_same(name: str) -> None:
    (measured,), (tensors,) = (measure(ALONE[name], how) for how in (allocator, live_tensors))
    _, peak = estimate(ALONE[name], layout_of(**ALONE[name].parallel), 0, tensors)
    assert measured["peak"] == pytest.approx(tensors["peak"], rel=0.02)
    assert peak == pytest.approx(measured["peak"], rel=0.03)


def test_states_take_the_bytes_that_are_known() -> None:
    """16 bytes a parameter in float32, 18 in bfloat16; the distributed optimizer cuts 8 or 12 of them (Rajbhandari 2020)."""
    model = ModelConfig(**model_preset("1.3b"))
    num = count_parameters(model, 50257).total
    for dtype, whole, cut in (("float32", 16, 8), ("bfloat16", 18, 12)):
        precision = PrecisionConfig(dtype=dtype)
        alone = StageMemory(model, layout_of(data=8), precision, 50257, 0).static
        shared = StageMemory(model, layout_of(data=8, distributed_optimizer=True), precision, 50257, 0).static
        assert alone.total == whole * num
        assert shared.total == pytest.approx(((whole - cut) + cut / 8) * num, rel=1e-4)


def test_activations_of_a_layer_are_those_of_the_paper() -> None:
    """Korthikanti et al. 2022 (arXiv 2205.05198), section 4: s b h (34 + 5 a s / h) bytes in 16 bits, with dropout.

    Without the attention matrices, which the fused kernel does not keep, and with 10 + 24 / t under tensor parallelism:
    here the statistics of norms and attention are kept besides, dropout has no third mask in the attention, and fc1's bias
    makes no copy of its own.
    """
    model = ModelConfig(**{**model_preset("13b"), "hidden_dropout": 0.1})
    precision = PrecisionConfig(dtype="bfloat16")
    unit = 2048 * model.hidden_size

    def layer(parallel: ParallelConfig) -> float:
        sizes = Activations(model, Layout(parallel), precision, 50257, MicroBatch(1, 2048))
        return total_bytes(sizes.layer()) / unit

    assert layer(ParallelConfig()) == pytest.approx(34, rel=0.01)
    assert layer(ParallelConfig(tensor=8)) == pytest.approx(10 + 24 / 8, rel=0.01)
    assert layer(ParallelConfig(tensor=8, sequence_parallel=True)) == pytest.approx(34 / 8, rel=0.01)


@pytest.mark.parametrize("parallel", [{"pipeline": 4}, {"pipeline": 4, "virtual_pipeline": 3}])
def test_more_micro_batches_than_are_enough_change_nothing(parallel: dict[str, Any]) -> None:
    layout = layout_of(**parallel)
    model = ModelConfig(**model_preset("1.3b"))
    few = enough_micro_batches(layout, 256)
    precision, batch = PrecisionConfig(dtype="bfloat16"), MicroBatch(2, 1024)
    assert few < 64
    assert estimate_memory(model, layout, precision, 50257, [batch] * 256) == estimate_memory(
        model, layout, precision, 50257, [batch] * few
    )
    first, *_, last = estimate_memory(model, layout, precision, 50257, [batch] * few)
    assert first.activations > 1.5 * last.activations
    assert last.logits > 0
    assert first.logits == 0


def test_fp8_keeps_copies_of_matrices_and_smaller_inputs() -> None:
    """By hand, GPT-3 13B: two bytes more a number of the layers' matrices; of a layer's activations, the four inputs of its
    matrices take 1 byte instead of 2 (norms' outputs and the activated: h + h + 4 h), the attention's result both (h more)."""
    model = ModelConfig(**model_preset("13b"))
    plain, fp8 = PrecisionConfig(dtype="bfloat16"), PrecisionConfig(dtype="bfloat16", fp8="delayed")
    alone = Layout(ParallelConfig())
    matrices = 40 * 12 * 5120**2
    static = StageMemory(model, alone, fp8, 50257, 0).static
    assert static.fp8_weights == 2 * matrices
    assert static.total - StageMemory(model, alone, plain, 50257, 0).static.total == 2 * matrices
    unit = 2048 * 5120

    def kept(precision: PrecisionConfig, fp8: bool, **parallel: Any) -> int:
        sizes = Activations(model, layout_of(**parallel), precision, 50257, MicroBatch(1, 2048))
        return total_bytes(sizes.layer(fp8=fp8))

    assert kept(plain, False) - kept(fp8, True) == (1 + 1 + 4 - 1) * unit
    assert kept(plain, False, recompute="selective") - kept(fp8, True, recompute="selective") == (1 + 1 + 4 + 1) * unit
    mx = PrecisionConfig(dtype="bfloat16", fp8="mxfp8")
    assert kept(mx, True) - kept(fp8, True) == (1 + 1 + 4 + 1) * unit // 32
    assert StageMemory(model, alone, mx, 50257, 0).static.fp8_weights == 2 * matrices * 33 // 32
    blocks = PrecisionConfig(dtype="bfloat16", fp8="blockwise")
    assert kept(blocks, True) - kept(fp8, True) == (1 + 1 + 4 + 1) * unit // 32


def test_layers_left_in_bfloat16_have_no_copies() -> None:
    model = ModelConfig(**model_preset("13b"))
    ends = PrecisionConfig(dtype="bfloat16", fp8="tensorwise", bf16_layers_at_start=1, bf16_layers_at_end=4)
    layout = layout_of(pipeline=4)
    stages = [StageMemory(model, layout, ends, 50257, stage) for stage in range(4)]
    assert [stage.static.fp8_weights / (2 * 12 * 5120**2) for stage in stages] == [9, 10, 10, 6]
    batch = [MicroBatch(1, 2048)] * 16
    plain = PrecisionConfig(dtype="bfloat16")
    one = layout_of()
    less, more = (StageMemory(model, one, precision, 50257, 0).peak(batch).activations for precision in (ends, plain))
    assert more - less == 35 * 5 * 2048 * 5120


@pytest.mark.parametrize("pipeline", [2, 3, 4])
@pytest.mark.parametrize("chunks", [None, 2, 5])
def test_so_many_micro_batches_fill_the_pipeline(pipeline: int, chunks: int | None) -> None:
    model = ModelConfig(**{**model_preset("1.3b"), "num_layers": 120})
    layout = layout_of(pipeline=pipeline, virtual_pipeline=chunks)
    precision, batch = PrecisionConfig(dtype="bfloat16"), MicroBatch(2, 1024)
    few = enough_micro_batches(layout, 10_000)
    expected = estimate_memory(model, layout, precision, 50257, [batch] * (8 * pipeline * (1 + (chunks or 1))))
    assert estimate_memory(model, layout, precision, 50257, [batch] * few) == expected
