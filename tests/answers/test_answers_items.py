"""The file of answers: continued after a kill, refused where it is of other settings, damage named."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_models import prompts

from megalign.answers import AnswerModel, Choice, Greedy, Item, OptionScores, answer_items, best_option, open_model
from megalign.answers.items import settings_path
from megalign.errors import ConfigError, DataError

HOW = Greedy(6)


@pytest.fixture(scope="module")
def model(models: dict[str, Path]) -> AnswerModel:
    return open_model(str(models["gpt2"]), device="cpu", batch_size=2)


def items(count: int = 40) -> list[Item]:
    return [
        Item(number, f"{prompts()[number % 9]} {number}", ("A", "B", " or C"), {"label": "A", "uuid": f"u{number}"})
        for number in range(count)
    ]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_are_those_of_the_items_in_their_order(model: AnswerModel, tmp_path: Path) -> None:
    path, asked, seen = tmp_path / "a_res.jsonl", items(), []
    assert answer_items(model, asked, path, HOW, progress=lambda done, total: seen.append((done, total))) == 40
    texts = model.generate([item.prompt for item in asked], max_new_tokens=6)
    assert rows(path) == [
        {"id": item.id, "input": item.prompt, "res": text, "label": "A", "uuid": f"u{item.id}"}
        for item, text in zip(asked, texts, strict=True)
    ]
    assert seen == [(0, 40), (16, 40), (32, 40), (40, 40)]


def test_the_most_likely_option_is_chosen(model: AnswerModel, tmp_path: Path) -> None:
    asked = items(8)
    scores = model.score_options([item.prompt for item in asked], [item.options for item in asked])
    answer_items(model, asked, tmp_path / "sum.jsonl", Choice(("A", "B", "C")))
    answer_items(model, asked, tmp_path / "mean.jsonl", Choice(per_token=True))
    for one, total, mean in zip(scores, rows(tmp_path / "sum.jsonl"), rows(tmp_path / "mean.jsonl"), strict=True):
        values = one.log_likelihoods
        assert total["res"] == "ABC"[values.index(max(values))]
        assert total["log_likelihoods"] == pytest.approx(values, abs=1e-4)
        means = [value / count for value, count in zip(values, one.num_tokens, strict=True)]
        assert mean["res"] == ("A", "B", " or C")[means.index(max(means))]
    assert best_option(OptionScores([-4.0, -3.0, -3.0], [4, 1, 1])) == 1
    assert best_option(OptionScores([-4.0, -3.0, -3.0], [4, 1, 1]), per_token=True) == 0


def test_a_killed_run_is_continued_to_the_same_file(
    models: dict[str, Path], model: AnswerModel, tmp_path: Path
) -> None:
    """A process is killed while it answers; its file is continued to what an undisturbed one gives."""
    whole, path = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    answer_items(model, items(), whole, HOW)
    code = (
        "import sys, time; sys.path[:0] = [sys.argv[1]]\n"
        "from pathlib import Path\n"
        "import torch; torch.set_num_threads(1)\n"
        "from test_answers_items import HOW, answer_items, items, open_model\n"
        "model = open_model(sys.argv[2], device='cpu', batch_size=2)\n"
        "generate = model.generate\n"
        "def slow(*args, **settings):\n"
        "    time.sleep(1); return generate(*args, **settings)\n"
        "model.generate = slow\n"
        "answer_items(model, items(), Path(sys.argv[3]), HOW)\n"
    )
    here = str(Path(__file__).parent)
    process = subprocess.Popen([sys.executable, "-c", code, here, str(models["gpt2"]), str(path)])
    try:
        deadline = time.monotonic() + 120
        while not (path.exists() and path.stat().st_size) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    there = len(rows(path))
    assert 0 < there < 40
    with path.open("ab") as stream:
        stream.write(b'{"id": 39, "input": "torn')
    assert answer_items(model, items(), path, HOW) == 40 - there
    assert path.read_bytes() == whole.read_bytes()
    assert answer_items(model, items(), path, HOW) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"how": Greedy(7)}, "max_new_tokens was 6, is 7"),
        ({"how": Greedy(6, ("\n",))}, r"stop was \[\], is \['\\n'\]"),
        ({"how": Choice()}, "mode was 'greedy', is 'choice'"),
        ({"items": items(39)}, "num_items was 40, is 39"),
        ({"items": [replace(items()[0], prompt="other"), *items()[1:]]}, "items_digest was"),
        ({"settings": {"few_shot": 2}}, "few_shot was None, is 2"),
    ],
)
def test_other_settings_are_refused(model: AnswerModel, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "a.jsonl"
    answer_items(model, items(), path, HOW)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=message):
        answer_items(model, change.get("items", items()), path, change.get("how", HOW), settings=change.get("settings"))
    assert path.read_bytes() == before


def test_another_model_is_refused(models: dict[str, Path], model: AnswerModel, tmp_path: Path) -> None:
    answer_items(model, items(4), tmp_path / "a.jsonl", HOW)
    other = open_model(str(models["bloom"]), device="cpu", batch_size=2)
    with pytest.raises(ConfigError, match="model was 'gpt2', is 'bloom'"):
        answer_items(other, items(4), tmp_path / "a.jsonl", HOW)


@pytest.mark.parametrize("line", ["no json\n", '{"id": 99}\n', '{"id": 0}\n{"id": 0}\n', "[]\n", "\n"])
def test_a_damaged_file_is_named_with_its_line(model: AnswerModel, tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    answer_items(model, items(4), path, HOW)
    path.write_text(line, encoding="utf-8")
    with pytest.raises(DataError, match=rf"a\.jsonl:{line.count(chr(10))}: this is not an answer to continue after"):
        answer_items(model, items(4), path, HOW)


def test_two_processes_do_not_write_one_file(model: AnswerModel, tmp_path: Path) -> None:
    import fcntl

    path = tmp_path / "a.jsonl"
    with path.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="is being written by another process"):
            answer_items(model, items(4), path, HOW)


def test_answers_without_their_settings_are_not_continued(model: AnswerModel, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    answer_items(model, items(4), path, HOW)
    settings_path(path).unlink()
    with pytest.raises(DataError, match=r"a\.jsonl\.settings\.json does not exist"):
        answer_items(model, items(4), path, HOW)


@pytest.mark.parametrize(
    ("asked", "how", "message"),
    [
        ([Item(1, "a"), Item(1, "b")], HOW, "Two items have the id 1"),
        ([Item(1, "a", ("b",))], Choice(), "Item 1 has 1 options"),
        ([Item(1, "a", ("b", "c"))], Choice(("A",)), "Item 1 has 2 options and there are 1 names for them"),
    ],
)
def test_senseless_items_are_refused(
    model: AnswerModel, tmp_path: Path, asked: list[Item], how: Greedy | Choice, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        answer_items(model, asked, tmp_path / "a.jsonl", how)
