"""A run's checkpoint as a Hugging Face folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megalign import __version__
from megalign.answers.trained_run import single_process
from megalign.config.layout import Layout
from megalign.config.sections import ParallelConfig, PrecisionConfig
from megalign.engine import checkpoint
from megalign.engine.engine import Engine
from megalign.errors import ConfigError
from megalign.evaluation.huggingface.architectures import architecture_of
from megalign.evaluation.huggingface.card import write_card
from megalign.evaluation.huggingface.files import quiet, read_model, transformers, write_model
from megalign.evaluation.huggingface.parity import LONGEST, Parity, compare, random_windows
from megalign.evaluation.huggingface.tokenizer_files import write_tokenizer
from megalign.files import new_folder
from megalign.training.initial import Weights, find_weights

# Windows of each language that logits are compared on.
WINDOWS = 2
Say = Callable[[str], None]


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: the Hugging Face folder.
        checkpoint: what it was made of.
        model_class: the class in transformers.
        vocab_size: rows of its embedding, without padding.
        parity: how the logits compare.
    """

    folder: Path
    checkpoint: Path
    model_class: str
    vocab_size: int
    parity: Parity


def export_run(source: Path, out: Path, *, store: Path | None = None, say: Say = lambda text: None) -> Exported:
    """Write a checkpoint as a Hugging Face folder: safetensors, configuration, tokenizer, model card.

    The weights are read whole in this process, whatever layout wrote them. The folder appears under its name only after
    the written model, read back, gave the logits of ours on windows of the run's text, in float32 (an imported model has
    no text: random ids).

    Args:
        source: a run's folder (its newest checkpoint), an imported model's, or a checkpoint of either.
        out: the folder, which must not exist or be empty.
        store: where the run's token store stands now; None: where its configuration says.
        say: told what is being done.

    Raises:
        ConfigError: the model's settings are none of an architecture of Hugging Face's, or `out` holds something.
        DataError: the checkpoint is damaged, or the logits differ.
        EnvironmentProblem: transformers is missing.
    """
    refuse_filled(out)
    transformers()
    found = find_weights(source, store)
    architecture = architecture_of(found.model)
    say(f"reading {found.checkpoint}")
    weights = checkpoint.read_weights(found.checkpoint)
    vocabulary = found.vocabulary
    out.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(out) as folder, quiet():
        tokenizer = write_tokenizer(folder, vocabulary.tokenizer, found.model.sequence_length)
        own = {
            "version": __version__,
            "languages": list(vocabulary.languages),
            "clone_of": vocabulary.clone_of,
            # Ids from here on are copies for clone languages and have no text in the tokenizer.
            "tokenizer_vocab_size": vocabulary.tokenizer.vocab_size,
            "tokenizer": tokenizer,
        }
        say(f"writing a {architecture.model_class}")
        write_model(
            folder,
            architecture,
            found.model,
            weights,
            vocab_size=vocabulary.size,
            eos_id=vocabulary.eos_id,
            own=own,
        )
        dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
        num_parameters = _num_parameters(weights, found, vocabulary.size)
        del weights
        say("comparing logits")
        parity = _compare(found, folder)
        write_card(folder, found, architecture, parity, dtype=dtype, num_parameters=num_parameters)
    return Exported(out, found.checkpoint, architecture.model_class, vocabulary.size, parity)


def refuse_filled(out: Path) -> None:
    """Refuse to replace what is there.

    Raises:
        ConfigError: `out` is a file, or a folder that is not empty.
    """
    if out.exists() and (not out.is_dir() or any(os.scandir(out))):
        raise ConfigError(f"{out} exists already.", "It would be replaced.", "Name a new folder.")


def _compare(found: Weights, folder: Path) -> Parity:
    size = found.vocabulary.size
    with single_process():
        engine = Engine(found.model, Layout(ParallelConfig()), PrecisionConfig(), vocab_size=size, seed=0)
        checkpoint.load(engine, found.checkpoint, with_optimizer=False, checked=True)
        theirs = read_model(folder, "float32")
        return compare(engine, theirs, found.model, windows_of(found), size)


def windows_of(found: Weights) -> np.ndarray:
    """Windows of every language the run read, held-out ones where there are: int64 [windows, LONGEST at most]."""
    length = min(found.model.sequence_length, LONGEST)
    if found.store is None or found.config is None:
        return random_windows(found.vocabulary.size, length)
    windows = [
        window
        for source in found.config.data.all_sources
        for window in _windows(found, length, source.language, source.as_clone)
    ]
    return np.stack(windows)


def _windows(found: Weights, length: int, language: str, as_clone: str | None) -> list[np.ndarray]:
    store = found.store
    assert store is not None
    splits = [
        name for name in ("valid", "train") if store.has(language, name) and store.num_tokens(language, name) >= length
    ]
    if not splits:
        return [random_windows(found.vocabulary.size, length, 1)[0]]
    split = splits[0]
    last = store.num_tokens(language, split) - length
    starts = np.unique(np.linspace(0, last, WINDOWS).round().astype(np.int64))
    rows: list[Any] = [store.window(language, int(at), length, split) for at in starts]
    if as_clone:
        rows = [found.vocabulary.shift(row.astype(np.uint32), as_clone) for row in rows]
    return [row.astype(np.int64) for row in rows]


def _num_parameters(weights: dict[str, Any], found: Weights, vocab_size: int) -> int:
    rows = found.model.padded_vocab_size(vocab_size) - vocab_size
    matrices = 1 if found.model.tied_embeddings else 2
    return sum(tensor.numel() for tensor in weights.values()) - rows * found.model.hidden_size * matrices
