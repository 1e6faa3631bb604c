"""The search against an enumeration with rules of its own."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import prod
from typing import Any

import pytest
from ranks import layout_of

from megalign.config import ModelConfig, PrecisionConfig, model_preset
from megalign.scaling.activations import MicroBatch
from megalign.scaling.communication import Cluster
from megalign.scaling.devices import load_devices
from megalign.scaling.memory import estimate_memory
from megalign.scaling.search import Goal, InjectionLoad, Search, _divisors, run_sections, search

SMALL = ModelConfig(
    num_layers=6,
    hidden_size=256,
    num_attention_heads=8,
    num_query_groups=4,
    ffn_hidden_size=1024,
    sequence_length=128,
    position_embedding="rotary",
    normalization="RMSNorm",
    activation="swiglu",
    linear_bias=False,
    tied_embeddings=False,
)
VOCAB_SIZE = 8000
H100 = load_devices()["h100"]


def goal(memory_bytes: float = 80e9, num_devices: int = 8, devices_per_node: int = 4, **changes: Any) -> Goal:
    device = H100.model_copy(update={"memory_bytes": memory_bytes})
    cluster = Cluster(device, num_devices, devices_per_node)
    values = {"global_batch_size": 24, "tokens": 1e6, "precision": PrecisionConfig(dtype="bfloat16")}
    return Goal(model=SMALL, vocab_size=VOCAB_SIZE, cluster=cluster, **{**values, **changes})


Key = tuple[int, int, int | None, int, int, bool, int, str]


def keys(found: Search) -> set[Key]:
    return {
        (
            p.tensor,
            p.pipeline,
            p.virtual_pipeline,
            p.data,
            p.context,
            p.sequence_parallel,
            plan.micro_batch_size,
            p.recompute,
        )
        for plan in found.plans
        for p in [plan.layout.parallel]
    }


def enumerated(wanted: Goal) -> set[Key]:
    """Every combination of numbers, rules written out."""
    model, cluster, batch = wanted.model, wanted.cluster, wanted.global_batch_size
    degrees = range(1, cluster.num_devices + 1)
    found: set[Key] = set()
    for tensor, pipeline, data, context in product(degrees, repeat=4):
        if prod((tensor, pipeline, data, context)) != cluster.num_devices:
            continue
        if model.num_attention_heads % tensor or (model.num_query_groups or tensor) % tensor:
            continue
        if model.ffn_hidden_size % tensor or 128 % tensor or cluster.devices_per_node % tensor:
            continue
        if context > 1 and model.sequence_length % (2 * context):
            continue
        for chunks, parallel, micro, recompute in product(
            (None, *range(2, model.num_layers + 1)), (False, True), range(1, batch + 1), wanted.recompute
        ):
            if model.num_layers % (pipeline * (chunks or 1)) or (chunks and pipeline == 1) or batch % (data * micro):
                continue
            if parallel and (tensor == 1 or model.sequence_length % (tensor * context)):
                continue
            num = batch // (data * micro)
            if chunks and num % pipeline:
                continue
            layout = layout_of(
                tensor=tensor,
                pipeline=pipeline,
                virtual_pipeline=chunks,
                data=data,
                context=context,
                sequence_parallel=parallel,
                recompute=recompute,
                distributed_optimizer=data * context > 1,
            )
            steps = [MicroBatch(micro, model.sequence_length)] * num
            stages = estimate_memory(model, layout, wanted.precision, VOCAB_SIZE, steps)
            if max(stage.total for stage in stages) <= 0.9 * cluster.memory_bytes:
                found.add((tensor, pipeline, chunks, data, context, parallel, micro, recompute))
    return found


@pytest.mark.parametrize("memory_bytes", [pytest.param(70e6, marks=pytest.mark.slow), 90e6])
def test_all_layouts_that_are_legal_and_fit_are_found(memory_bytes: float) -> None:
    wanted = goal(memory_bytes, recompute=("none", "full"))
    found = search(wanted)
    assert keys(found) == enumerated(wanted)
    assert len(keys(found)) == len(found.plans) > 10
    assert any(refusal.reason.startswith("does not fit") for refusal in found.refusals)


def test_the_fastest_is_first_and_numbers_agree() -> None:
    wanted = goal()
    found = search(wanted)
    speeds = [plan.tokens_per_second for plan in found.plans]
    assert speeds == sorted(speeds, reverse=True)
    for plan in found.plans[::50]:
        assert plan.tokens_per_second == pytest.approx(24 * 128 / plan.time.seconds)
        assert plan.training_seconds == pytest.approx(326 * plan.time.seconds)  # 1e6 tokens in steps of 3072
        assert plan.device_hours == pytest.approx(plan.training_seconds * 8 / 3600)
        stages = estimate_memory(
            SMALL,
            plan.layout,
            wanted.precision,
            VOCAB_SIZE,
            [MicroBatch(plan.micro_batch_size, 128)] * plan.num_micro_batches,
        )
        assert plan.memory.total == max(stage.total for stage in stages)


def test_reasons_are_counted_with_an_example() -> None:
    found = search(goal(90e6, 12, 8, global_batch_size=16))
    told = {refusal.reason: refusal.count for refusal in found.refusals}
    for reason in (
        "parallel.tensor 3 does not stay inside a node of 8 devices",
        "global_batch_size 16 is not a multiple of parallel.data 12",
        "parallel.pipeline is 4, which does not divide model.num_layers 6",
    ):
        assert told[reason] >= 1, told
    assert any("which is not a multiple of parallel.pipeline" in reason for reason in told)
    assert any("GiB or more of 0.07544 (90% of 0.08382)" in reason for reason in told)
    assert list(told.values()) == sorted(told.values(), reverse=True)
    assert found.num_layouts == len(found.plans) + sum(told.values())


def test_nothing_fits_where_nothing_can() -> None:
    found = search(goal(1e6))
    assert found.plans == []
    assert any(refusal.reason.startswith("does not fit") for refusal in found.refusals)


def test_uneven_stages_are_searched_when_asked() -> None:
    wanted = goal(num_devices=4)
    even, uneven = search(wanted), search(replace(wanted, uneven_stages=True))
    assert {plan.layout.parallel.pipeline for plan in even.plans} == {1, 2}
    assert {plan.layout.parallel.pipeline for plan in uneven.plans} == {1, 2, 4}
    assert keys(even) < keys(uneven)


def test_injection_needs_memory_and_two_micro_batches() -> None:
    load = InjectionLoad(num_words=4000, tokens_per_word=3.0, row_width_tokens=32)
    assert load.words(8) == MicroBatch(47, 32, 500, 4000)  # 1500 tokens in rows of 32
    six = {"num_devices": 6, "devices_per_node": 6}
    plain, injecting = search(goal(**six)), search(goal(**six, injection=InjectionLoad(num_words=60)))
    assert {plan.layout.parallel.pipeline for plan in injecting.plans if plan.layout.parallel.virtual_pipeline} <= {2}
    assert any("injection: A step has 2 micro-batches a rank" in refusal.reason for refusal in injecting.refusals)
    memory = {f"{plan.layout} {plan.micro_batch_size}": plan.memory.total for plan in plain.plans}
    more = [plan.memory.total - memory[f"{plan.layout} {plan.micro_batch_size}"] for plan in injecting.plans]
    assert min(more) == 0
    assert max(more) > 0


def test_words_during_pretraining_are_one_micro_batch_more() -> None:
    """Interleaving takes multiples of its stages, with and without the words: there is none of both."""
    load = InjectionLoad(num_words=60, during=True)
    found = search(goal(num_devices=6, devices_per_node=6, injection=load))
    assert found.plans
    assert all(plan.layout.parallel.virtual_pipeline is None for plan in found.plans)
    assert "inject" not in run_sections(goal(injection=load), found.plans[0])


def test_fp8_s_sizes_are_a_rule() -> None:
    found = search(goal(precision=PrecisionConfig(dtype="bfloat16", fp8="mxfp8"), num_devices=8, devices_per_node=8))
    assert any("is not a multiple of 32" in refusal.reason for refusal in found.refusals)
    assert all(plan.layout.parallel.context < 8 for plan in found.plans)
    assert all(plan.memory.fp8_weights for plan in found.plans)


@pytest.mark.parametrize("preset", ["13b", pytest.param("llama-13b", marks=pytest.mark.slow)])
def test_13b_on_64_h100_is_trained_as_is_usual(preset: str) -> None:
    """Small tensor degree inside a node, the rest data parallel, at 40 to 50 % of the peak (MPT 13B: 40 to 44 %)."""
    model = ModelConfig(**model_preset(preset))
    wanted = Goal(
        model=model,
        precision=PrecisionConfig(dtype="bfloat16"),
        vocab_size=50257,
        cluster=Cluster(H100, 64, 8),
        global_batch_size=2**21 // model.sequence_length,
        tokens=300e9,
        recompute=("none",),
    )
    best = search(wanted).plans[0]
    p = best.layout.parallel
    assert p.tensor * p.pipeline <= 4
    assert 0.40 < best.mfu < 0.50
    sections = run_sections(wanted, best)
    assert sections["parallel"]["data"] == p.data
    assert sections["train"]["steps"] * wanted.tokens_per_step >= 300e9
    assert sections["model"] == {"preset": preset, "sequence_length": model.sequence_length}


def test_divisors_of_large_numbers_take_no_time() -> None:
    """Trying each number up to a batch of many windows took minutes."""
    for number in (1, 2, 49, 720):
        assert _divisors(number) == tuple(one for one in range(1, number + 1) if number % one == 0)
    assert _divisors(999_999_999_989) == (1, 999_999_999_989)
