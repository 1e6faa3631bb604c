"""A study: one recipe of data and model, several methods, several seeds, one report."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from megalign.config.sections import (
    CodeswitchConfig,
    EvaluateConfig,
    Fraction,
    GuardConfig,
    InjectConfig,
    ModelConfig,
    NonNegative,
    ParallelConfig,
    Positive,
    PrecisionConfig,
    Section,
    TrackConfig,
    TrainConfig,
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


class CorpusConfig(Section):
    """The text of a study and how it becomes a token store."""

    kind: Literal["procedural", "folder"] = Field(description="procedural: made from the seed; folder: files.")
    path: str | None = Field(
        None, description="Folder of text (parquet in the CulturaX layout, jsonl, txt); one folder a language inside."
    )
    source_language: str = Field("en", description="Language with most text, from which the table starts.")
    target_languages: list[str] = Field(default_factory=list, description="Other languages found in `path`.")
    clone: bool = Field(False, description="Add a clone of the source language (En-Clone): id + vocabulary size.")
    source_tokens: Positive = Field(description="Training tokens of the source language.")
    target_tokens: Positive = Field(description="Training tokens of every other language, the clone included.")
    validation_tokens: Positive = Field(description="Held-out tokens of every language.")
    vocab_size: Annotated[int, Field(ge=258)] = Field(description="Ids of the byte-level BPE tokenizer.")
    tokenizer_characters: Positive = Field(
        4_000_000, description="Characters of every language the tokenizer is trained on."
    )

    @model_validator(mode="after")
    def _path_fits_kind(self) -> CorpusConfig:
        if self.kind == "folder" and not self.path:
            raise ValueError("kind 'folder' needs path")
        if self.kind == "procedural" and (self.path or self.target_languages):
            raise ValueError("kind 'procedural' takes neither path nor target_languages: it makes its own English text")
        if not self.clone and not self.target_languages:
            raise ValueError("there is no target language: set clone or target_languages")
        return self

    @property
    def clone_language(self) -> str:
        """Name of the clone language."""
        return f"{self.source_language}-clone"

    @property
    def all_target_languages(self) -> list[str]:
        """Target languages, the clone first."""
        return ([self.clone_language] if self.clone else []) + self.target_languages


class FactsConfig(Section):
    """Artificial facts stated in the source language only, tested in every language (CLKA)."""

    num_relations: Positive = Field(10, description="Relations; each has its own objects.")
    objects_per_relation: Annotated[int, Field(ge=4)] = Field(6, description="Facts of a relation, one an object.")
    repetitions: Positive = Field(200, description="How often each fact is stated in the training text.")
    chatter_share: Fraction = Field(
        0.12, description="Share of documents that end with a sentence naming two entities without stating a fact."
    )


class TableConfig(Section):
    """The word alignment table."""

    kind: Literal["golden", "muse"] = Field(description="golden: every word with its clone; muse: dictionary files.")
    dictionaries: dict[str, str] = Field(default_factory=dict, description="Target language -> MUSE-format file.")
    min_count: NonNegative = Field(20, description="Words must occur more often than this in the source text.")
    max_translations: Positive = Field(5, description="Translations kept a word and language.")
    fraction: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="Most frequent share of the entries kept.")

    @model_validator(mode="after")
    def _files_fit_kind(self) -> TableConfig:
        if self.kind == "muse" and not self.dictionaries:
            raise ValueError("kind 'muse' needs dictionaries: {language: file}")
        if self.kind == "golden" and self.dictionaries:
            raise ValueError("kind 'golden' takes no dictionaries")
        return self


class MethodConfig(Section):
    """A method of the study; `set` overrides keys of its run."""

    method: str = Field(description="Name of a method preset.")
    name: str = Field("", description="Name in folders and reports; unset: the method's.")
    title: str = Field("", description="Title in reports; unset: the method's.")
    set: dict[str, Any] = Field(default_factory=dict, description="Dotted key of the run -> value.")

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"method": value} if isinstance(value, str) else value

    @property
    def label(self) -> str:
        """The name in folders and reports."""
        return self.name or self.method


class ExecutionConfig(Section):
    """How the study runs on this machine; results do not depend on it."""

    processes: Positive | None = Field(None, description="Processes computing at a time; unset: the machine's cores.")


class StudyConfig(Section):
    """Everything `megalign study run` needs."""

    name: str = Field(description="Name of the study and of its folder.")
    title: str = Field("", description="Title of the report.")
    description: str = Field("", description="What the study asks, for the report.")
    seeds: Annotated[list[NonNegative], Field(min_length=1)] = Field(description="Each seed has its own data and runs.")
    methods: Annotated[list[MethodConfig], Field(min_length=1)] = Field(description="What is compared.")
    corpus: CorpusConfig
    facts: FactsConfig | None = Field(None, description="Artificial facts; unset: none.")
    table: TableConfig
    model: ModelConfig
    train: TrainConfig
    inject: InjectConfig = Field(default_factory=InjectConfig)
    codeswitch: CodeswitchConfig = Field(default_factory=CodeswitchConfig)
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)
    precision: PrecisionConfig = Field(default_factory=PrecisionConfig)
    guards: GuardConfig = Field(default_factory=GuardConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    track: TrackConfig = Field(default_factory=TrackConfig)
    execution: ExecutionConfig = Field(default_factory=ExecutionConfig)

    @field_validator("name")
    @classmethod
    def _name_is_a_folder(cls, value: str) -> str:
        if not _NAME.match(value):
            raise ValueError(f"{value!r} must be letters, digits, '.', '_' and '-'")
        return value

    @model_validator(mode="after")
    def _labels_are_distinct(self) -> StudyConfig:
        labels = [method.label for method in self.methods]
        for label in labels:
            if not _NAME.match(label):
                raise ValueError(f"method name {label!r} must be letters, digits, '.', '_' and '-'")
            if labels.count(label) > 1:
                raise ValueError(f"two methods are called {label!r}: give one of them another `name`")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {self.seeds} has one twice")
        return self

    @model_validator(mode="after")
    def _table_fits_corpus(self) -> StudyConfig:
        if self.table.kind == "golden" and not self.corpus.clone:
            raise ValueError("table.kind 'golden' needs corpus.clone: only a clone has a golden table")
        missing = set(self.corpus.target_languages) - set(self.table.dictionaries)
        if self.table.kind == "muse" and missing:
            raise ValueError(f"table.dictionaries has no file for {', '.join(sorted(missing))}")
        if self.facts and not self.corpus.clone:
            raise ValueError("facts are tested in a clone language: set corpus.clone, or leave facts out")
        return self
