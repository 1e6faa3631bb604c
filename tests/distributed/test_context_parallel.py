"""Context parallelism by its parts: attention over gathered keys, whole windows out of parts, words that are dealt out.

That whole runs under it equal those of one process is shown by test_layouts, gradients by test_contrastive_gradient.
"""

from __future__ import annotations

import math
from typing import Any

import cases
import numpy as np
import pytest
import ranks
import torch

from megalign.config.layout import Layout
from megalign.config.sections import ModelConfig, PrecisionConfig
from megalign.engine.batch import LanguageBatch

SEQUENCE, BATCH, HEADS, HEAD_SIZE = 24, 2, 4, 8


def tensors(num_query_groups: int) -> list[torch.Tensor]:
    """Query, key, value, and the gradient of the attention's output, of whole windows."""
    generator = torch.Generator().manual_seed(1)
    heads = [HEADS, num_query_groups, num_query_groups, HEADS]
    return [torch.randn(SEQUENCE, BATCH, n, HEAD_SIZE, generator=generator, dtype=torch.float64) for n in heads]


def own_attention(
    layout: Layout, num_query_groups: int, checkpointed: bool
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """This rank's positions, its part of the output and of the gradients, and the output under a mask (not cut)."""
    from torch.utils.checkpoint import checkpoint

    from megalign.engine import context
    from megalign.engine.model import transformer_config
    from megalign.engine.specs import FusedAttention

    model = ModelConfig(
        num_layers=2,
        hidden_size=HEADS * HEAD_SIZE,
        num_attention_heads=HEADS,
        num_query_groups=num_query_groups,
        ffn_hidden_size=32,
        sequence_length=SEQUENCE,
    )
    attention: Any = FusedAttention(transformer_config(model, layout, PrecisionConfig()), 1, None, "self")
    positions = context.own_positions(SEQUENCE)
    *inputs, upstream = tensors(num_query_groups)
    own = [tensor[positions].requires_grad_() for tensor in inputs]
    output = checkpoint(attention, *own, None, use_reentrant=False) if checkpointed else attention(*own, None)
    output.backward(upstream[positions].flatten(2))
    gradients = [tensor.grad.numpy() for tensor in own if tensor.grad is not None]
    hidden = torch.ones(SEQUENCE, SEQUENCE, dtype=torch.bool).triu(1)[None, None].expand(BATCH, -1, -1, -1)
    return positions, [output.detach().numpy(), *gradients], attention(*inputs, hidden).numpy()


def whole_attention(num_query_groups: int) -> list[np.ndarray]:
    """Causal attention written out, and its gradients."""
    *inputs, upstream = tensors(num_query_groups)
    for tensor in inputs:
        tensor.requires_grad_()
    query, key, value = inputs
    key, value = (tensor.repeat_interleave(HEADS // num_query_groups, dim=2) for tensor in (key, value))
    logits = torch.einsum("sbhd,tbhd->bhst", query, key) / math.sqrt(HEAD_SIZE)
    future = torch.ones(SEQUENCE, SEQUENCE, dtype=torch.bool).triu(1)
    weights = logits.masked_fill(future, -torch.inf).softmax(-1)
    output = torch.einsum("bhst,tbhd->sbhd", weights, value).flatten(2)
    output.backward(upstream.flatten(2))
    return [output.detach().numpy(), *(tensor.grad.numpy() for tensor in inputs if tensor.grad is not None)]


@pytest.mark.parametrize(
    ("size", "num_query_groups", "checkpointed"),
    [
        (2, HEADS, False),
        (2, 2, True),
        pytest.param(3, 1, False, marks=pytest.mark.slow),
        pytest.param(4, 2, False, marks=pytest.mark.slow),
    ],
)
def test_attention_equals_causal_attention_over_the_whole_window(
    size: int, num_query_groups: int, checkpointed: bool
) -> None:
    """Output and gradients of queries, keys and values, in float64: but for rounding nothing may differ."""
    expected = whole_attention(num_query_groups)
    parts = ranks.run(own_attention, ranks.layout_of(context=size), num_query_groups, checkpointed)
    chunk = SEQUENCE // (2 * size)
    for number, (positions, own, masked) in enumerate(parts):
        early, late = number, 2 * size - 1 - number
        assert positions.tolist() == [
            *range(early * chunk, (early + 1) * chunk),
            *range(late * chunk, (late + 1) * chunk),
        ]
        assert len(own) == len(expected) == 4
        for found, whole in zip(own, expected, strict=True):
            np.testing.assert_allclose(found, whole[positions], rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(masked, expected[0], rtol=1e-12, atol=1e-13)


def reading(layout: Layout, model: str) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Scores of short windows, the likeliest next id at every position of a window, vectors of one row of words."""
    engine = cases.engine_of(layout, cases.MODELS[model], optimizer=None)
    scores = engine.score([cases.windows(50, 3, sequence_length=8)])[0].nll
    window = cases.windows(51, 1)
    places = np.arange(16)
    same = LanguageBatch(*(array.repeat(16, axis=0) for array in (window.tokens, window.labels, window.loss_mask)))
    best = engine.most_likely(same, places, cases.VOCAB_SIZE)
    table = cases.word_batches()
    return scores, best, engine.represent([table.all_of(np.arange(1)), table.all_of(np.arange(5))])


@pytest.mark.parametrize(
    ("model", "parallel"),
    [
        ("llama", {"context": 2}),
        pytest.param("gpt", {"context": 4}, marks=pytest.mark.slow),
        pytest.param("llama", {"context": 2, "tensor": 2, "sequence_parallel": True}, marks=pytest.mark.slow),
        pytest.param("gpt", {"context": 2, "pipeline": 2}, marks=pytest.mark.slow),
    ],
)
def test_every_rank_reads_what_one_process_reads(model: str, parallel: dict[str, Any]) -> None:
    ((scores, best, vectors),) = ranks.run(reading, ranks.layout_of(), model)
    assert len(set(best.tolist())) > 4
    assert len(cases.word_batches().all_of(np.arange(1)).tokens) < parallel["context"], "no rank is without rows"
    for own_scores, own_best, own_vectors in ranks.run(reading, ranks.layout_of(**parallel), model):
        np.testing.assert_allclose(own_scores, scores, atol=1e-5)
        np.testing.assert_array_equal(own_best, best)
        for found, expected in zip(own_vectors, vectors, strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-5)


def inject_two_entries(layout: Layout, num_steps: int) -> list[list[float]]:
    """Steps on so few words that a rank is left without rows."""
    engine = cases.engine_of(layout, cases.MODELS["llama"])
    words = cases.word_batches().all_of(np.array([3, 5]))
    assert len(words.tokens) < 4
    results = [engine.step([words, cases.windows(s, 2)], s, inject=cases.INJECT) for s in range(1, num_steps + 1)]
    return [[r.loss, r.grad_norm, *r.level_losses] for r in results]


def test_a_rank_without_rows_of_words_computes_along() -> None:
    (expected,) = ranks.run(inject_two_entries, ranks.layout_of(), 3)
    for found in ranks.run(inject_two_entries, ranks.layout_of(context=4), 3):
        np.testing.assert_allclose(found, expected, rtol=5e-6)


def vectors_without(layout: Layout, remedy: bool) -> np.ndarray:
    from megalign.engine import context

    if not remedy:
        context.whole_rotary_rows = lambda rotary, args, kwargs: (args, kwargs)
    engine = cases.engine_of(layout, cases.MODELS["llama"], optimizer=None)
    (vectors,) = engine.represent([cases.word_batches().all_of(np.arange(9))])
    return vectors


def test_megatron_would_turn_words_by_angles_of_other_positions() -> None:
    """It takes the rows of words for parts of windows; the vectors of words that cross the middle of a row are others."""
    (expected,) = ranks.run(vectors_without, ranks.layout_of(), True)
    good, bad = (ranks.run(vectors_without, ranks.layout_of(context=2), remedy)[0] for remedy in (True, False))
    np.testing.assert_allclose(good, expected, atol=1e-5)
    assert np.abs(bad[0] - expected[0]).max() < 1e-5, "embeddings have no angles"
    assert np.abs(bad[1] - expected[1]).max() > 1e-3


def refused(layout: Layout) -> str:
    engine = cases.engine_of(layout, optimizer=None)
    try:
        engine.score([cases.windows(1, 2, sequence_length=14)])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


def test_windows_that_cannot_be_cut_are_refused() -> None:
    for message in ranks.run(refused, ranks.layout_of(context=2)):
        assert message.startswith(
            "ConfigError: A window of 14 positions cannot be cut into 2 x parallel.context = 4 equal chunks."
        )
        assert message.endswith("Use windows of a multiple of 4, or set parallel.context to 1.")


def counts_and_draws(layout: Layout) -> tuple[list[int], float, float]:
    """A sum of counts, and a number from each generator of dropout, at step 7."""
    from megalign.engine import groups
    from megalign.engine.mcore import get_cuda_rng_tracker

    groups.seed_dropout(3, 7)
    with get_cuda_rng_tracker().fork():
        own = float(torch.rand(()))
    place = layout.coordinates(groups.rank())
    return groups.sum_counts([1, 10 + place.data]), own, float(torch.rand(()))


def test_counts_are_counted_once_and_dropout_differs() -> None:
    layout = ranks.layout_of(context=2, data=2)
    found = ranks.run(counts_and_draws, layout)
    assert [counts for counts, _, _ in found] == [[2, 21]] * 4
    assert len({draw for _, own, shared in found for draw in (own, shared)}) == 8
    tensor = ranks.run(counts_and_draws, ranks.layout_of(context=2, tensor=2))
    assert len({own for _, own, _ in tensor}) == 4
    assert tensor[0][2] == tensor[1][2] != tensor[2][2] == tensor[3][2]


def losses_with_dropout(layout: Layout) -> list[tuple[float, float]]:
    model = cases.MODELS["llama"].model_copy(update={"hidden_dropout": 0.2, "attention_dropout": 0.2})
    return [(r.loss, r.grad_norm) for r in cases.inject(cases.engine_of(layout, model), 1, 3)]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [{}, {"tensor": 2, "sequence_parallel": True}], ids=["CP2", "CP2-TP2-SP"])
def test_recomputation_draws_the_same_dropout(parallel: dict[str, Any]) -> None:
    """The gather of keys is repeated inside the generators that Megatron restores; full is exact, word losses included."""
    none, full, selective = (
        ranks.run(losses_with_dropout, ranks.layout_of(context=2, recompute=kind, **parallel))
        for kind in ("none", "full", "selective")
    )
    assert none == full == selective
    assert all(rank == none[0] for rank in none)


def different_replicas(layout: Layout) -> str:
    from megalign.engine import groups
    from megalign.engine.replicas import check_replicas

    engine = cases.engine_of(layout)
    cases.pretrain(engine, 1, 2)
    check_replicas(engine.chunks, 2)
    if groups.rank() == 1:
        with torch.no_grad():
            next(iter(engine.chunks[0].parameters())).view(-1)[3] += 1e-3
    try:
        check_replicas(engine.chunks, 3)
    except Exception as error:
        return str(error)
    return "equal"


def test_context_parallel_ranks_hold_equal_weights() -> None:
    for message in ranks.run(different_replicas, ranks.layout_of(context=2)):
        assert (
            "embedding.word_embeddings.weight on rank 0, 1 among the data- and context-parallel ranks 0, 1" in message
        )
