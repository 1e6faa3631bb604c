"""What is watched while training: values that are not finite, and losses that jump."""

from __future__ import annotations

import io
import json
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from megalign.config.sections import GuardConfig
from megalign.engine.engine import Engine, LanguageBatch, NonFiniteStep
from megalign.errors import TrainingProblem
from megalign.files import write_bytes, write_json
from megalign.prealign.words import WordBatch
from megalign.training.metrics import drop_lines

# A median absolute deviation times this estimates the standard deviation of normal values.
_MAD_TO_DEVIATION = 1.4826
# Losses vary by rounding alone when a run repeats one batch: deviations below this share of the median do not count.
_LEAST_DEVIATION = 0.01
_SAMPLES_SHOWN = 64


class EventLog:
    """RUN/events.jsonl: a line for everything a guard saw. Only the rank that writes has one.

    Args:
        path: the file; lines of this stage beyond `step` are dropped, as the steps are taken again.
        stage: "inject" or "pretrain".
        step: steps taken before.
    """

    def __init__(self, path: Path, stage: str, step: int) -> None:
        self.path, self.stage = path, stage
        drop_lines(path, lambda line: line.get("stage") == stage and int(line.get("step", 0)) > step)

    def write(self, event: str, step: int, message: str, **values: Any) -> None:
        """Append an event and show it."""
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "stage": self.stage, "step": step}
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({**line, "event": event, "message": message, **values}) + "\n")
        print(f"{self.stage} step {step}: {message}", flush=True)


