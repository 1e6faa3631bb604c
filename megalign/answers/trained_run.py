"""Answers of a run of ours, read through the engine: every new token is a forward pass over the whole sequence."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from megalign.answers.fingerprint import weights_fingerprint
from megalign.answers.model import AnswerModel, ScoredInput
from megalign.cluster.ranks import discover
from megalign.config import RunConfig, load_run
from megalign.config.layout import Layout
from megalign.config.sections import ParallelConfig, PrecisionConfig
from megalign.corpus.vocabulary import Vocabulary
from megalign.engine import checkpoint, groups
from megalign.engine.device import DEVICE
from megalign.engine.engine import Engine, LanguageBatch
from megalign.errors import ConfigError, DataError
from megalign.training.initial import newest_checkpoint as newest_checkpoint
from megalign.training.run import RunFolder, RunInputs


class RunModel(AnswerModel):
    """A model in the engine; under several ranks all of them make the same calls and get the same answers.

    A sequence starts with the end-of-text token, as every document did in training.

    Args:
        engine: the loaded model.
        vocabulary: of the token store it was trained on.
        name, fingerprint, batch_size: see AnswerModel.
        max_length_tokens: the window it was trained on.
        dtype: numbers it computes with.
        language: language of the vocabulary that prompts are in; only a clone's ids differ from the others'.
    """

    def __init__(
        self,
        engine: Engine,
        vocabulary: Vocabulary,
        *,
        name: str,
        fingerprint: str,
        batch_size: int,
        max_length_tokens: int,
        dtype: str,
        language: str | None = None,
    ) -> None:
        self.engine, self.vocabulary = engine, vocabulary
        self.name, self.fingerprint, self.dtype = name, fingerprint, dtype
        self.batch_size, self.max_length_tokens = batch_size, max_length_tokens
        originals = [one for one in vocabulary.languages if one not in vocabulary.clone_of]
        self.language = language or originals[0]
        vocabulary.offset(self.language)  # an unknown language ends here
        self._release: Callable[[], None] = _nothing

    def close(self) -> None:
        """Leave the process group that `open_run` joined."""
        self._release()
        self._release = _nothing

    @property
    def end_id(self) -> int:
        """The end-of-text token."""
        return self.vocabulary.eos_id

    def encode(self, text: str) -> list[int]:
        """Ids of a text in the model's language, the start token before them."""
        return [self.vocabulary.eos_id, *map(int, self.vocabulary.encode(text, self.language))]

    def _encode(self, text: str) -> list[int]:
        return self.encode(text)

    def _decode(self, ids: Sequence[int]) -> str:
        return self.vocabulary.decode(ids)

    def _start_ids(self) -> list[int]:
        return [self.vocabulary.eos_id]

    def _continue(self, rows: list[list[int]], max_new_tokens: int, stop: Sequence[str]) -> list[list[int]]:
        sequences, new = [list(row) for row in rows], [list[int]() for _ in rows]
        running = list(range(len(rows)))
        for _ in range(max_new_tokens):
            batch = self._padded([sequences[at] for at in running])
            ends = np.array([len(sequences[at]) - 1 for at in running])
            best = self.engine.most_likely(batch, ends, self.vocabulary.size)
            going = []
            for at, token in zip(running, best.tolist(), strict=True):
                if token != self.vocabulary.eos_id:
                    sequences[at].append(token)
                    new[at].append(token)
                    if not self.ends_with_stop(new[at], stop):
                        going.append(at)
            running = going
            if not running:
                break
        return new

    def _score(self, inputs: list[ScoredInput]) -> list[list[float]]:
        pairs = [(one.ids, continuation) for one in inputs for continuation in one.continuations]
        totals = []
        for start in range(0, len(pairs), self.batch_size):
            totals += [total for total, _ in self.score_ids(pairs[start : start + self.batch_size])]
        values = iter(totals)
        return [[next(values) for _ in one.continuations] for one in inputs]

    def score_ids(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        """How likely ids are where they follow others; probabilities are over the vocabulary without its padding.

        Args:
            pairs: what is fed, at most max_length_tokens ids, and the continuation [n] that is read at its last n positions.

        Returns:
            for each pair the log-likelihood in nats, and whether every id of the continuation is the likeliest one.
        """
        batch = self._padded([list(ids) for ids, _ in pairs])
        places = [(number, slice(len(ids) - len(wanted), len(ids))) for number, (ids, wanted) in enumerate(pairs)]
        for place, (_, wanted) in zip(places, pairs, strict=True):
            batch.labels[place] = wanted
        (scores,) = self.engine.score([batch], num_ids=self.vocabulary.size)
        assert scores.is_best is not None
        return [(-float(scores.nll[at].sum(dtype=np.float64)), bool(scores.is_best[at].all())) for at in places]

    def _padded(self, rows: list[list[int]]) -> LanguageBatch:
        """Rows filled up at their right end, where causal attention hides it from them."""
        parts = _parts(self.engine.layout.parallel)
        width = -(-max(map(len, rows)) // parts) * parts
        tokens = np.full((len(rows), width), self.vocabulary.eos_id, dtype=np.int64)
        for number, row in enumerate(rows):
            tokens[number, : len(row)] = row
        return LanguageBatch(tokens, tokens.copy(), np.ones(tokens.shape, dtype=np.float32))


def is_run_folder(path: Path) -> bool:
    """Whether a folder is one that training writes."""
    return RunFolder(path).config.is_file() and (path / "checkpoints").is_dir()


def open_run(
    path: Path, *, batch_size: int, device: str | None = None, dtype: str | None = None, language: str | None = None
) -> RunModel:
    """The newest checkpoint of a run's folder, in this process alone, whatever layout it was trained under.

    Joins a process group of its own; `close` leaves it.

    Raises:
        ConfigError: a device the engine does not use here, an unknown language, or several processes.
        DataError: the run has no checkpoint, or its store is missing or another.
    """
    if device is not None and device.split(":")[0] != DEVICE.type:
        raise ConfigError(
            f"device is {device}; the engine computes on {DEVICE.type} here.",
            fix=f"Leave device unset, or set {DEVICE.type}.",
        )
    if discover().world_size > 1:
        raise ConfigError(
            f"{discover().world_size} processes were started to answer; one does.",
            "Each would write the same answers.",
            "Start without a launcher.",
        )
    config = reading_config(path, dtype)
    with ExitStack() as stack:
        stack.enter_context(single_process(config))
        model = load_run_model(config, batch_size=batch_size, language=language)
        model._release = stack.pop_all().close
    return model


@contextmanager
def single_process(config: RunConfig | None = None) -> Iterator[None]:
    """The process group of one process, for a run's configuration that asks for no more."""
    parallel = config.parallel if config else ParallelConfig()
    with tempfile.TemporaryDirectory() as folder:
        groups.start(Layout(parallel), rank=0, world_size=1, local_rank=0, init_method=f"file://{folder}/rendezvous")
        try:
            yield
        finally:
            groups.stop()


def reading_config(path: Path, dtype: str | None = None, parallel: ParallelConfig | None = None) -> RunConfig:
    """The configuration of a run's folder, wherever it was moved to, for reading under `parallel` (one process)."""
    config = load_run(RunFolder(path).config, [f"folder={path}"])
    if dtype is not None and dtype not in ("float32", "bfloat16"):
        raise ConfigError(f"dtype is {dtype}; a run computes in float32 or bfloat16.", fix="Set one of them.")
    precision = config.precision if dtype is None else PrecisionConfig.model_validate({"dtype": dtype})
    return config.model_copy(update={"parallel": parallel or ParallelConfig(), "precision": precision})


def load_run_model(config: RunConfig, *, batch_size: int, language: str | None = None) -> RunModel:
    """The newest checkpoint of a run, fine-tuned before pretrained; called by every process of `config.parallel`.

    Raises:
        DataError: there is no checkpoint, or it was trained on another token store.
    """
    folder = RunFolder(Path(config.folder))
    path = newest_checkpoint(folder)
    inputs = RunInputs.open(config)
    engine = inputs.engine(Layout(config.parallel), None)
    state = checkpoint.load(engine, path, with_optimizer=False)
    if state["store"] != inputs.store.fingerprint:
        raise DataError(
            f"{path} was trained on the token store {state['store']}, {config.data.store} is {inputs.store.fingerprint}.",
            "Its ids may mean other words.",
            "Restore the store, or correct data.store.",
        )
    # `_padded` must find room up to the limit: learned positions end there.
    parts = _parts(config.parallel)
    return RunModel(
        engine,
        inputs.store.vocabulary,
        name=config.name,
        fingerprint=_fingerprint(path),
        batch_size=batch_size,
        max_length_tokens=config.model.sequence_length // parts * parts,
        dtype=config.precision.dtype,
        language=language,
    )


def run_fingerprint(path: Path) -> str:
    """16 hex digits that change with the weights of a run's newest checkpoint.

    Raises:
        DataError: there is none.
    """
    return _fingerprint(newest_checkpoint(RunFolder(path)))


def _fingerprint(path: Path) -> str:
    return weights_fingerprint([path / "shards"], "*", seed=(path / checkpoint.MARKER).read_bytes())


def _parts(parallel: ParallelConfig) -> int:
    """Tensor- and context-parallel ranks share the positions of a row in equal parts."""
    return 2 * parallel.tensor * parallel.context


def _nothing() -> None:
    pass
