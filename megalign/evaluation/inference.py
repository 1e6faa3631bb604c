"""Zero-shot cross-lingual transfer (ZS-CLT; PreAlign section 4.2): fine-tune on inference in one language, test in all.

All weights and a linear head over the last hidden state of "<end> premise <end> hypothesis <end>" are trained on pairs in the
source language; the accuracy in the other languages is what was carried over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from megalign.cluster.ranks import Rank
from megalign.config import OptimizerConfig, RunConfig
from megalign.config.layout import Layout
from megalign.config.tasks import NliConfig
from megalign.corpus.entailment import LABELS, Pair
from megalign.corpus.inference_files import read_pairs
from megalign.corpus.keyed_random import generator
from megalign.corpus.vocabulary import Vocabulary
from megalign.engine import checkpoint, groups
from megalign.engine.classification import LabelledBatch
from megalign.engine.classifier import ClassifierEngine
from megalign.engine.device import DEVICE
from megalign.engine.engine import StepResult
from megalign.errors import ConfigError, DataError
from megalign.evaluation import scores as score_files
from megalign.evaluation.scores import Score
from megalign.intervals import wilson_interval
from megalign.training.finetune import STAGE, finetune
from megalign.training.initial import trained_checkpoint
from megalign.training.inputs import RunFolder, RunInputs
from megalign.training.stop import StopRequest

METRIC = "nli_accuracy"
_LOG_STEPS = 20
_LEARNING = {"epochs", "batch_size", "lr", "warmup_fraction", "weight_decay"}


@dataclass(frozen=True)
class EncodedPairs:
    """Pairs as rows of ids of their own lengths, and the numbers of their labels."""

    rows: tuple[np.ndarray, ...]
    labels: np.ndarray
    num_cut: int

    def __len__(self) -> int:
        return len(self.rows)


def encode_pairs(vocabulary: Vocabulary, pairs: Sequence[Pair], language: str, max_tokens: int) -> EncodedPairs:
    """Pairs in a language's ids: end-of-text, premise, end-of-text, hypothesis, end-of-text.

    Where that is longer than `max_tokens`, the longer of the two texts loses its end.
    """
    eos = np.array([vocabulary.eos_id])
    rows, num_cut, room = [], 0, max_tokens - 3
    for pair in pairs:
        premise, hypothesis = (vocabulary.encode(text, language) for text in (pair.premise, pair.hypothesis))
        if len(premise) + len(hypothesis) > room:
            num_cut += 1
            kept = min(len(premise), max(room - len(hypothesis), room // 2))
            premise, hypothesis = premise[:kept], hypothesis[: room - kept]
        rows.append(np.concatenate([eos, premise, eos, hypothesis, eos]).astype(np.int64))
    labels = np.array([LABELS.index(pair.label) for pair in pairs], dtype=np.int64)
    return EncodedPairs(tuple(rows), labels, num_cut)


def batch_of(pairs: EncodedPairs, places: Sequence[int], size: int, multiple: int, filler: int) -> LabelledBatch:
    """Rows filled up to one width, a multiple of `multiple`, and to `size` rows, of which the last then weigh nothing."""
    chosen = [pairs.rows[place] for place in places] or [pairs.rows[0]]
    width = -(-max(map(len, chosen)) // multiple) * multiple
    tokens = np.full((size, width), filler, dtype=np.int64)
    ends = np.zeros(size, dtype=np.int64)
    for number, row in enumerate(chosen):
        tokens[number, : len(row)] = row
        ends[number] = len(row) - 1
    labels, weights = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.float32)
    labels[: len(places)] = pairs.labels[list(places)]
    weights[: len(places)] = 1.0
    return LabelledBatch(tokens, ends, labels, weights)


def predict(engine: ClassifierEngine, pairs: EncodedPairs, *, batch_size: int, filler: int) -> np.ndarray:
    """The most likely label of every pair, on every rank: int64 [pairs]. Data-parallel ranks share the work."""
    world, rank = engine.layout.parallel.data, engine.layout.coordinates(groups.rank()).data
    bounds = [len(pairs) * number // world for number in range(world + 1)]
    counts = [bounds[number + 1] - bounds[number] for number in range(world)]
    own = np.zeros(counts[rank], dtype=np.int64)
    for start in range(0, max(counts), batch_size):
        engine.interrupt()
        places = range(bounds[rank] + start, min(bounds[rank] + start + batch_size, bounds[rank + 1]))
        batch = batch_of(pairs, places, batch_size, 2 * engine.layout.parallel.tensor, filler)
        logits = engine.label_logits(batch)
        own[start : start + len(places)] = logits.argmax(axis=1)[: len(places)]
    everyone: np.ndarray = groups.gather_rows(torch.from_numpy(own).to(DEVICE), counts).cpu().numpy()
    return everyone


def evaluate_inference(config: RunConfig, rank: Rank, settings: NliConfig) -> list[Score]:
    """Fine-tune a trained run on the training pairs and test it in every language; called by every process of the layout.

    The tuned weights stand in RUN/nli; the same call again goes on where it was stopped. The scores are added to the run's.

    Args:
        config: the run.
        rank: this process.
        settings: with the files of `train` and `test`.

    Raises:
        DataError: the run is not trained, or a file has no usable pairs.
        ConfigError: the layout cuts rows, a language is unknown, or max_tokens is more than the model takes.
        StoppedOnRequest: a signal came; the state is saved.
        SupersededError: another evaluation took the run over.
    """
    layout = Layout(config.parallel)
    layout.check_world_size(rank.world_size)
    folder, inputs = RunFolder(Path(config.folder)), RunInputs.open(config)
    path = trained_checkpoint(folder)
    if path is None:
        raise DataError(
            f"{folder.path} has no checkpoint of pretraining.", "There is nothing to fine-tune.", "Train the run first."
        )
    trained, _ = checkpoint.read_marker(path)
    scored_at = inputs.steps_since_pretraining_began(trained["stage"], int(trained["step"]))
    if rank.rank == 0:
        folder.claim("eval")
    try:
        measured = [
            replace(score, step=scored_at) for score in _tune_and_test(inputs, layout, path, folder, settings, rank)
        ]
        if rank.rank == 0:
            folder.fence()
            score_files.add(folder.scores, measured)
    finally:
        folder.release()
    groups.barrier()
    return measured


def _tune_and_test(
    inputs: RunInputs, layout: Layout, path: Path, folder: RunFolder, settings: NliConfig, rank: Rank
) -> list[Score]:
    config, vocabulary = inputs.config, inputs.store.vocabulary
    most = settings.max_tokens or config.model.sequence_length
    if most > config.model.sequence_length:
        raise ConfigError(
            f"max_tokens is {most}; the model was trained on {config.model.sequence_length} tokens.",
            "It knows no position beyond them.",
            "Leave max_tokens unset, or lower it.",
        )
    most -= most % (2 * config.parallel.tensor)
    train = _encoded(vocabulary, str(settings.train), config.data.source_language, settings.num_train, most)
    tests = {
        language: _encoded(vocabulary, file, language, settings.num_test, most)
        for language, file in settings.test.items()
    }
    order = np.concatenate(
        [generator(config.seed, "nli", epoch).permutation(len(train)) for epoch in range(settings.epochs)]
    )
    num_steps = -(-len(order) // settings.batch_size)
    engine = _engine(config, layout, vocabulary.size, settings, num_steps)

    def start() -> None:
        with engine.without_head():
            checkpoint.load(engine, path, with_optimizer=False)

    def take(step: int) -> StepResult:
        chosen = order[(step - 1) * settings.batch_size : step * settings.batch_size]
        return engine.step_labels(_micro_batches(train, chosen, layout, settings.batch_size, vocabulary.eos_id), step)

    state = {
        "stage": STAGE,
        "store": inputs.store.fingerprint,
        "started_from": checkpoint.weights_identity(path),
        "pairs": _digest(train),
        "settings": settings.model_dump(mode="json", include=_LEARNING),
    }
    with StopRequest() as stop:
        engine.interrupt = stop.interrupt
        finetune(
            engine,
            folder.path / "nli" / "checkpoints",
            state,
            start=start,
            take=take,
            num_steps=num_steps,
            save_steps=None,
            told=_Said(num_steps, rank.rank == 0),
            fence=folder.fence,
        )
        return [
            _score(engine, pairs, language, settings.batch_size, vocabulary.eos_id) for language, pairs in tests.items()
        ]


def _engine(
    config: RunConfig, layout: Layout, vocab_size: int, settings: NliConfig, num_steps: int
) -> ClassifierEngine:
    return ClassifierEngine(
        config.model,
        layout,
        config.precision.without_fp8(),
        vocab_size=vocab_size,
        seed=config.seed,
        num_labels=len(LABELS),
        num_steps=num_steps,
        optimizer=OptimizerConfig(
            lr=settings.lr,
            warmup_fraction=settings.warmup_fraction,
            decay="linear",
            min_lr_ratio=0.0,
            weight_decay=settings.weight_decay,
            embedding_weight_decay=0.0,
            beta2=0.999,
        ),
    )


class _Said:
    """Losses, on the console of one rank."""

    def __init__(self, num_steps: int, says: bool) -> None:
        self._num_steps, self._says = num_steps, says

    def write(self, step: int, loss: float, lr: float) -> None:
        """Say every so many steps."""
        if self._says and (step % _LOG_STEPS == 0 or step in (1, self._num_steps)):
            print(f"nli step {step}/{self._num_steps}  loss {loss:.4f}  lr {lr:.2e}", flush=True)


def _encoded(vocabulary: Vocabulary, file: str, language: str, most: int, max_tokens: int) -> EncodedPairs:
    pairs = read_pairs(Path(file), vocabulary.clone_of.get(language, language))
    encoded = encode_pairs(vocabulary, pairs[:most] if most else pairs, language, max_tokens)
    if encoded.num_cut:
        print(
            f"{file}: {encoded.num_cut} of {len(encoded)} pairs are longer than {max_tokens} tokens and were cut",
            flush=True,
        )
    return encoded


def _micro_batches(
    pairs: EncodedPairs, places: np.ndarray, layout: Layout, batch_size: int, filler: int
) -> list[LabelledBatch]:
    """This data-parallel rank's share of a step, cut for the pipeline; all ranks have as many micro-batches of one size."""
    parallel = layout.parallel
    count = parallel.data * parallel.pipeline
    size = -(-batch_size // count)
    first = layout.coordinates(groups.rank()).data * parallel.pipeline
    parts = [places[number * size : (number + 1) * size] for number in range(first, first + parallel.pipeline)]
    return [batch_of(pairs, part.tolist(), size, 2 * parallel.tensor, filler) for part in parts]


def _digest(pairs: EncodedPairs) -> str:
    """16 hex digits of what is learned."""
    digest = hashlib.sha256(pairs.labels.tobytes())
    for row in pairs.rows:
        digest.update(row.tobytes() + b"|")
    return digest.hexdigest()[:16]


def _score(engine: ClassifierEngine, pairs: EncodedPairs, language: str, batch_size: int, filler: int) -> Score:
    found = predict(engine, pairs, batch_size=batch_size, filler=filler)
    hits = int((found == pairs.labels).sum())
    low, high = wilson_interval(hits, len(pairs))
    return Score(METRIC, language, None, 0, hits / len(pairs), low, high, len(pairs), "share")
