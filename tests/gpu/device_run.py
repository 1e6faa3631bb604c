"""Small runs of the engine on whatever device this process sees; the last line of output is JSON.

python tests/gpu/device_run.py train gpt|llama float32|bfloat16 none|RECIPE
python tests/gpu/device_run.py save FOLDER | read FOLDER | inject
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "distributed"))

import cases

from megalign.config.layout import Layout
from megalign.config.sections import ModelConfig, ParallelConfig, PrecisionConfig
from megalign.engine import checkpoint, groups
from megalign.engine.device import DEVICE
from megalign.errors import MegalignError

STEPS = 20
RECIPES = ("delayed", "tensorwise", "blockwise", "mxfp8")
# Sizes that FP8's matrix products take.
_SIZES: dict[str, Any] = {"hidden_size": 128, "ffn_hidden_size": 256, "sequence_length": 64}


def wide(name: str) -> ModelConfig:
    """A model of the layouts' tests, wide enough for FP8."""
    return ModelConfig.model_validate({**cases.MODELS[name].model_dump(), **_SIZES})


def train(name: str, dtype: str, recipe: str) -> dict[str, Any]:
    """Losses and gradient norms of a few steps."""
    settings = {"dtype": dtype, "fp8": None if recipe == "none" else recipe}
    try:
        engine = cases.engine_of(Layout(ParallelConfig()), wide(name), precision=PrecisionConfig(**settings))
    except MegalignError as error:
        return {"refused": str(error)}
    results = [engine.step([cases.windows(step, 8, 64)], step) for step in range(1, STEPS + 1)]
    return {"losses": [r.loss for r in results], "norms": [r.grad_norm for r in results]}


def scores(engine: Any) -> list[float]:
    """Of one batch, flat."""
    (found,) = engine.score([cases.windows(99, 4, 64)])
    return [float(value) for value in found.nll.ravel()]


def save(folder: str) -> dict[str, Any]:
    """Train, save."""
    engine = cases.engine_of(Layout(ParallelConfig()), wide("llama"))
    for step in (1, 2):
        engine.step([cases.windows(step, 8, 64)], step)
    checkpoint.save(engine, Path(folder), 2, {}, keep=1)
    return {"scores": scores(engine)}


def read(folder: str) -> dict[str, Any]:
    """Load, score."""
    engine = cases.engine_of(Layout(ParallelConfig()), wide("llama"))
    checkpoint.load(engine, checkpoint.path_of(Path(folder), 2))
    return {"scores": scores(engine)}


def inject() -> dict[str, Any]:
    """Losses of the levels over a few steps of words and text."""
    engine = cases.engine_of(Layout(ParallelConfig()))
    return {"levels": [result.level_losses for result in cases.inject(engine, 1, 5)]}


def main() -> None:
    """Do what the command line says."""
    task, *arguments = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        groups.start(Layout(ParallelConfig()), rank=0, world_size=1, local_rank=0, init_method=f"file://{folder}/meet")
        result = {"train": train, "save": save, "read": read, "inject": inject}[task](*arguments)
        groups.stop()
    print(json.dumps({"device": DEVICE.type, **result}))


if __name__ == "__main__":
    main()
