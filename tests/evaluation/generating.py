"""What the test of mixed scripts computes on a run's ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import reading

from megalign.config import RunConfig
from megalign.config.layout import Layout
from megalign.corpus.store import TokenStore
from megalign.evaluation.mixed_script import generate, mixed_script_scores
from megalign.evaluation.scores import Score


def generations_of(
    layout: Layout, config: RunConfig, prompts: np.ndarray, num_new: int, temperature: float
) -> np.ndarray:
    """`generate` of a run under the layout."""
    engine = reading._trained(layout, config.model_copy(update={"parallel": layout.parallel}))
    return generate(engine, prompts, num_new, num_ids=1200, seed=7, batch_size=3, temperature=temperature)


def many_first_tokens(layout: Layout, config: RunConfig, prompt: np.ndarray, count: int) -> np.ndarray:
    """The first token drawn after one prompt, `count` times."""
    engine = reading._trained(layout, config)
    return generate(engine, np.tile(prompt, (count, 1)), 1, num_ids=1200, seed=1, batch_size=256)[:, 0]


def mixed_scores_of(layout: Layout, config: RunConfig) -> list[Score]:
    """`mixed_script_scores` of a run."""
    engine, store = reading._trained(layout, config), TokenStore.open(Path(config.data.store))
    return list(
        mixed_script_scores(
            engine, store, "en", num_generations=24, num_tokens=10, prompt_tokens=8, batch_size=8, step=12
        )
    )
