"""AdamW and its schedule against formulas and a float64 AdamW written by hand."""

from __future__ import annotations

import math
from typing import Any

import cases
import numpy as np
import pytest
import ranks

from megalign.config.sections import OptimizerConfig
from megalign.engine.engine import Engine
from megalign.engine.model import unwrapped
from megalign.engine.optimizer import adam_steps, set_step

ROWS = ("embedding.word_embeddings.weight", "output_layer.weight")


def rate_of(settings: OptimizerConfig, num_steps: int, step: int) -> float:
    """The schedule as the configuration describes it."""
    warmup = min(round(settings.warmup_fraction * num_steps), num_steps - 1)
    low = settings.lr * settings.min_lr_ratio
    if step <= warmup:
        return settings.lr * step / warmup
    progress = (step - warmup) / (num_steps - warmup)
    if settings.decay == "constant":
        share = 1.0
    elif settings.decay == "linear":
        share = 1 - progress
    elif settings.decay == "cosine":
        share = (1 + math.cos(math.pi * progress)) / 2
    else:
        share = min(1.0, (num_steps - step) / (num_steps // 2))
    return low + (settings.lr - low) * share


@pytest.mark.parametrize("decay", ["cosine", "linear", "constant", "trapezoid"])
@pytest.mark.parametrize(
    ("num_steps", "warmup_fraction", "min_lr_ratio"), [(40, 0.1, 0.1), (7, 0.0, 0.0), (5, 1.0, 0.2)]
)
def test_schedule(one_process: None, decay: Any, num_steps: int, warmup_fraction: float, min_lr_ratio: float) -> None:
    settings = OptimizerConfig(
        lr=2e-3, decay=decay, warmup_fraction=warmup_fraction, min_lr_ratio=min_lr_ratio, embedding_lr_multiplier=3.0
    )
    engine = cases.engine_of(ranks.layout_of(), optimizer=settings, num_steps=num_steps)
    steps = list(range(1, num_steps + 1))
    found = []
    for step in [*steps, *reversed(steps)]:  # a pure function of the step: going back changes nothing
        set_step(engine.scheduler, step)
        rates = {float(group["lr"]) for group in engine.optimizer.param_groups}
        assert len(rates) == (2 if max(rates) else 1)
        np.testing.assert_allclose(max(rates), 3 * min(rates))
        found.append(min(rates))
    assert found[:num_steps] == found[num_steps:][::-1]
    np.testing.assert_allclose(
        found[:num_steps], [rate_of(settings, num_steps, s) for s in steps], rtol=1e-12, atol=1e-18
    )
    assert found[0] > 0
    assert max(found) <= settings.lr * (1 + 1e-12)


class Watched(Engine):
    """Keeps every gradient before the optimizer sees it, by parameter name."""

    gradients: dict[str, np.ndarray]

    def _update(self, step: int, loss: float, level_losses: list[float]) -> tuple[float, float]:
        self.gradients = {name: p.main_grad.numpy().astype(np.float64) for name, p in parameters(self).items()}
        return super()._update(step, loss, level_losses)


def parameters(engine: Engine) -> dict[str, Any]:
    return dict(unwrapped(engine.chunks[0]).named_parameters())


@pytest.mark.parametrize("clip_grad", [0.0, 0.5, 1e6])
@pytest.mark.parametrize("cut_optimizer", [False, True])
def test_three_steps_equal_adamw_by_hand(one_process: None, clip_grad: float, cut_optimizer: bool) -> None:
    settings = OptimizerConfig(
        lr=4e-3,
        weight_decay=0.3,
        embedding_weight_decay=0.07,
        embedding_lr_multiplier=2.5,
        beta1=0.8,
        beta2=0.9,
        eps=1e-6,
        clip_grad=clip_grad,
        warmup_fraction=0.5,
    )
    layout = ranks.layout_of(distributed_optimizer=cut_optimizer)
    engine = cases.engine_of(layout, cases.MODELS["gpt-untied"], kind=Watched, optimizer=settings, num_steps=4)
    assert isinstance(engine, Watched)
    weights = {name: p.detach().numpy().astype(np.float64) for name, p in parameters(engine).items()}
    moments = {name: [np.zeros_like(w), np.zeros_like(w)] for name, w in weights.items()}
    for step in (1, 2, 3):
        (result,) = cases.pretrain(engine, step, step)
        norm = math.sqrt(sum((g**2).sum() for g in engine.gradients.values()))
        np.testing.assert_allclose(result.grad_norm, norm, rtol=1e-6)
        factor = min(1.0, clip_grad / (norm + 1e-6)) if clip_grad else 1.0
        rate = rate_of(settings, 4, step)
        np.testing.assert_allclose(result.lr, 2.5 * rate, rtol=1e-12)
        for name, weight in weights.items():
            is_rows = name in ROWS
            lr = rate * (2.5 if is_rows else 1.0)
            decay = 0.0 if weight.ndim == 1 else 0.07 if is_rows else 0.3
            g = engine.gradients[name] * factor
            first, second = moments[name]
            first[:] = 0.8 * first + 0.2 * g
            second[:] = 0.9 * second + 0.1 * g**2
            weight *= 1 - lr * decay
            weight -= lr * (first / (1 - 0.8**step)) / (np.sqrt(second / (1 - 0.9**step)) + 1e-6)
        for name, parameter in parameters(engine).items():
            np.testing.assert_allclose(parameter.detach().numpy(), weights[name], rtol=1e-6, atol=5e-7, err_msg=name)
    assert adam_steps(engine.optimizer) == {3.0}


@pytest.mark.parametrize(("matrix", "rows"), [(0.1, 0.1), (0.3, 0.07), (0.07, 0.3), (0.0, 0.1), (0.1, 0.0), (0.0, 0.0)])
def test_weight_decays_land_in_the_right_parameters(one_process: None, matrix: float, rows: float) -> None:
    settings = OptimizerConfig(weight_decay=matrix, embedding_weight_decay=rows, embedding_lr_multiplier=0.5)
    engine = cases.engine_of(ranks.layout_of(), cases.MODELS["gpt-untied"], optimizer=settings)
    set_step(engine.scheduler, 1)
    name_of = {id(parameter): name for name, parameter in parameters(engine).items()}
    seen = set()
    for group in engine.optimizer.param_groups:
        for parameter in group["params"]:
            name = name_of[id(parameter)]
            seen.add(name)
            expected = 0.0 if parameter.dim() == 1 else rows if name in ROWS else matrix
            assert group["weight_decay"] == pytest.approx(expected, abs=1e-15), name
            assert group["eps"] == settings.eps
            assert tuple(group["betas"]) == (settings.beta1, settings.beta2)
    assert seen == set(name_of.values())
