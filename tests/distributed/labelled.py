"""What the tests of the classification head compute on the ranks of a layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cases
import numpy as np
import torch

from megalign.config.layout import Layout
from megalign.config.sections import ModelConfig
from megalign.engine import checkpoint, groups
from megalign.engine.classification import LabelledBatch
from megalign.engine.classifier import ClassifierEngine
from megalign.engine.engine import Engine
from megalign.engine.model import unwrapped
from megalign.engine.weights import sharded_parameters

NUM_LABELS, NUM_ROWS, WIDTH = 3, 8, 12


def batch_of(step: int) -> LabelledBatch:
    """The global batch of a step: rows end at random places, one of them only fills it up."""
    rng = np.random.default_rng([cases.SEED, step])
    tokens = rng.integers(0, cases.VOCAB_SIZE, (NUM_ROWS, WIDTH))
    weights = np.ones(NUM_ROWS, dtype=np.float32)
    weights[-1] = 0.0
    return LabelledBatch(tokens, rng.integers(2, WIDTH, NUM_ROWS), rng.integers(0, NUM_LABELS, NUM_ROWS), weights)


def parts_of(layout: Layout, batch: LabelledBatch, num_batches: int) -> list[LabelledBatch]:
    """This data-parallel rank's micro-batches."""
    place = layout.coordinates(groups.rank()).data
    count = layout.parallel.data * num_batches
    cut = [
        LabelledBatch(*(np.ascontiguousarray(a) for a in arrays))
        for arrays in zip(
            *(np.split(a, count) for a in (batch.tokens, batch.ends, batch.labels, batch.weights)), strict=True
        )
    ]
    return cut[place * num_batches : (place + 1) * num_batches]


def classifier(layout: Layout, model: ModelConfig, **changes: Any) -> ClassifierEngine:
    """A classifier of the fixed seed."""
    settings = {
        "vocab_size": cases.VOCAB_SIZE,
        "seed": cases.SEED,
        "optimizer": cases.SETTINGS,
        "num_steps": 20,
        "num_labels": NUM_LABELS,
        **changes,
    }
    return ClassifierEngine(model, layout, cases.PrecisionConfig(), **settings)


def train(layout: Layout, model: ModelConfig, num_steps: int, num_batches: int) -> dict[str, Any]:
    """Losses, gradient norms and the logits after some steps."""
    engine = classifier(layout, model)
    results = [engine.step_labels(parts_of(layout, batch_of(s), num_batches), s) for s in range(1, num_steps + 1)]
    logits = engine.label_logits(batch_of(99))
    return {"losses": [r.loss for r in results], "norms": [r.grad_norm for r in results], "logits": logits}


def first_gradients(layout: Layout, model: ModelConfig) -> dict[str, Any]:
    """Weights and gradients of the first step, undivided, with the loss; in one process."""
    engine = classifier(layout, model)
    engine._update = lambda step, loss, levels: (0.0, 0.0)  # type: ignore[method-assign]
    loss = engine.step_labels(parts_of(layout, batch_of(1), 1), 1).loss
    chunk = unwrapped(engine.chunks[0])
    named = dict(chunk.named_parameters())
    return {
        "loss": loss,
        "weights": {name: p.detach().numpy().copy() for name, p in named.items()},
        "gradients": {name: p.main_grad.numpy().copy() for name, p in named.items()},
    }


def reference(model: ModelConfig, weights: dict[str, np.ndarray], batch: LabelledBatch) -> tuple[float, dict[str, Any]]:
    """Loss and gradients of the same model written out in float64: a GPT with learned positions and tied rows."""
    w = {name: torch.from_numpy(value).double().requires_grad_() for name, value in weights.items()}
    heads, size = model.num_attention_heads, model.hidden_size
    tokens = torch.from_numpy(batch.tokens)
    rows, width = tokens.shape
    x = w["embedding.word_embeddings.weight"][tokens] + w["embedding.position_embeddings.weight"][:width]
    hidden_from = torch.triu(torch.ones(width, width, dtype=torch.bool), 1)

    def norm(values: torch.Tensor, name: str) -> torch.Tensor:
        return torch.nn.functional.layer_norm(
            values, (size,), w[f"{name}.weight"], w[f"{name}.bias"], model.norm_epsilon
        )

    def linear(values: torch.Tensor, name: str) -> torch.Tensor:
        return values @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    for number in range(model.num_layers):
        layer = f"decoder.layers.{number}"
        qkv = linear(norm(x, f"{layer}.input_layernorm"), f"{layer}.self_attention.linear_qkv")
        q, k, v = qkv.view(rows, width, heads, 3, size // heads).permute(3, 0, 2, 1, 4)
        scores = (q @ k.transpose(-1, -2) / (size // heads) ** 0.5).masked_fill(hidden_from, float("-inf"))
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(rows, width, size)
        x = x + linear(mixed, f"{layer}.self_attention.linear_proj")
        inner = linear(norm(x, f"{layer}.pre_mlp_layernorm"), f"{layer}.mlp.linear_fc1")
        x = x + linear(torch.nn.functional.gelu(inner), f"{layer}.mlp.linear_fc2")
    x = norm(x, "decoder.final_layernorm")
    logits = linear(x[torch.arange(rows), torch.from_numpy(batch.ends)], "classification_head")
    own = logits.log_softmax(-1)[torch.arange(rows), torch.from_numpy(batch.labels)]
    weight = torch.from_numpy(batch.weights).double()
    loss = -(own * weight).sum() / weight.sum()
    loss.backward()
    return float(loss.detach()), {name: value.grad.numpy() for name, value in w.items()}


def head_after_loading(layout: Layout, model: ModelConfig, folder: Path) -> dict[str, Any]:
    """A pretrained checkpoint is read without a head; a tuned one is saved and read with it."""
    plain = Engine(
        model,
        layout,
        cases.PrecisionConfig(),
        vocab_size=cases.VOCAB_SIZE,
        seed=5,
        optimizer=cases.SETTINGS,
        num_steps=4,
    )
    checkpoint.save(plain, folder / "plain", 1, {"stage": "pretrain"}, keep=1)
    engine = classifier(layout, model)
    path = checkpoint.latest(folder / "plain")
    assert path is not None
    with engine.without_head():
        checkpoint.load(engine, path, with_optimizer=False)
    loaded = [
        t.data.clone() for chunk in engine.chunks for t in sharded_parameters(unwrapped(chunk)) if "word_emb" in t.key
    ]
    before = [t.data for chunk in plain.chunks for t in sharded_parameters(unwrapped(chunk)) if "word_emb" in t.key]
    engine.step_labels(parts_of(layout, batch_of(1), 1), 1)
    checkpoint.save(engine, folder / "tuned", 1, {"stage": "finetune"}, keep=1)
    again = classifier(layout, model, seed=77)
    tuned = checkpoint.latest(folder / "tuned")
    assert tuned is not None
    checkpoint.load(again, tuned)
    return {
        "loaded": all(bool((a == b).all()) for a, b in zip(loaded, before, strict=True)),
        "same": float(np.abs(engine.label_logits(batch_of(9)) - again.label_logits(batch_of(9))).max()),
    }
