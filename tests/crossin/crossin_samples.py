"""Invented rows, and plain-Python references that share no code with the library."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

LANGUAGES = ("English", "Chinese", "Vietnamese", "Spanish")
CHOICES = ["(A) red bird", "(B) blue fish", "(C) green frog", "(D) grey horse"]


def cell(prediction: str, answer: int = 0, choices: Sequence[str] = CHOICES, **more: Any) -> dict[str, Any]:
    answered = {"question": "Which?", "choices": list(choices), "answer": choices[answer]}
    return {**answered, "model_prediction": prediction, **more}


def prediction_rows(
    num_rows: int, seed: int, *, invalid: float = 0.2, languages: Sequence[str] = LANGUAGES
) -> list[dict[str, Any]]:
    """Rows with random letters as predictions, a share of which names none or two."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(num_rows):
        row: dict[str, Any] = {"id": f"q{number}"}
        answer = int(random.integers(4))
        for language in languages:
            letter = "ABCD"[random.integers(4)]
            said = f"({letter})" if random.random() >= invalid else str(random.choice(["no idea", "(A). (B)."]))
            row[language] = cell(said, answer)
        rows.append(row)
    return rows


def write_json_rows(path: Path, rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return path


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def brute_force_scores(options: Sequence[Sequence[int | None]], gold: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Accuracy, consistency_s and AC3_s by visiting every subset; None is an invalid answer."""
    num_languages = len(options[0])
    by_language = []
    for language in range(num_languages):
        hits = [
            row[language] is not None and row[language] == right[language]
            for row, right in zip(options, gold, strict=True)
        ]
        by_language.append(sum(hits) / len(hits))
    accuracy = sum(by_language) / num_languages
    consistency, ac3 = {}, {}
    for s in range(2, num_languages + 1):
        shares = []
        for subset in itertools.combinations(range(num_languages), s):
            agreeing = [
                len({row[language] for language in subset}) == 1 and row[subset[0]] is not None for row in options
            ]
            shares.append(sum(agreeing) / len(agreeing))
        consistency[s] = sum(shares) / len(shares)
        total = accuracy + consistency[s]
        ac3[s] = 2 * accuracy * consistency[s] / total if total else 0.0
    return {"accuracy": accuracy, "by_language": by_language, "consistency": consistency, "ac3": ac3}


ENGLISH_TASKS = [
    ("Name the colour of the sky.", "", "The sky is blue on a clear day."),
    ("Add the two numbers.", "12 and 45", "The sum of the two numbers is 57."),
    ("Explain what this code does.", "`len(names)`", "The expression `len(names)` counts the names in the list."),
    ("What is the capital of this country?", "France", "The capital of the country is the city of Paris."),
    ("Describe the habitat of the frog.", "", "The frog lives near the water of a pond and eats insects."),
    ("Which year was the bridge built?", "", "The bridge was built in the year 1932 by the town."),
]
SPANISH_TASKS = [
    ("Nombra el color del cielo.", "", "El cielo es azul en un día claro."),
    ("Suma los dos números.", "12 y 45", "La suma de los dos números es 57."),
    ("Explica qué hace este código.", "`len(names)`", "La expresión `len(names)` cuenta los nombres de la lista."),
    ("¿Cuál es la capital de este país?", "Francia", "La capital del país es la ciudad de París."),
    ("Describe el hábitat de la rana.", "", "La rana vive cerca del agua de un estanque y come insectos."),
    ("¿En qué año se construyó el puente?", "", "El puente fue construido en el año 1932 por el pueblo."),
]
CHINESE_TASKS = [
    ("说出天空的颜色。", "", "晴朗的日子里天空是蓝色的，没有云。"),
    ("把两个数字相加。", "12 和 45", "这两个数字加起来的总和是 57。"),
    ("解释这段代码的作用。", "`len(names)`", "表达式 `len(names)` 计算列表中名字的数量。"),
    ("这个国家的首都是哪里？", "法国", "这个国家的首都是巴黎这座城市。"),
    ("描述青蛙的栖息地。", "", "青蛙生活在池塘的水边，以昆虫为食物。"),
    ("这座桥是哪一年建造的？", "", "这座桥是由镇上在1932年建造的。"),
]
TASKS = {"en": ENGLISH_TASKS, "es": SPANISH_TASKS, "zh": CHINESE_TASKS}


def task_rows(language: str, repeats: int = 4) -> list[dict[str, str]]:
    """The tasks several times, each time with another number, so that rows can be told apart."""
    return [
        {"instruction": f"{number}{place}: {instruction}", "input": given, "output": output}
        for number in range(10, 10 + repeats)
        for place, (instruction, given, output) in enumerate(TASKS[language])
    ]


def write_lud(folder: Path, repeats: int = 4, **changed: list[dict[str, str]]) -> dict[str, str]:
    """LUD files in en, es and zh; languages named in `changed` get those rows instead."""
    return {
        language: str(write_lines(folder / f"{language}.jsonl", changed.get(language, task_rows(language, repeats))))
        for language in TASKS
    }
