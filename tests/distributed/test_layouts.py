"""Every layout trains, scores and represents like one process: the same losses, gradient norms and weights, in float32.

Tolerances. A sum over ranks adds the same float32 terms in another order, so results differ by roundings: after 20 steps of
pretraining and 4 of injection the measured relative differences are at most 6e-7 for losses, level losses and gradient
norms, and absolute ones 2e-6 for scores and vectors and 6e-6 for weights (of which the largest is 1; Adam divides small
gradients by their own size, rounding errors included). Allowed is five to ten times that. Errors of the method are far away: a
gradient norm that counts one rank's shards is off by 5 % and more (test_traps), averaged instead of summed gradients by a factor of two.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import cases
import numpy as np
import pytest
import ranks

from megalign.config.layout import Layout
from megalign.engine.engine import StepResult

RELATIVE_TOLERANCE = 5e-6
ABSOLUTE_TOLERANCE = 1e-5
WEIGHT_TOLERANCE = 5e-5

TP2: dict[str, Any] = {"tensor": 2}
SP: dict[str, Any] = {**TP2, "sequence_parallel": True}
PP2: dict[str, Any] = {"pipeline": 2}
PP3: dict[str, Any] = {"pipeline": 3, "uneven_stages": True}
VP2: dict[str, Any] = {**PP2, "virtual_pipeline": 2}
DP2: dict[str, Any] = {"data": 2}
CP2: dict[str, Any] = {"context": 2}
DO: dict[str, Any] = {"distributed_optimizer": True}
FULL: dict[str, Any] = {"recompute": "full"}
SELECTIVE: dict[str, Any] = {"recompute": "selective"}

EVERY_DAY = [
    ("TP2", "gpt", TP2),
    ("TP2 SP", "llama", SP),
    ("PP2", "gpt", PP2),
    ("PP2 VP2", "gpt", VP2),
    ("DP2", "gpt-untied", DP2),
    ("DP2 DO", "llama", {**DP2, **DO}),
    ("DO", "gpt", DO),
    ("TP2 PP2 SP DO", "llama", {**SP, **PP2, **DO}),
    ("full", "llama-tied", FULL),
    ("selective", "gpt", SELECTIVE),
    ("PP2 full", "llama-tied", {**PP2, **FULL}),
    ("PP2 DP2 DO", "gpt", {**PP2, **DP2, **DO}),
    ("PP3 uneven", "gpt", PP3),
    ("CP2", "gpt", CP2),
    ("CP2 TP2 SP", "llama", {**CP2, **SP}),
]
RARELY = [
    ("TP2", "llama-tied", TP2),
    ("TP2 SP", "gpt", SP),
    ("TP2 SP selective", "gpt-untied", {**SP, **SELECTIVE}),
    ("TP2 SP DP2 full", "llama", {**SP, **DP2, **FULL}),
    ("PP2", "llama", PP2),
    ("PP2 selective", "gpt-untied", {**PP2, **SELECTIVE}),
    ("PP2 VP2", "llama", VP2),
    ("PP2 VP2 full", "gpt", {**VP2, **FULL}),
    ("PP4", "gpt", {"pipeline": 4}),
    ("PP3 uneven full", "llama", {**PP3, **FULL}),
    ("PP2 VP2 uneven", "gpt-5-layers", {**VP2, "uneven_stages": True}),
    ("DP2", "llama-tied", DP2),
    ("DP2 DO full", "gpt", {**DP2, **DO, **FULL}),
    ("TP2 PP2 VP2 SP DO", "gpt", {**SP, **VP2, **DO}),
    ("CP2", "llama", CP2),
    ("CP4", "llama-tied", {"context": 4}),
    ("CP2 full", "llama", {**CP2, **FULL}),
    ("CP2 selective", "gpt", {**CP2, **SELECTIVE}),
    ("CP2 DP2 DO", "gpt", {**CP2, **DP2, **DO}),
    ("CP2 DP2 DO", "llama", {**CP2, **DP2, **DO}),
    ("CP2 PP2", "gpt", {**CP2, **PP2}),
    ("CP2 PP2 VP2 full", "llama-tied", {**CP2, **VP2, **FULL}),
    ("CP2 TP2 SP", "gpt", {**CP2, **SP}),
]


@dataclass(frozen=True)
class Outcome:
    """What a rank saw: global numbers, and its shards of the weights."""

    pretrained: list[StepResult]
    injected: list[StepResult]
    scores: np.ndarray
    vectors: np.ndarray
    shards: list[cases.Shard]
    num_parameters: int


def train(layout: Layout, model: str) -> Outcome:
    engine = cases.engine_of(layout, cases.MODELS[model], num_steps=24)
    pretrained = cases.pretrain(engine, 1, 20)
    injected = cases.inject(engine, 21, 24)
    scored = engine.score(cases.cut(cases.windows(99, 6), 0, 1, 3), {"low": (3, 60), "none": (0, 0)})
    scores = np.stack([part for batch in scored for part in (batch.nll, batch.mass["low"], batch.mass["none"])])
    table = cases.word_batches()
    vectors = np.concatenate(engine.represent([table.all_of(np.arange(4)), table.all_of(np.arange(4, 9))]), axis=1)
    return Outcome(pretrained, injected, scores, vectors, cases.shards_of(engine), engine.num_parameters)


@cache
def one_process(model: str) -> tuple[Outcome, dict[str, np.ndarray]]:
    """The same run in one process, and its weights."""
    (outcome,) = ranks.run(train, ranks.layout_of(), model)
    return outcome, without_key_biases(cases.assemble([outcome.shards]))


def without_key_biases(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights less the biases of the attention keys.

    A bias of the keys moves all logits of a query alike, so its gradient is 0 and Adam scales up its rounding errors.
    """
    key = "decoder.layers.self_attention.linear_qkv.bias"
    if key in weights:
        by_head = weights[key].reshape(len(weights[key]), cases.GPT.num_attention_heads, 3, -1)
        weights[key] = by_head[:, :, [0, 2]]
    return weights


