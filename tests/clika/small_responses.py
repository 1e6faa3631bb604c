"""A small invented set of responses in the released layout, and ways to damage it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

DATASETS = {"x_copa": 2, "x_geo": 4}
MODELS = ("small", "large")
FOLDERS = {"en": "en", "de": "DE_trans", "ru": "RU"}
NUM_ITEMS = 24

Row = dict[str, Any]


def row(item: int, letter: str, label: str, num_options: int, language: str = "en") -> Row:
    options = "".join(f"\n{'ABCDE'[place]}. {language} {item} {place}" for place in range(num_options))
    prompt = f"Question:2+2=?\nA. 4\nB. 4\nAnswer:A. 4\nQuestion:{language} {item}?{options}\nAnswer:"
    return {"id": item, "input": prompt, "res": f"{letter}. so", "label": label, "uuid": 100 + item}


def write_responses(root: Path, seed: int = 0) -> Path:
    """Two data sets, two models, three languages, 24 items each; every cell answers with its own share of right answers."""
    generator = np.random.default_rng(seed)
    for dataset, num_options in DATASETS.items():
        labels = generator.integers(0, num_options, NUM_ITEMS)
        for model in MODELS:
            for language, folder in FOLDERS.items():
                answers = np.where(
                    generator.random(NUM_ITEMS) < (0.7 if model == "large" else 0.4),
                    labels,
                    generator.integers(0, num_options, NUM_ITEMS),
                )
                rows = [
                    row(at, "ABCDE"[answers[at]], "ABCDE"[labels[at]], num_options, language) for at in range(NUM_ITEMS)
                ]
                write_rows(root / dataset / folder / f"{model}_res_bf16.jsonl", rows)
    return root


def write_rows(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")


def read_rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def damage(path: Path, change: Callable[[list[Row]], list[Row] | None]) -> None:
    """Rewrite a file of rows after `change`, which may change them in place."""
    rows = read_rows(path)
    changed = change(rows)
    write_rows(path, rows if changed is None else changed)
