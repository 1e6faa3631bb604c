"""Models with adapters: every module that is asked for is found, or named in an error."""

from __future__ import annotations

from collections import Counter
from difflib import get_close_matches
from typing import Any

import torch

from megalign.crossin.tuning.settings import ALL_LINEAR, LoraSettings, TuneConfig
from megalign.errors import ConfigError, DataError, EnvironmentProblem, first_line
from megalign.hub import local_model, require_all_weights, unreadable


def load_model(config: TuneConfig) -> tuple[Any, Any]:
    """The base model and its tokenizer.

    Raises:
        DataError: it is not there, is no causal model with safetensors weights, lacks some, or has no tokenizer.
        EnvironmentProblem: transformers is not installed.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    except ImportError:
        raise EnvironmentProblem("transformers is not installed.", fix="pip install megalign[hf]") from None
    logging.disable_progress_bar()
    name = config.base_model if config.allow_download else local_model(config.base_model)
    options: dict[str, Any] = {"local_files_only": not config.allow_download, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        dtype = getattr(torch, config.dtype)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
        model, loading = loaded
        require_all_weights(config.base_model, loading)
    except unreadable() as error:
        raise DataError(
            f"{config.base_model} cannot be opened as a causal language model: {first_line(error)}.",
            "Models are read from local files with safetensors weights; code that comes with a model is never run.",
            "Correct the path, or allow the download.",
        ) from None
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit and config.context_tokens > limit:
        raise ConfigError(
            f"context_tokens is {config.context_tokens}; {config.base_model} has {limit} positions.",
            fix=f"Set context_tokens to {limit} or less.",
        )
    return model, tokenizer


def linear_modules(model: Any) -> dict[str, int]:
    """Last names of the linear modules of a model and how often each stands, without the output embeddings."""
    from transformers.pytorch_utils import Conv1D

    output = model.get_output_embeddings()
    counts: Counter[str] = Counter()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not output:
            counts[name.rpartition(".")[2]] += 1
    return dict(counts)


def adapted(model: Any, settings: LoraSettings) -> tuple[Any, dict[str, int]]:
    """The model with an adapter on every module asked for, and how many modules of each name have one.

    Raises:
        ConfigError: a module that is asked for is not there.
        EnvironmentProblem: peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
        from peft.tuners.lora import LoraLayer
        from transformers.pytorch_utils import Conv1D
    except ImportError:
        raise EnvironmentProblem("peft is not installed.", fix="pip install megalign[hf]") from None
    there = linear_modules(model)
    wanted = list(there) if settings.modules == ALL_LINEAR else list(settings.modules)
    missing = [name for name in wanted if name not in there]
    if missing:
        near = get_close_matches(missing[0], list(there), n=1)
        raise ConfigError(
            f"lora.modules asks for {', '.join(missing)}, and the model has no linear module of that name.",
            "A projection that is left out unseen is not tuned." + (f" Is {near[0]} meant?" if near else ""),
            f"Choose of {', '.join(there)}; or {ALL_LINEAR}.",
        )
    saved = _embeddings(model) if settings.embeddings else None
    tied = bool(saved) and bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=wanted,
        modules_to_save=saved,
        bias="none",
        # GPT-2's Conv1D keeps its weight transposed.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
        ensure_weight_tying=tied,
    )
    with_adapter = get_peft_model(model, config)
    for parameter in with_adapter.parameters():
        if parameter.requires_grad:
            # Small steps would be lost in bfloat16; embeddings saved in full come in the model's numbers.
            parameter.data = parameter.data.float()
    found = Counter(
        name.rpartition(".")[2] for name, module in with_adapter.named_modules() if isinstance(module, LoraLayer)
    )
    expected = {name: there[name] for name in wanted}
    if dict(found) != expected:
        raise ConfigError(
            f"The adapter is on {dict(found)}, and was to be on {expected}.",
            "peft matched other modules than asked for.",
        )
    return with_adapter, dict(found)


def described_adapter(model: Any, modules: dict[str, int]) -> str:
    """What is tuned, in words; names matrices without an adapter, such as experts that are no linear modules."""
    from peft.tuners.lora import LoraLayer

    tuned = sum(one.numel() for one in model.parameters() if one.requires_grad)
    total = sum(one.numel() for one in model.parameters())
    adapted_ids = {
        id(one) for module in model.modules() if isinstance(module, LoraLayer) for one in module.parameters()
    }
    embeddings = [one for one in model.modules() if isinstance(one, torch.nn.Embedding)]
    embeddings += [one for one in (model.get_input_embeddings(), model.get_output_embeddings()) if one is not None]
    embedding_ids = {id(one) for module in embeddings for one in module.parameters()}
    left = [
        name.removeprefix("base_model.model.").removesuffix(".weight")
        for name, one in model.named_parameters()
        if one.ndim > 1 and not one.requires_grad and id(one) not in adapted_ids | embedding_ids
    ]
    said = f"LoRA on {', '.join(f'{count} {name}' for name, count in modules.items())}: {tuned} of {total} parameters tuned"
    if left:
        said += f"; {len(left)} matrices of the model have no adapter, such as {left[0]}"
    return said


def _embeddings(model: Any) -> list[str]:
    """Last names of the input and output embeddings; of tied ones, the input's."""
    wanted = [model.get_input_embeddings()]
    output = model.get_output_embeddings()
    if output is not None and not model.config.get_text_config().tie_word_embeddings:
        wanted.append(output)
    return [name.rpartition(".")[2] for name, module in model.named_modules() if any(module is one for one in wanted)]
