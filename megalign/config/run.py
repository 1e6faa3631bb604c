"""One training run: one method, one seed, files in, files out."""

from __future__ import annotations

from math import gcd
from typing import Annotated

from pydantic import Field, model_validator

from megalign.config.layout import Layout
from megalign.config.sections import (
    CodeswitchConfig,
    EvaluateConfig,
    GuardConfig,
    InjectConfig,
    ModelConfig,
    NonNegative,
    ParallelConfig,
    PrecisionConfig,
    Section,
    TrackConfig,
    TrainConfig,
)
from megalign.errors import ConfigError


class SourceConfig(Section):
    """A language of the store and how much of the training text it is."""

    language: str = Field(description="Language of the token store.")
    weight: float = Field(gt=0, description="Share of the training tokens, relative to the other sources.")
    as_clone: str | None = Field(None, description="Read as this clone language: ids shifted while reading.")

    @property
    def read_as(self) -> str:
        """The language the model sees."""
        return self.as_clone or self.language


class DataStage(Section):
    """Another mixture from some point of pretraining on, e.g. for a last phase of better text."""

    after_tokens: Annotated[int, Field(ge=1)] = Field(
        description="Pretraining tokens read before; every source goes on where it stood."
    )
    sources: Annotated[list[SourceConfig], Field(min_length=1)] = Field(description="The mixture from there on.")


class RunDataConfig(Section):
    """The files a run reads."""

    store: str = Field(description="Folder of the token store.")
    sources: Annotated[list[SourceConfig], Field(min_length=1)] = Field(
        description="What the training text is made of."
    )
    stages: list[DataStage] = Field(
        default_factory=list, description="Mixtures that follow, in order. May be added while the run is stopped."
    )
    skip_samples: list[Annotated[list[NonNegative], Field(min_length=2, max_length=2)]] = Field(
        default_factory=list,
        description="Ranges [first, last] of absolute sample numbers to leave out. May be added while the run is stopped.",
    )
    table: str | None = Field(None, description="Alignment table (parquet); needed for injection and codeswitching.")
    table_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="Most frequent share of the table's entries that is injected and switched; alignment is measured on all.",
    )
    facts: str | None = Field(None, description="Facts file (json) for cross-lingual knowledge application.")
    periods: str | None = Field(
        None, description="Facts file (json) of which every period of pretraining states some, asked at its end."
    )
    source_language: str = Field("en", description="Language the alignment table starts from.")

    @property
    def all_sources(self) -> list[SourceConfig]:
        """The sources of all stages, each once, in the order in which they first appear."""
        found = {source.read_as: source for source in self.sources}
        for stage in self.stages:
            for source in stage.sources:
                found.setdefault(source.read_as, source)
        return list(found.values())


class RunConfig(Section):
    """Everything `megalign train` needs. Paths are relative to the folder the command runs in."""

    name: str = Field(description="Name shown in logs and reports.")
    folder: str = Field(description="Run folder: checkpoints, metrics, scores.")
    method: str = Field("joint", description="Method this run follows (for reports; the sections below decide).")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Seed of weights, data order, word batches, switches.")
    model: ModelConfig
    data: RunDataConfig
    train: TrainConfig
    inject: InjectConfig = Field(default_factory=InjectConfig)
    codeswitch: CodeswitchConfig = Field(default_factory=CodeswitchConfig)
    initial_weights: str | None = Field(
        None,
        description="Start from these weights: the folder of an imported model or of another run, or one of its "
        "checkpoints. Unset: random weights.",
    )
    golden_embeddings: bool = Field(
        False, description="Start clone languages from their originals' embedding rows (upper bound of alignment)."
    )
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)
    precision: PrecisionConfig = Field(default_factory=PrecisionConfig)
    guards: GuardConfig = Field(default_factory=GuardConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    track: TrackConfig = Field(default_factory=TrackConfig)

    @model_validator(mode="after")
    def _table_when_needed(self) -> RunConfig:
        if self.data.table is None and (self.inject.steps or self.codeswitch.ratio):
            raise ValueError("inject.steps and codeswitch.ratio need data.table, which is not set")
        return self

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages of training, in order; each starts from the weights of the one before."""
        own = ["inject"] if self.inject.stage_steps else []
        return ("pretrain", *own) if self.inject.when == "after" else (*own, "pretrain")

    @model_validator(mode="after")
    def _words_fit_into_pretraining(self) -> RunConfig:
        if self.inject.steps_during_pretraining > self.train.steps:
            raise ValueError(
                f"inject.when is 'during', and train.steps {self.train.steps} has no room for {self.inject.steps} batches of "
                "words (inject.steps)"
            )
        if self.inject.steps_during_pretraining and self.precision.fp8:
            raise ValueError(
                "inject.when 'during' computes words in pretraining's precision, and precision.fp8 has none"
            )
        return self

    @model_validator(mode="after")
    def _periods_are_equal(self) -> RunConfig:
        if self.data.periods and self.train.batch_size_ramp:
            raise ValueError("data.periods has periods of equal batches: leave train.batch_size_ramp out")
        return self

    @model_validator(mode="after")
    def _one_beginning(self) -> RunConfig:
        if self.golden_embeddings and self.initial_weights is not None:
            raise ValueError("golden_embeddings sets rows of random weights; initial_weights would replace them")
        return self

    @model_validator(mode="after")
    def _level_weights_fit(self) -> RunConfig:
        weights, levels = self.inject.level_reduction, self.model.num_layers + 2
        if isinstance(weights, list) and (len(weights) != levels or not any(weights)):
            raise ValueError(
                f"inject.level_reduction has {len(weights)} weights {weights}; the model has {levels} levels, and one of "
                "them must count"
            )
        return self

    @model_validator(mode="after")
    def _switched_sources_are_read(self) -> RunConfig:
        read = [source.read_as for source in self.data.all_sources]
        unknown = [name for name in self.codeswitch.sources if name not in read]
        if unknown and self.codeswitch.ratio:
            raise ValueError(
                f"codeswitch.sources names {unknown[0]}, which is not among data.sources: {', '.join(read)}"
            )
        return self

    @property
    def _batch_sizes(self) -> dict[str, int]:
        """Where a global batch size stands -> it."""
        ramp = enumerate(self.train.batch_size_ramp)
        sizes = {f"train.batch_size_ramp.{number}.": phase.global_batch_size for number, phase in ramp}
        return {**sizes, "train.": self.train.global_batch_size}

    @property
    def micro_batch_size(self) -> int:
        """Windows a rank computes at once: train.micro_batch_size, or else all it has of a step."""
        return self.train.micro_batch_size or gcd(*self._batch_sizes.values()) // self.parallel.data

    @model_validator(mode="after")
    def _batch_over_replicas(self) -> RunConfig:
        for where, size in self._batch_sizes.items():
            try:
                Layout(self.parallel).num_micro_batches(size, self.train.micro_batch_size)
            except ConfigError as error:
                raise ValueError(f"{where}{error.what.rstrip('.')}") from None
        if self.inject.stage_steps and self.inject.lm_batch_size % self.parallel.data:
            raise ValueError(
                f"inject.lm_batch_size {self.inject.lm_batch_size} is not a multiple of parallel.data "
                f"{self.parallel.data}"
            )
        return self
