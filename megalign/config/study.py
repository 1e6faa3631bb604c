"""A study: one recipe of data and model, several methods, several seeds, one report."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from megalign.config.ladder import LadderConfig
from megalign.config.sections import (
    CodeswitchConfig,
    EvaluateConfig,
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
from megalign.config.tasks import FACT_LANGUAGES, DynamicsConfig, FactsConfig, NliConfig

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


class CorpusConfig(Section):
    """The text of a study and how it becomes a token store."""

    kind: Literal["procedural", "folder", "store"] = Field(
        description="procedural: made from the seed; folder: files, read into memory; store: a token store, as tools/ "
        "make it, of any size."
    )
    path: str | None = Field(
        None,
        description="Folder of text (parquet in the CulturaX layout, jsonl, txt), one folder a language inside; or the "
        "token store.",
    )
    source_language: str = Field("en", description="Language with most text, from which the table starts.")
    target_languages: list[str] = Field(default_factory=list, description="Other languages found in `path`.")
    clone: bool = Field(False, description="Add a clone of the source language (En-Clone): id + vocabulary size.")
    source_tokens: Positive = Field(
        description="Training tokens of the source language. Of a store, which may have more: its share of the mixture."
    )
    target_tokens: Positive = Field(description="Training tokens of every other language, the clone included.")
    validation_tokens: NonNegative = Field(0, description="Held-out tokens of every language. A store has its own.")
    vocab_size: NonNegative = Field(
        0, description="Ids of the byte-level BPE tokenizer. Of a store: those it must have; 0: any."
    )
    tokenizer_characters: Positive = Field(
        4_000_000, description="Characters of every language the tokenizer is trained on."
    )

    @model_validator(mode="after")
    def _path_fits_kind(self) -> CorpusConfig:
        if self.kind != "procedural" and not self.path:
            raise ValueError(f"kind {self.kind!r} needs path")
        if self.kind == "store" and self.validation_tokens:
            raise ValueError("kind 'store' takes no validation_tokens: the store has its own held-out text")
        if self.kind != "store" and (not self.validation_tokens or self.vocab_size < 258):
            raise ValueError(f"kind {self.kind!r} needs validation_tokens of 1 or more and vocab_size of 258 or more")
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


class TableConfig(Section):
    """The word alignment table."""

    kind: Literal["golden", "muse", "file"] = Field(
        description="golden: every word with its clone; muse: dictionary files; file: a table of tools/build_table.py."
    )
    path: str | None = Field(None, description="The file of kind file (parquet). It is taken as it is.")
    dictionaries: dict[str, str] = Field(default_factory=dict, description="Target language -> MUSE-format file.")
    min_count: NonNegative = Field(20, description="Words must occur more often than this in the source text.")
    max_translations: Positive = Field(5, description="Translations kept a word and language.")
    fraction: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="Most frequent share of the entries kept.")

    @model_validator(mode="after")
    def _files_fit_kind(self) -> TableConfig:
        if self.kind == "muse" and not self.dictionaries:
            raise ValueError("kind 'muse' needs dictionaries: {language: file}")
        if self.kind != "muse" and self.dictionaries:
            raise ValueError(f"kind {self.kind!r} takes no dictionaries")
        if (self.kind == "file") != (self.path is not None):
            raise ValueError("kind 'file', and no other, needs path")
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
    dynamics: DynamicsConfig | None = Field(None, description="Facts learned in periods of pretraining; unset: none.")
    nli: NliConfig | None = Field(None, description="Language inference after pretraining; unset: none.")
    table: TableConfig
    model: ModelConfig
    train: TrainConfig
    ladder: LadderConfig | None = Field(
        None, description="Sizes and target ratios at which every method is run; unset: those of model and corpus."
    )
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
            raise ValueError(f"{value!r} must be letters, digits, '.', '_' and '-', and begin with a letter or digit")
        return value

    @model_validator(mode="after")
    def _labels_are_distinct(self) -> StudyConfig:
        labels = [method.label for method in self.methods]
        for label in labels:
            if not _NAME.match(label):
                raise ValueError(
                    f"method name {label!r} must be letters, digits, '.', '_' and '-', and begin with a letter or digit"
                )
            if labels.count(label) > 1:
                raise ValueError(f"two methods are called {label!r}: give one of them another `name`")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {self.seeds} has one twice")
        return self

    @model_validator(mode="after")
    def _ladder_fits(self) -> StudyConfig:
        labels = [method.label for method in self.methods]
        if self.ladder and not self.corpus.vocab_size:
            raise ValueError("a ladder counts with corpus.vocab_size: set it to the ids of the store's tokenizer")
        unknown = [name for name in (self.ladder.ratios_of if self.ladder else ()) if name not in labels]
        if unknown:
            raise ValueError(f"ladder.ratios_of names {unknown[0]}, which is not among methods: {', '.join(labels)}")
        return self

    @model_validator(mode="after")
    def _table_fits_corpus(self) -> StudyConfig:
        if self.table.kind == "golden" and not self.corpus.clone:
            raise ValueError("table.kind 'golden' needs corpus.clone: only a clone has a golden table")
        missing = set(self.corpus.target_languages) - set(self.table.dictionaries)
        if self.table.kind == "muse" and missing:
            raise ValueError(f"table.dictionaries has no file for {', '.join(sorted(missing))}")
        if self.facts and self.corpus.kind == "store":
            raise ValueError("facts are stated in text that is still to be encoded: corpus.kind 'store' takes none")
        if self.facts and self.facts.kind == "invented" and not self.corpus.clone:
            raise ValueError(
                "facts of kind 'invented' are tested in a clone language: set corpus.clone or facts.kind, or leave facts out"
            )
        if self.facts and self.facts.kind == "wikidata" and self.corpus.clone:
            raise ValueError(
                "facts of kind 'wikidata' are for real languages: leave corpus.clone out, or set facts.kind"
            )
        return self

    @model_validator(mode="after")
    def _facts_can_be_said(self) -> StudyConfig:
        corpus, dynamics = self.corpus, self.dynamics
        named = [corpus.source_language, *corpus.target_languages]
        unknown = [language for language in named if language not in FACT_LANGUAGES]
        asks_real = (self.facts is not None and self.facts.kind == "wikidata") or (dynamics and not corpus.clone)
        if asks_real and unknown:
            raise ValueError(f"facts cannot be said in {unknown[0]!r}, only in {', '.join(FACT_LANGUAGES)}")
        if self.nli and self.nli.kind == "generated" and not (corpus.kind == "procedural" and corpus.clone):
            raise ValueError(
                "nli.kind 'generated' is for corpus.kind 'procedural' with a clone; set nli.kind to 'files'"
            )
        if dynamics is None:
            return self
        if corpus.kind == "store":
            raise ValueError("dynamics has names that the tokenizer must know: corpus.kind 'store' takes none")
        if corpus.clone and corpus.target_languages:
            raise ValueError("dynamics is of a clone or of real languages, not of both")
        interval = self.train.evaluate_interval
        if interval is None or dynamics.period_steps % interval:
            raise ValueError(
                f"dynamics.period_steps {dynamics.period_steps} must be a multiple of train.evaluate_interval, which is "
                f"{interval}"
            )
        if self.train.batch_size_ramp:
            raise ValueError("dynamics has periods of equal batches: leave train.batch_size_ramp out")
        return self
