"""Measure a run: a few scores while it trains, all of them at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from megalign.cluster.ranks import Rank
from megalign.config import RunConfig
from megalign.config.layout import Layout
from megalign.corpus.facts import FactSet
from megalign.engine import checkpoint, groups
from megalign.engine.engine import Engine
from megalign.errors import DataError
from megalign.evaluation import scores as score_files
from megalign.evaluation.alignment import alignment_scores
from megalign.evaluation.clka import clka_scores
from megalign.evaluation.mixed_script import mixed_script_scores
from megalign.evaluation.perplexity import perplexity_scores
from megalign.evaluation.scores import Score
from megalign.files import read_json, write_json
from megalign.training.loop import Probe
from megalign.training.run import RunFolder, RunInputs
from megalign.training.stop import StopRequest

_PROBE_WINDOWS = 32


def languages_of(inputs: RunInputs) -> list[str]:
    """Languages a run is measured in: all that the store has held-out text of."""
    return [language for language in inputs.store.languages if inputs.store.has(language, "valid")]


def _text_scores(engine: Engine, inputs: RunInputs, step: int, max_windows: int) -> Iterator[Score]:
    config, vocabulary = inputs.config, inputs.store.vocabulary
    for language in languages_of(inputs):
        clones = tuple(vocabulary.clone_of) if language == config.data.source_language else ()
        yield from perplexity_scores(
            engine,
            inputs.store,
            language,
            length=config.model.sequence_length,
            max_windows=max_windows,
            batch_size=config.evaluate.batch_size,
            step=step,
            mass_on=clones,
        )


def _alignment(engine: Engine, inputs: RunInputs, step: int) -> Iterator[Score]:
    if inputs.config.data.table is not None:
        yield from alignment_scores(
            engine, inputs.encoded, num_entries=inputs.config.evaluate.alignment_entries, step=step
        )


def build_probe(config: RunConfig, rank: Rank) -> Probe | None:
    """What `train` measures every train.evaluate_interval steps: perplexity on few windows, and alignment."""
    if config.train.evaluate_interval is None:
        return None
    inputs = RunInputs.open(config)
    folder = RunFolder(Path(config.folder))

    def probe(engine: Engine, step: int) -> Callable[[], None] | None:
        measured = [*_text_scores(engine, inputs, step, _PROBE_WINDOWS), *_alignment(engine, inputs, step)]

        def publish() -> None:
            if step == 0:
                score_files.drop_from(folder.scores, 0)
            score_files.append(folder.scores, measured)

        return publish if rank.rank == 0 else None

    return probe


def evaluate(config: RunConfig, rank: Rank) -> list[Score]:
    """Measure the final checkpoint of a run and write its scores; called by every process of the layout.

    Returns:
        the final scores, on every rank.

    Raises:
        DataError: the run has no checkpoint yet, or it does not fit the configuration.
        StoppedOnRequest: a signal came; no score is written.
        SupersededError: another evaluation took the run over.
    """
    layout = Layout(config.parallel)
    layout.check_world_size(rank.world_size)
    folder = RunFolder(Path(config.folder))
    path = checkpoint.latest(folder.checkpoints("pretrain"))
    if path is None:
        raise DataError(
            f"{folder.path} has no checkpoint of pretraining.", "There is nothing to measure.", "Train the run first."
        )
    inputs = RunInputs.open(config)
    if rank.rank == 0:
        folder.claim("eval")
    engine = inputs.engine(layout, None)
    state = checkpoint.load(engine, path, with_optimizer=False)
    if state["store"] != inputs.store.fingerprint:
        raise DataError(
            f"{path} was trained on the token store {state['store']}, {config.data.store} is {inputs.store.fingerprint}.",
            "Its ids may mean other words, and its held-out text may have been trained on.",
            "Restore the store, or correct data.store.",
        )
    step = int(state["step"])
    try:
        with StopRequest() as stop:
            engine.interrupt = stop.interrupt
            measured = _all_scores(engine, inputs, step)
        num_parameters = engine.num_parameters
        if rank.rank == 0:
            folder.fence()
            _publish(folder, inputs, measured, step, num_parameters)
    finally:
        folder.release()
    groups.barrier()
    return measured


def _all_scores(engine: Engine, inputs: RunInputs, step: int) -> list[Score]:
    config = inputs.config
    measured = list(_text_scores(engine, inputs, step, config.evaluate.max_windows))
    if config.data.facts is not None and config.evaluate.clka:
        facts = FactSet.load(Path(config.data.facts))
        vocabulary = inputs.store.vocabulary
        for language in dict.fromkeys((config.data.source_language, *vocabulary.clone_of)):
            measured += clka_scores(
                engine, vocabulary, facts, language, batch_size=4 * config.evaluate.batch_size, step=step
            )
    measured += _alignment(engine, inputs, step)
    if config.evaluate.mixed_script_generations:
        measured += mixed_script_scores(
            engine,
            inputs.store,
            config.data.source_language,
            num_generations=config.evaluate.mixed_script_generations,
            num_tokens=config.evaluate.mixed_script_tokens,
            prompt_tokens=config.evaluate.mixed_script_prompt_tokens,
            batch_size=config.evaluate.batch_size,
            step=step,
        )
    return measured


def _publish(folder: RunFolder, inputs: RunInputs, measured: list[Score], step: int, num_parameters: int) -> None:
    score_files.replace_final(folder.scores, measured, step)
    if folder.summary.exists():
        finished = step == inputs.num_steps
        summary = {**read_json(folder.summary), "parameters": num_parameters}
        write_json(folder.summary, {**summary, "status": "done" if finished else summary["status"]})
