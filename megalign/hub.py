"""Models of transformers: names on the Hub without the network, and what is wrong with files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megalign.errors import ConfigError, DataError, EnvironmentProblem, first_line

ADAPTER_CONFIG = "adapter_config.json"


def local_model(name_or_path: str) -> str:
    """A model's folder, or the cached copy of what a name on the Hub stands for; asks no network.

    `local_files_only` is not enough: transformers looks for an adapter of that name on the Hub all the same.

    Raises:
        DataError: there is neither.
        EnvironmentProblem: huggingface_hub is missing.
    """
    if Path(name_or_path).is_dir():
        return name_or_path
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        raise EnvironmentProblem("huggingface_hub is not installed.", fix="pip install megalign[hf]") from None
    for name in ("config.json", ADAPTER_CONFIG):
        try:
            found = try_to_load_from_cache(name_or_path, name)
        except ValueError:  # no name that the Hub could have
            break
        if isinstance(found, str):
            return str(Path(found).parent)
    raise DataError(
        f"{name_or_path} is no folder, and no model of that name was downloaded before.",
        "Models are read from local files unless a download is allowed.",
        "Correct the path, or allow the download.",
    )


def unreadable() -> tuple[type[Exception], ...]:
    """What transformers raises for files that are damaged, or are no model."""
    known = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError)
    try:
        from safetensors import SafetensorError
    except ImportError:
        return known
    return (*known, SafetensorError)


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Say what storage refuses while torch or safetensors write into `folder`: they raise errors of their own for it.

    Raises:
        EnvironmentProblem: a file cannot be written.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        raise EnvironmentProblem(
            f"{folder} cannot be written: {first_line(error)}.",
            fix="Free space there, or choose another folder; the same command goes on where it stopped.",
        ) from error


def require_all_weights(name: str, loading: Mapping[str, Any]) -> None:
    """Refuse a model whose files lack weights: transformers draws those at random and goes on.

    Args:
        name: of the model, for the message.
        loading: what `from_pretrained` tells with `output_loading_info`.

    Raises:
        DataError: weights are missing.
    """
    if missing := sorted(loading["missing_keys"]):
        raise DataError(
            f"{name} lacks {len(missing)} of the model's weights, such as {missing[0]}.",
            "They would be drawn at random, and no answer would mean anything.",
            "Name the folder of a whole causal language model.",
        )


def require_known_ids(name: str, ids: Sequence[int], num_embeddings: int) -> None:
    """Refuse ids for which a model has no embedding.

    Raises:
        DataError: there is one.
    """
    if ids and max(ids) >= num_embeddings:
        raise DataError(
            f"The tokenizer of {name} gives the id {max(ids)}, and the model has {num_embeddings} embeddings.",
            "The two do not belong together.",
            "Restore the model's own tokenizer, or resize the model's embeddings.",
        )


def num_embeddings(model: Any) -> int:
    """Ids that a model knows."""
    return int(model.get_input_embeddings().weight.shape[0])


def chat_text(tokenizer: Any, turns: Sequence[Mapping[str, str]], *, answer_next: bool) -> str:
    """Turns in a tokenizer's chat template, with `answer_next` up to where the answer starts.

    Raises:
        ConfigError: the template cannot be filled in.
    """
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer_next))
    except (TemplateError, ValueError, TypeError) as error:
        raise ConfigError(
            f"The tokenizer's chat template cannot be filled in: {first_line(error)}.",
            fix="Mend the template, or ask without it.",
        ) from None
