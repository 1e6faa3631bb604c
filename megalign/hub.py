"""Names on the Hugging Face Hub without the network."""

from __future__ import annotations

from pathlib import Path

from megalign.errors import DataError, EnvironmentProblem

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
