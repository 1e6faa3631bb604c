"""Parameter gradients of language modelling + contrastive loss over L+2 levels, against a float64 reference by loops.

The reference is one process without Engine.step, hooks, schedule or packing: every window and every word goes alone through
the layers in float64, and the losses are written out as sums over Python loops. So it also shows that packing words into
rows changes nothing.

Tolerance: float32 against float64. The difference, as a share of the largest gradient in the same parameter, is measured
and printed; float32 rounds at 6e-8 and a gradient sums hundreds of terms of either sign, so 1e-5 is allowed.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import cases
import numpy as np
import pytest
import ranks
import torch
import torch.nn.functional as F

from megalign.config.layout import Layout
from megalign.engine.engine import Engine, LanguageBatch
from megalign.engine.model import unwrapped
from megalign.prealign.words import WordBatch

LM_WEIGHT = 0.5
NUM_WINDOWS = 4
WORD_STEPS = (0, 1)  # two batches of words in one step: the hooks must tell them apart
TOLERANCE = 1e-5

TP2: dict[str, Any] = {"tensor": 2}
SP: dict[str, Any] = {**TP2, "sequence_parallel": True}
PP2: dict[str, Any] = {"pipeline": 2}
VP2: dict[str, Any] = {**PP2, "virtual_pipeline": 2}
DP2: dict[str, Any] = {"data": 2}
CP2: dict[str, Any] = {"context": 2}
FULL: dict[str, Any] = {"recompute": "full"}
CASES = [
    pytest.param("gpt", {}, "sum", id="gpt-single"),
    pytest.param("gpt", {}, "mean", id="gpt-single-mean"),
    pytest.param("gpt", PP2, "weights", id="gpt-PP2-weights"),
    pytest.param("gpt", TP2, "sum", id="gpt-TP2"),
    pytest.param("llama", SP, "sum", id="llama-TP2-SP"),
    pytest.param("gpt", PP2, "sum", id="gpt-PP2"),
    pytest.param("gpt", VP2, "sum", id="gpt-PP2-VP2"),
    pytest.param("llama", DP2, "sum", id="llama-DP2"),
    pytest.param("llama", {**PP2, **FULL}, "sum", id="llama-PP2-full"),
    pytest.param("gpt", {**SP, **PP2}, "sum", id="gpt-TP2-PP2-SP"),
    pytest.param("llama", CP2, "sum", id="llama-CP2"),
    pytest.param("llama", TP2, "sum", id="llama-TP2", marks=pytest.mark.slow),
    pytest.param("gpt", SP, "sum", id="gpt-TP2-SP", marks=pytest.mark.slow),
    pytest.param("llama", PP2, "sum", id="llama-PP2", marks=pytest.mark.slow),
    pytest.param("llama", VP2, "sum", id="llama-PP2-VP2", marks=pytest.mark.slow),
    pytest.param("gpt", DP2, "sum", id="gpt-DP2", marks=pytest.mark.slow),
    pytest.param("gpt", {**PP2, **FULL}, "sum", id="gpt-PP2-full", marks=pytest.mark.slow),
    pytest.param("llama", {**SP, **PP2}, "sum", id="llama-TP2-PP2-SP", marks=pytest.mark.slow),
    pytest.param("gpt", {**SP, **DP2, **FULL}, "sum", id="gpt-TP2-SP-DP2-full", marks=pytest.mark.slow),
    pytest.param("gpt", {**CP2, **DP2}, "mean", id="gpt-CP2-DP2-mean", marks=pytest.mark.slow),
    pytest.param("gpt", {**CP2, **SP, **FULL}, "sum", id="gpt-CP2-TP2-SP-full", marks=pytest.mark.slow),
    pytest.param("llama", {**CP2, **VP2}, "sum", id="llama-CP2-PP2-VP2", marks=pytest.mark.slow),
]


class GradientEngine(Engine):
    """Stops before the optimizer: main_grad is what Megatron's reduction left."""

    def _update(self, step: int, loss: float, level_losses: list[float]) -> tuple[float, float]:
        return math.nan, math.nan


