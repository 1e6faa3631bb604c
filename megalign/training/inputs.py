"""What a run reads and writes: its folder and its inputs. Opening them needs no torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from megalign.cluster.ownership import Ownership
from megalign.config import RunConfig
from megalign.config.compare import differences
from megalign.config.layout import Layout
from megalign.corpus.knowledge.facts import Knowledge
from megalign.corpus.store import TokenStore
from megalign.errors import ConfigError, DataError
from megalign.files import write_text
from megalign.prealign.encoded import EncodedTable
from megalign.prealign.table import AlignmentTable
from megalign.prealign.words import WordBatches
from megalign.training.batch_schedule import BatchSchedule, WordSchedule
from megalign.training.period_windows import PeriodWindows
from megalign.training.samples import Samples, build_switcher

if TYPE_CHECKING:
    from megalign.engine.engine import Engine


class RunFolder:
    """The files of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.events = path / "events.jsonl"
        self.hang = path / "hang"
        self.scores = path / "scores.jsonl"
        self.summary = path / "run.json"
        self._ownership: Ownership | None = None

    def checkpoints(self, stage: str) -> Path:
        """The checkpoints of a stage."""
        return self.path / "checkpoints" / stage

    def claim(self, work: str) -> None:
        """Take the folder over for this process ("train", "eval"); see Ownership."""
        self._ownership = Ownership.claim(self.path, work)

    def fence(self) -> None:
        """Right before publishing: raises SupersededError where this process claimed the folder and another has it."""
        if self._ownership:
            self._ownership.check()

    def release(self) -> None:
        """This process has ended by itself."""
        if self._ownership:
            self._ownership.release()

    def begin(self, config: RunConfig) -> None:
        """Write the resolved configuration, or see that the folder was begun with the same one.

        Raises:
            ConfigError: the folder holds a run with other settings.
        """
        self.check(config)
        content = config.model_dump(mode="json")
        write_text(self.config, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    def check(self, config: RunConfig) -> None:
        """See that the folder is new or was begun with the same settings; changes nothing.

        Raises:
            ConfigError: the folder holds a run with other settings.
        """
        if not self.config.exists():
            return
        before = _with_defaults(yaml.safe_load(self.config.read_text(encoding="utf-8")))
        accepted = config.train.accept_changed_data
        changed = [
            f"{key} was {old!r}, is {new!r}"
            for key, old, new in differences(before, config.model_dump(mode="json"))
            if not (_may_change(key) or (accepted and key.startswith("data.")))
        ]
        if changed:
            raise ConfigError(
                f"The run folder {self.path} was started with other settings: {'; '.join(changed)}.",
                "Continuing would mix two runs.",
                "Restore the settings, choose another folder, or remove this one.",
            )


def _with_defaults(content: Any) -> Any:
    """Settings of a run; those that its version did not have yet are at their defaults, as it behaved."""
    try:
        return RunConfig.model_validate(content).model_dump(mode="json")
    except ValidationError:
        return content


def _may_change(key: str) -> bool:
    """Settings that do not change what was computed: where and how the run is computed, and the data that lie ahead.

    Stages and skipped samples behind the checkpoint's position are refused by its fingerprint of the data order.
    """
    if key.startswith(("data.stages", "data.skip_samples")):
        return True
    return key.split(".")[0] in {"parallel", "folder", "name", "evaluate", "guards", "track"} or key in {
        "train.accept_changed_data",
        "train.micro_batch_size",
        "train.log_interval",
        "train.checkpoint_interval",
        "train.keep_checkpoints",
        "train.keep_permanent_interval",
        "train.async_checkpoint",
        "train.verify_checkpoints",
        "train.max_seconds",
        "train.stop_margin_seconds",
        "data.store",
        "data.table",
        "data.facts",
        "data.periods",
        "initial_weights",
    }


@dataclass
class RunInputs:
    """The files a run reads, opened."""

    config: RunConfig
    store: TokenStore

    @classmethod
    def open(cls, config: RunConfig) -> RunInputs:
        """Open what the run needs.

        Raises:
            DataError: a file is missing or damaged, or the sources' ids exceed the store's vocabulary.
        """
        return cls(config, TokenStore.open(Path(config.data.store)))

    @cached_property
    def whole_table(self) -> EncodedTable:
        """The alignment table in the store's token ids, whatever share of it the run uses: what alignment is measured on."""
        if self.config.data.table is None:
            raise ConfigError("data.table is not set.", "This method needs an alignment table.", "Set data.table.")
        table = AlignmentTable.load(Path(self.config.data.table))
        return EncodedTable(table, self.store.vocabulary, self.config.data.source_language)

    @cached_property
    def encoded(self) -> EncodedTable:
        """The part of the alignment table that is injected and switched."""
        whole, fraction = self.whole_table, self.config.data.table_fraction
        if fraction == 1:
            return whole
        return EncodedTable(whole.table.top_fraction(fraction), self.store.vocabulary, whole.source_language)

    def word_batches(self) -> WordBatches:
        """The injection's batches of words.

        Raises:
            ConfigError: the table is too small for a batch.
        """
        inject = self.config.inject
        return WordBatches(
            self.encoded,
            entries_per_batch=inject.entries_per_step,
            seed=self.config.seed,
            row_width_tokens=inject.row_width_tokens,
        )

    @property
    def word_schedule(self) -> WordSchedule:
        """The steps of pretraining that have a batch of words.

        Raises:
            ConfigError: pretraining has fewer steps than there are batches.
        """
        return WordSchedule(self.num_steps, self.config.inject.steps_during_pretraining)

    @cached_property
    def table_fingerprint(self) -> str:
        """16 hex digits of the content of what is used of the alignment table."""
        content = json.dumps([self.encoded.source_language, list(self.encoded.table.rows())])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @cached_property
    def samples(self) -> Samples:
        """The training text."""
        config = self.config
        switcher = build_switcher(config, self.encoded) if config.codeswitch.ratio else None
        return Samples(
            self.store, config.data, config.model.sequence_length, config.seed, switcher=switcher, periods=self.periods
        )

    @cached_property
    def period_facts(self) -> Knowledge | None:
        """The facts that periods of pretraining state; None where there are none.

        Raises:
            DataError: the file has no facts with periods.
        """
        path = self.config.data.periods
        if path is None:
            return None
        knowledge = Knowledge.load(Path(path))
        if not knowledge.num_periods or not knowledge.period_steps:
            raise DataError(f"{path} has no facts with periods.", fix="Let the study make it, or unset data.periods.")
        return knowledge

    @cached_property
    def periods(self) -> PeriodWindows | None:
        """The windows of those facts."""
        knowledge, config = self.period_facts, self.config
        if knowledge is None:
            return None
        return PeriodWindows(
            knowledge,
            self.store.vocabulary,
            length=config.model.sequence_length,
            samples_per_period=int(knowledge.period_steps or 0) * config.train.global_batch_size,
            seed=config.seed,
        )

    @cached_property
    def batch_schedule(self) -> BatchSchedule:
        """Samples of every pretraining step."""
        return BatchSchedule.of(self.config.train, self.config.model.sequence_length)

    @property
    def num_steps(self) -> int:
        """Pretraining steps: train.steps, or fewer where train.max_epochs ends them."""
        train = self.config.train
        if train.max_epochs is None:
            return train.steps
        samples = self.samples.order.positions_in_epochs(train.max_epochs)
        steps = self.batch_schedule.steps_within(samples)
        if steps < 1:
            raise DataError(
                f"{train.max_epochs:g} epochs are {samples} windows, fewer than train.global_batch_size "
                f"{self.batch_schedule.size(1)}.",
                "There is not a single step to take.",
                "Raise train.max_epochs, or give the source more text.",
            )
        return min(train.steps, steps)

    def stage_steps(self, stage: str) -> int:
        """Steps that a stage of training has, if it does not end early."""
        return self.num_steps if stage == "pretrain" else self.config.inject.stage_steps

    def steps_since_pretraining_began(self, stage: str, step: int) -> int:
        """Where scores measured at a stage's step stand: those of an injection after pretraining follow its steps."""
        return step if stage == "pretrain" else self.num_steps + step

    def engine(self, layout: Layout, stage: str | None) -> Engine:
        """A fresh engine for a stage ("inject", "pretrain"), or one that only reads (None)."""
        from megalign.engine.engine import Engine

        config = self.config
        optimizer = {"inject": config.inject.optimizer, "pretrain": config.train.optimizer}.get(stage or "")
        vocabulary = self.store.vocabulary
        return Engine(
            config.model,
            layout,
            # Words in short rows, and numbers that are compared: only pretraining computes in FP8.
            config.precision if stage == "pretrain" else config.precision.without_fp8(),
            vocab_size=vocabulary.size,
            seed=config.seed,
            optimizer=optimizer,
            num_steps=self.stage_steps(stage) if stage else 1,
            row_sources=vocabulary.row_sources() if config.golden_embeddings else None,
        )
