"""Writes study folders with invented but plausible numbers, for the tests of the report."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megalign.config.sections import ParallelConfig

METHODS: list[dict[str, Any]] = [
    {"name": "joint", "title": "Joint", "description": "English and clone text mixed, nothing else.", "traits": []},
    {
        "name": "prealign",
        "title": "PreAlign",
        "description": "Words are aligned before pretraining, then 5 % of the words are switched in the input.",
        "traits": ["injection", "codeswitch"],
    },
    {"name": "only_target", "title": "Only target", "description": "Clone text alone, read many times.", "traits": []},
]
# Final perplexity en, perplexity en-clone, CLKA en, CLKA en-clone (shares), aligned cosine in the middle, passes over clone text.
FINAL = {
    "joint": (13.4, 84.3, 0.99, 0.28, 0.04, 1.0),
    "prealign": (13.6, 38.4, 0.95, 0.47, 0.70, 1.0),
    "only_target": (234270.3, 36.5, 0.27, 0.27, 0.42, 5.0),
    "golden": (13.5, 31.0, 0.98, 0.73, 0.74, 1.0),
    "cs_only": (13.8, 63.5, 1.0, 0.20, 0.37, 1.0),
}
STEPS = (0, 100, 300, 500, 700, 831)
NUM_FACTS, NUM_LEVELS = 60, 5


def study_json(
    methods: Sequence[dict[str, Any]] = METHODS, seeds: Sequence[int] = (0, 1), **changes: Any
) -> dict[str, Any]:
    """The content of study.json."""
    return {
        "name": "demo",
        "title": "PreAlign on English and its clone",
        "description": "A three-layer model with a procedural corpus: does aligning words early carry knowledge over?",
        "methods": list(methods),
        "seeds": list(seeds),
        "reference_language": "en",
        "languages": ["en", "en-clone"],
        "clone_of": {"en-clone": "en"},
        "facts": True,
        "settings": {
            "model.num_layers": 3,
            "model.hidden_size": 128,
            "train.steps": 831,
            "data.sources": ["en", "en-clone"],
        },
        **changes,
    }


def score_lines(method: str, seed: int, steps: Sequence[int] = STEPS) -> list[dict[str, Any]]:
    """Scores of one run at every step."""
    generator = np.random.default_rng([seed, *method.encode()])
    en, clone, clka_en, clka_clone, cosine, _ = FINAL.get(method, FINAL["joint"])
    factor = math.exp(generator.normal(0, 0.04))
    lines = []
    for step in steps:
        left = math.exp(-step / 150)
        for language, final in (("en", en), ("en-clone", clone)):
            value = final * factor * (1 + (1500 / final if final < 1500 else 0) * left)
            common = {"language": language, "level": None, "step": step}
            lines.append(_line("perplexity", value, value * 0.96, value * 1.04, 64, "perplexity", common))
            bits = math.log2(value) / 4.2
            lines.append(_line("bits_per_byte", bits, bits * 0.98, bits * 1.02, 64, "bits per byte", common))
        for level in range(NUM_LEVELS):
            common = {"language": "en-clone", "level": level, "step": step}
            near = (
                0.95 * left + (1 - left) * (cosine + 0.03 * level) * factor
                if method == "prealign"
                else (1 - left) * cosine
            )
            lines.append(_line("aligned_cosine", near, None, None, 400, "cosine", common))
            lines.append(_line("random_cosine", 0.15 * near, None, None, 400, "cosine", common))
            lines.append(_line("retrieval_at_1", min(1.0, near), None, None, 400, "share", common))
    last = {"level": None, "step": steps[-1]}
    for language, share in (("en", clka_en), ("en-clone", clka_clone)):
        hits = round(np.clip(share + generator.normal(0, 0.03), 0, 1) * NUM_FACTS)
        margin = {"language": language, **last}
        lines.append(_line("clka", hits / NUM_FACTS, *_about(hits / NUM_FACTS), NUM_FACTS, "share", margin))
        control = round((0.25 + generator.normal(0, 0.03)) * NUM_FACTS) / NUM_FACTS
        lines.append(_line("clka_control", control, *_about(control), NUM_FACTS, "share", margin))
        lines.append(_line("clka_margin", 4 * share - 1, 4 * share - 1.4, 4 * share - 0.6, NUM_FACTS, "nats", margin))
    mass = {"language": "en", **last}
    lines.append(_line("target_mass", 0.0051 * factor, 0.0048 * factor, 0.0055 * factor, 4096, "share", mass))
    lines.append(_line("peak_memory", 1.5, None, None, None, "GiB", {"language": None, **last}))
    return lines


def write_run(
    folder: Path, method: str, seed: int, *, status: str | None = "done", steps: Sequence[int] = STEPS
) -> Path:
    """One run's folder; `status` None leaves out run.json, as while a run is under way."""
    run = folder / "runs" / method / f"seed{seed}"
    run.mkdir(parents=True)
    write_lines(run / "scores.jsonl", score_lines(method, seed, steps))
    generator = np.random.default_rng([seed, 7])
    training = [
        {"stage": stage, "step": step, "loss": base * math.exp(-step / 90) + 2.4 + generator.normal(0, 0.1), "lr": 3e-3}
        for stage, last, base in (("inject", 150, 9.0), ("pretrain", steps[-1], 5.0))
        for step in range(last)
        if stage == "pretrain" or method == "prealign"
    ]
    write_lines(run / "metrics.jsonl", training)
    if status is not None:
        epochs = FINAL.get(method, FINAL["joint"])[5]
        record = {
            "status": status,
            "parameters": 988_928,
            "tokens_seen": {
                "injection": 38_400 if method == "prealign" else 0,
                "pretrain": {"en": 0 if method == "only_target" else 405_000, "en-clone": round(20_250 * epochs)},
            },
            "epochs": {"en": 0.0 if method == "only_target" else 1.0, "en-clone": epochs},
            "wall_seconds": 75.2 + seed,
            "tokens_per_second": 6120.5,
            "codeswitch_rate": 0.047 if method == "prealign" else 0.0,
            "embedding_init_std": 0.02 if method == "prealign" else 0.1,
            "layout": ParallelConfig(**({"tensor": 2, "sequence_parallel": True} if seed else {})).model_dump(),
            "device": "NVIDIA H100",
            "versions": {"megalign": "0.1.0", "torch": f"2.{13 + seed}.0"},
        }
        (run / "run.json").write_text(json.dumps(record))
    return run


def write_study(folder: Path, **changes: Any) -> Path:
    """A study of three methods and two seeds, of which one run stopped half-way and one has not started."""
    folder.mkdir(parents=True, exist_ok=True)
    content = study_json(**changes)
    (folder / "study.json").write_text(json.dumps(content))
    for method in content["methods"]:
        for seed in content["seeds"]:
            if (method["name"], seed) == ("only_target", content["seeds"][-1]):
                continue
            write_run(folder, method["name"], seed)
    return folder


def write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """A JSON-lines file."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _line(
    metric: str, value: float, low: float | None, high: float | None, n: int | None, unit: str, common: dict[str, Any]
) -> dict[str, Any]:
    return {"metric": metric, **common, "value": value, "low": low, "high": high, "n": n, "unit": unit}


def _about(share: float) -> tuple[float, float]:
    return max(0.0, share - 0.12), min(1.0, share + 0.12)
