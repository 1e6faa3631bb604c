"""Communication against what real ranks send, and links against the nodes of every rank."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from ranks import layout_of, run
from recorded_transfers import VOCAB_SIZE, recorded
from test_memory import GPT, LLAMA

from megalign.config import ModelConfig, PrecisionConfig, model_preset
from megalign.errors import ConfigError
from megalign.scaling.activations import MicroBatch
from megalign.scaling.communication import Cluster, Communication, Group, Transfer
from megalign.scaling.devices import Device, load_devices
from megalign.scaling.parameters import count_parameters

CASES: dict[str, tuple[ModelConfig, dict[str, Any], str]] = {
    "gpt TP2": (GPT, {"tensor": 2}, "float32"),
    "gpt TP2 SP": (GPT, {"tensor": 2, "sequence_parallel": True}, "float32"),
    "llama TP2 SP bfloat16": (LLAMA, {"tensor": 2, "sequence_parallel": True}, "bfloat16"),
    "gpt TP2 SP full recomputation": (GPT, {"tensor": 2, "sequence_parallel": True, "recompute": "full"}, "float32"),
    "llama TP2 full recomputation": (LLAMA, {"tensor": 2, "recompute": "full"}, "float32"),
    "gpt PP2": (GPT, {"pipeline": 2}, "float32"),
    "llama PP2 VP2 bfloat16": (LLAMA, {"pipeline": 2, "virtual_pipeline": 2}, "bfloat16"),
    "gpt PP4 TP1 CP1": (GPT, {"pipeline": 4}, "float32"),
    "llama CP2": (LLAMA, {"context": 2}, "float32"),
    "llama CP2 selective": (LLAMA, {"context": 2, "recompute": "selective", "distributed_optimizer": True}, "bfloat16"),
    "gpt CP2 full": (GPT, {"context": 2, "recompute": "full"}, "float32"),
    "gpt DP2": (GPT, {"data": 2}, "bfloat16"),
    "llama DP2 distributed optimizer": (LLAMA, {"data": 2, "distributed_optimizer": True}, "bfloat16"),
    "gpt TP2 PP2 SP": (GPT, {"tensor": 2, "pipeline": 2, "sequence_parallel": True}, "bfloat16"),
}
QUICK = {"gpt TP2 SP", "llama CP2 selective", "gpt TP2 PP2 SP"}
NUM_MICRO_BATCHES, ROWS = 4, 2


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in CASES])
def test_ranks_send_what_is_told(name: str) -> None:
    model, parallel, dtype = CASES[name]
    layout, precision = layout_of(**parallel), PrecisionConfig(dtype=dtype)
    told_of = Communication(model, layout, precision, VOCAB_SIZE, MicroBatch(ROWS, model.sequence_length))
    for rank, (found, unknown) in enumerate(run(recorded, layout, model, precision, NUM_MICRO_BATCHES, ROWS)):
        told: Counter[tuple[str, str, int]] = Counter()
        for transfer in told_of.step(layout.coordinates(rank).pipeline, NUM_MICRO_BATCHES):
            told[transfer.group, transfer.operation, transfer.num_bytes] += transfer.count
        print(rank, "told", dict(told), "found", found, unknown)
        assert dict(told) == found
        assert unknown <= {"recv_", "recv_any_source_", "broadcast_", "barrier"}


def sent(transfers: list[Transfer], group: Group) -> float:
    return sum(transfer.sent_bytes for transfer in transfers if transfer.group == group)


def test_volumes_are_those_computed_by_hand() -> None:
    """A rank of GPT-3 13B's first and last stage: b = 2 windows of s = 2048, h = 5120, 10 layers a stage, m = 3."""
    model = ModelConfig(**model_preset("13b"))
    precision, batch = PrecisionConfig(dtype="bfloat16"), MicroBatch(2, 2048)
    hidden = 2 * 2048 * 5120 * 2  # b s h in 16 bits

    def step(stage: int, **parallel: Any) -> list[Transfer]:
        return Communication(model, layout_of(**parallel), precision, 50257, batch).step(stage, 3)

    # Four all-reduces a layer (Shoeybi et al. 2019, arXiv 1909.08053), that of the embedding, and on the last stage that of
    # the output's input gradient and three of a float32 a token; each sends 2 (t - 1) / t of its bytes.
    ring = 2 * 7 / 8
    assert sent(step(0, tensor=8, pipeline=4), "tensor") == ring * 3 * (4 * 10 + 1) * hidden
    assert sent(step(1, tensor=8, pipeline=4), "tensor") == ring * 3 * 4 * 10 * hidden
    assert sent(step(3, tensor=8, pipeline=4), "tensor") == ring * 3 * ((4 * 10 + 1) * hidden + 3 * 2 * 2048 * 4)
    # Recomputed layers sum twice more, and sequence parallelism gathers what it did not keep: 2 of 4 + 1 half rings.
    assert sent(step(1, tensor=8, pipeline=4, recompute="full"), "tensor") == ring * 3 * 6 * 10 * hidden
    norms = ring * 10 * (2 * 2 * 5120 + 2 * 5120) * 4  # two norms, two biases behind sums
    assert sent(step(1, tensor=8, pipeline=4, sequence_parallel=True), "tensor") == ring * 3 * 5 * 10 * hidden + norms
    # Hidden states forward, gradients back; the middle stages both; under interleaving for every chunk.
    assert [sent(step(stage, pipeline=4), "pipeline") / hidden / 3 for stage in range(4)] == [1, 2, 2, 1]
    chunks = [sent(step(stage, pipeline=4, virtual_pipeline=5), "pipeline") / hidden / 3 for stage in range(4)]
    assert chunks == [9, 10, 10, 9]
    # Keys and values of whole windows, gathered forward, their gradients scattered back.
    assert sent(step(0, context=4), "context") == 3 / 4 * 3 * 2 * 40 * 2 * hidden
    # All-reduced gradients in float32; or scattered, and weights in bfloat16 gathered: 6 of 8 bytes.
    numel = count_parameters(model, 50257).total
    assert sent(step(0, data=16), "data") == pytest.approx(2 * 15 / 16 * 4 * numel)
    assert sent(step(0, data=16, distributed_optimizer=True), "data") == pytest.approx(15 / 16 * 6 * numel, rel=1e-4)
    assert sent(step(0, pipeline=4), "ends") == sent(step(3, pipeline=4), "ends") == 50304 * 5120 * 4
    assert sent(step(1, pipeline=4), "ends") == 0


