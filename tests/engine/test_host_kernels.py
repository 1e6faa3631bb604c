"""The host's kernels against Megatron-Core's own, and what must go through them."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import Any

import cases
import numpy as np
import pytest
import ranks
import torch

from megalign.config.sections import OptimizerConfig, PrecisionConfig
from megalign.engine import host_kernels
from megalign.engine.mcore import GPTModel as GPTModel  # installs the hook before megatron.core is imported


def both(wrapped: Any) -> tuple[Any, Any]:
    """(ours, Megatron's)"""
    return wrapped, wrapped.__wrapped__


def test_rotary_positions_and_their_gradient() -> None:
    from megatron.core.models.common.embeddings import rope_utils

    ours, theirs = both(rope_utils._apply_rotary_pos_emb_bshd)
    draw = torch.Generator().manual_seed(0)
    freqs = torch.randn(6, 1, 1, 8, dtype=torch.float64, generator=draw)
    x = torch.randn(6, 2, 3, 8, dtype=torch.float64, generator=draw)
    upstream = torch.randn(x.shape, dtype=torch.float64, generator=draw)
    for mscale in (1.0, 1.5):
        results = []
        for rotate in (ours, theirs):
            own = x.clone().requires_grad_()
            out = rotate(own, freqs, mscale=mscale)
            out.backward(upstream)
            results.append((out.detach(), own.grad))
        for mine, other in zip(*results, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-14, atol=1e-14)
    # A head that is rotated in part goes Megatron's way.
    torch.testing.assert_close(ours(x, freqs[..., :4]), theirs(x, freqs[..., :4]), rtol=0, atol=0)


@pytest.mark.parametrize("with_bias", [True, False])
def test_a_linear_layer_adds_to_the_gradient_buffer(one_process: None, with_bias: bool) -> None:
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import layers

    ours, theirs = both(layers.linear_with_grad_accumulation_and_async_allreduce)
    draw = torch.Generator().manual_seed(0)
    x, upstream = (torch.randn(5, 2, size, dtype=torch.float64, generator=draw) for size in (4, 3))
    matrix = torch.randn(3, 4, dtype=torch.float64, generator=draw)
    vector = torch.randn(3, dtype=torch.float64, generator=draw) if with_bias else None
    before = torch.randn(3, 4, dtype=torch.float64, generator=draw)
    alone: dict[str, Any] = {"allreduce_dgrad": False, "sequence_parallel": False}
    alone["tp_group"] = parallel_state.get_tensor_model_parallel_group()

    def run(linear: Any, fused: bool) -> list[Any]:
        inputs, weight = x.clone().requires_grad_(), matrix.clone().requires_grad_()
        bias = vector.clone().requires_grad_() if vector is not None else None
        if fused:
            weight.main_grad = before.clone()  # type: ignore[attr-defined]
            weight.grad_added_to_main_grad = False  # type: ignore[attr-defined]
        out = linear(inputs, weight, bias=bias, gradient_accumulation_fusion=fused, **alone)
        out.backward(upstream)
        gradient = weight.main_grad - before if fused else weight.grad  # type: ignore[attr-defined]
        assert not fused or weight.grad_added_to_main_grad  # type: ignore[attr-defined]
        return [out.detach(), inputs.grad, gradient, *([bias.grad] if bias is not None else [])]

    for mine, other in zip(run(ours, True), run(theirs, False), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-13, atol=1e-13)
    # Without a buffer, as outside of training, the gradient goes where autograd puts it.
    plain = matrix.clone().requires_grad_()
    ours(x, plain, bias=vector, gradient_accumulation_fusion=True, **alone).backward(upstream)
    torch.testing.assert_close(plain.grad, run(theirs, False)[2], rtol=1e-13, atol=1e-13)


def test_gradients_of_bfloat16_products_are_added_in_float32() -> None:
    inputs, upstream = torch.full((2, 1), 1.0).bfloat16(), torch.full((2, 1), 1.0).bfloat16()
    buffer = torch.full((1, 1), 1000.0)
    host_kernels.wgrad_gemm_accum_fp32(inputs, upstream, buffer)
    assert buffer.item() == 1002.0  # bfloat16 has no 1002


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_and_its_gradient(one_process: None, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    from megatron.core.tensor_parallel import cross_entropy

    monkeypatch.setattr(host_kernels, "_BLOCK_NUMBERS", 50)  # several blocks, the last one shorter
    ours, theirs = both(cross_entropy.vocab_parallel_cross_entropy)
    draw = torch.Generator().manual_seed(0)
    logits = (8 * torch.randn(5, 3, 11, generator=draw)).to(dtype)
    logits[2, 1] = -1000.0
    logits[2, 1, 4] = 1000.0
    labels = torch.randint(0, 11, (5, 3), generator=draw)
    labels[2, 1] = 4
    upstream = torch.randn(5, 3, generator=draw)

    def run(loss: Any, given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        own = given.clone().requires_grad_()
        out = loss(own * 1.0, labels)  # both change their argument
        out.backward(upstream.to(out.dtype))
        assert own.grad is not None
        return out.detach(), own.grad

    exact = run(
        lambda x, y: torch.nn.functional.cross_entropy(x.flatten(0, 1), y.flatten(), reduction="none").view(5, 3),
        logits.double(),
    )
    short = 2.0**-8 if dtype == torch.bfloat16 else 1e-6
    for loss in (ours, theirs):
        nll, gradient = run(loss, logits)
        assert (nll.dtype, gradient.dtype) == (torch.float32, dtype)
        torch.testing.assert_close(nll.double(), exact[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient.double(), exact[1], rtol=short, atol=1e-6)
    torch.testing.assert_close(
        run(partial(ours, label_smoothing=0.1), logits)[0], run(partial(theirs, label_smoothing=0.1), logits)[0]
    )


def test_freed_memory_is_kept_for_the_next_step() -> None:
    code = """
import platform, resource, sys
import torch
from megalign.engine.host_memory import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.zeros(50_000_000, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
before = faults()
if platform.libc_ver()[0] != "glibc":
    sys.exit(0)
assert keep_freed_memory()
for _ in range(8):  # the heap takes some rounds to hold blocks that fit
    after = faults()
assert after < before / 20, (before, after)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=400)


def test_scaling_in_place_and_apart() -> None:
    tensors = [torch.tensor([1.0, -2.0]), torch.tensor([[3.0]])]
    apart = [torch.zeros(2), torch.zeros(1, 1)]
    host_kernels.multi_tensor_scale(0, None, [tensors, apart], torch.tensor(0.5))
    host_kernels.multi_tensor_scale(0, None, [tensors, tensors], 0.5)
    for scaled in (apart, tensors):
        assert [tensor.tolist() for tensor in scaled] == [[0.5, -1.0], [[1.5]]]


def test_megatrons_all_reduce_skips_groups_of_one(one_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron.core.tensor_parallel import cross_entropy

    called: list[Any] = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *a, **more: called.append(more["group"]))
    logits = torch.randn(3, 1, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[1], [6], [0]])
    found = cross_entropy.vocab_parallel_cross_entropy(logits.clone(), targets)
    expected = torch.nn.functional.cross_entropy(logits[:, 0], targets[:, 0], reduction="none")
    torch.testing.assert_close(found[:, 0], expected)
    assert called == []
    host_kernels.all_reduce(torch.ones(1), group=None)  # the world is not asked for its size
    assert called == [None]


def losses_of(dtype: Any) -> list[float]:
    settings = OptimizerConfig(lr=3e-3, decay="constant")
    engine = cases.engine_of(
        ranks.layout_of(), precision=PrecisionConfig(dtype=dtype), optimizer=settings, num_steps=30
    )
    return [engine.step([cases.windows(0, 8)], step).loss for step in range(1, 31)]


def test_bfloat16_parameters_learn_as_float32_ones_do(one_process: None) -> None:
    exact, short = losses_of("float32"), losses_of("bfloat16")
    assert exact[-1] < 0.7 * exact[0]
    np.testing.assert_allclose(short, exact, rtol=0.03)
    assert short != exact
