"""The sections that runs and studies share. Every field has a sentence; every section checks itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
# Of both optimizers, pretraining's and the injection's, which differ in their defaults.
PeakRate = Annotated[float, Field(gt=0, description="Peak learning rate.")]
EndRatio = Annotated[Fraction, Field(description="Learning rate at the end, as a share of the peak.")]
WarmUp = Annotated[Fraction, Field(description="Share of the steps with linear warm-up.")]
DecayShape = Annotated[
    Literal["cosine", "linear", "constant", "trapezoid"],
    Field(description="Shape after warm-up; trapezoid is constant, then linear over the last half."),
]


class Section(BaseModel):
    """A part of the configuration: unknown keys and wrong types are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ModelConfig(Section):
    """A GPT model. `preset` names a function in megalign.config.models whose values the other keys override."""

    preset: str | None = Field(
        None, description="Preset the values come from: tiny, 150m ... 70b, llama-2.7b ... llama-70b."
    )
    num_layers: Positive = Field(description="Transformer layers.")
    hidden_size: Positive = Field(description="Width of the hidden states.")
    num_attention_heads: Positive = Field(description="Attention heads.")
    num_query_groups: Positive | None = Field(None, description="Key-value heads (grouped-query attention).")
    ffn_hidden_size: Positive = Field(description="Width of the feed-forward layers.")
    sequence_length: Positive = Field(description="Tokens a training window has.")
    position_embedding: Literal["rotary", "learned"] = Field("learned", description="How positions enter.")
    normalization: Literal["LayerNorm", "RMSNorm"] = Field("LayerNorm", description="Normalisation of the layers.")
    norm_epsilon: float = Field(1e-5, gt=0, description="Added to the variance in the normalisation.")
    rotary_base: Positive = Field(10000, description="Base of the rotary frequencies (theta).")
    activation: Literal["gelu", "gelu_tanh", "swiglu"] = Field(
        "gelu", description="Feed-forward activation; gelu_tanh is the approximation of the released GPT-2."
    )
    linear_bias: bool = Field(True, description="Biases in the linear layers.")
    tied_embeddings: bool = Field(True, description="Output rows are the input embeddings.")
    init_std: float = Field(0.02, gt=0, description="Standard deviation of the initial matrices.")
    embedding_init_std: float | None = Field(None, gt=0, description="The same for embeddings; unset: init_std.")
    hidden_dropout: Fraction = Field(0.0, description="Dropout on hidden states.")
    attention_dropout: Fraction = Field(0.0, description="Dropout on attention weights.")
    vocab_size_multiple: Positive = Field(
        128, description="The vocabulary is padded to a multiple of this, so that any tensor_parallel divides it."
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.num_query_groups and self.num_attention_heads % self.num_query_groups:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of num_query_groups "
                f"{self.num_query_groups}"
            )
        return self

    def padded_vocab_size(self, vocab_size: int) -> int:
        """Rows of the embedding for a vocabulary of `vocab_size` ids: independent of the parallel layout."""
        return -(-vocab_size // self.vocab_size_multiple) * self.vocab_size_multiple


class ParallelConfig(Section):
    """The parallel layout: how many processes, and what each holds. Results do not depend on it."""

    tensor: Positive = Field(1, description="Tensor parallel degree: every matrix is cut in so many parts.")
    pipeline: Positive = Field(1, description="Pipeline parallel degree: the layers are cut in so many stages.")
    virtual_pipeline: Positive | None = Field(None, description="Model chunks a stage holds (interleaved schedule).")
    uneven_stages: bool = Field(
        False, description="Let stages differ by one layer where their number does not divide model.num_layers."
    )
    data: Positive = Field(1, description="Data parallel degree: replicas of the model.")
    context: Positive = Field(1, description="Context parallel degree: every window is cut in so many parts.")
    sequence_parallel: bool = Field(False, description="Cut activations along the sequence between tensor ranks.")
    distributed_optimizer: bool = Field(False, description="Cut the optimizer state over data-parallel ranks.")
    recompute: Literal["none", "selective", "full"] = Field("none", description="Activation recomputation.")


class PrecisionConfig(Section):
    """Numbers the model computes with."""

    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Parameters and activations.")
    fp8: Literal["delayed", "tensorwise", "blockwise", "mxfp8"] | None = Field(
        None,
        description="FP8 recipe of TransformerEngine's layers in pretraining; injection and evaluation compute in dtype. "
        "Needs TransformerEngine and a GPU.",
    )
    bf16_layers_at_start: NonNegative = Field(0, description="First layers that compute in bfloat16 under FP8.")
    bf16_layers_at_end: NonNegative = Field(0, description="Last layers that compute in bfloat16 under FP8.")

    def without_fp8(self) -> PrecisionConfig:
        """The same numbers, all layers in `dtype`."""
        return PrecisionConfig(dtype=self.dtype)


class OptimizerConfig(Section):
    """AdamW and its schedule."""

    lr: PeakRate = 3e-4
    min_lr_ratio: EndRatio = 0.1
    warmup_fraction: WarmUp = 0.05
    decay: DecayShape = "cosine"
    weight_decay: float = Field(
        0.1, ge=0, description="Decoupled weight decay of the matrices; never of biases, norms."
    )
    embedding_weight_decay: float = Field(0.1, ge=0, description="The same for embedding and output rows.")
    embedding_lr_multiplier: float = Field(1.0, gt=0, description="Learning rate of embedding and output rows, times.")
    beta1: Decay = Field(0.9, description="Adam's first moment decay.")
    beta2: Decay = Field(0.95, description="Adam's second moment decay.")
    eps: float = Field(1e-8, gt=0, description="Adam's epsilon.")
    clip_grad: float = Field(1.0, ge=0, description="Gradient norm is clipped to this; 0: never.")


class InjectOptimizerConfig(OptimizerConfig):
    """AdamW and its schedule, as the injection has them where nothing else is set."""

    lr: PeakRate = 5e-4
    min_lr_ratio: EndRatio = 0.0
    warmup_fraction: WarmUp = 0.1
    decay: DecayShape = "trapezoid"


class InjectConfig(Section):
    """Alignment injection (PreAlign section 3.1): contrastive loss on words plus LM loss."""

    steps: NonNegative = Field(0, description="Steps with a batch of words; 0: none.")
    when: Literal["before", "during", "after"] = Field(
        "before",
        description="before or after pretraining, as a stage of its own; during: in that many of pretraining's steps, evenly "
        "spread, whose batch and optimizer are pretraining's (lm_batch_size, lm_weight and optimizer then mean nothing).",
    )
    entries_per_step: Positive = Field(256, description="Alignment-table entries in a global batch of words.")
    temperature: float = Field(0.1, gt=0, description="Temperature of the contrastive loss.")
    level_reduction: Literal["sum", "mean"] | list[Annotated[float, Field(ge=0)]] = Field(
        "sum",
        description="How the levels' losses combine: sum (paper), mean, or a weight for each level: input embedding, every "
        "layer, output embedding.",
    )
    contrastive_weight: float = Field(1.0, gt=0, description="Weight of the contrastive loss of all levels together.")
    lm_weight: float = Field(1.0, ge=0, description="Weight of the LM loss beside the contrastive loss.")
    lm_batch_size: Positive = Field(
        2, description="Windows of independently sampled text in a step, all ranks together."
    )
    row_width_tokens: Positive = Field(32, description="Width of the rows into which words are packed.")
    measure_interval: Positive | None = Field(
        None,
        description="Steps between measurements of the alignment at every level (cosines, retrieval@1, uniformity) for "
        "metrics.jsonl; unset: none.",
    )
    measure_entries: Positive = Field(256, description="Most frequent table entries on which that is measured.")
    stop_at_retrieval: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="End the injection when retrieval@1 is this high at every level; unset: after inject.steps."
    )
    stop_patience: Positive = Field(2, description="Measurements in a row that must reach stop_at_retrieval.")
    optimizer: InjectOptimizerConfig = Field(
        default_factory=InjectOptimizerConfig,
        description="Optimizer of the injection; pretraining starts with a fresh one.",
    )

    @model_validator(mode="after")
    def _stop_needs_measuring(self) -> InjectConfig:
        if self.stop_at_retrieval is not None and self.measure_interval is None:
            raise ValueError("stop_at_retrieval needs measure_interval, which is not set")
        if self.stop_at_retrieval is not None and self.when == "during":
            raise ValueError("stop_at_retrieval ends a stage of its own; with when 'during' there is none")
        return self

    @property
    def stage_steps(self) -> int:
        """Steps of the stage of its own; 0 where it has none."""
        return 0 if self.when == "during" else self.steps

    @property
    def steps_during_pretraining(self) -> int:
        """Steps of pretraining that have a batch of words."""
        return self.steps if self.when == "during" else 0

    def level_weights(self, num_levels: int) -> list[float]:
        """The weight of each level's loss."""
        if isinstance(self.level_reduction, list):
            weights = list(self.level_reduction)
        else:
            weights = [1.0 / num_levels if self.level_reduction == "mean" else 1.0] * num_levels
        return [self.contrastive_weight * weight for weight in weights]


