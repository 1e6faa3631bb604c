"""Small models, batches and runs that the tests of the engine share; everything follows from fixed seeds."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from packaging.version import Version

from megalign.config.layout import Layout
from megalign.config.sections import InjectConfig, ModelConfig, OptimizerConfig, PrecisionConfig
from megalign.engine.engine import Engine, LanguageBatch, StepResult
from megalign.engine.mcore import megatron_core_version
from megalign.engine.model import unwrapped
from megalign.engine.weights import sharded_parameters
from megalign.prealign.words import WordBatch, WordBatches

# Since 0.17 Megatron-Core has other checkpoints' common parts, and some of the traps are gone.
LATER_MEGATRON = Version(megatron_core_version) >= Version("0.17")
NUM_SOURCES = 3
VOCAB_SIZE = 90  # padded to 96
SEED = 11
SETTINGS = OptimizerConfig(lr=3e-3, warmup_fraction=0.2, embedding_lr_multiplier=2.0, embedding_weight_decay=0.02)
INJECT = InjectConfig(steps=4, entries_per_step=6, lm_batch_size=6, row_width_tokens=8)

_SHAPE: dict[str, Any] = {
    "num_layers": 4,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "ffn_hidden_size": 64,
    "sequence_length": 16,
    "vocab_size_multiple": 32,
    "init_std": 0.08,
}
GPT = ModelConfig(**_SHAPE)
MODELS = {
    "gpt": GPT,
    "gpt-5-layers": GPT.model_copy(update={"num_layers": 5}),
    "gpt-untied": ModelConfig(**_SHAPE, tied_embeddings=False),
    "llama": ModelConfig(
        **_SHAPE,
        num_query_groups=2,
        position_embedding="rotary",
        normalization="RMSNorm",
        activation="swiglu",
        linear_bias=False,
        tied_embeddings=False,
    ),
    "llama-tied": ModelConfig(
        **_SHAPE,
        num_query_groups=2,
        position_embedding="rotary",
        normalization="RMSNorm",
        activation="swiglu",
        linear_bias=False,
    ),
}


def engine_of(
    layout: Layout,
    model: ModelConfig = GPT,
    kind: type[Engine] = Engine,
    precision: PrecisionConfig | None = None,
    **kwargs: Any,
) -> Engine:
    """A training engine of the fixed seed; keywords replace Engine's."""
    settings = {"vocab_size": VOCAB_SIZE, "seed": SEED, "optimizer": SETTINGS, "num_steps": 20, **kwargs}
    return kind(model, layout, precision or PrecisionConfig(), **settings)


def windows(step: int, num_windows: int, sequence_length: int = 16, num_sources: int = 1) -> LanguageBatch:
    """The global batch of a step; each window's targets end at a random place, and its source is random."""
    rng = np.random.default_rng([SEED, step])
    text = rng.integers(0, VOCAB_SIZE, (num_windows, sequence_length + 1))
    ends = rng.integers(1, sequence_length + 1, (num_windows, 1))
    mask = (np.arange(sequence_length) < ends).astype(np.float32)
    sources = rng.integers(0, num_sources, num_windows)
    return LanguageBatch(text[:, :-1].copy(), text[:, 1:].copy(), mask, sources, 3 * ends[:, 0] + sources)


def cut(batch: LanguageBatch, data_rank: int, data_size: int, num_micro_batches: int) -> list[LanguageBatch]:
    """A data-parallel rank's micro-batches of a global batch."""
    per_rank = len(batch.tokens) // data_size
    size = per_rank // num_micro_batches
    starts = range(data_rank * per_rank, (data_rank + 1) * per_rank, size)
    arrays = [getattr(batch, field.name) for field in fields(batch)]
    return [LanguageBatch(*(array[s : s + size] for array in arrays)) for s in starts]


