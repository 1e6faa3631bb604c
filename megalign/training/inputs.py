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
from megalign.corpus.store import TokenStore
from megalign.errors import ConfigError, DataError
from megalign.files import write_text
from megalign.prealign.encoded import EncodedTable
from megalign.prealign.table import AlignmentTable
from megalign.training.batch_schedule import BatchSchedule
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
    def encoded(self) -> EncodedTable:
        """The alignment table in the store's token ids."""
        if self.config.data.table is None:
            raise ConfigError("data.table is not set.", "This method needs an alignment table.", "Set data.table.")
        table = AlignmentTable.load(Path(self.config.data.table))
        return EncodedTable(table, self.store.vocabulary, self.config.data.source_language)

    @cached_property
    def table_fingerprint(self) -> str:
        """16 hex digits of the alignment table's content."""
        content = json.dumps([self.encoded.source_language, list(self.encoded.table.rows())])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @cached_property
    def samples(self) -> Samples:
        """The training text."""
        config = self.config
        switcher = build_switcher(config, self.encoded) if config.codeswitch.ratio else None
        return Samples(self.store, config.data, config.model.sequence_length, config.seed, switcher=switcher)

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

    def engine(self, layout: Layout, stage: str | None) -> Engine:
        """A fresh engine for a stage ("inject", "pretrain"), or one that only reads (None)."""
        from megalign.engine.engine import Engine

        config = self.config
        optimizer = {"inject": config.inject.optimizer, "pretrain": config.train.optimizer}.get(stage or "")
        steps = {"inject": config.inject.steps, "pretrain": self.num_steps}.get(stage or "", 1)
        vocabulary = self.store.vocabulary
        return Engine(
            config.model,
            layout,
            # Words in short rows, and numbers that are compared: only pretraining computes in FP8.
            config.precision if stage == "pretrain" else config.precision.without_fp8(),
            vocab_size=vocabulary.size,
            seed=config.seed,
            optimizer=optimizer,
            num_steps=max(steps, 1),
            row_sources=vocabulary.row_sources() if config.golden_embeddings else None,
        )
