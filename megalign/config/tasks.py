"""What a study tests beside its text: facts, learning dynamics, language inference."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from megalign.config.sections import Fraction, NonNegative, Positive, Section

# Languages in which sentences for facts are written.
FACT_LANGUAGES = ("en", "zh", "de", "ru", "ar")


class FactsConfig(Section):
    """Artificial facts stated in the source language only, tested in every language (CLKA)."""

    kind: Literal["invented", "wikidata"] = Field(
        "invented",
        description="invented: English sentences about pseudo-names, for a clone; wikidata: Wikidata relations about names "
        "spelled in each language, for en, zh, de, ru and ar.",
    )
    num_relations: Positive = Field(10, description="Relations; each has its own objects.")
    objects_per_relation: Annotated[int, Field(ge=4)] = Field(6, description="Facts of a relation, one an object.")
    repetitions: Positive = Field(200, description="How often each fact is stated in the training text.")
    chatter_share: Fraction = Field(
        0.12, description="Share of documents that end with a sentence naming two entities without stating a fact."
    )


class DynamicsConfig(Section):
    """Learning dynamics (PreAlign section 5.2): new facts in every period of pretraining, asked at its end."""

    period_steps: Positive = Field(
        description="Steps of a period; a multiple of train.evaluate_interval. The paper's are 250."
    )
    frequencies: Annotated[list[Positive], Field(min_length=1)] = Field(
        [1, 4, 16], description="How often a fact is stated in its period."
    )
    facts_per_cell: Positive = Field(
        12, description="Facts for each language and frequency in a period; a multiple of objects_per_relation."
    )
    objects_per_relation: Annotated[int, Field(ge=4)] = Field(6, description="Objects of a relation.")


class NliConfig(Section):
    """Zero-shot transfer of language inference: fine-tuned in the source language, tested in every one (ZS-CLT)."""

    kind: Literal["generated", "files"] = Field(
        "generated", description="generated: from the procedural grammar, for a clone; files: in XNLI's formats."
    )
    train: str | None = Field(None, description="Training pairs in the source language, of kind files.")
    test: dict[str, str] = Field(default_factory=dict, description="Language -> test pairs, of kind files.")
    num_train: NonNegative = Field(6000, description="Training pairs: generated, or at most taken of the file; 0: all.")
    num_test: NonNegative = Field(600, description="Test pairs of a language, likewise.")
    sentence_share: Fraction = Field(
        0.1,
        description="Share of the documents of a procedural corpus that end with a sentence of the kind that is asked, so that "
        "its words are known in every language.",
    )
    epochs: Positive = Field(3, description="Times every training pair is seen.")
    batch_size: Positive = Field(32, description="Pairs in a step.")
    lr: float = Field(5e-4, gt=0, description="Peak learning rate; linear decay after a warm-up.")
    warmup_fraction: Fraction = Field(0.06, description="Share of the steps with linear warm-up.")
    weight_decay: float = Field(0.01, ge=0, description="Decoupled weight decay of the matrices.")
    max_tokens: Positive | None = Field(
        None, description="Longest pair in tokens, the rest is cut; unset: the model's sequence length."
    )

    @model_validator(mode="after")
    def _files_fit_kind(self) -> NliConfig:
        if self.kind == "files" and not (self.train and self.test):
            raise ValueError("kind 'files' needs train and test: {language: file}")
        if self.kind == "generated" and (self.train or self.test):
            raise ValueError("kind 'generated' takes neither train nor test")
        if self.kind == "generated" and not (self.num_train and self.num_test):
            raise ValueError("kind 'generated' needs num_train and num_test")
        return self
