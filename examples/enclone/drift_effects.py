"""Main effects and mixed pairs of interactions of `drift.yaml`, with 95 % intervals: python drift_effects.py STUDY_FOLDER.

Least squares over all runs, seeds as blocks: response = mean + seed + A/2 x effect_A + ... An effect is the difference between
a factor's second and first level; its interval is Student's over the residuals, which the seeds give.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from dataclasses import dataclass
from math import log
from pathlib import Path

import numpy as np
from scipy import stats

# What a method's name holds where the factor is at its second level.
FACTORS = {
    "A embedding lr x3, not x0.3": "lr3_",
    "B output rows untied": "_untied",
    "C codeswitching": "_switched",
    "D warm-up 20 %, not 3 %": "_warm20",
}
PAIRS = {"AB + CD": (0, 1), "AC + BD": (0, 2), "AD + BC": (0, 3)}
LANGUAGE = "en-clone"
# Name -> (metric, level), how it is read, and the number of decimals; L = 3 layers, level 4 are the output rows.
RESPONSES: dict[str, tuple[str, str, Callable[[float], float], int]] = {
    "clone perplexity, log2": ("perplexity", "", lambda value: log(value, 2), 2),
    "CLKA on the clone, points": ("clka", "", lambda value: 100 * value, 1),
    "aligned cosine, embedding": ("aligned_cosine", "0", float, 2),
    "aligned cosine, layer 2": ("aligned_cosine", "2", float, 2),
    "aligned cosine, output": ("aligned_cosine", "4", float, 2),
}


@dataclass(frozen=True)
class Effect:
    """The difference that a factor makes, with its 95 % interval."""

    name: str
    value: float
    low: float
    high: float


def signs_of(name: str) -> list[int]:
    """+1 or -1 for each factor of a method's name."""
    return [1 if high in name else -1 for high in FACTORS.values()]


def effects_of(values: dict[tuple[str, int], float]) -> list[Effect]:
    """Effects on a response.

    Args:
        values: (method, seed) -> response.

    Raises:
        ValueError: the runs do not tell the effects apart, or leave no residual.
    """
    seeds = sorted({seed for _, seed in values})
    signs = np.array([signs_of(name) for name, _ in values], dtype=np.float64)
    pairs = np.stack([signs[:, a] * signs[:, b] for a, b in PAIRS.values()], axis=1)
    blocks = np.array([[float(seed == each) for each in seeds] for _, seed in values])
    design = np.concatenate([np.concatenate([signs, pairs], axis=1) / 2, blocks], axis=1)
    freedom = len(design) - design.shape[1]
    if freedom < 1 or np.linalg.matrix_rank(design) < design.shape[1]:
        raise ValueError(f"{len(values)} runs do not tell {design.shape[1]} parameters apart: run all of drift.yaml")
    response = np.array(list(values.values()))
    inverse = np.linalg.inv(design.T @ design)
    found = inverse @ design.T @ response
    residual = response - design @ found
    errors = np.sqrt(residual @ residual / freedom * np.diag(inverse)) * stats.t.ppf(0.975, freedom)
    named = zip((*FACTORS, *PAIRS), found, errors, strict=False)
    return [Effect(name, float(value), float(value - error), float(value + error)) for name, value, error in named]


def read_responses(summary: Path) -> dict[str, dict[tuple[str, int], float]]:
    """Responses of every run from a report's summary.csv."""
    found: dict[str, dict[tuple[str, int], float]] = {name: {} for name in RESPONSES}
    with summary.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            for name, (metric, level, read, _) in RESPONSES.items():
                if (row["metric"], row["language"], row["level"]) == (metric, LANGUAGE, level):
                    found[name][row["method"], int(row["seed"])] = read(float(row["value"]))
    return found


def main(folder: Path) -> None:
    """Print a table of effects, one response after the other."""
    for name, values in read_responses(folder / "report" / "summary.csv").items():
        decimals = RESPONSES[name][3]
        print(f"\n{name}: mean {np.mean(list(values.values())):.{decimals}f} over {len(values)} runs")
        for effect in effects_of(values):
            clear = " *" if effect.low > 0 or effect.high < 0 else ""
            interval = f"[{effect.low:+.{decimals}f}, {effect.high:+.{decimals}f}]"
            print(f"  {effect.name:28} {effect.value:+.{decimals}f} {interval}{clear}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
