"""Metrics for people who look: TensorBoard and Weights & Biases, beside metrics.jsonl, and traces of torch's profiler."""

from __future__ import annotations

import importlib.util
import logging
import os
import uuid
from collections.abc import Iterator
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

import torch

from megalign.config.sections import TrackConfig
from megalign.engine.device import DEVICE
from megalign.errors import EnvironmentProblem
from megalign.files import write_text


class Tracker(Protocol):
    """Takes the values of logged steps."""

    def write(self, step: int, values: dict[str, Any]) -> None:
        """The metrics of a step, as in metrics.jsonl."""

    def close(self) -> None:
        """Everything is on disk afterwards."""


def check_installed(config: TrackConfig) -> None:
    """Refuse before training what could only fail later.

    Raises:
        EnvironmentProblem: a library is missing.
    """
    wanted = {
        "track.tensorboard": ("tensorboard", config.tensorboard),
        "track.wandb_project": ("wandb", config.wandb_project),
    }
    for key, (library, is_on) in wanted.items():
        if is_on and importlib.util.find_spec(library) is None:
            raise EnvironmentProblem(
                f"{key} is set, but {library} is not installed.",
                fix=f"Install it with `pip install megalign[tracking]`, or unset {key}.",
            )


def open_trackers(
    config: TrackConfig, folder: Path, stage: str, step: int, *, name: str, settings: dict[str, Any]
) -> list[Tracker]:
    """What the configuration asks for; only the rank that writes calls this.

    Args:
        config: see TrackConfig.
        folder: the run's folder.
        stage: "inject" or "pretrain"; steps are counted in each.
        step: steps taken before; what was logged beyond is replaced.
        name: of the run.
        settings: the run's configuration, shown beside its curves.
    """
    trackers: list[Tracker] = []
    if config.tensorboard:
        trackers.append(TensorBoard(folder / "tensorboard" / stage, step))
    if config.wandb_project:
        trackers.append(WeightsAndBiases(config, folder, stage, name, settings))
    return trackers


def scalars(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Numbers by name; those of inner mappings and lists have the path as name."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from scalars(value, f"{name}/")
        elif isinstance(value, list):
            yield from scalars({str(number): inner for number, inner in enumerate(value)}, f"{name}/")
        elif isinstance(value, Real) and not isinstance(value, bool):
            yield name, float(value)


class TensorBoard:
    """Event files of a stage.

    Args:
        folder: RUN/tensorboard/STAGE.
        step: steps taken before: TensorBoard hides what an earlier process logged beyond.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1)  # type: ignore[no-untyped-call]

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One scalar for each number."""
        for name, value in scalars(values):
            if name not in ("step", "total_steps"):
                self._writer.add_scalar(name, value, step)  # type: ignore[no-untyped-call]
        self._writer.flush()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Close the file."""
        self._writer.close()  # type: ignore[no-untyped-call]


class WeightsAndBiases:
    """One W&B run for a run of ours, whatever number of processes work on it; offline unless asked otherwise.

    The files stand in RUN/wandb; `wandb sync RUN/wandb/offline-run-*` sends those of an offline run. Neither the machine's
    statistics nor the console nor code is logged.
    """

    def __init__(self, config: TrackConfig, folder: Path, stage: str, name: str, settings: dict[str, Any]) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        logging.getLogger("wandb").setLevel(logging.ERROR)
        import wandb

        self._stage = stage
        self._run = wandb.init(
            project=config.wandb_project,
            mode=config.wandb_mode,
            dir=str(folder),
            id=_run_id(folder / "wandb-id"),
            name=name,
            resume="allow",
            config=settings,
            settings=wandb.Settings(
                console="off", disable_code=True, disable_git=True, x_disable_stats=True, x_disable_machine_info=True
            ),
        )
        self._run.define_metric(f"{stage}/step")
        self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One history line; each stage has a step of its own."""
        self._run.log({f"{self._stage}/{name}": value for name, value in scalars({**values, "step": step})})

    def close(self) -> None:
        """Finish the run; the next process goes on with it."""
        self._run.finish()


def _run_id(path: Path) -> str:
    if not path.exists():
        write_text(path, uuid.uuid4().hex[:12])
    return path.read_text(encoding="utf-8")


class ProfileWindow:
    """Traces some steps with torch's profiler, on the rank that writes: open the file in Perfetto or chrome://tracing.

    Args:
        steps: first and last step; None: nothing is traced.
        folder: gets STAGE-stepA-B.json.gz.
        stage: "inject" or "pretrain".
    """

    def __init__(self, steps: list[int] | None, folder: Path, stage: str) -> None:
        self._steps, self._folder, self._stage = steps, folder, stage
        self._profiler: Any = None
        self._first = 0

    def before(self, step: int) -> None:
        """A step begins."""
        if self._steps and self._profiler is None and self._steps[0] <= step <= self._steps[1]:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if DEVICE.type == "cuda":
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(activities=activities, record_shapes=True)
            self._first = step
            self._profiler.start()

    def after(self, step: int, *, last: bool = False) -> Path | None:
        """A step has ended; the trace's path where it is complete.

        Args:
            step: which.
            last: no step follows.
        """
        if self._profiler is None or not (last or (self._steps and step >= self._steps[1])):
            return None
        self._profiler.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._stage}-step{self._first}-{step}.json.gz"
        temporary = path.with_name(f".tmp-{path.name}")
        self._profiler.export_chrome_trace(str(temporary))
        temporary.replace(path)
        self._profiler = None
        return path
