"""Score many rows of tokens: in batches of one shape, shared by the data-parallel ranks."""

from __future__ import annotations

import numpy as np
import torch

from megalign.engine import groups
from megalign.engine.device import DEVICE
from megalign.engine.engine import Engine, LanguageBatch


def score_rows(
    engine: Engine,
    tokens: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int,
    ranges: dict[str, tuple[int, int]] | None = None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Negative log-likelihood of every label and mass on ranges of ids, on every rank.

    Calls `engine.interrupt` before every batch, on all ranks equally often.

    Args:
        engine: the model.
        tokens: int64 [rows, length].
        labels: int64 [rows, length].
        batch_size: rows computed at once.
        ranges: name -> ids [first, last + 1).

    Returns:
        float32 [rows, length], and the same for every range.
    """
    world, rank = engine.layout.parallel.data, engine.layout.coordinates(groups.rank()).data
    shares = [len(tokens) * number // world for number in range(world + 1)]
    first, last = shares[rank], shares[rank + 1]
    names = list(ranges or {})
    own = np.zeros((last - first, 1 + len(names), tokens.shape[1]), dtype=np.float32)
    largest_share = max(shares[number + 1] - shares[number] for number in range(world))
    for start in range(first, first + largest_share, batch_size):
        engine.interrupt()
        if start >= last:
            continue
        # The last batch is filled up by repetition: all batches have one shape.
        index = np.minimum(np.arange(start, start + batch_size), last - 1)
        batch = LanguageBatch(tokens[index], labels[index], np.ones(labels[index].shape, dtype=np.float32))
        (scores,) = engine.score([batch], ranges)
        size = min(batch_size, last - start)
        stacked = np.stack([scores.nll, *(scores.mass[name] for name in names)], axis=1)
        own[start - first : start - first + size] = stacked[:size]
    counts = [shares[number + 1] - shares[number] for number in range(world)]
    everyone = groups.gather_rows(torch.from_numpy(own).to(DEVICE), counts).cpu().numpy()
    return everyone[:, 0], {name: everyone[:, 1 + number] for number, name in enumerate(names)}
