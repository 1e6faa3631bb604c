"""A ladder: one study over sizes of the model and amounts of target-language text, with rules that say how settings scale."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field, model_validator

from megalign.config.sections import Positive, Section

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._]*\Z")


class SizeConfig(Section):
    """A size of the ladder. What `model` leaves out follows from the base model by the rules."""

    name: str = Field(description="Name in labels and reports.")
    model: dict[str, Any] = Field(
        description="Keys of a model: hidden_size or preset, and what the rules must not set."
    )
    set: dict[str, Any] = Field(
        default_factory=dict, description="Dotted key of a run -> value at this size, e.g. {parallel.tensor: 8}."
    )

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return {"name": f"w{value}", "model": {"hidden_size": value}}
        return {"name": value, "model": {"preset": value}} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_a_size(self) -> SizeConfig:
        if not _NAME.match(self.name):
            raise ValueError(f"the size's name {self.name!r} must be letters, digits, '.' and '_'")
        if not {"preset", "hidden_size"} & set(self.model):
            raise ValueError(f"the size {self.name} needs model.hidden_size or model.preset")
        return self


class BudgetConfig(Section):
    """How much each size is pretrained. Exactly one key."""

    source_tokens: Positive | None = Field(
        None, description="Source-language tokens, the same for every size (PreAlign's own comparison)."
    )
    source_tokens_per_parameter: float | None = Field(
        None,
        gt=0,
        description="Source-language tokens for each parameter that is no embedding; near 20 is compute-optimal "
        "(Hoffmann et al. 2022, arXiv 2203.15556).",
    )
    flops: float | None = Field(
        None, gt=0, description="Training FLOPs, the same for every size, at the first of target_ratios."
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> BudgetConfig:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            found = ", ".join(given) or "none"
            raise ValueError(f"set exactly one of {', '.join(type(self).model_fields)}; set are: {found}")
        return self


class RulesConfig(Section):
    """How settings follow the size: value = value of the base * (width / base width) ** exponent.

    The base is the study as its other sections describe it, a method's `set` included. The defaults are those of muP for
    Adam (Yang et al. 2022, arXiv 2203.03466, Table 8) as far as this engine has them, hence muP-like: hidden matrices
    have a learning rate that falls and a spread that shrinks with width, embeddings keep both. Not done: the output
    logits' multiplier, attention scaled by 1 / head width (heads keep their width here, so that nothing would change).
    """

    depth_exponent: float = Field(1.0, description="Of num_layers; 1 keeps the shape, 0 scales width alone.")
    lr_exponent: float = Field(-1.0, description="Of the peak learning rates.")
    embedding_lr_exponent: float = Field(0.0, description="Of the embedding rows' learning rate, multiplier included.")
    init_std_exponent: float = Field(-0.5, description="Of model.init_std; embedding_init_std stays.")
    batch_exponent: float = Field(
        0.0, description="Of the tokens in a batch, over pretraining tokens / base pretraining tokens instead of width."
    )
    injection_exponent: float = Field(
        1.0, description="Of the injection steps, over pretraining steps / base pretraining steps: 1 keeps their share."
    )


class LadderConfig(Section):
    """Sizes x target ratios, run with every method and seed of the study."""

    sizes: Annotated[list[SizeConfig], Field(min_length=1)] = Field(
        description="Each a width, a model preset, or {name, model, set}."
    )
    target_ratios: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = Field(
        description="Source tokens for one token of each target language, e.g. [100, 50]. The source's stay the same."
    )
    ratios_of: dict[str, Annotated[list[float], Field(min_length=1)]] = Field(
        default_factory=dict, description="Method's name -> those of target_ratios it is run at; unset: all."
    )
    budget: BudgetConfig
    rules: RulesConfig = Field(default_factory=RulesConfig)

    @model_validator(mode="after")
    def _each_once(self) -> LadderConfig:
        names = [size.name for size in self.sizes]
        for what, items in (("sizes", names), ("target_ratios", [f"{ratio:g}" for ratio in self.target_ratios])):
            twice = {item for item in items if items.count(item) > 1}
            if twice:
                raise ValueError(f"{what} has {', '.join(sorted(twice))} twice")
        for name, ratios in self.ratios_of.items():
            other = [f"{ratio:g}" for ratio in ratios if ratio not in self.target_ratios]
            if other:
                raise ValueError(f"ratios_of.{name} has {', '.join(other)}, which target_ratios has not")
        return self

    def ratios(self, method: str) -> list[float]:
        """The target ratios at which the method of that name is run."""
        return self.ratios_of.get(method, self.target_ratios)
