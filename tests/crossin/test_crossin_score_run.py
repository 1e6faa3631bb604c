"""Prediction files and tables as they are read, the tool as users run it, its report, errors without tracebacks."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from crossin_samples import CHOICES, LANGUAGES, cell, lines_of, prediction_rows, write_json_rows, write_lines
from tool_command import tool as run_tool

from megalign.crossin.scoring import Bootstrap, ScoreOptions, read_file, score, score_files
from megalign.crossin.scoring.page import short_names
from megalign.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[2]
QUICK = ScoreOptions(report=False, bootstrap=Bootstrap(num_resamples=10))


tool = partial(run_tool, "score_consistency")


@pytest.mark.reference_data
def test_the_plain_command_gives_the_released_scores(reference_data: Path, tmp_path: Path) -> None:
    files = sorted((reference_data / "seaeval").rglob("*.json"))
    printed = tool(*files, "--out", tmp_path, "--resamples", 50)
    assert "files named *_score.json hold scores and were left out." in printed
    rows = lines_of(tmp_path / "scores.jsonl")
    predictions = [path for path in files if not path.stem.endswith("_score")]
    assert [row["file"] for row in rows] == list(map(str, predictions))
    for row, path in zip(rows, predictions, strict=True):
        released = json.loads(path.with_name(f"{path.stem}_score.json").read_text(encoding="utf-8"))
        assert list(row)[:6] == ["file", "accuracy", "accuracy_by_language", "consistency", "ac3", "invalid_rate"]
        assert row["accuracy"] == pytest.approx(released["overall_acc"], abs=1e-9)
        assert row["accuracy_by_language"] == pytest.approx(released["language_acc"], abs=1e-9)
        assert row["consistency"] == pytest.approx({str(s): released[f"consistency_score_{s}"] for s in range(2, 8)})
        assert row["ac3"] == pytest.approx({str(s): released[f"AC3_{s}"] for s in range(2, 8)}, abs=1e-9)
        assert row["published_difference"] < 1e-9
        assert row["released"]["exact"]


def test_the_tool_compares_and_reports(tmp_path: Path) -> None:
    one = write_json_rows(tmp_path / "one" / "a.json", prediction_rows(30, 1))
    two = write_json_rows(tmp_path / "two" / "a.json", prediction_rows(30, 2))
    printed = tool(one, two, "--out", tmp_path / "out", "--compare", f"{one}:{two}", "--resamples", 60)
    assert f"2 lines: {tmp_path / 'out' / 'scores.jsonl'}" in printed
    compared = lines_of(tmp_path / "out" / "comparisons.jsonl")
    scores = [score(read_file(path)[0]) for path in (one, two)]
    found = next(row for row in compared if (row["metric"], row["s"]) == ("consistency", 3))
    assert found["difference"] == pytest.approx(scores[1].consistency[3] - scores[0].consistency[3], abs=1e-12)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2
    assert "two/a − one/a" in page
    assert not re.search(r"<script|https?://", page)
    with (tmp_path / "out" / "scores.csv").open(encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    assert float(lines[1]["ac3_3"]) == pytest.approx(scores[1].ac3[3])
    assert float(lines[1]["accuracy_Chinese"]) == pytest.approx(scores[1].accuracy_by_language["Chinese"])
    again = tmp_path / "again"
    tool(one, two, "--out", again, "--compare", f"{one}:{two}", "--resamples", 60, "--workers", 2)
    for path in (tmp_path / "out").iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


def test_released_mode_gives_expected_scores_over_draws(tmp_path: Path) -> None:
    path = write_json_rows(tmp_path / "a.json", [{"id": "1", "English": cell(""), "Spanish": cell("(A)")}])
    plain = score_files([str(path)], tmp_path / "plain", QUICK).scored[0].row
    released = score_files([str(path)], tmp_path / "mean", ScoreOptions(released=True, report=False)).scored[0].row
    assert (plain["accuracy"], plain["consistency"], plain["mode"]) == (0.5, {"2": 0.0}, "deterministic")
    assert (released["accuracy"], released["consistency"], released["mode"]) == (0.625, {"2": 0.25}, "released")
    assert plain["released"]["accuracy"] == 0.625
    assert (plain["released"]["drawn"], plain["released"]["exact"], plain["invalid_rate"]) == (1, False, 0.5)


def test_five_shot_files_keep_their_first_line(tmp_path: Path) -> None:
    rows = [{"id": "1", "English": cell("(A)\n\nQuestion. (B). (B)."), "Spanish": cell("\n(A)")}]
    by_name = write_json_rows(tmp_path / "five_shot_p1.json", rows)
    other = write_json_rows(tmp_path / "zero_shot_p1.json", rows)
    options = {name: read_file(path, first_line=cut)[0].options.tolist() for name, path, cut in (
        ("name", by_name, "auto"), ("whole", by_name, "no"), ("zero", other, "auto"), ("asked", other, "yes"),
    )}  # fmt: skip
    assert options == {"name": [[0, -1]], "whole": [[1, 0]], "zero": [[1, 0]], "asked": [[0, -1]]}
    tool(other, "--out", tmp_path / "out", "--first-line", "--no-report")
    assert lines_of(tmp_path / "out" / "scores.jsonl")[0]["accuracy_by_language"] == {"English": 1.0, "Spanish": 0.0}


def table_rows(rows: list[dict[str, Any]], **more: Any) -> list[dict[str, Any]]:
    return [
        {"item": row["id"], "language": language, "response": row[language]["model_prediction"],
         "answer": row[language]["answer"], "choices": row[language]["choices"], **more}
        for row in rows for language in LANGUAGES
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_table_scores_like_the_rows(suffix: str, tmp_path: Path) -> None:
    rows = prediction_rows(12, seed=4)
    table = table_rows(rows)
    path = tmp_path / f"table{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), path)
    elif suffix == ".jsonl":
        write_lines(path, table)
    else:
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(table[0]))
            writer.writeheader()
            writer.writerows({**row, "choices": json.dumps(row["choices"])} for row in table)
    assert score(read_file(path)[0]) == score(read_file(write_json_rows(tmp_path / "rows.json", rows))[0])


def test_a_table_of_letters_for_several_models(tmp_path: Path) -> None:
    rows = [
        {"model": model, "item": 1, "language": language, "response": said, "answer": "B"}
        for model, answers in {"m": ("B", "(C)"), "n": ("b", "B")}.items()
        for language, said in zip(("en", "zh"), answers, strict=True)
    ]
    path = write_lines(tmp_path / "t.jsonl", rows)
    result = score_files([str(path)], tmp_path / "out", ScoreOptions(report=True, bootstrap=Bootstrap(num_resamples=5)))
    assert [(one.row["model"], one.row["accuracy"]) for one in result.scored] == [("m", 0.5), ("n", 1.0)]
    pair = f"{path} (m):{path} (n)"
    compared = score_files([str(path)], tmp_path / "out", ScoreOptions(report=False, comparisons=(pair,))).comparisons
    assert compared[0]["difference"] == 0.5
    assert lines_of(tmp_path / "out" / "intervals.jsonl")[0]["low"] is None


def test_option_likelihoods(tmp_path: Path) -> None:
    rows = [{"id": "1", "English": cell("(D)", option_log_likelihoods=[-3.0, -1.0, -2.0, -9.0]),
             "Spanish": cell("(D)", option_log_likelihoods=[-1.0, -1.0, -2.0, -9.0])}]  # fmt: skip
    path = write_json_rows(tmp_path / "a.json", rows)
    (answers,) = read_file(path, by="likelihood")
    assert answers.options.tolist() == [[1, -1]]
    assert answers.undecided == {(0, 1): (0, 1)}
    for wrong in ([-1.0], ["a", "b", "c", "d"], None, [-1.0, -1.0, -1.0, None]):
        rows[0]["English"]["option_log_likelihoods"] = wrong
        with pytest.raises(DataError, match=r"row 1, English: option_log_likelihoods is not one number for each of"):
            read_file(write_json_rows(path, rows), by="likelihood")
    with pytest.raises(ConfigError, match="There is no 'luck' here"):
        read_file(path, by="luck")


def test_letters_decide_where_choices_stand_in_another_order(tmp_path: Path) -> None:
    turned = [CHOICES[1], CHOICES[0], *CHOICES[2:]]
    rows = [{"id": "1", "English": cell("(B) blue fish", 1), "Spanish": cell("(B) blue fish", 0, turned)}]
    scores = score(read_file(write_json_rows(tmp_path / "a.json", rows))[0])
    assert (scores.accuracy, scores.consistency) == (1.0, {2: 1.0})


def test_what_is_odd_is_found(tmp_path: Path) -> None:
    rows = [{"id": "1", "English": cell("(A)"), "Spanish": cell("(A)", 1)} for _ in range(2)]
    rows[0]["English"]["answer"] = "(A) yellow bird"
    path = write_json_rows(tmp_path / "a.json", rows)
    found = {row["kind"]: row["message"] for row in score_files([str(path)], tmp_path / "out", QUICK).findings}
    assert found["answer_not_in_choices"].startswith("1 right answers are not among the choices")
    assert "1 English" in found["answer_not_in_choices"]
    assert "another right letter" in found["different_answers"]
    assert "each is scored" in found["repeated_ids"]
    assert len(set(read_file(path)[0].items)) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"English": 1}, "holds no list of rows"),
        ([], "holds no rows"),
        ([{"id": 1, "text": "?"}], "has no language in its rows"),
        ([{"id": 1, "English": cell("(A)")}, {"id": 2, "Spanish": cell("(A)")}], "row 1 has no Spanish"),
        ([{"id": 1, "English": {"choices": CHOICES, "answer": "A"}}], "row 1, English: there is no model_prediction"),
        ([{"id": 1, "English": {**cell("(A)"), "choices": "A"}}], "the choices are no list of texts"),
        ([{"id": 1, "English": {**cell("(A)"), "choices": ["A"], "answer": "A"}}], "there are 1 choices"),
        ([{"id": 1, "English": {**cell("(A)"), "model_prediction": 7}}], "model_prediction is a int, not a text"),
        ([7], "row 1 is no object"),
    ],
)
def test_rows_that_cannot_be_scored(rows: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        read_file(write_json_rows(tmp_path / "a.json", rows))


def test_a_missing_prediction_is_invalid(tmp_path: Path) -> None:
    rows = [{"id": 1, "English": {**cell("(A)"), "model_prediction": None}}]
    assert read_file(write_json_rows(tmp_path / "a.json", rows))[0].invalid_rate == 1.0


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "half.json").write_text('[{"id": 1')
    (tmp_path / "half.jsonl").write_text('{"id": 1}\n{"id"')
    (tmp_path / "a.txt").write_text("A")
    (tmp_path / "bad.parquet").write_text("A")
    for name, message in (
        ("half.json", "is not JSON"),
        ("half.jsonl", "half.jsonl:2 is not JSON"),
        ("a.txt", "is no kind of file that can be scored"),
        ("bad.parquet", "is not a parquet file that can be read"),
        ("none.json", "does not exist"),
    ):
        with pytest.raises(DataError, match=message):
            read_file(tmp_path / name)
    twice = [{"item": 1, "language": "en", "response": "A", "answer": "A"}] * 2
    with pytest.raises(DataError, match="item 1 has two rows in en"):
        read_file(write_lines(tmp_path / "twice.jsonl", twice))
    for choices in ("5", '"(A) red"', "(A) red;(B) blue"):
        with pytest.raises(DataError, match="item 1, en: the choices are no list of texts"):
            read_file(write_lines(tmp_path / "choices.jsonl", [{**twice[0], "choices": choices}]))
    with pytest.raises(DataError, match="row 1 lacks item, language or answer"):
        read_file(write_lines(tmp_path / "no.jsonl", [{**twice[0], "answer": None}]))
    (tmp_path / "a_score.json").write_text("{}")
    with pytest.raises(DataError, match=r"There is no prediction file to score\. Files named \*_score\.json"):
        score_files([str(tmp_path / "a_score.json")], tmp_path / "out")


def test_the_tool_ends_with_a_fix(tmp_path: Path) -> None:
    path = write_json_rows(tmp_path / "a.json", prediction_rows(3, 1))
    assert "error: 'x:y' is to be compared" in tool(path, "--out", tmp_path, "--compare", "x:y", code=2)
    assert "does not exist" in tool(tmp_path / "b.json", "--out", tmp_path, code=3)
    assert "0 workers do nothing" in tool(path, "--out", tmp_path, "--workers", 0, code=2)
    assert "cannot be made a folder" in tool(path, "--out", path, code=2)


def test_short_names_leave_out_what_all_share() -> None:
    names = ["runs/m/a/p1.json", "runs/n/a/p1.json", "runs/t.csv (model)"]
    assert list(short_names(names[:2]).values()) == ["m/a/p1", "n/a/p1"]
    assert list(short_names(names[2:]).values()) == ["runs/t.csv (model)"]
    asked = [f"runs/{one}/predictions.json" for one in ("base", "x2x")]
    assert list(short_names(asked).values()) == ["base", "x2x"]
    assert list(short_names(asked[:1]).values()) == ["runs/base"]


def test_a_comparison_in_two_languages_shows_their_consistency(tmp_path: Path) -> None:
    paths = [
        str(write_json_rows(tmp_path / f"{seed}.json", prediction_rows(4, seed, languages=("English", "Chinese"))))
        for seed in (1, 2)
    ]
    score_files(paths, tmp_path / "out", ScoreOptions(comparisons=(":".join(paths),), bootstrap=Bootstrap(0, 20)))
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "consistency (s = 2)" in page
    assert 'id="released"' in page


def test_one_language_is_scored_and_said(tmp_path: Path) -> None:
    path = write_json_rows(tmp_path / "a.json", prediction_rows(4, 1, languages=("English",)))
    result = score_files([str(path)], tmp_path / "out", QUICK)
    assert [row["kind"] for row in result.findings] == ["one_language"]
    assert result.scored[0].row["consistency"] == {}


def test_scoring_and_data_load_no_torch() -> None:
    code = (
        "import importlib, pkgutil, sys\n"
        "import megalign.crossin.scoring, megalign.crossin.data, megalign.endpoint, megalign.crossin.prompts\n"
        "import megalign.crossin.questions, megalign.crossin.translators\n"
        "for room in (megalign.crossin.scoring, megalign.crossin.data, megalign.endpoint):\n"
        "    for found in pkgutil.iter_modules(room.__path__, room.__name__ + '.'):\n"
        "        importlib.import_module(found.name)\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'transformers', 'peft', 'datasets', 'megatron'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_table_row_without_a_response_is_named(tmp_path: Path) -> None:
    rows = table_rows(prediction_rows(3, 0))
    del rows[5]["response"]
    with pytest.raises(DataError, match="row 6 lacks response"):
        read_file(write_lines(tmp_path / "rows.jsonl", rows))


def test_the_code_of_indonesian_is_a_language_of_tables(tmp_path: Path) -> None:
    codes = dict(zip(LANGUAGES, ("en", "zh", "id", "es"), strict=True))
    rows = [{**row, "language": codes[row["language"]]} for row in table_rows(prediction_rows(5, 0))]
    (answers,) = read_file(write_lines(tmp_path / "rows.jsonl", rows))
    assert answers.languages == ("en", "zh", "id", "es")
    assert answers.items == tuple(f"q{number}" for number in range(5))


def test_a_mark_of_byte_order_is_no_fault(tmp_path: Path) -> None:
    rows = prediction_rows(5, 0)
    for name, content in (("rows.json", json.dumps(rows)), ("rows.jsonl", "\n".join(map(json.dumps, rows)))):
        (tmp_path / name).write_text(content, encoding="utf-8-sig")
        assert len(read_file(tmp_path / name)[0].items) == 5


def test_repeated_ids_of_a_large_file_take_no_time(tmp_path: Path) -> None:
    """Counting each id in all of them took a minute for so many."""
    rows = [{"id": number // 2, "English": cell("(A)")} for number in range(40_000)]
    begun = time.process_time()
    (answers,) = read_file(write_json_rows(tmp_path / "rows.json", rows))
    assert len(set(answers.items)) == 40_000
    assert time.process_time() - begun < 10


def test_published_scores_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    path = write_json_rows(tmp_path / "a.json", prediction_rows(3, 0, languages=("English", "Chinese")))
    theirs = {"overall_acc": "n/a", "language_acc": {"English": 0.5, "Chinese": 0.5}}
    write_json_rows(tmp_path / "a_score.json", {**theirs, "consistency_score_2": 0.5, "AC3_2": 0.5})
    result = score_files([str(path)], tmp_path / "out", ScoreOptions(report=False, bootstrap=Bootstrap(0, 20)))
    assert "published_difference" not in result.scored[0].row


def test_no_report_of_an_earlier_scoring_stays(tmp_path: Path) -> None:
    path = write_json_rows(tmp_path / "a.json", prediction_rows(3, 0))
    for report in (True, False):
        score_files([str(path)], tmp_path / "out", ScoreOptions(report=report, bootstrap=Bootstrap(0, 20)))
        assert (tmp_path / "out" / "report.html").exists() == report


def test_more_resamples_than_fit_into_memory_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"1000000000 resamples.*100000"):
        Bootstrap(0, 10**9)