class SwitchedSourceConfig(Section):
    """Codeswitching of one source; what is unset is as for all others."""

    ratio: Fraction | None = Field(
        None,
        description="Share of its words that are drawn; 0: it stays as it is, and the table need not have its words.",
    )
    targets: list[str] | dict[str, Annotated[float, Field(gt=0)]] | None = Field(
        None,
        description="Languages of the replacements, alike or with weights; unset: from the source language into all "
        "others that are sources, and from these into the source language.",
    )


class CodeswitchConfig(Section):
    """Codeswitching during pretraining (PreAlign section 3.2)."""

    ratio: Fraction = Field(
        0.0,
        description="Share of the words that are drawn for switching; the paper uses 0.05. 0: no codeswitching at all.",
    )
    sources: dict[str, SwitchedSourceConfig] = Field(
        default_factory=dict, description="Other ratios and targets by language of the source, e.g. {fr: {ratio: 0}}."
    )
    label_mode: Literal["omit", "first_subword", "vanilla"] = Field(
        "omit",
        description="Targets inside a replacement: none (the paper's Eq. 6), the original's first sub-word, all.",
    )
    minimum_hit_rate: Fraction = Field(
        0.05, description="Least share of running words the table must cover, or the run refuses to start."
    )


class BatchPhase(Section):
    """A smaller batch at the beginning of pretraining."""

    until_tokens: Positive = Field(description="Pretraining tokens up to which this size holds.")
    global_batch_size: Positive = Field(description="Windows in a step, all ranks together.")


