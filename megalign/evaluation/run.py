"""Measure a run: a few scores while it trains, all of them at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from megalign.cluster.ranks import Rank
from megalign.config import RunConfig
from megalign.config.layout import Layout
from megalign.corpus.knowledge.facts import Knowledge, load_facts
from megalign.engine import checkpoint, groups
from megalign.engine.engine import Engine
from megalign.errors import DataError
from megalign.evaluation import scores as score_files
from megalign.evaluation.alignment import alignment_scores
from megalign.evaluation.clka import clka_scores, knowledge_scores, period_scores
from megalign.evaluation.mixed_script import mixed_script_scores
from megalign.evaluation.perplexity import perplexity_scores
from megalign.evaluation.retrieval import read_sentences, retrieval_scores
from megalign.evaluation.scores import Score
from megalign.files import read_json, write_json
from megalign.prealign.lookup import FormLookup
from megalign.training.initial import trained_checkpoint
from megalign.training.loop import Probe
from megalign.training.run import RunFolder, RunInputs, is_trained
from megalign.training.stop import StopRequest

_PROBE_WINDOWS = 32


def languages_of(inputs: RunInputs) -> list[str]:
    """Languages a run is measured in: all that the store has held-out text of."""
    return [language for language in inputs.store.languages if inputs.store.has(language, "valid")]


def _text_scores(
    engine: Engine, inputs: RunInputs, step: int, max_windows: int, *, seen: bool = False
) -> Iterator[Score]:
    """Perplexities; with `seen` told apart for the words of the alignment table and others, in target languages."""
    config, vocabulary = inputs.config, inputs.store.vocabulary
    tabled = inputs.encoded.languages[1:] if seen and config.data.table is not None else ()
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
            lookup=FormLookup(inputs.encoded, language, [inputs.encoded.source_language])
            if language in tabled
            else None,
        )


def _alignment(engine: Engine, inputs: RunInputs, step: int) -> Iterator[Score]:
    if inputs.config.data.table is not None:
        yield from alignment_scores(
            engine, inputs.whole_table, num_entries=inputs.config.evaluate.alignment_entries, step=step
        )


def _facts(engine: Engine, inputs: RunInputs, path: Path, step: int) -> Iterator[Score]:
    vocabulary, source = inputs.store.vocabulary, inputs.config.data.source_language
    batch_size = 4 * inputs.config.evaluate.batch_size
    facts = load_facts(path)
    if isinstance(facts, Knowledge):
        yield from knowledge_scores(engine, vocabulary, facts, source, batch_size=batch_size, step=step)
        return
    for language in dict.fromkeys((source, *vocabulary.clone_of)):
        yield from clka_scores(engine, vocabulary, facts, language, batch_size=batch_size, step=step)


def _learned(engine: Engine, inputs: RunInputs, step: int) -> Iterator[Score]:
    """The facts of the period that ends at a step; nothing where none does."""
    knowledge = inputs.period_facts
    if knowledge is None or not knowledge.period_steps or step % knowledge.period_steps:
        return
    period = step // knowledge.period_steps - 1
    if 0 <= period < knowledge.num_periods:
        yield from period_scores(
            engine,
            inputs.store.vocabulary,
            knowledge,
            period,
            batch_size=4 * inputs.config.evaluate.batch_size,
            step=step,
        )


def _sentences(inputs: RunInputs) -> dict[str, list[str]]:
    """The sentences that retrieval is measured on, by language, the source language first; none where it is not asked."""
    settings, origin = inputs.config.evaluate, inputs.config.data.source_language
    if settings.parallel_sentences is None:
        return {}
    languages = [origin, *(language for language in languages_of(inputs) if language != origin)]
    clone_of = dict(inputs.store.vocabulary.clone_of)
    return read_sentences(Path(settings.parallel_sentences), languages, clone_of, settings.max_sentences)


def build_probe(config: RunConfig, rank: Rank) -> Probe | None:
    """What `train` measures every train.evaluate_interval steps: perplexity on few windows, and alignment."""
    inputs = RunInputs.open(config)
    _sentences(inputs)  # before hours of training, not after them
    if config.train.evaluate_interval is None:
        return None
    folder = RunFolder(Path(config.folder))

    def probe(engine: Engine, step: int) -> Callable[[], None] | None:
        measured = [
            *_text_scores(engine, inputs, step, _PROBE_WINDOWS),
            *_alignment(engine, inputs, step),
            *_learned(engine, inputs, step),
        ]

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
    path = trained_checkpoint(folder)
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
    step = inputs.steps_since_pretraining_began(state["stage"], int(state["step"]))
    try:
        with StopRequest() as stop:
            engine.interrupt = stop.interrupt
            measured = _all_scores(engine, inputs, step)
        num_parameters = engine.num_parameters
        if rank.rank == 0:
            folder.fence()
            _publish(folder, measured, step, num_parameters, finished=is_trained(inputs, folder))
    finally:
        folder.release()
    groups.barrier()
    return measured


def _all_scores(engine: Engine, inputs: RunInputs, step: int) -> list[Score]:
    config = inputs.config
    measured = list(_text_scores(engine, inputs, step, config.evaluate.max_windows, seen=True))
    if config.data.facts is not None and config.evaluate.clka:
        measured += _facts(engine, inputs, Path(config.data.facts), step)
    measured += _learned(engine, inputs, step)
    measured += _alignment(engine, inputs, step)
    if sentences := _sentences(inputs):
        measured += retrieval_scores(
            engine,
            inputs.store.vocabulary,
            sentences,
            length=config.model.sequence_length,
            batch_size=config.evaluate.batch_size,
            step=step,
        )
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


def _publish(folder: RunFolder, measured: list[Score], step: int, num_parameters: int, *, finished: bool) -> None:
    score_files.replace_final(folder.scores, measured, step)
    if folder.summary.exists():
        summary = {**read_json(folder.summary), "parameters": num_parameters}
        write_json(folder.summary, {**summary, "status": "done" if finished else summary["status"]})
