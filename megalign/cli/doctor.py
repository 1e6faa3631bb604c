"""What is installed and which path will be taken."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from importlib import metadata

from rich.markup import escape
from rich.table import Table

_PACKAGES = {
    "torch": ("torch", "tensors", "required"),
    "megatron-core": ("megatron.core", "the engine", "required"),
    "psutil": ("psutil", "Megatron's checkpoint writer; without it saving hangs", "required"),
    "zarr": ("zarr", "token stores", "required"),
    "tokenizers": ("tokenizers", "tokenizer training", "required"),
    "tiktoken": ("tiktoken", "fast encoding", "required"),
    "transformer-engine": ("transformer_engine", "FP8 and fused layers on GPUs", "extra gpu"),
    "apex": ("apex", "fused Adam and norms where TransformerEngine is absent", "built by the site"),
    "mpi4py": ("mpi4py", "preprocessing over MPI", "extra mpi"),
    "datasets": ("datasets", "text from the Hugging Face hub", "extra hf"),
    "transformers": ("transformers", "export and answering", "extra hf"),
    "lm-eval": ("lm_eval", "evaluation harness", "extra eval"),
    "tensorboard": ("tensorboard", "curves", "extra tracking"),
    "wandb": ("wandb", "curves", "extra tracking"),
    "rjieba": ("rjieba", "Chinese words; without it every character is one", "optional"),
}


def _version(package: str, module: str) -> str | None:
    try:
        if importlib.util.find_spec(module) is None:
            return None
    except ModuleNotFoundError:
        return None
    except ImportError as error:
        return f"[red]broken:[/red] {escape(str(error))}"
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "installed"


def _paths() -> list[tuple[str, str, str]]:
    """(what, which path, why) of the engine's choices on this machine."""
    slurm = ("Slurm", "sbatch found" if shutil.which("sbatch") else "not here", "PATH")
    try:
        import torch

        from megalign.engine.device import BACKEND, DEVICE, transformer_engine_available
    except (ImportError, OSError) as error:
        return [("engine", "[red]cannot start[/red]", escape(str(error))), slurm]

    cuda = DEVICE.type == "cuda"
    name = torch.cuda.get_device_name() if cuda else f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    engine = transformer_engine_available()
    lacking = "no CUDA device" if not cuda else "transformer_engine is not installed"
    apex = _version("apex", "apex") is not None
    adam = "TransformerEngine's fused Adam" if engine else "apex's fused Adam" if cuda and apex else "torch's AdamW"
    return [
        ("device", f"{DEVICE.type} ({name})", "torch.cuda.is_available() is " + str(cuda)),
        ("collectives", BACKEND, "CUDA" if cuda else "Megatron-Core's device names are respelled for the host"),
        (
            "layers",
            "TransformerEngine" if engine else "Megatron-Core local, torch attention and norms",
            "installed, on a GPU" if engine else lacking,
        ),
        (
            "FP8",
            "available" if engine else "refused",
            "TransformerEngine" if engine else f"{lacking}; never ignored silently",
        ),
        (
            "optimizer",
            adam,
            "TransformerEngine" if engine else "apex" if cuda and apex else "neither TransformerEngine nor apex in use",
        ),
        slurm,
    ]


def diagnosis() -> Table:
    """The table `megalign doctor` prints."""
    table = Table(title=f"megalign doctor, Python {platform.python_version()}", title_justify="left")
    for column in ("what", "found", "for / why"):
        table.add_column(column, overflow="fold")
    for package, (module, purpose, kind) in _PACKAGES.items():
        version = _version(package, module)
        missing = "[red]missing[/red]" if kind == "required" else f"[dim]not installed ({kind})[/dim]"
        table.add_row(package, version or missing, purpose)
    table.add_section()
    for what, path, why in _paths():
        table.add_row(what, path, why)
    return table