class GuardConfig(Section):
    """What is watched while training, and what then happens."""

    max_nonfinite_steps: NonNegative = Field(
        0, description="Steps with a loss or gradient that is not finite to leave out before the run stops."
    )
    spike_deviations: float | None = Field(
        6.0, gt=0, description="A loss so many deviations above the median of the last losses is a spike; unset: off."
    )
    spike_window_steps: Annotated[int, Field(ge=8)] = Field(64, description="Losses the median is taken over.")
    spike_patience_steps: Positive | None = Field(
        16, description="Spikes in a row after which the run stops as diverged; unset: only report them."
    )
    hang_seconds: float | None = Field(
        900.0, gt=0, description="Seconds without progress after which all ranks dump their stacks and end; unset: off."
    )
    replica_check_interval: Positive | None = Field(
        None, description="Steps between comparisons of the weights that ranks hold in common; unset: never."
    )


class TrackConfig(Section):
    """Where metrics go besides RUN/metrics.jsonl, and which steps are traced."""

    tensorboard: bool = Field(False, description="Write TensorBoard files into RUN/tensorboard.")
    wandb_project: str | None = Field(None, description="Log to Weights & Biases, in this project; unset: not.")
    wandb_mode: Literal["offline", "online"] = Field(
        "offline", description="offline: files in RUN/wandb for `wandb sync`; online: sends them while training."
    )
    profile_steps: Annotated[list[Positive], Field(min_length=2, max_length=2)] | None = Field(
        None, description="First and last step of each stage of which torch's profiler writes a trace into RUN/profile."
    )
    devices: str | None = Field(
        None, description="File with more accelerators and their peaks, for the utilisation (see scaling/devices.yaml)."
    )


