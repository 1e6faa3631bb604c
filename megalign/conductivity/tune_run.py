"""Fine-tune a run of ours: the engine takes the steps, its checkpoints hold the state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import yaml

from megalign.answers.trained_run import load_run_model, newest_checkpoint, reading_config, single_process
from megalign.clika.knowledge import Row
from megalign.conductivity.log import TuningLog
from megalign.conductivity.rows import Example, batches, digest_of, examples_of
from megalign.conductivity.settings import TuneSettings
from megalign.config.layout import Layout
from megalign.config.sections import OptimizerConfig
from megalign.engine import checkpoint
from megalign.engine.engine import Engine, LanguageBatch, StepResult
from megalign.errors import ConfigError
from megalign.files import make_folder, write_text
from megalign.training.finetune import STAGE, finetune
from megalign.training.run import RunFolder, RunInputs

Say = Callable[[str], None]


def tune_run(
    source: Path, rows: Sequence[Row], out: Path, settings: TuneSettings, log: Path, say: Say = lambda text: None
) -> None:
    """Train all weights of a run's newest checkpoint on rows; `out` becomes a run's folder that answers. Rerun to continue.

    Args:
        source: the run's folder; not changed.
        rows: what is taught.
        out: the folder of the taught run.
        settings: how; LoRA's fields are not used.
        log, say: see TuningLog.

    Raises:
        ConfigError: a chat template is asked for.
        DataError: `out` was begun with other rows or settings, or the run does not fit.
    """
    if settings.form == "chat":
        raise ConfigError("A run of ours has no chat template.", fix="Use the plain form.")
    config = reading_config(source)
    with single_process(config):
        reader = load_run_model(config, batch_size=1)
        examples = examples_of(rows, reader, settings.form)
        steps = list(batches(len(examples), settings.batch_size, settings.epochs, settings.seed))
        inputs = RunInputs.open(config)
        engine = Engine(
            config.model,
            Layout(config.parallel),
            config.precision,
            vocab_size=inputs.store.vocabulary.size,
            seed=settings.seed,
            optimizer=OptimizerConfig(
                lr=settings.lr,
                warmup_fraction=settings.warmup_fraction,
                min_lr_ratio=0.0,
                weight_decay=settings.weight_decay,
                embedding_weight_decay=settings.weight_decay,
            ),
            num_steps=len(steps),
        )
        make_folder(out)
        target = RunFolder(out)
        moved = config.model_copy(update={"folder": str(out), "name": f"{config.name}/taught"})
        write_text(target.config, yaml.safe_dump(moved.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
        state: dict[str, object] = {
            "stage": STAGE,
            "store": inputs.store.fingerprint,
            "taught": digest_of(rows),
            "started_from": reader.fingerprint,
            "settings": settings.model_dump(mode="json"),
        }
        where = target.checkpoints(STAGE)
        told = TuningLog(log, len(steps), say)

        def take(step: int) -> StepResult:
            chosen = [examples[at] for at in steps[step - 1]]
            return engine.step(micro_batches(chosen, reader.end_id, settings.micro_batch_size), step)

        finetune(
            engine,
            where,
            state,
            start=lambda: checkpoint.load(engine, newest_checkpoint(RunFolder(source)), with_optimizer=False),
            take=take,
            num_steps=len(steps),
            save_steps=settings.save_steps,
            told=told,
        )


def micro_batches(examples: Sequence[Example], filler: int, size: int) -> list[LanguageBatch]:
    """One step's examples, filled up at their right ends to one even width; only answers are targets."""
    width = max(len(one.ids) for one in examples) - 1
    width += width % 2
    count = -(-len(examples) // size) * size if len(examples) > size else len(examples)
    whole = np.full((count, width + 1), filler, dtype=np.int64)
    mask = np.zeros((count, width), dtype=np.float32)
    for number, one in enumerate(examples):
        whole[number, : len(one.ids)] = one.ids
        mask[number, one.num_context - 1 : len(one.ids) - 1] = 1.0
    return [
        LanguageBatch(
            *(np.ascontiguousarray(part[start : start + size]) for part in (whole[:, :-1], whole[:, 1:], mask))
        )
        for start in range(0, count, size)
    ]
