"""Open whatever a path names."""

from __future__ import annotations

from pathlib import Path

from megalign.answers.huggingface import open_huggingface
from megalign.answers.model import AnswerModel
from megalign.errors import DataError
from megalign.hub import ADAPTER_CONFIG


def open_model(
    name_or_path: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    batch_size: int = 16,
    allow_download: bool = False,
    truncate: bool = False,
    language: str | None = None,
) -> AnswerModel:
    """A model to ask: use it in a `with` block.

    Args:
        name_or_path: the folder of a Hugging Face causal model, of a PEFT adapter or of a run of ours; or a name on the Hub.
        device: e.g. cpu, cuda, cuda:1; unset: the GPU where there is one.
        dtype: numbers to compute with; unset: as the weights are stored.
        batch_size: rows computed at once.
        allow_download: may fetch a model by its name; otherwise what is not in local files is an error.
        truncate: cut what is too long at its left end; otherwise that is an error.
        language: language of the prompts, for a run with cloned languages.

    Raises:
        ConfigError: settings that the model or this machine cannot take.
        DataError: there is no such model, it is damaged, or it cannot be read safely.
        EnvironmentProblem: a library is missing.
    """
    path = Path(name_or_path)
    if path.is_dir() and not any((path / name).is_file() for name in ("config.json", ADAPTER_CONFIG)):
        # Megatron-Core is loaded only where it is needed.
        from megalign.answers.trained_run import is_run_folder, open_run

        if not is_run_folder(path):
            raise DataError(
                f"{path} holds no model.",
                "A Hugging Face model has config.json, an adapter adapter_config.json, a run config.yaml and checkpoints.",
                "Name the folder that has them.",
            )
        model = open_run(path, batch_size=batch_size, device=device, dtype=dtype, language=language)
        model.truncate = truncate
        return model
    if not path.is_dir() and (path.is_absolute() or path.parts[:1] == ("..",)):
        raise DataError(
            f"{path} {'is no folder' if path.exists() else 'does not exist'}.", fix="Name a model's folder."
        )
    return open_huggingface(
        name_or_path,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        allow_download=allow_download,
        truncate=truncate,
    )
