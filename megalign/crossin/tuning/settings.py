"""The settings of a tuning run. Defaults are those CrossIn released (Lin et al. 2024, arXiv:2404.11932)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from megalign.config.load import apply_overrides, parse_override, read_yaml, validate
from megalign.config.sections import Fraction, NonNegative, Positive, Section

ALL_LINEAR = "all-linear"


class LoraSettings(Section):
    """Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685)."""

    rank: Positive = Field(64, description="Rank r of the update.")
    alpha: Positive = Field(128, description="The update is scaled by alpha / r.")
    dropout: Fraction = Field(0.05, description="Dropout on the input of the update.")
    modules: str | list[str] = Field(
        ALL_LINEAR, description="Names of the linear modules to adapt, each of which must be there; or all-linear."
    )
    embeddings: bool = Field(
        False, description="Train input and output embeddings in full and save them with the adapter, as released."
    )

    @model_validator(mode="after")
    def _modules(self) -> LoraSettings:
        if isinstance(self.modules, str) and self.modules != ALL_LINEAR:
            raise ValueError(f"modules is {self.modules!r}; write {ALL_LINEAR}, or a list of names")
        if isinstance(self.modules, list) and (not self.modules or len(set(self.modules)) < len(self.modules)):
            raise ValueError("modules is an empty list, or names a module twice")
        return self


class TuneConfig(Section):
    """A tuning run."""

    base_model: str = Field(
        description="Folder of a Hugging Face causal model, or its name on the Hub with allow_download."
    )
    data: str = Field(description="Folder that tools/build_crossin.py wrote, a jsonl file, or a saved data set.")
    template: str | None = Field(
        "plain",
        description="plain, alpaca, chatml, llama-2, vicuna, or tokenizer for the model's own; null for the rows' prompt and completion.",
    )
    lora: LoraSettings = Field(default_factory=lambda: LoraSettings.model_validate({}), description="The adapter.")
    epochs: Positive = Field(1, description="Passes over the data.")
    max_steps: Positive | None = Field(None, description="Optimizer steps at most; the learning rate falls over them.")
    batch_size: Positive = Field(16, description="Sequences per optimizer step, over all processes.")
    micro_batch: Positive = Field(4, description="Sequences computed at once by a process.")
    context_tokens: Positive = Field(4096, description="Longest sequence.")
    too_long: Literal["error", "drop", "cut"] = Field(
        "error", description="Rows over context_tokens: an error, dropped and counted, or cut at the answer's end."
    )
    packing: bool = Field(False, description="Several rows in a sequence; attention stays within each row.")
    loss: Literal["example", "token"] = Field(
        "token", description="What weighs equally in a batch: every answer, or every token of the answers."
    )
    learning_rate: float = Field(1e-4, gt=0, description="Peak learning rate.")
    warmup: Fraction = Field(
        0.03, description="Share of the steps in which the learning rate rises; then it falls by a cosine."
    )
    weight_decay: float = Field(0.01, ge=0, description="AdamW's weight decay.")
    clip_gradient: float = Field(1.0, gt=0, description="Norm that gradients are cut to.")
    dtype: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="Numbers of the frozen model and of the computation; the adapter is trained in float32."
    )
    gradient_checkpointing: bool = Field(False, description="Compute activations again instead of keeping them.")
    seed: NonNegative = Field(0, description="Of the adapter's start, of dropout and of the order of rows.")
    save_steps: Positive = Field(500, description="Steps between states from which a stopped run continues.")
    merge: bool = Field(False, description="Also write the model with the adapter merged in.")
    allow_download: bool = Field(False, description="May fetch the model by its name.")
    device: Literal["cpu"] | None = Field(None, description="cpu, to leave a GPU alone; unset: what accelerate finds.")

    def fingerprint(self) -> dict[str, Any]:
        """What must be the same for a stopped run to be continued."""
        content = self.model_dump()
        for name in (
            "save_steps",
            "merge",
            "allow_download",
            "device",
            "micro_batch",
            "gradient_checkpointing",
        ):
            content.pop(name)
        return content


def load_tune(path: Path, overrides: Iterable[str] = ()) -> TuneConfig:
    """The settings in a YAML file, overrides applied.

    Raises:
        ConfigError: the file or an override is wrong.
    """
    content = apply_overrides(read_yaml(path), [parse_override(text) for text in overrides])
    return validate(TuneConfig, content, str(path))
