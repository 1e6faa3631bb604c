"""Metrics: one JSON line per logged step, and a line on the console."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megalign.files import write_text

if TYPE_CHECKING:
    from megalign.training.tracking import Tracker

# Ranks that compute so much longer than the median one are named on the console.
_STRAGGLER_RATIO = 1.3


class MetricsLog:
    """Appends to `metrics.jsonl`. Only the rank that writes has one.

    Args:
        path: the file; lines of this stage beyond `step` are dropped, so that a resumed run has every step once.
        stage: "inject" or "pretrain".
        step: steps taken before.
        total_steps: length of the stage, for the ETA.
        tokens: tokens read before, all ranks together.
        trackers: get every line too.
        utilisation: tokens a second -> values that follow from them.
    """

    def __init__(
        self,
        path: Path,
        stage: str,
        *,
        step: int,
        total_steps: int,
        tokens: int,
        trackers: Sequence[Tracker] = (),
        utilisation: Callable[[float], dict[str, Any]] = lambda tokens_per_second: {},
    ) -> None:
        self.path, self.stage, self.total_steps, self.trackers = path, stage, total_steps, trackers
        drop_lines(path, lambda line: line.get("stage") == stage and int(line.get("step", 0)) > step)
        self._utilisation = utilisation
        self._stream = path.open("a", encoding="utf-8")
        self._step, self._tokens, self._time = step, tokens, time.monotonic()
        self._waited = 0.0
        self.compute_seconds = 0.0

    def waited_for_data(self, seconds: float) -> None:
        """Count time in which nothing was computed because data was not there."""
        self._waited += seconds

    def pause(self, seconds: float) -> None:
        """Leave out time that was not training (measuring, saving)."""
        self._time += seconds

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Write the metrics of `step`, `tokens` (read so far) among them, and show the main ones."""
        now = time.monotonic()
        seconds = max(now - self._time, 1e-9)
        steps = max(step - self._step, 1)
        speed = (values["tokens"] - self._tokens) / seconds
        line = {
            "stage": self.stage,
            "step": step,
            "total_steps": self.total_steps,
            **values,
            "tokens_per_second": round(speed, 1),
            **self._utilisation(speed),
            "step_seconds": round(seconds / steps, 6),
            "data_wait_share": round(self._waited / seconds, 5),
        }
        self._stream.write(json.dumps(_finite(line)) + "\n")
        self._stream.flush()
        for tracker in self.trackers:
            tracker.write(step, _finite(line))
        eta = (self.total_steps - step) * seconds / steps
        shown = "  ".join(
            f"{name} {values[name]:.4g}" for name in ("loss", "contrastive", "grad_norm", "lr") if name in values
        )
        straggler = ""
        if values.get("slowest_over_median", 1.0) > _STRAGGLER_RATIO:
            straggler = f"  rank {values['slowest_rank']} takes {values['slowest_over_median']:.2g}x the median"
        print(
            f"{self.stage} {step}/{self.total_steps}  {shown}  {speed:,.0f} tok/s  ETA {format_seconds(eta)}{straggler}",
            flush=True,
        )
        self.compute_seconds += seconds
        self._step, self._tokens, self._time, self._waited = step, values["tokens"], now, 0.0

    def close(self) -> None:
        """Close the file and the trackers."""
        self._stream.close()
        for tracker in self.trackers:
            tracker.close()


def mean_speed(metrics: Path) -> float | None:
    """Mean tokens a second over the logged lines of pretraining."""
    speeds = []
    for text in metrics.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if line["stage"] == "pretrain" and line["step"] > 1:
            speeds.append(line["tokens_per_second"])
    return round(len(speeds) / sum(1 / speed for speed in speeds), 1) if speeds else None


def drop_lines(path: Path, unwanted: Any) -> None:
    """Rewrite a JSON-lines file without the lines for which `unwanted` is true, and without a half-written last one."""
    if not path.exists():
        return
    kept, changed = [], False
    for text in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            drop = not text.endswith("\n") or unwanted(json.loads(text))
        except json.JSONDecodeError:
            drop = True
        changed |= drop
        if not drop:
            kept.append(text)
    if changed:
        write_text(path, "".join(kept))


def _finite(value: Any) -> Any:
    """JSON has no nan: null instead."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def format_seconds(seconds: float) -> str:
    """E.g. 1h02m, 3m05s, 12s."""
    seconds = round(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 60}m{seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"