def test_words_share_no_windows_and_have_no_logits() -> None:
    words = MicroBatch(8, 32, num_words=100, num_all_words=200)
    told = Communication(LLAMA, layout_of(tensor=2, context=2), PrecisionConfig(), VOCAB_SIZE, words)
    assert {transfer.group for transfer in told.layer()} == {"tensor"}
    assert told.last_stage() == []


@pytest.mark.parametrize("devices_per_node", [4, 8, 12])
@pytest.mark.parametrize(
    "parallel",
    [
        {"tensor": 8, "data": 3},
        {"tensor": 2, "context": 2, "data": 2, "pipeline": 3},
        {"tensor": 4, "context": 3, "data": 2},
        {"data": 2, "pipeline": 12},
        {"tensor": 3, "data": 8},
        {"context": 4, "pipeline": 6},
    ],
    ids=str,
)
def test_groups_cross_nodes_where_their_ranks_do(parallel: dict[str, int], devices_per_node: int) -> None:
    layout = layout_of(**parallel)
    places = [layout.coordinates(rank) for rank in range(layout.world_size)]
    fixed: dict[Group, Any] = {
        "tensor": lambda c: (c.context, c.data, c.pipeline),
        "context": lambda c: (c.tensor, c.data, c.pipeline),
        "data": lambda c: (c.tensor, c.pipeline),
        "pipeline": lambda c: (c.tensor, c.context, c.data),
    }
    device = load_devices()["h100"]
    cluster = Cluster(device, layout.world_size, devices_per_node)
    for group, key in fixed.items():
        nodes: dict[Any, Counter[int]] = {}
        for rank, place in enumerate(places):
            nodes.setdefault(key(place), Counter())[rank // devices_per_node] += 1
        crosses = any(len(found) > 1 for found in nodes.values())
        link = cluster.link(layout, group)
        assert link.crosses_nodes == crosses, group
        if not crosses:
            assert link.bytes_per_second == device.link_bytes_per_second
        elif group == "pipeline":
            assert link.bytes_per_second == device.network_bytes_per_second
        else:
            members = min(min(found.values()) for found in nodes.values() if len(found) > 1)
            assert link.bytes_per_second == min(members * 50e9, 450e9)


def test_a_device_without_links_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"does not say memory_bytes of Mine.*Add it to the device's entry"):
        Cluster(Device(title="Mine"), 8, 8)