class TrainConfig(Section):
    """Pretraining: batch, length, bookkeeping."""

    steps: Positive = Field(description="Optimizer steps.")
    max_epochs: float | None = Field(
        None, gt=0, description="Stop earlier when the most repeated source has been seen so often."
    )
    global_batch_size: Positive = Field(description="Windows in a step, all ranks together.")
    micro_batch_size: Positive | None = Field(
        None, description="Windows a rank computes at once; unset: all it has of a step."
    )
    batch_size_ramp: list[BatchPhase] = Field(
        default_factory=list,
        description="Smaller batches first, e.g. [{until_tokens: 1000000, global_batch_size: 16}]. Learning rates go on "
        "by steps.",
    )
    accept_changed_data: bool = Field(
        False,
        description="Continue a run although its data are not those it was started with: samples may be read twice or "
        "never, and the run cannot be repeated.",
    )
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="Optimizer and schedule.")
    log_interval: Positive = Field(10, description="Steps between lines of metrics.")
    checkpoint_interval: Positive | None = Field(None, description="Steps between checkpoints; unset: at the end only.")
    keep_checkpoints: Positive = Field(2, description="Checkpoints kept; older ones go once a newer one is complete.")
    keep_permanent_interval: Positive | None = Field(
        None, description="Checkpoints of every so many steps are kept for ever; unset: none."
    )
    async_checkpoint: bool = Field(
        False, description="Write checkpoints in the background, from a copy in host memory, while training goes on."
    )
    verify_checkpoints: bool = Field(
        False, description="Read every checkpoint back from storage and compare checksums before it counts."
    )
    max_seconds: float | None = Field(
        None, gt=0, description="Wall-clock limit: save and exit with code 75 before so many seconds; unset: none."
    )
    stop_margin_seconds: float = Field(
        60.0, ge=0, description="Time left before max_seconds for the last step and the last checkpoint."
    )
    evaluate_interval: Positive | None = Field(None, description="Steps between alignment measurements; unset: none.")

    @model_validator(mode="after")
    def _batch_divides(self) -> TrainConfig:
        if self.micro_batch_size and self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is not a multiple of micro_batch_size "
                f"{self.micro_batch_size}"
            )
        if self.keep_permanent_interval and self.keep_permanent_interval % (self.checkpoint_interval or self.steps + 1):
            raise ValueError(
                f"keep_permanent_interval {self.keep_permanent_interval} is not a multiple of checkpoint_interval "
                f"{self.checkpoint_interval}: no checkpoint would be kept for ever"
            )
        if self.max_seconds is not None and self.max_seconds <= self.stop_margin_seconds:
            raise ValueError(
                f"max_seconds {self.max_seconds:g} is not more than stop_margin_seconds {self.stop_margin_seconds:g}: "
                "the run would stop before its first step"
            )
        tokens = [phase.until_tokens for phase in self.batch_size_ramp]
        if tokens != sorted(set(tokens)):
            raise ValueError(f"batch_size_ramp must have growing until_tokens, not {tokens}")
        return self


class EvaluateConfig(Section):
    """What is measured at the end."""

    max_windows: Positive = Field(512, description="Validation windows a language is scored on.")
    batch_size: Positive = Field(16, description="Windows computed at once.")
    alignment_entries: Positive = Field(512, description="Most frequent table entries whose similarity is measured.")
    clka: bool = Field(True, description="Score facts and control facts, where the study has them.")
    parallel_sentences: str | None = Field(
        None,
        description="Folder of LANGUAGE.jsonl ({id, text}, parallel by id) in which translations are retrieved; unset: not.",
    )
    max_sentences: Annotated[int, Field(ge=2)] = Field(
        1000, description="Sentences of a language that are taken of it."
    )
    mixed_script_generations: NonNegative = Field(
        0, description="Continuations of held-out source text in which other languages are looked for; 0: none."
    )
    mixed_script_tokens: Positive = Field(32, description="Tokens drawn for each of them.")
    mixed_script_prompt_tokens: Positive = Field(16, description="Tokens of held-out text before them.")
