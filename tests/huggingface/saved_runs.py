"""Folders of runs whose weights are large random numbers, saved under a layout: what they say differs from prompt to prompt."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import ranks
import training_data
import yaml

from megalign.config import RunConfig
from megalign.config.layout import Layout
from megalign.corpus.build import build_language
from megalign.corpus.procedural import ProceduralEnglish
from megalign.corpus.store import StoreWriter, TokenStore
from megalign.corpus.tokenizer import train_tokenizer
from megalign.corpus.vocabulary import Vocabulary

LEARNED: dict[str, Any] = {}
ROTARY: dict[str, Any] = {"position_embedding": "rotary"}
LLAMA: dict[str, Any] = {
    "position_embedding": "rotary",
    "normalization": "RMSNorm",
    "activation": "swiglu",
    "linear_bias": False,
    "tied_embeddings": False,
    "num_query_groups": 2,
}
# 800 ids (English and its clone) become 832 rows.
MODEL: dict[str, Any] = {
    "num_layers": 4,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "ffn_hidden_size": 48,
    "sequence_length": 32,
    "init_std": 0.3,
    "vocab_size_multiple": 64,
}


def config_of(files: Path, folder: Path, **model: Any) -> RunConfig:
    """The configuration of a run over the small store; nothing is switched or injected."""
    store = TokenStore.open(files / "store")
    content = {
        "name": "tiny",
        "folder": str(folder),
        "seed": 5,
        "model": {**MODEL, "position_embedding": "learned", **model},
        "data": {
            "store": str(files / "store"),
            "sources": [{"language": name, "weight": 3.0 - 2.0 * n} for n, name in enumerate(store.languages)],
        },
        "train": {"steps": 2, "global_batch_size": 4, "log_interval": 1},
    }
    return RunConfig.model_validate(content)


def save(layout: Layout, config: RunConfig, seed: int = 1, step: int = 7) -> None:
    """On every rank: write a checkpoint with random weights, biases and norms too."""
    import torch

    from megalign.engine import checkpoint
    from megalign.engine.engine import Engine
    from megalign.engine.model import unwrapped
    from megalign.engine.weights import generator_for, set_weights, sharded_parameters
    from megalign.training.inputs import RunFolder

    store = TokenStore.open(Path(config.data.store))
    engine = Engine(config.model, layout, config.precision, vocab_size=store.vocabulary.size, seed=seed)
    chunks = [unwrapped(chunk) for chunk in engine.chunks]
    weights = {}
    for tensor in (one for chunk in chunks for one in sharded_parameters(chunk)):
        noise = torch.randn(*tensor.global_shape, generator=generator_for(seed, tensor.key))
        weights[tensor.key] = noise * 0.3 + ("norm" in tensor.key and "bias" not in tensor.key)
    set_weights(chunks, weights)
    state = {"stage": "pretrain", "store": store.fingerprint, "samples": 0}
    checkpoint.save(engine, RunFolder(Path(config.folder)).checkpoints("pretrain"), step, state, keep=2)


def write_run(
    files: Path, folder: Path, parallel: dict[str, Any] | None = None, dtype: str = "float32", **model: Any
) -> Path:
    """The folder of a run with one checkpoint, written by the processes of a layout."""
    config = config_of(files, folder, **model)
    precision = config.precision.model_copy(update={"dtype": dtype})
    layout = ranks.layout_of(**(parallel or {}))
    config = config.model_copy(update={"parallel": layout.parallel, "precision": precision})
    folder.mkdir(parents=True)
    content = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    (folder / "config.yaml").write_text(content, encoding="utf-8")
    ranks.run(save, layout, config)
    return folder


def build_files(folder: Path) -> Path:
    """The small store of the training tests."""
    folder.mkdir(parents=True, exist_ok=True)
    return training_data.build_files(folder)


def build_plain_files(folder: Path) -> Path:
    """A store with English alone, whose ids all have texts."""
    folder.mkdir(parents=True, exist_ok=True)
    english = ProceduralEnglish(0)
    tokenizer = train_tokenizer(islice(english.documents("train"), 60), 400, folder / "tokenizer.json")
    with StoreWriter(folder / "store", Vocabulary(tokenizer, ("en",))) as writer:
        build_language(writer, documents=english.documents("train"), language="en", budget_tokens=2000)
    return folder
