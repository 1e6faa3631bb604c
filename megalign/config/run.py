"""One training run: one method, one seed, files in, files out."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from megalign.config.sections import (
    BatchPhase,
    CodeswitchConfig,
    EvaluateConfig,
    GuardConfig,
    InjectConfig,
    ModelConfig,
    NonNegative,
    ParallelConfig,
    PrecisionConfig,
    Section,
    TrainConfig,
)


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
    facts: str | None = Field(None, description="Facts file (json) for cross-lingual knowledge application.")
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
    golden_embeddings: bool = Field(
        False, description="Start clone languages from their originals' embedding rows (upper bound of alignment)."
    )
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)
    precision: PrecisionConfig = Field(default_factory=PrecisionConfig)
    guards: GuardConfig = Field(default_factory=GuardConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)

    @model_validator(mode="after")
    def _table_when_needed(self) -> RunConfig:
        if self.data.table is None and (self.inject.steps or self.codeswitch.ratio):
            raise ValueError("inject.steps and codeswitch.ratio need data.table, which is not set")
        return self

    @model_validator(mode="after")
    def _batch_over_replicas(self) -> RunConfig:
        per_step = self.train.micro_batch_size * self.parallel.data
        sizes: dict[str, BatchPhase | TrainConfig] = {
            f"train.batch_size_ramp.{n}.": phase for n, phase in enumerate(self.train.batch_size_ramp)
        }
        sizes["train."] = self.train
        for where, phase in sizes.items():
            if phase.global_batch_size % per_step:
                raise ValueError(
                    f"{where}global_batch_size {phase.global_batch_size} is not a multiple of train.micro_batch_size "
                    f"{self.train.micro_batch_size} x parallel.data {self.parallel.data}"
                )
        if self.inject.steps and self.inject.lm_batch_size % self.parallel.data:
            raise ValueError(
                f"inject.lm_batch_size {self.inject.lm_batch_size} is not a multiple of parallel.data "
                f"{self.parallel.data}"
            )
        return self