def word_batches(num_entries: int = 12) -> WordBatches:
    """Words of 1 to 4 sub-words, 2 to 4 in an entry; some forms stand in two entries."""
    rng = np.random.default_rng(SEED)
    words: list[tuple[int, tuple[int, ...]]] = []
    entry_offsets = [0]
    for entry in range(num_entries):
        forms = [tuple(rng.integers(1, VOCAB_SIZE, rng.integers(1, 5)).tolist()) for _ in range(rng.integers(1, 4))]
        forms.append(words[0][1] if entry % 3 == 1 else (entry + 1, entry + 2))
        words += [(entry, form) for form in dict.fromkeys(forms)]
        entry_offsets.append(len(words))
    surfaces: dict[tuple[int, ...], int] = {}
    encoded: Any = SimpleNamespace(
        ids=np.concatenate([np.array(form) for _, form in words]),
        offsets=np.cumsum([0, *(len(form) for _, form in words)]),
        entry=np.array([entry for entry, _ in words]),
        surface=np.array([surfaces.setdefault(form, len(surfaces)) for _, form in words]),
        entry_offsets=np.array(entry_offsets),
        batch_entries=np.arange(num_entries),
        vocabulary=SimpleNamespace(eos_id=0),
    )
    return WordBatches(encoded, entries_per_batch=INJECT.entries_per_step, seed=SEED, row_width_tokens=8)


def words_of(step: int, layout: Layout, data_rank: int) -> WordBatch:
    """A data-parallel rank's words at a step."""
    return word_batches().batch(step, data_rank, layout.parallel.data)


def data_rank_of(layout: Layout) -> int:
    """This process's data-parallel coordinate."""
    from megalign.engine import groups

    return layout.coordinates(groups.rank()).data


def pretrain(engine: Engine, first: int, last: int) -> list[StepResult]:
    """Steps `first`..`last` on 8 windows each, in 4 micro-batches of all ranks together."""
    data_size, rank = engine.layout.parallel.data, data_rank_of(engine.layout)
    return [
        engine.step(
            cut(windows(s, 8, num_sources=NUM_SOURCES), rank, data_size, 4 // data_size), s, num_sources=NUM_SOURCES
        )
        for s in range(first, last + 1)
    ]


def inject(engine: Engine, first: int, last: int) -> list[StepResult]:
    """Steps of 6 windows in 3 micro-batches and one of words."""
    layout = engine.layout
    rank = data_rank_of(layout)
    return [
        engine.step(
            [*cut(windows(s, 6, num_sources=NUM_SOURCES), rank, layout.parallel.data, 3), words_of(s, layout, rank)],
            s,
            lm_weight=0.5,
            inject=INJECT,
            num_sources=NUM_SOURCES,
        )
        for s in range(first, last + 1)
    ]


Shard = tuple[str, tuple[int, ...], tuple[int, ...], np.ndarray]


def shards_of(engine: Engine) -> list[Shard]:
    """This rank's parameters as (key, shape of the global tensor, place in it, values); bfloat16 as float32."""
    shards = []
    for chunk in engine.chunks:
        for t in sharded_parameters(unwrapped(chunk)):
            data = t.data.detach()
            values = (data.float() if data.dtype == torch.bfloat16 else data).numpy().copy()
            shape = [1] * t.prepend_axis_num + list(t.local_shape[-data.dim() :])
            shards.append((t.key, tuple(t.global_shape), tuple(t.global_offset), values.reshape(shape)))
    return shards


def assemble(ranks: list[list[Shard]]) -> dict[str, np.ndarray]:
    """Global tensors by key from all ranks' shards; replicas must be equal, and nothing may be missing."""
    full: dict[str, np.ndarray] = {}
    for key, shape, offset, values in (shard for shards in ranks for shard in shards):
        whole = full.setdefault(key, np.full(shape, np.nan, dtype=values.dtype))
        part = whole[tuple(slice(o, o + n) for o, n in zip(offset, values.shape, strict=True))]
        if not np.isnan(part).all():
            np.testing.assert_array_equal(part, values, err_msg=f"replicas of {key} differ")
        part[...] = values
    for key, whole in full.items():
        assert not np.isnan(whole).any(), f"part of {key} is on no rank"
    return full


def largest_difference(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> tuple[float, float]:
    """(largest absolute difference over all parameters, largest absolute value on the right)."""
    assert left.keys() == right.keys()
    return (
        max(float(np.abs(left[key] - right[key]).max()) for key in right),
        max(float(np.abs(value).max()) for value in right.values()),
    )