def numbers(results: list[StepResult]) -> np.ndarray:
    """Loss and gradient norm, losses of the sources, level losses, of every step."""
    for r in results:
        assert sum(r.nll_by_source) == pytest.approx(r.loss * r.num_targets, rel=1e-12)
    return np.array([[r.loss, r.grad_norm, *r.level_losses] for r in results])


def source_losses(results: list[StepResult]) -> np.ndarray:
    """Of every step, without sources that have no window in it."""
    sums = np.array([[r.nll_by_source, r.targets_by_source] for r in results])
    return sums[:, 0][sums[:, 1] > 0] / sums[:, 1][sums[:, 1] > 0]


@pytest.mark.parametrize(
    ("name", "model", "parallel"),
    [pytest.param(*case, id="-".join(case[:2])) for case in EVERY_DAY]
    + [pytest.param(*case, id="-".join(case[:2]), marks=pytest.mark.slow) for case in RARELY],
)
def test_layout_equals_one_process(name: str, model: str, parallel: dict[str, Any], measured: list[str]) -> None:
    reference, reference_weights = one_process(model)
    outcomes: list[Outcome] = ranks.run(train, ranks.layout_of(**parallel), model)
    first = outcomes[0]
    for other in outcomes[1:]:
        assert (other.pretrained, other.injected) == (first.pretrained, first.injected), (
            "ranks report different numbers"
        )
        np.testing.assert_array_equal(other.scores, first.scores)
        np.testing.assert_array_equal(other.vectors, first.vectors)
    assert first.num_parameters == reference.num_parameters
    assert [r.lr for r in first.pretrained] == [r.lr for r in reference.pretrained]
    for counts in ("targets_by_source", "bytes_by_source"):
        for ours, theirs in ((first.pretrained, reference.pretrained), (first.injected, reference.injected)):
            assert [getattr(r, counts) for r in ours] == [getattr(r, counts) for r in theirs]

    pretrained = np.abs(numbers(first.pretrained) / numbers(reference.pretrained) - 1).max(axis=0)
    injected = np.abs(numbers(first.injected) / numbers(reference.injected) - 1).max(axis=0)
    weights, _ = cases.largest_difference(
        without_key_biases(cases.assemble([o.shards for o in outcomes])), reference_weights
    )
    scores = np.abs(first.scores - reference.scores).max()
    vectors = np.abs(first.vectors - reference.vectors).max()
    measured.append(
        f"{name:18s} {model:11s} pretrain: loss {pretrained[0]:.1e} norm {pretrained[1]:.1e}   inject: loss "
        f"{injected[0]:.1e} norm {injected[1]:.1e} levels {injected[2:].max():.1e}   weights {weights:.1e} "
        f"scores {scores:.1e} vectors {vectors:.1e}"
    )
    assert max(pretrained.max(), injected.max()) < RELATIVE_TOLERANCE
    for ours, theirs in ((first.pretrained, reference.pretrained), (first.injected, reference.injected)):
        np.testing.assert_allclose(source_losses(ours), source_losses(theirs), rtol=RELATIVE_TOLERANCE)
    assert max(scores, vectors) < ABSOLUTE_TOLERANCE
    assert weights < WEIGHT_TOLERANCE


def test_the_runs_learn_and_their_numbers_are_sane() -> None:
    """The comparison would also pass on a model that does nothing."""
    outcome, _ = one_process("gpt")
    levels = np.array([r.level_losses for r in outcome.injected])
    assert levels.shape == (4, cases.GPT.num_layers + 2)
    assert (levels > 0).all()
    assert levels[-1].sum() < levels[0].sum()
    assert [r.level_losses for r in outcome.pretrained] == [[]] * 20
    assert all(r.grad_norm > 0.1 for r in [*outcome.pretrained, *outcome.injected])
    assert outcome.scores[1::3].max() < 1
    assert outcome.scores[2::3].max() == 0