def gradients(layout: Layout, model: str, reduction: str) -> tuple[float, list[float], list[cases.Shard]]:
    engine = cases.engine_of(layout, cases.MODELS[model], kind=GradientEngine)
    rank, data_size = cases.data_rank_of(layout), layout.parallel.data
    first, second = cases.cut(cases.windows(7, NUM_WINDOWS), rank, data_size, 2)
    words = [cases.words_of(step, layout, rank) for step in WORD_STEPS]
    given = level_weights(reduction, cases.MODELS[model].num_layers + 2) if reduction == "weights" else reduction
    inject = cases.INJECT.model_copy(update={"level_reduction": given})
    batches = [words[0], first, second, words[1]]
    result = engine.step(batches, 1, lm_weight=LM_WEIGHT, inject=inject, num_sources=cases.NUM_SOURCES)
    with torch.no_grad():
        for chunk in engine.chunks:
            for parameter in chunk.parameters():
                parameter.copy_(parameter.main_grad)
    return result.loss, result.level_losses, cases.shards_of(engine)


def level_weights(reduction: str, num_levels: int) -> list[float]:
    """What each level's loss counts; "weights" leaves the second level out."""
    if reduction == "weights":
        return [0.0 if level == 1 else 0.5 * (level + 1) for level in range(num_levels)]
    return [1 / num_levels if reduction == "mean" else 1.0] * num_levels


