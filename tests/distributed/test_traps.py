"""The silent traps of Megatron-Core without TransformerEngine, each with its remedy taken away.

A test here shows the failure that the remedy in megalign/engine prevents; that the remedy works is shown by the comparison
of layouts. The ranks are processes of their own, so what they patch ends with them. If one of these tests fails after an
update of Megatron-Core, the trap may be gone and the remedy with it.
"""

from __future__ import annotations

import importlib.metadata
from functools import cache
from typing import Any

import cases
import numpy as np
import pytest
import ranks

from megalign.config.layout import Layout

TP2: dict[str, Any] = {"tensor": 2}
SP: dict[str, Any] = {"tensor": 2, "sequence_parallel": True}
VP2: dict[str, Any] = {"pipeline": 2, "virtual_pipeline": 2}


def steps(layout: Layout, num_steps: int) -> list[tuple[float, float]]:
    return [(r.loss, r.grad_norm) for r in cases.pretrain(cases.engine_of(layout), 1, num_steps)]


def steps_with_config(layout: Layout, num_steps: int, overrides: dict[str, Any]) -> list[tuple[float, float]]:
    """As `steps`, with fields of Megatron's configuration changed."""
    from megalign.engine import model

    original = model.TransformerConfig
    model.TransformerConfig = lambda **fields: original(**{**fields, **overrides})
    return steps(layout, num_steps)


def steps_with_norm(layout: Layout, num_steps: int, kind: str) -> list[tuple[float, float]]:
    """As `steps`, with Megatron's own norm, or ours without its mark."""
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    from megalign.engine import specs

    ours = specs.Norm

    class Unmarked(ours):  # type: ignore[misc, valid-type]
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            norm = ours(*args, **kwargs)
            for parameter in norm.parameters():
                del parameter.sequence_parallel
            return norm

    specs.Norm = {"megatron": WrappedTorchNorm, "unmarked": Unmarked}[kind]
    return steps(layout, num_steps)


@cache
def one_process() -> np.ndarray:
    return np.array(ranks.run(steps, ranks.layout_of(), 3)[0])


def relative_difference(results: list[Any]) -> np.ndarray:
    """[steps, (loss, gradient norm)]"""
    return np.abs(np.array(results[0]) / one_process() - 1)


@pytest.mark.parametrize("parallel", [TP2, SP, VP2], ids=["TP2", "TP2-SP", "PP2-VP2"])
def test_with_the_remedies_nothing_differs(parallel: dict[str, Any]) -> None:
    assert relative_difference(ranks.run(steps, ranks.layout_of(**parallel), 3)).max() < 5e-6


def test_megatrons_norm_refuses_sequence_parallelism() -> None:
    with pytest.raises(ranks.RanksFailed, match="AssertionError"):
        ranks.run(steps_with_norm, ranks.layout_of(**SP), 1, "megatron")


def test_norm_without_the_mark_loses_gradients_under_sequence_parallelism() -> None:
    """Each rank then keeps the gradient of its slice of the sequence: the gradient norm is another one."""
    difference = relative_difference(ranks.run(steps_with_norm, ranks.layout_of(**SP), 3, "unmarked"))
    assert difference[0, 0] < 5e-6, "the first loss, before any update, is right"
    assert difference[:, 1].max() > 1e-4
    assert difference[2, 0] > 1e-6


def test_without_perform_initialization_the_gradient_norm_counts_one_ranks_shards() -> None:
    difference = relative_difference(
        ranks.run(steps_with_config, ranks.layout_of(**TP2), 3, {"perform_initialization": False})
    )
    assert difference[0, 0] < 5e-6
    if cases.LATER_MEGATRON:
        assert difference[0, 1] < 5e-6, "the marks are set there in any case"
    else:
        assert difference[0, 1] > 0.05


