"""FusedAttention against Megatron-Core's own attention and a float64 reference by loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import ranks
import torch
from torch.nn.attention.bias import causal_lower_right

from megalign.config.sections import ModelConfig, PrecisionConfig
from megalign.engine import groups
from megalign.engine.device import DEVICE
from megalign.engine.model import transformer_config
from megalign.engine.specs import FusedAttention

SEQUENCE, BATCH, HEADS, HEAD_SIZE = 12, 3, 4, 8


def config_of(num_query_groups: int | None) -> Any:
    model = ModelConfig(
        num_layers=2,
        hidden_size=HEADS * HEAD_SIZE,
        num_attention_heads=HEADS,
        num_query_groups=num_query_groups,
        ffn_hidden_size=32,
        sequence_length=SEQUENCE,
    )
    return transformer_config(model, ranks.layout_of(), PrecisionConfig())


def by_loops(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Each head, window and position alone: softmax over the keys that are not hidden."""
    query, key, value = query.double(), key.double(), value.double()
    heads_per_group = HEADS // key.size(2)
    rows = []
    for s in range(SEQUENCE):
        windows = []
        for b in range(BATCH):
            heads = []
            for h in range(HEADS):
                seen = [t for t in range(SEQUENCE) if not hidden[b, 0, s, t]]
                logits = torch.stack([query[s, b, h] @ key[t, b, h // heads_per_group] for t in seen])
                weights = torch.softmax(logits / math.sqrt(HEAD_SIZE), 0)
                heads.append(sum(w * value[t, b, h // heads_per_group] for w, t in zip(weights, seen, strict=True)))
            windows.append(torch.cat(heads))
        rows.append(torch.stack(windows))
    return torch.stack(rows)


def masks() -> dict[str, torch.Tensor | None]:
    causal = torch.ones(SEQUENCE, SEQUENCE, dtype=torch.bool).triu(1)[None, None].expand(BATCH, -1, -1, -1)
    generator = torch.Generator().manual_seed(3)
    arbitrary = torch.rand(BATCH, 1, SEQUENCE, SEQUENCE, generator=generator) < 0.5
    arbitrary &= ~torch.eye(SEQUENCE, dtype=torch.bool)  # no row may be empty
    return {"none": None, "causal": causal, "arbitrary": arbitrary}


@pytest.mark.parametrize("num_query_groups", [None, 2, 1])
@pytest.mark.parametrize("kind", ["none", "causal", "arbitrary"])
def test_equals_megatrons_attention_and_the_reference(
    one_process: None, kind: str, num_query_groups: int | None
) -> None:
    from megatron.core.transformer.dot_product_attention import DotProductAttention
    from megatron.core.transformer.enums import AttnMaskType

    groups.seed_dropout(0, 0)  # Megatron's attention enters its generator even without dropout
    config = config_of(num_query_groups)
    generator = torch.Generator().manual_seed(1)
    shapes = [HEADS, num_query_groups or HEADS, num_query_groups or HEADS]
    tensors = [torch.randn(SEQUENCE, BATCH, heads, HEAD_SIZE, generator=generator) for heads in shapes]
    upstream = torch.randn(SEQUENCE, BATCH, HEADS * HEAD_SIZE, generator=generator)
    mask = masks()[kind]
    whole = masks()["causal"] if mask is None else mask
    assert whole is not None

    def run(attention: Any, mask: torch.Tensor | None) -> list[torch.Tensor]:
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        output = attention(*leaves, mask)
        output.backward(upstream.to(output.dtype))
        return [output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    ours = run(FusedAttention(config, 1, AttnMaskType.causal, "self"), mask)
    megatrons = run(DotProductAttention(config, 1, AttnMaskType.arbitrary, "self"), whole)
    reference = run(lambda query, key, value, hidden: by_loops(query, key, value, hidden), whole)
    assert len(ours) == 4
    for found, theirs, expected in zip(ours, megatrons, reference, strict=True):
        torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=5e-6)
        torch.testing.assert_close(found, theirs, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("num_query_groups", [HEADS, 2])
def test_the_last_chunk_of_a_window_sees_all_that_came_before(one_process: None, num_query_groups: int) -> None:
    """The call that context parallelism makes for each of its chunks; on a GPU it ends in kernels of another name."""
    attention = FusedAttention(config_of(num_query_groups), 1, None, "self")
    generator = torch.Generator().manual_seed(6)
    shapes = [(64, HEADS), (256, num_query_groups), (256, num_query_groups)]
    inputs = [torch.randn(length, BATCH, heads, 32, generator=generator) for length, heads in shapes]
    visible = torch.ones(64, 256, dtype=torch.bool, device=DEVICE).tril(256 - 64)

    def run(dtype: torch.dtype, mask: torch.Tensor) -> list[torch.Tensor]:
        leaves = [tensor.to(DEVICE, dtype, copy=True).requires_grad_() for tensor in inputs]
        output = attention._fused(*leaves, mask, 0.0)
        (output.square().sum() / 2).backward()
        return [tensor.detach().double() for tensor in (output, *(leaf.grad for leaf in leaves)) if tensor is not None]

    expected = run(torch.float64, visible)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        found = run(dtype, causal_lower_right(64, 256))
        assert len(found) == 4
        for own, exact in zip(found, expected, strict=True):
            assert (own - exact).abs().max() < tolerance * exact.abs().max(), dtype


def test_a_layer_number_does_not_change_the_scale(one_process: None) -> None:
    """Megatron scales by layer number and back in fp16 only; ours never does."""
    config = config_of(None)
    x = torch.randn(SEQUENCE, BATCH, HEADS, HEAD_SIZE, generator=torch.Generator().manual_seed(2))
    first, ninth = (FusedAttention(config, number, None, "self")(x, x, x, None) for number in (1, 9))
    assert torch.equal(first, ninth)


def test_dropout_only_while_training(one_process: None) -> None:
    attention = FusedAttention(config_of(None), 1, None, "self", attention_dropout=0.5)
    x = torch.ones(SEQUENCE, BATCH, HEADS, HEAD_SIZE)
    outputs = []
    for step in (1, 1, 2):
        groups.seed_dropout(5, step)
        before = torch.get_rng_state()
        outputs.append(attention(x, x, x, None))
        assert torch.equal(torch.get_rng_state(), before), "the default generator was used"
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], torch.ones_like(outputs[0]))
    attention.eval()
    torch.testing.assert_close(attention(x, x, x, None), torch.ones_like(outputs[0]))


def test_what_it_cannot_do_is_refused(one_process: None) -> None:
    attention = FusedAttention(config_of(None), 1, None, "self")
    x = torch.zeros(SEQUENCE, BATCH, HEADS, HEAD_SIZE)
    with pytest.raises(ValueError, match="neither packed sequences nor attention biases"):
        attention(x, x, x, None, packed_seq_params=object())
    with pytest.raises(ValueError, match="neither packed sequences nor attention biases"):
        attention(x, x, x, None, attention_bias=x)
