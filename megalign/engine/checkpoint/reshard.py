"""Write a checkpoint again from the processes of another layout."""

from __future__ import annotations

from pathlib import Path

from megalign.config import RunConfig
from megalign.config.layout import Layout
from megalign.engine.checkpoint.describe import describe
from megalign.engine.checkpoint.folder import complete
from megalign.engine.checkpoint.loading import load
from megalign.engine.checkpoint.saving import Saver
from megalign.engine.engine import Engine
from megalign.errors import ConfigError, DataError


def check_target(target: Path) -> None:
    """Refuse a folder that holds anything but what a stopped resharding left.

    Raises:
        ConfigError: it does, or it is a file.
    """
    if complete(target):
        raise ConfigError(
            f"{target} already has checkpoints.",
            "Those of two layouts or runs would stand side by side.",
            "Name a new folder.",
        )
    if target.exists() and not (target.is_dir() and all(path.name.startswith(".") for path in target.iterdir())):
        raise ConfigError(
            f"{target} exists already.",
            "The checkpoint would stand between other files, and be taken for theirs.",
            "Name a new folder.",
        )


def reshard(config: RunConfig, source: Path, target: Path, *, with_optimizer: bool) -> Path:
    """Load a checkpoint under the layout of `config` and write it to `target`, every number as it was.

    All processes of that layout call this, inside its process groups. The token store is not needed.

    Args:
        config: the run, with the layout to write under.
        source: a checkpoint.
        target: a folder for checkpoints, without any.
        with_optimizer: keep the optimizer; without it only weights are written.

    Returns:
        the new checkpoint.

    Raises:
        DataError: the checkpoint is damaged or does not fit the configuration.
    """
    content = describe(source)
    (embedding,) = (t for t in content.tensors if t.name == "embedding.word_embeddings.weight")
    stage = content.state.get("stage")
    settings = {"inject": config.inject.optimizer, "pretrain": config.train.optimizer}
    if with_optimizer and (stage not in settings or content.facts["adam_step"] is None):
        raise DataError(
            f"{source} has no optimizer of a known stage (stage {stage!r}).",
            fix="Write it without the optimizer: --without-optimizer.",
        )
    engine = Engine(
        config.model,
        Layout(config.parallel),
        config.precision,
        vocab_size=embedding.shape[0],  # padded already, as the multiple does not depend on the layout
        seed=config.seed,
        optimizer=settings[str(stage)] if with_optimizer else None,
    )
    state = load(engine, source, with_optimizer=with_optimizer)
    return Saver(target, keep=1, verify=True).save(engine, int(state["step"]), state)
