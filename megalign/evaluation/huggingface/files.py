"""Building, writing and reading Hugging Face models through transformers: no network, no code that comes with a model."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from megalign.config.sections import ModelConfig
from megalign.engine.device import out_of_memory
from megalign.errors import ConfigError, DataError, EnvironmentProblem, first_line
from megalign.evaluation.huggingface.architectures import Architecture
from megalign.evaluation.huggingface.weights import rules, to_huggingface


def transformers() -> Any:
    """The library.

    Raises:
        EnvironmentProblem: it is not installed.
    """
    try:
        module = importlib.import_module("transformers")
        importlib.import_module("safetensors")
    except ImportError as error:
        raise EnvironmentProblem(
            f"transformers cannot be used: {error}.",
            "It writes and reads Hugging Face models.",
            "pip install megalign[hf]",
        ) from None
    return module


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bars and advice, which are about other uses."""
    log = transformers().utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def output_name(model: Any) -> str:
    """Name of the output rows in a model's state dict; versions of transformers differ in it."""
    output = model.get_output_embeddings()
    return next(f"{name}.weight" for name, module in model.named_modules() if module is output)


def write_model(
    folder: Path,
    architecture: Architecture,
    model: ModelConfig,
    weights: Mapping[str, torch.Tensor],
    *,
    vocab_size: int,
    eos_id: int,
    own: Mapping[str, Any],
) -> None:
    """Write config.json, generation_config.json and the safetensors of a model.

    Args:
        folder: an empty folder.
        architecture, model: what it is.
        weights: ours, from `read_weights`.
        vocab_size: ids of the vocabulary, without padding.
        eos_id: the end-of-text id, which also starts a text.
        own: value of the key `megalign` in config.json.

    Raises:
        DataError: the tensors are not those of the model.
    """
    library = transformers()
    special = {"bos_token_id": eos_id, "eos_token_id": eos_id, "pad_token_id": eos_id}
    dtype = weights["embedding.word_embeddings.weight"].dtype
    settings = {
        **architecture.settings(model),
        **special,
        "vocab_size": vocab_size,
        "tie_word_embeddings": model.tied_embeddings,
        "initializer_range": model.init_std,
    }
    config = getattr(library, architecture.config_class)(**settings)
    config.megalign = dict(own)
    with torch.device("meta"):
        made = getattr(library, architecture.model_class)(config)
    tensors = to_huggingface(rules(architecture, model, output_name(made)), model, weights, vocab_size)
    if model.tied_embeddings:
        tensors[output_name(made)] = tensors[_input_name(made)]
    # Copied into the model whole, in their own dtype; buffers on the meta device are not saved.
    made.load_state_dict(tensors, strict=True, assign=True)
    made.tie_weights()
    made.config.dtype = dtype
    made.generation_config = library.GenerationConfig(**special, do_sample=False)
    made.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes files that nobody else may read


def _input_name(model: Any) -> str:
    rows = model.get_input_embeddings()
    return next(f"{name}.weight" for name, module in model.named_modules() if module is rows)


def read_model(folder: Path, dtype: str = "auto") -> Any:
    """A causal model from a local folder with safetensors.

    Raises:
        ConfigError: the dtype is unknown.
        DataError: it cannot be read safely, or tensors are missing.
    """
    if dtype not in ("auto", "float32"):
        raise ConfigError(f"dtype is {dtype}.", fix="Set auto or float32.")
    library = transformers()
    try:
        model, told = library.AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype="auto" if dtype == "auto" else torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by their names
        )
    except Exception as error:  # whatever transformers and safetensors make of damaged files
        if out_of_memory(error):
            raise
        raise DataError(
            f"{folder} cannot be opened as a causal language model: {first_line(error)}.",
            "Models are read from local files with safetensors weights; code that comes with a model is never run.",
            "Correct the path, download the files again, or convert the weights to safetensors.",
        ) from error
    _require_all(folder, told)
    return model


def _require_all(folder: Path, told: Mapping[str, Any]) -> None:
    """Refuse what transformers reads all the same: it fills up what is missing and leaves out what is too much."""
    shapes = [f"{name} ({_shape(found)}, not {_shape(wanted)})" for name, found, wanted in told["mismatched_keys"]]
    for names, what, why in (
        (told["missing_keys"], "has no tensors for", "They would be random numbers."),
        (shapes, "has tensors of other shapes than config.json says:", "They would be random numbers."),
        (told["unexpected_keys"], "has tensors that config.json knows nothing of:", "They would be left out."),
    ):
        if names:
            raise DataError(
                f"{folder} {what} {', '.join(sorted(map(str, names))[:3])} ({len(names)} in all).",
                why,
                "Download or save the model again, configuration and weights together.",
            )


def _shape(sizes: Iterable[int]) -> str:
    return " x ".join(map(str, sizes))
