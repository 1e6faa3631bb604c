"""Engine.step refuses what it cannot do, and keeps the weights when something is not finite."""

from __future__ import annotations

import dataclasses

import cases
import numpy as np
import pytest
import ranks
import torch

from megalign.engine.engine import Engine
from megalign.errors import ConfigError, MegalignError


def state_of(engine: Engine) -> list[np.ndarray]:
    """Weights and moments."""
    moments = [
        state[name].numpy().copy()
        for inner in engine.optimizer.chained_optimizers
        for state in inner.optimizer.state.values()
        for name in ("exp_avg", "exp_avg_sq", "step")
    ]
    return [values for _, _, _, values in cases.shards_of(engine)] + moments


@pytest.mark.parametrize("cut_optimizer", [False, True])
@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_not_finite_stops_before_the_update(one_process: None, poison: str, cut_optimizer: bool) -> None:
    engine = cases.engine_of(ranks.layout_of(distributed_optimizer=cut_optimizer))
    cases.pretrain(engine, 1, 2)
    before = state_of(engine)
    batches = cases.cut(cases.windows(3, 8), 0, 1, 4)
    if poison == "loss":
        mask = batches[2].loss_mask.copy()
        mask[0, 0] = np.nan
        batches[2] = dataclasses.replace(batches[2], loss_mask=mask)
        engine_error = (
            r"Step 3: loss nan, gradient norm nan: not finite\. The step was not taken; .* Lower the learning"
        )
        with pytest.raises(MegalignError, match=engine_error):
            engine.step(batches, 3)
    else:
        parameter = next(iter(engine.chunks[0].parameters()))
        handle = parameter.register_hook(lambda grad: torch.full_like(grad, torch.inf))
        with pytest.raises(MegalignError, match=r"Step 3: loss \d\.\d+, gradient norm (inf|nan): not finite"):
            engine.step(batches, 3)
        handle.remove()
    after = state_of(engine)
    assert len(before) == len(after)
    assert all(np.array_equal(x, y) for x, y in zip(before, after, strict=True))


def test_training_goes_on_after_a_refused_step_as_if_it_had_not_been(one_process: None) -> None:
    engine, undisturbed = (cases.engine_of(ranks.layout_of()) for _ in range(2))
    cases.pretrain(engine, 1, 1)
    (batch,) = cases.cut(cases.windows(9, 2), 0, 1, 1)
    with pytest.raises(MegalignError, match="Step 2"):
        engine.step([dataclasses.replace(batch, loss_mask=batch.loss_mask * np.nan)], 2)
    assert cases.pretrain(engine, 2, 3) == cases.pretrain(undisturbed, 1, 3)[1:]


def test_not_finite_contrastive_loss_is_named(one_process: None) -> None:
    engine = cases.engine_of(ranks.layout_of())
    with torch.no_grad():
        next(iter(engine.chunks[0].parameters()))[:] = torch.nan
    words = cases.words_of(0, engine.layout, 0)
    with pytest.raises(MegalignError, match=r"Step 1: .*contrastive losses \[nan"):
        engine.step([words], 1, inject=cases.INJECT)


def test_words_without_settings_are_refused(one_process: None) -> None:
    engine = cases.engine_of(ranks.layout_of())
    with pytest.raises(ValueError, match="need the settings of the contrastive loss"):
        engine.step([cases.words_of(0, engine.layout, 0)], 1)


def test_a_step_without_targets_has_no_loss_and_no_gradient(one_process: None) -> None:
    engine = cases.engine_of(ranks.layout_of())
    (batch,) = cases.cut(cases.windows(1, 2), 0, 1, 1)
    result = engine.step([dataclasses.replace(batch, loss_mask=np.zeros_like(batch.loss_mask))], 1)
    assert np.isnan(result.loss)
    assert (result.num_targets, result.grad_norm) == (0, 0)


def test_words_alone_are_a_step(one_process: None) -> None:
    """Pure contrastive steps: no text, so no language-modelling loss, but levels and a gradient."""
    engine = cases.engine_of(ranks.layout_of())
    words = cases.words_of(0, engine.layout, 0)
    losses = [engine.step([words], step, inject=cases.INJECT) for step in range(1, 6)]
    assert all(np.isnan(result.loss) and result.num_targets == 0 for result in losses)
    assert sum(losses[-1].level_losses) < 0.9 * sum(losses[0].level_losses)


def test_dropout_is_a_function_of_seed_and_step(one_process: None) -> None:
    model = cases.GPT.model_copy(update={"hidden_dropout": 0.2, "attention_dropout": 0.2})
    batches = cases.cut(cases.windows(1, 8), 0, 1, 4)
    losses = []
    for seed, step in ((11, 1), (11, 1), (11, 2), (12, 1)):
        engine = cases.engine_of(ranks.layout_of(), model)
        engine.seed = seed  # the weights stay those of the first seed
        torch.manual_seed(len(losses))
        losses.append(engine.step(batches, step).loss)
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def test_micro_batches_must_fill_interleaved_groups() -> None:
    with pytest.raises(
        ranks.RanksFailed,
        match=r"ConfigError: A step has 3 micro-batches a rank, which is not a multiple of parallel.pipeline 2",
    ):
        ranks.run(_three_micro_batches, ranks.layout_of(pipeline=2, virtual_pipeline=2))


def _three_micro_batches(layout: ranks.Layout) -> None:
    engine = cases.engine_of(layout)
    engine.step(cases.cut(cases.windows(1, 6), 0, 1, 3), 1)


def test_error_kind_of_the_interleaving_rule() -> None:
    engine = Engine.__new__(Engine)
    engine.layout = ranks.layout_of(pipeline=4, virtual_pipeline=2)
    with pytest.raises(ConfigError, match="injection: lm_batch_size plus one batch of words"):
        engine.layout.check_micro_batches(6)
    engine.layout.check_micro_batches(8)
