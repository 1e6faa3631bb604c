"""How a model is taught."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megalign.config.sections import Fraction, Positive, Section

# Folder in a taught Hugging Face model of the states its training can be continued from.
STATES = "training"


class TuneSettings(Section):
    """Fine-tuning on the training rows of a language; the loss is on answers alone."""

    method: Literal["lora", "full"] = Field("lora", description="What is trained; of a run of ours always all weights.")
    form: Literal["plain", "chat"] = Field(
        "plain", description="Question: .. Answer: .., or the model's chat template."
    )
    epochs: Positive = Field(3, description="Times every row is seen.")
    batch_size: Positive = Field(16, description="Rows in an optimizer step.")
    micro_batch_size: Positive = Field(16, description="Rows computed at once.")
    lr: float = Field(2e-4, gt=0, description="Peak learning rate; cosine after a warm-up.")
    warmup_fraction: Fraction = Field(0.03, description="Share of the steps with linear warm-up.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    lora_rank: Positive = Field(64, description="Rank of the LoRA matrices, on all linear layers.")
    lora_alpha: Positive = Field(128, description="Scale of LoRA: alpha over rank.")
    lora_dropout: Fraction = Field(0.05, description="Dropout before the LoRA matrices.")
    save_steps: Positive = Field(200, description="Steps between checkpoints, from which a stopped run continues.")
    # The upper end is that of NumPy's generators, which transformers seeds too.
    seed: int = Field(0, ge=0, lt=2**32, description="Of the order of rows, of LoRA's weights and of dropout.")
