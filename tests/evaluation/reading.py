"""What the tests of evaluation compute on a run's ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from megalign.cluster.ranks import Rank
from megalign.config import RunConfig, load_run
from megalign.config.layout import Layout
from megalign.engine import checkpoint, groups
from megalign.engine.engine import Engine
from megalign.engine.model import unwrapped
from megalign.evaluation.run import evaluate
from megalign.evaluation.scores import Score
from megalign.training.run import RunFolder, RunInputs


def scores_of(layout: Layout, config: RunConfig) -> list[Score]:
    """`evaluate` under the layout."""
    parallel = config.model_copy(update={"parallel": layout.parallel})
    return evaluate(parallel, Rank(groups.rank(), layout.world_size, groups.rank(), "", "torchrun"))


def _trained(layout: Layout, config: RunConfig) -> Engine:
    engine = RunInputs.open(config).engine(layout, None)
    path = checkpoint.latest(RunFolder(Path(config.folder)).checkpoints("pretrain"))
    assert path is not None
    checkpoint.load(engine, path, with_optimizer=False)
    return engine


def logits_of(layout: Layout, config: RunConfig, rows: list[np.ndarray]) -> list[np.ndarray]:
    """The logits of each row of tokens, computed alone and without padding: float32 [length, padded vocabulary]."""
    model = unwrapped(_trained(layout, config).chunks[0]).eval()
    return [_forward(model, row)[0].numpy() for row in rows]


def word_vectors(layout: Layout, config: RunConfig, words: list[np.ndarray]) -> np.ndarray:
    """The vectors of words, each a sequence of its own: float64 [levels, words, hidden size]."""
    model = unwrapped(_trained(layout, config).chunks[0]).eval()
    states: list[torch.Tensor] = []
    model.embedding.register_forward_hook(lambda _, __, output: states.append(output))
    for layer in model.decoder.layers:
        layer.register_forward_hook(lambda _, __, output: states.append(output[0]))
    rows = model.embedding.word_embeddings.weight.detach().double()  # the output embedding is tied to it
    result = []
    for word in words:
        states.clear()
        _forward(model, word)
        levels = [state[:, 0].detach().double().mean(0) for state in states]
        result.append(torch.stack([*levels, rows[torch.from_numpy(word.astype(np.int64))].mean(0)]).numpy())
    return np.stack(result, axis=1)


@torch.no_grad()
def _forward(model: Any, row: np.ndarray) -> torch.Tensor:
    tokens = torch.from_numpy(row.astype(np.int64))[None]
    logits: torch.Tensor = model(tokens, torch.arange(tokens.size(1))[None], None)
    return logits


def run_config(path: Path, folder: Path) -> RunConfig:
    """The configuration of a run that was copied to `folder`."""
    return load_run(path / "config.yaml", [f"folder={folder}"])
