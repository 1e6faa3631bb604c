"""On the host: what Megatron-Core otherwise takes from CUDA extensions, where its own fallback passes over memory twice.

Nothing here changes what is computed, only rounding in the last bit.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch

_BLOCK_NUMBERS = 2**16  # 256 KB in float32


def wgrad_gemm_accum_fp32(inputs: torch.Tensor, grad_output: torch.Tensor, main_grad: torch.Tensor) -> None:
    """main_grad += grad_output^T inputs, in one matrix product where the types allow it (apex's name and arguments).

    Args:
        inputs: [tokens, in], of the forward pass.
        grad_output: [tokens, out].
        main_grad: float32 [out, in], changed.
    """
    if inputs.dtype == main_grad.dtype:
        torch.addmm(main_grad, grad_output.t(), inputs, out=main_grad)
    else:
        product = grad_output.t() @ inputs
        for rows in _blocks(product):  # torch converts before it adds
            main_grad[rows].add_(product[rows])


def _blocks(matrix: torch.Tensor) -> Iterator[slice]:
    """Rows that stay in a core's cache while they are worked on."""
    step = max(1, _BLOCK_NUMBERS // matrix.size(1))
    return (slice(first, first + step) for first in range(0, matrix.size(0), step))


def multi_tensor_scale(chunk_size: int, noop_flag: Any, tensor_lists: list[list[torch.Tensor]], scale: Any) -> None:
    """Every tensor of the second list = that of the first x scale (amp_C's name and arguments)."""
    for source, target in zip(*tensor_lists, strict=True):
        torch.mul(source, float(scale), out=target)


class _Linear(torch.autograd.Function):
    """input [..., in] x weight^T + bias; the weight's gradient goes to its main_grad, without a tensor of its own."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.main_grad = weight.main_grad  # type: ignore[attr-defined]
        ctx.has_bias = bias is not None
        return torch.nn.functional.linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:  # type: ignore[override]
        inputs, weight = ctx.saved_tensors
        rows = grad_output.reshape(-1, grad_output.size(-1))
        grad_input = grad_output.matmul(weight)
        wgrad_gemm_accum_fp32(inputs.reshape(-1, inputs.size(-1)), rows, ctx.main_grad)
        # Megatron's hook on the weight must still run; it looks at the mark, not at this.
        weight.grad_added_to_main_grad = True
        return grad_input, torch.empty_like(weight), rows.sum(0) if ctx.has_bias else None


def linear(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Megatron's linear layer where its backward pass has nothing to wait for: bias and gradients in the products."""

    @functools.wraps(original)
    def call(input: torch.Tensor, weight: torch.Tensor, *, bias: torch.Tensor | None, **more: Any) -> torch.Tensor:
        if getattr(weight, "main_grad", None) is None:  # not under DDP: gradients go where autograd puts them
            more["gradient_accumulation_fusion"] = False
        communicates = more["allreduce_dgrad"] or more["sequence_parallel"] or more.get("grad_output_buffer")
        if more["gradient_accumulation_fusion"] and not communicates:
            result: torch.Tensor = _Linear.apply(input, weight, bias)
            return result
        return original(input, weight, bias=bias, **more)

    return call


class _Rotary(torch.autograd.Function):
    """[x1, x2] -> [x1 cos - x2 sin, x2 cos + x1 sin], halves of the last dimension (RoFormer, Su et al. 2021)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        first, second = sin.chunk(2, -1)
        return _rotate(x, cos, first, second, 1.0)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        first, second = sin.chunk(2, -1)
        return _rotate(grad_output, cos, second, first, -1.0), None, None


def _rotate(x: torch.Tensor, cos: torch.Tensor, first: torch.Tensor, second: torch.Tensor, sign: float) -> torch.Tensor:
    """[x1, x2] -> [x1 cos - sign x2 first, x2 cos + sign x1 second]"""
    result = x * cos
    (x1, x2), (y1, y2) = x.chunk(2, -1), result.chunk(2, -1)
    y1.addcmul_(x2, first, value=-sign)
    y2.addcmul_(x1, second, value=sign)
    return result


def rotary(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Megatron's rotary positions, where the whole head is rotated by halves."""

    @functools.wraps(original)
    def call(
        t: torch.Tensor,
        freqs: torch.Tensor,
        rotary_interleaved: bool = False,
        *rest: Any,
        mscale: float = 1.0,
        **more: Any,
    ) -> torch.Tensor:
        if rotary_interleaved or rest or any(more.values()) or freqs.size(-1) != t.size(-1):
            return original(t, freqs, rotary_interleaved, *rest, mscale=mscale, **more)
        result: torch.Tensor = _Rotary.apply(t, (freqs.cos() * mscale).to(t.dtype), (freqs.sin() * mscale).to(t.dtype))
        return result

    return call


class _CrossEntropy(torch.autograd.Function):
    """Negative log-likelihood of labels. Megatron passes eight times over all logits; here a block is read once."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        scores, wanted = logits.detach().reshape(-1, logits.size(-1)), labels.reshape(-1, 1)
        # softmax - one-hot. Like Megatron's, it takes the place of float32 logits: the linear layer did not keep them.
        gradient = scores if scores.dtype == torch.float32 else torch.empty(scores.shape, dtype=torch.float32)
        nll = torch.empty(wanted.shape, dtype=torch.float32)
        for rows in _blocks(scores):
            own = gradient[rows]
            if gradient is not scores:
                own.copy_(scores[rows])
            block = torch.log_softmax(own, -1)
            nll[rows] = -block.gather(1, wanted[rows])
            torch.exp(block, out=own)
        gradient.scatter_add_(1, wanted, torch.full_like(nll, -1.0))
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        return nll.view(labels.shape)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        upstream = grad_output.reshape(-1, 1)
        result = gradient
        if ctx.dtype != gradient.dtype:
            result = torch.empty(gradient.shape, dtype=ctx.dtype)
        for rows in _blocks(gradient):
            scaled = gradient[rows].mul_(upstream[rows])
            if result is not gradient:
                result[rows] = scaled
        return result.view(*grad_output.shape, -1), None


def cross_entropy(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Megatron's cross entropy where the vocabulary is not split."""

    @functools.wraps(original)
    def call(logits: torch.Tensor, target: torch.Tensor, label_smoothing: float = 0.0, **more: Any) -> torch.Tensor:
        from megatron.core import parallel_state

        if label_smoothing or parallel_state.get_tensor_model_parallel_world_size() > 1:
            return original(logits, target, label_smoothing, **more)
        result: torch.Tensor = _CrossEntropy.apply(logits, target)
        return result

    return call


def all_reduce(tensor: torch.Tensor, *rest: Any, **more: Any) -> Any:
    """torch.distributed's, without a journey through gloo's threads where a group has one member."""
    group = more.get("group")
    if group is not None and group.size() == 1 and not more.get("async_op"):
        return None
    return torch.distributed.all_reduce(tensor, *rest, **more)


def install(module: types.ModuleType) -> None:
    """Put them into a module of Megatron-Core that has just been imported, if it is one that uses them."""
    names: dict[str, Any] = module.__dict__
    names["_all_reduce"] = all_reduce
    if module.__name__ == "megatron.core.tensor_parallel.layers":
        name = "linear_with_grad_accumulation_and_async_allreduce"
        names |= {
            "fused_weight_gradient_mlp_cuda": types.SimpleNamespace(wgrad_gemm_accum_fp32=wgrad_gemm_accum_fp32),
            "_grad_accum_fusion_available": True,
            name: linear(names[name]),
        }
    elif module.__name__ == "megatron.core.tensor_parallel.cross_entropy":
        names["vocab_parallel_cross_entropy"] = cross_entropy(names["vocab_parallel_cross_entropy"])
    elif module.__name__ == "megatron.core.models.common.embeddings.rope_utils":
        names["_apply_rotary_pos_emb_bshd"] = rotary(names["_apply_rotary_pos_emb_bshd"])
    elif module.__name__ == "megatron.core.optimizer.clip_grads":
        names["multi_tensor_scale_impl"] = multi_tensor_scale