def test_interleaving_without_its_communication_flags_mixes_up_micro_batches() -> None:
    """Megatron-Core then swaps tensors between the same two ranks: silently another loss and another gradient."""
    flags = {"overlap_p2p_comm": False, "batch_p2p_comm": True}
    difference = relative_difference(ranks.run(steps_with_config, ranks.layout_of(**VP2), 3, flags))
    assert difference[0, 0] > 1e-3
    assert difference[0, 1] > 1


def test_psutil_is_declared() -> None:
    """Megatron's checkpoint writers need it without declaring it; without it, saving hangs for ever."""
    import psutil

    assert psutil.Process().memory_info().rss > 0
    requirements = importlib.metadata.requires("megalign") or []
    assert any(line.startswith("psutil") and "extra ==" not in line for line in requirements)


def initial(layout: Layout, model: str) -> list[cases.Shard]:
    return cases.shards_of(cases.engine_of(layout, cases.MODELS[model], optimizer=None))


def megatrons_initial(layout: Layout, model: str) -> list[cases.Shard]:
    """Megatron's own initial weights of a seed."""
    from megalign.engine import model as engine_model

    engine_model.initialise = lambda *args: None
    return initial(layout, model)


@pytest.mark.parametrize("model", ["gpt", "llama"])
def test_initial_weights_do_not_depend_on_the_layout(model: str) -> None:
    expected = cases.assemble(ranks.run(initial, ranks.layout_of(), model))
    for parallel in (TP2, VP2, {"data": 2}, {**SP, "pipeline": 2}):
        found = cases.assemble(ranks.run(initial, ranks.layout_of(**parallel), model))
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value, err_msg=f"{key} under {parallel}")


def test_megatrons_initial_weights_depend_on_the_pipeline() -> None:
    one, two = (cases.assemble(ranks.run(megatrons_initial, ranks.layout_of(pipeline=n), "llama")) for n in (1, 2))
    assert any(not np.array_equal(one[key], two[key]) for key in one)


def scores_under_tensor_parallelism(layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Scores of this rank's part of fixed logits, and the whole logits' log-softmax in float64."""
    import torch

    from megalign.engine.scores import score_tokens

    generator = torch.Generator().manual_seed(4)
    logits = 30 * torch.randn(3, 5, 96, generator=generator)
    labels = torch.randint(0, 96, (3, 5), generator=generator)
    size = 96 // layout.parallel.tensor
    rank = layout.coordinates(ranks_own_number()).tensor
    spans = [(0, 10), (7, 60), (60, 96), (50, 50)]
    found = score_tokens(logits[..., rank * size : (rank + 1) * size], labels, spans)
    exact = torch.log_softmax(logits.double(), -1)
    expected = [-exact.gather(-1, labels[..., None])[..., 0], *(exact.exp()[..., a:b].sum(-1) for a, b in spans)]
    return found.numpy(), torch.stack(expected).numpy()


def ranks_own_number() -> int:
    from megalign.engine import groups

    return groups.rank()


def test_scores_with_a_cut_vocabulary_equal_log_softmax() -> None:
    for found, expected in ranks.run(scores_under_tensor_parallelism, ranks.layout_of(**TP2)):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)


def fail_on_rank_one(layout: Layout) -> None:
    import torch.distributed as dist

    print(f"rank {ranks_own_number()} speaks")
    dist.barrier()  # so that rank 0 has spoken when rank 1 fails
    if ranks_own_number() == 1:
        raise ValueError("rank one does not want to")
    dist.barrier()


def sleep(layout: Layout) -> None:
    import time

    print("asleep", flush=True)
    time.sleep(60)


def test_the_helper_reports_every_rank_and_ends_them() -> None:
    with pytest.raises(ranks.RanksFailed, match="rank one does not want to") as caught:
        ranks.run(fail_on_rank_one, ranks.layout_of(data=2))
    assert "rank 0 speaks" in str(caught.value)
    assert "rank 1 speaks" in str(caught.value)
    with pytest.raises(ranks.RanksFailed, match=r"(?s)no answer within 15 s.*asleep"):
        ranks.run(sleep, ranks.layout_of(), timeout_seconds=15)
