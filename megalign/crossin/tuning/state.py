"""The state of a tuning run from which it continues: trainable weights and AdamW's moments as safetensors, and where it is.

Learning rate, order of rows and dropout are functions of the step, so that nothing else has to be kept.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from megalign.errors import ConfigError, DataError
from megalign.files import make_folder, new_folder, read_json, write_json
from megalign.hub import saving

LOCK, FOLDERS = ".tuning.lock", ("state", "adapter", "merged")
WEIGHTS, MOMENTS, STATE = "weights.safetensors", "moments.safetensors", "state.json"


def prepare_folder(out: Path) -> None:
    """Make the folder of a run.

    Raises:
        ConfigError: it has what a run would replace, and no run was begun in it; or it cannot be made.
    """
    make_folder(out)
    begun = (out / LOCK).exists() or (out / "state" / STATE).is_file()
    there = [name for name in (*FOLDERS, "metrics.jsonl") if (out / name).exists()]
    if there and not begun:
        raise ConfigError(
            f"{out} has {', '.join(there)}, and no tuning was begun there.",
            "They would be replaced.",
            "Name a new folder, or remove them yourself.",
        )


def restore_folders(out: Path) -> None:
    """Clear away what a kill left of folders that were being written; one being replaced gets its name back."""
    for name in FOLDERS:
        for left in sorted(out.glob(f".tmp-{name}-*")):
            if left.name.endswith("-old") and not (out / name).exists():
                left.replace(out / name)
            else:
                shutil.rmtree(left, ignore_errors=True)


def trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_state(
    folder: Path, model: Any, optimizer: torch.optim.Optimizer, step: int, fingerprint: dict[str, Any]
) -> None:
    """Replace the state by that after `step` steps."""
    parameters = trainable(model)
    moments = {
        f"{name}.{key}": value.detach().cpu().contiguous()
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }
    with saving(folder), new_folder(folder) as made:
        save_file({name: one.detach().cpu().contiguous() for name, one in parameters.items()}, made / WEIGHTS)
        save_file(moments, made / MOMENTS)
        write_json(made / STATE, {"step": step, "fingerprint": fingerprint})


def load_state(folder: Path, model: Any, optimizer: torch.optim.Optimizer, fingerprint: dict[str, Any]) -> int:
    """Set model and optimizer to a state; the number of steps done, 0 where there is no state.

    Raises:
        ConfigError: the state is of a run with other settings or data.
        DataError: it is damaged.
    """
    if not (folder / STATE).is_file():
        return 0
    state = read_json(folder / STATE)
    if not isinstance(state, dict) or not {"step", "fingerprint"} <= set(state):
        raise DataError(f"{folder / STATE} is no state of a tuning run.", fix=f"Remove {folder} to start again.")
    theirs = state["fingerprint"]
    changed = [
        f"{key} was {theirs.get(key)!r}, is {fingerprint.get(key)!r}"
        for key in sorted({*theirs, *fingerprint})
        if theirs.get(key) != fingerprint.get(key)
    ]
    if changed:
        raise ConfigError(
            f"{folder} is the state of a run with other settings: {'; '.join(changed)}.",
            "Continuing would mix two runs.",
            "Restore the settings, or write to another folder.",
        )
    parameters = trainable(model)
    try:
        weights, moments = load_file(folder / WEIGHTS), load_file(folder / MOMENTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"{folder} is damaged: {error}", fix="Remove it to start again.") from None
    if set(weights) != set(parameters):
        raise DataError(f"{folder} holds other parameters than the model trains.", fix="Remove it to start again.")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
            kept = {key: moments.get(f"{name}.{key}") for key in ("step", "exp_avg", "exp_avg_sq")}
            if any(value is None for value in kept.values()):
                raise DataError(f"{folder} has no moments of {name}.", fix="Remove it to start again.")
            optimizer.state[parameter] = {
                key: value.clone() if key == "step" else value.to(parameter.device)
                for key, value in kept.items()
                if value is not None
            }
    return int(state["step"])