def level_states(chunk: Any, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Input embedding, every layer's output and the final norm's, each [sequence, hidden], of one sequence alone."""
    positions = torch.arange(len(tokens))[None]
    hidden = chunk.embedding(tokens[None], positions)
    rotary = chunk.rotary_pos_emb(len(tokens)) if hasattr(chunk, "rotary_pos_emb") else None
    states = [hidden[:, 0]]
    for layer in chunk.decoder.layers:
        hidden, _ = layer(hidden_states=hidden, attention_mask=None, rotary_pos_emb=rotary)
        states.append(hidden[:, 0])
    return [*states, chunk.decoder.final_layernorm(hidden)[:, 0]]


def contrastive_by_loops(vectors: list[torch.Tensor], batch: WordBatch, temperature: float) -> torch.Tensor:
    """method: mean over anchors with positives of -1/|P| sum over p of log(e^z_ip / sum over a in A of e^z_ia)."""
    n = len(vectors)
    entry, surface = batch.entry.tolist(), batch.surface.tolist()
    terms = []
    for i in range(n):
        positives = [p for p in range(n) if p != i and entry[p] == entry[i]]
        if not positives:
            continue
        z = {
            a: vectors[i] @ vectors[a] / (vectors[i].norm() * vectors[a].norm()) / temperature
            for a in range(n)
            if a != i and (entry[a] == entry[i] or surface[a] != surface[i])
        }
        denominator = sum(torch.exp(value) for value in z.values())
        terms.append(-sum(torch.log(torch.exp(z[p]) / denominator) for p in positives) / len(positives))
    return sum(terms) / len(terms)


def words_one_by_one(batch: WordBatch) -> list[torch.Tensor]:
    return [torch.from_numpy(batch.tokens[batch.word_of_token == word]) for word in range(batch.num_words)]


def language_loss(chunk: Any, weight: torch.Tensor, text: LanguageBatch) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for tokens, labels, mask in zip(text.tokens, text.labels, text.loss_mask, strict=True):
        logits = level_states(chunk, torch.from_numpy(tokens))[-1] @ weight.T
        nll = F.cross_entropy(logits, torch.from_numpy(labels), reduction="none")
        total = total + (nll * torch.from_numpy(mask).double()).sum()
    return total / text.num_targets


def reference(layout: Layout, model: str, reduction: str) -> tuple[float, list[float], list[cases.Shard]]:
    config = cases.MODELS[model]
    engine = cases.engine_of(layout, config, optimizer=None)
    chunk: Any = unwrapped(engine.chunks[0]).double()
    weight = chunk.embedding.word_embeddings.weight if config.tied_embeddings else chunk.output_layer.weight
    language = language_loss(chunk, weight, cases.windows(7, NUM_WINDOWS))
    num_levels = config.num_layers + 2
    level_losses = [torch.zeros((), dtype=torch.float64)] * num_levels
    for step in WORD_STEPS:
        batch = cases.words_of(step, layout, 0)
        words = words_one_by_one(batch)
        states = [level_states(chunk, word) for word in words]
        for level in range(num_levels - 1):
            vectors = [by_level[level].mean(0) for by_level in states]
            level_losses[level] = level_losses[level] + contrastive_by_loops(vectors, batch, 0.1) / len(WORD_STEPS)
        rows = [weight[word].mean(0) for word in words]
        level_losses[-1] = level_losses[-1] + contrastive_by_loops(rows, batch, 0.1) / len(WORD_STEPS)
    weighted = zip(level_weights(reduction, num_levels), level_losses, strict=True)
    total = LM_WEIGHT * language + sum(weight * loss for weight, loss in weighted)
    total.backward()
    with torch.no_grad():
        for parameter in chunk.parameters():
            parameter.copy_(parameter.grad)
    return float(language.detach()), [float(loss.detach()) for loss in level_losses], cases.shards_of(engine)


@cache
def reference_of(model: str, reduction: str) -> tuple[float, list[float], dict[str, np.ndarray]]:
    ((loss, level_losses, shards),) = ranks.run(reference, ranks.layout_of(), model, reduction)
    return loss, level_losses, cases.assemble([shards])


@pytest.mark.parametrize(("model", "parallel", "reduction"), CASES)
def test_gradients_equal_the_reference(
    model: str, parallel: dict[str, Any], reduction: str, measured: list[str]
) -> None:
    loss, level_losses, expected = reference_of(model, reduction)
    results = ranks.run(gradients, ranks.layout_of(**parallel), model, reduction)
    found = cases.assemble([shards for _, _, shards in results])
    assert found.keys() == expected.keys()
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    difference = max(np.abs(found[key] - expected[key]).max() / np.abs(expected[key]).max() for key in expected)
    name = " ".join(f"{key}={value}" for key, value in parallel.items()) or "one process"
    measured.append(f"gradients of LM + contrastive against float64: {difference:.1e}  {model} {name} {reduction}")
    for rank_loss, rank_levels, _ in results:
        np.testing.assert_allclose(rank_loss, loss, rtol=2e-6)
        np.testing.assert_allclose(rank_levels, level_losses, rtol=2e-6)
    assert largest > 1
    assert difference < TOLERANCE


def test_every_parameter_that_matters_has_a_gradient() -> None:
    """A comparison of zeros would pass as well."""
    _, _, expected = reference_of("gpt", "sum")
    keys_bias = "decoder.layers.self_attention.linear_qkv.bias"
    for key, gradient in expected.items():
        assert np.abs(gradient).max() > 1e-3, key
        if key.startswith("decoder.layers.") and key != keys_bias:
            assert (np.abs(gradient).reshape(len(gradient), -1).max(axis=1) > 1e-4).all(), f"{key}: a layer has none"


def test_the_batches_hold_what_the_loss_must_treat_specially() -> None:
    """Words of one form in two entries, words of several lengths, rows of several words."""
    batches = [cases.words_of(step, ranks.layout_of(), 0) for step in WORD_STEPS]
    pairs = [(b.entry[i] != b.entry[j]) & (b.surface[i] == b.surface[j]) for b in batches
             for i in range(b.num_words) for j in range(i)]  # fmt: skip
    assert any(pairs)
    assert {len(word) for batch in batches for word in words_one_by_one(batch)} == {1, 2, 3, 4}
    assert any(len(batch.tokens) < batch.num_words for batch in batches), "no row holds two words"
