"""The device the engine computes on, and what this machine offers."""

from __future__ import annotations

import importlib.util
import os
import re
import resource
import sys
import time
from typing import Any

import torch

from megalign.errors import EnvironmentProblem

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BACKEND = "nccl" if DEVICE.type == "cuda" else "gloo"


def transformer_engine_available() -> bool:
    """Whether TransformerEngine's layers can be used: installed, and on a GPU."""
    return DEVICE.type == "cuda" and importlib.util.find_spec("transformer_engine") is not None


def device_name() -> str:
    """What the driver calls this process's device; "cpu" without one."""
    return torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu"


def peak_memory_bytes() -> int:
    """The most memory this process has held: of the GPU's where there is one, else of the machine's."""
    if DEVICE.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def out_of_memory(error: BaseException) -> EnvironmentProblem | None:
    """What to do about an allocation that failed; None where the error is another."""
    text = " ".join(str(error).split())
    failed = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text
    if not failed:
        return None
    asked = re.search(r"[Tt]ried to allocate [\d.]+ \w+", text)
    return EnvironmentProblem(
        f"Rank {os.environ.get('RANK', '0')} has no memory left on its {DEVICE.type.replace('cuda', 'GPU')}"
        f"{f' ({asked[0].lower()})' if asked else ''}.",
        "What a step needs beside weights and optimizer grows with the micro-batch.",
        "Set train.micro_batch_size lower, parallel.recompute to full, or use more ranks; `megalign train RUN.yaml "
        "--dry-run` says what takes how much.",
    )


class StepTimer:
    """Seconds this rank works by itself, for data and for gradients: where slow ranks differ from others.

    Waiting for all ranks is not among them; waiting for those of the same replica is, under tensor, context or pipeline
    parallelism.
    """

    def __init__(self) -> None:
        self._marks: list[tuple[Any, Any]] = []
        self._begun: Any = None

    def begin(self) -> None:
        """Work begins, or goes on."""
        self._begun = self._begun or self._mark()

    def end(self) -> None:
        """What follows waits for other ranks."""
        if self._begun is not None:
            self._marks.append((self._begun, self._mark()))
            self._begun = None

    def take_seconds(self) -> float:
        """The sum since this was last asked; on a GPU it waits for what it was asked about."""
        marks, self._marks = self._marks, []
        return sum(end - begun if isinstance(end, float) else _gpu_seconds(begun, end) for begun, end in marks)

    @staticmethod
    def _mark() -> Any:
        if DEVICE.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _gpu_seconds(begun: Any, end: Any) -> float:
    end.synchronize()
    return float(begun.elapsed_time(end)) / 1000.0