@dataclass
class SpikeDetector:
    """Finds losses far above the last ones: median and median absolute deviation of a window, spikes left out of it.

    It knows nothing but the losses, which all ranks share, so all ranks decide alike.
    """

    settings: GuardConfig
    losses: deque[float] = field(init=False)
    in_a_row: int = 0

    def __post_init__(self) -> None:
        self.losses = deque(maxlen=self.settings.spike_window_steps)

    def observe(self, loss: float) -> float | None:
        """How many deviations above the median a spike stands; None where `loss` is none.

        Nothing is judged before an eighth of the window (at least eight losses) is there.
        """
        limit = self.settings.spike_deviations
        if limit is None or not np.isfinite(loss):
            return None
        if len(self.losses) >= max(8, self.settings.spike_window_steps // 8):
            middle = median(self.losses)
            spread = _MAD_TO_DEVIATION * median(abs(value - middle) for value in self.losses)
            deviations = (loss - middle) / max(spread, _LEAST_DEVIATION * abs(middle), 1e-12)
            if deviations > limit:
                self.in_a_row += 1
                return deviations
        self.in_a_row = 0
        self.losses.append(loss)
        return None

    @property
    def diverged(self) -> bool:
        """Whether so many spikes came in a row that the run is lost."""
        patience = self.settings.spike_patience_steps
        return patience is not None and self.in_a_row >= patience

    def reset(self) -> None:
        """Forget the losses: other data have others."""
        self.losses.clear()
        self.in_a_row = 0

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"losses": list(self.losses), "in_a_row": self.in_a_row}

    def restore(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.losses.extend(state.get("losses", []))
        self.in_a_row = int(state.get("in_a_row", 0))


class Guards:
    """The guards of a stage.

    Args:
        settings: see GuardConfig.
        stage: "inject" or "pretrain".
        folder: the run's folder; dumps go to `debug/` in it.
        rank: this process; all ranks dump what they hold.
        events: where the rank that writes records; None on others.
    """

    def __init__(self, settings: GuardConfig, stage: str, folder: Path, rank: int, events: EventLog | None) -> None:
        self.settings, self.stage, self.folder, self.rank, self.events = settings, stage, folder, rank, events
        self.spikes = SpikeDetector(settings)
        self.left_out: list[dict[str, Any]] = []

    def record(self, event: str, step: int, message: str, **values: Any) -> None:
        """Write an event, on the rank that writes."""
        if self.events:
            self.events.write(event, step, message, **values)

    def loss(self, step: int, loss: float, samples: Sequence[int]) -> None:
        """Look at a step's loss.

        Raises:
            TrainingProblem: it diverged.
        """
        deviations = self.spikes.observe(loss)
        if deviations is None:
            return
        usual = median(self.spikes.losses)
        told = f"loss {loss:.4g} is {deviations:.1f} deviations above the median {usual:.4g} of the last losses"
        self.record("loss_spike", step, told, loss=loss, deviations=round(deviations, 2), samples=_ranges(samples))
        if self.spikes.diverged:
            first = step - self.spikes.in_a_row + 1
            raise TrainingProblem(
                f"{self.stage} diverged: steps {first} to {step} all have losses more than "
                f"{self.settings.spike_deviations:g} deviations above the median {usual:.4g}; the last is {loss:.4g}.",
                "Going on would spend time on a model that is lost. Checkpoints from before are kept.",
                f"Lower the learning rate, or resume a checkpoint from before step {first} (remove later ones) and leave "
                f"the samples out with data.skip_samples (see {self.folder / 'events.jsonl'}).",
            )

    def not_finite(
        self,
        error: NonFiniteStep,
        engine: Engine,
        batches: Sequence[LanguageBatch | WordBatch],
        samples: Sequence[int],
    ) -> None:
        """Dump what this rank knows of the step; leave the step out while the budget lasts.

        Raises:
            NonFiniteStep: the budget is used up; says where the dump is.
        """
        where = self.folder / "debug" / f"{self.stage}-step{error.step}"
        _dump(where, self.rank, error, engine, batches, samples)
        self.left_out.append({"step": error.step, "samples": _ranges(samples)})
        budget = self.settings.max_nonfinite_steps
        if len(self.left_out) > budget:
            self.record("not_finite", error.step, error.what, samples=_ranges(samples), dump=str(where))
            spent = f" {budget} such steps were left out before (guards.max_nonfinite_steps)." if budget else ""
            raise NonFiniteStep(
                error.step,
                f"{error.what} Samples {_ranges(samples)}.{spent}",
                f"{error.why} What every rank held is in {where}.",
                error.fix,
            ) from None
        self.record(
            "left_out",
            error.step,
            f"{error.what} Left out, {len(self.left_out)} of at most {budget}; dumped in {where}",
            samples=_ranges(samples),
            dump=str(where),
        )

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"guards": {"spikes": self.spikes.state(), "left_out": self.left_out}}

    def restore(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        content = state.get("guards", {})
        self.spikes.restore(content.get("spikes", {}))
        self.left_out = list(content.get("left_out", []))


def _ranges(samples: Sequence[int]) -> list[list[int]]:
    """Sample numbers as [first, last] ranges, as data.skip_samples takes them."""
    result: list[list[int]] = []
    for sample in sorted(samples):
        if result and sample == result[-1][1] + 1:
            result[-1][1] = sample
        else:
            result.append([sample, sample])
    return result


def _dump(
    where: Path,
    rank: int,
    error: NonFiniteStep,
    engine: Engine,
    batches: Sequence[LanguageBatch | WordBatch],
    samples: Sequence[int],
) -> None:
    """Two files of a rank: what is not finite (json), and the batches it computed (npz, read without pickle)."""
    gradients, weights = engine.nonfinite_parameters()
    write_json(
        where / f"rank{rank}.json",
        {
            "what": error.what,
            "step": error.step,
            "samples_of_the_global_batch": _ranges(samples),
            "layout": engine.layout.parallel.model_dump(),
            "gradients_not_finite": gradients,
            "weights_not_finite": weights,
            "batches": [type(batch).__name__ for batch in batches[:_SAMPLES_SHOWN]],
        },
    )
    arrays: dict[str, np.ndarray] = {}
    for number, batch in enumerate(batches):
        names = ("tokens", "labels", "loss_mask") if isinstance(batch, LanguageBatch) else ("tokens",)
        arrays.update({f"{number}.{name}": np.asarray(getattr(batch, name)) for name in names})
    write_bytes(where / f"rank{rank}.npz", _npz(arrays))


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()
