"""The rules of a ladder: a size's model, budget, batch and learning rates as functions of the size and the base run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megalign.config import ModelConfig, OptimizerConfig, RunConfig, model_preset, validate
from megalign.config.ladder import BudgetConfig, LadderConfig, RulesConfig, SizeConfig
from megalign.errors import ConfigError
from megalign.scaling.flops import training_flops_per_token
from megalign.scaling.parameters import count_parameters

MAX_WIDTH = 1 << 20  # beyond it, what a size has of layers alone could not be listed


@dataclass(frozen=True)
class Rung:
    """One size at one target ratio under one method.

    Attributes:
        settings: dotted key of a run -> value.
        model: the model.
        target_ratio: source tokens for one token of each target language.
        tokens: pretraining tokens by language, as planned; whole batches read up to one batch less.
        steps: pretraining steps.
        batch_tokens: tokens of a step.
        injection_steps: steps of injection before.
        flops: model FLOPs of pretraining; the injection's come on top.
    """

    settings: dict[str, Any]
    model: ModelConfig
    target_ratio: float
    tokens: dict[str, int]
    steps: int
    batch_tokens: int
    injection_steps: int
    flops: float

    @property
    def non_embedding_parameters(self) -> int:
        """Parameters without input rows, output rows and positions."""
        return count_parameters(self.model, 1).non_embedding


def model_of(base: ModelConfig, size: SizeConfig, rules: RulesConfig) -> ModelConfig:
    """The model of a size.

    A preset is taken as it is. Otherwise depth follows the rule, heads keep their width, and the feed-forward layers
    their ratio to the width; the rest is the base's. What `size.model` says comes last. The spread of the initial
    matrices follows the rule in both cases.

    Raises:
        ConfigError: the width is not a multiple of the base's head width, or a key of `size.model` is wrong.
    """
    given = dict(size.model)
    if "preset" in given:
        content = {**model_preset(str(given["preset"])), **given}
        width = int(content["hidden_size"])
    else:
        width = int(given["hidden_size"])
        content = {**base.model_dump(), "preset": None, **_shape(base, width, size, rules), **given}
    if not 0 < width <= MAX_WIDTH:
        raise ConfigError(
            f"The ladder's size {size.name} has hidden_size {width}.", fix=f"Set a width from 1 to {MAX_WIDTH}."
        )
    factor = width / base.hidden_size
    if "init_std" not in given:
        content["init_std"] = base.init_std * factor**rules.init_std_exponent
    if "embedding_init_std" not in given:
        content["embedding_init_std"] = base.embedding_init_std or base.init_std
    return validate(ModelConfig, content, f"the ladder's size {size.name}")


def _shape(base: ModelConfig, width: int, size: SizeConfig, rules: RulesConfig) -> dict[str, int | None]:
    factor = width / base.hidden_size
    head_width = base.hidden_size // base.num_attention_heads
    if width % head_width and "num_attention_heads" not in size.model:
        raise ConfigError(
            f"The ladder's size {size.name} has hidden_size {width}, which is not a multiple of the base model's head "
            f"width {head_width}.",
            "Heads keep their width over the ladder.",
            "Choose another width, or give the size its own num_attention_heads.",
        )
    groups = base.num_query_groups
    return {
        "num_layers": max(1, round(base.num_layers * factor**rules.depth_exponent)),
        "num_attention_heads": width // head_width,
        "num_query_groups": max(1, round(groups * factor)) if groups else None,
        "ffn_hidden_size": round(base.ffn_hidden_size * factor),
    }


def source_tokens_of(model: ModelConfig, budget: BudgetConfig, target_share: float, vocab_size: int) -> int:
    """Source-language tokens of a size: the same at every target ratio and under every method.

    Args:
        model: of the size.
        budget: what is held equal over sizes.
        target_share: tokens of all target languages over those of the source, at the first target ratio.
        vocab_size: ids of the vocabulary, for the FLOPs of the logits.
    """
    if budget.source_tokens is not None:
        return budget.source_tokens
    if budget.source_tokens_per_parameter is not None:
        return round(budget.source_tokens_per_parameter * count_parameters(model, 1).non_embedding)
    assert budget.flops is not None
    return round(budget.flops / training_flops_per_token(model, vocab_size) / (1 + target_share))


def rung_of(
    base: RunConfig, size: SizeConfig, target_ratio: float, ladder: LadderConfig, *, num_targets: int, vocab_size: int
) -> Rung:
    """One size at one target ratio.

    Args:
        base: the run of the method at the study's own size, the method's `set` included.
        size: the size.
        target_ratio: source tokens for one token of each target language.
        ladder: rules and budget.
        num_targets: target languages of the study.
        vocab_size: ids of the vocabulary.

    Raises:
        ConfigError: the model is not possible, or the budget is less than a batch.
    """
    model = model_of(base.model, size, ladder.rules)
    share = num_targets / ladder.target_ratios[0]
    source = source_tokens_of(model, ladder.budget, share, vocab_size)
    tokens = {
        one.read_as: source if one.language == base.data.source_language else round(source / target_ratio)
        for one in base.data.sources
    }
    base_batch = base.train.global_batch_size * base.model.sequence_length
    growth = source * (1 + share) / (base.train.steps * base_batch)  # of the pretraining tokens
    batch = _batch_windows(base, model, size, growth**ladder.rules.batch_exponent) * model.sequence_length
    steps = sum(tokens.values()) // batch
    if not steps:
        raise ConfigError(
            f"The ladder's size {size.name} has {sum(tokens.values()):,} tokens of pretraining at the target ratio "
            f"{target_ratio:g}, less than a batch of {batch:,}.",
            fix="Raise ladder.budget, or lower train.global_batch_size.",
        )
    step_growth = growth * base_batch / batch
    injection_steps = round(base.inject.steps * step_growth**ladder.rules.injection_exponent)
    if base.inject.steps:
        injection_steps = max(1, injection_steps)
    factor = model.hidden_size / base.model.hidden_size
    settings = {
        "model": model.model_dump(mode="json"),
        "data.sources": [{**one.model_dump(), "weight": float(tokens[one.read_as])} for one in base.data.sources],
        "train.global_batch_size": batch // model.sequence_length,
        "train.steps": steps,
        "inject.steps": injection_steps,
        **_rates("train.optimizer", base.train.optimizer, factor, ladder.rules),
        **_rates("inject.optimizer", base.inject.optimizer, factor, ladder.rules),
        **size.set,
    }
    flops = training_flops_per_token(model, vocab_size) * steps * batch
    return Rung(settings, model, target_ratio, tokens, steps, batch, injection_steps, flops)


def _batch_windows(base: RunConfig, model: ModelConfig, size: SizeConfig, factor: float) -> int:
    """Windows of a step: so many tokens as the rule says, in a number that the layout divides."""
    if "train.global_batch_size" in size.set:
        return int(size.set["train.global_batch_size"])
    micro = size.set.get("train.micro_batch_size", base.train.micro_batch_size) or 1
    multiple = int(micro * size.set.get("parallel.data", base.parallel.data))
    tokens = base.train.global_batch_size * base.model.sequence_length * factor
    return max(1, round(tokens / model.sequence_length / multiple)) * multiple


def _rates(section: str, optimizer: OptimizerConfig, factor: float, rules: RulesConfig) -> dict[str, float]:
    """Peak learning rate and the embeddings' multiplier of it."""
    return {
        f"{section}.lr": optimizer.lr * factor**rules.lr_exponent,
        f"{section}.embedding_lr_multiplier": optimizer.embedding_lr_multiplier
        * factor ** (rules.embedding_lr_exponent - rules.lr_exponent),
    }
