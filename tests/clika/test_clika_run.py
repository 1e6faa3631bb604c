"""The tool as users run it: files written, tables read like folders, the page, errors without tracebacks."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from small_responses import FOLDERS, MODELS, read_rows, write_rows
from tool_command import tool as run_tool

from megalign.clika import Protocol, ScoreOptions, load_protocol, read_answers, score
from megalign.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "clika"
KEYS = ["model", "dataset", "language", "n", "accuracy", "ra", "en_co", "both_over_en", "jaccard", "same_answer"]


tool = partial(run_tool, "score_clika")


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table_rows(responses: Path) -> list[dict[str, Any]]:
    rows = []
    for dataset in ("x_copa", "x_geo"):
        for model in MODELS:
            for folder in FOLDERS.values():
                for one in read_rows(responses / dataset / folder / f"{model}_res_bf16.jsonl"):
                    cell = {"model": model, "dataset": dataset, "language": folder}
                    answer = {"item": one["uuid"], "response": one["res"], "label": one["label"], "input": one["input"]}
                    rows.append(cell | answer)
    return rows


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        write_rows(path, rows)
    else:
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


@pytest.mark.reference_data
def test_the_tool_writes_a_line_per_released_cell(reference_data: Path, tmp_path: Path) -> None:
    printed = tool(reference_data / "clika", "--out", tmp_path, "--resamples", 50)
    rows = lines_of(tmp_path / "scores.jsonl")
    assert len({(row["model"], row["dataset"], row["language"]) for row in rows}) == len(rows) == 200
    assert all(list(row) == [*KEYS, "parse_rate"] for row in rows)
    assert "10 x repeated_options" in printed
    assert "4 x look_alike_letters" in printed
    findings = lines_of(tmp_path / "findings.jsonl")
    english = next(one for one in findings if one["path"] == "x_csqa/en/chatgpt_res.jsonl")
    assert (english["kind"], english["line"], len(english["lines"])) == ("repeated_options", 74, 18)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_a_table_scores_like_the_folder(suffix: str, responses: Path, protocol: Protocol, tmp_path: Path) -> None:
    options = ScoreOptions(protocol, report=False, num_resamples=20)
    path = tmp_path / f"table{suffix}"
    rows = table_rows(responses)
    write_table(path, [{**row, "note": 1.5} for row in rows])
    path = path.rename(path.with_suffix(suffix.upper()))
    folder, table = score(responses, tmp_path / "a", options), score(path, tmp_path / "b", options)
    assert table.scores == folder.scores
    assert table.intervals == folder.intervals
    assert table.findings == []
    rows[30]["label"] = "Z"
    rows[40]["input"] = "Q\nA. x\nB. x\nAnswer:"
    path = tmp_path / f"table{suffix}"
    write_table(path, rows)
    found = {one.kind: one for one in score(path, tmp_path / "c", options).findings}
    # The prompts have several lines, so a row of the CSV file does not lie at its number.
    ends = {at: sum(one["input"].count("\n") + 1 for one in rows[:at]) + 2 for at in (30, 40)}
    places = ends if suffix == ".csv" else {at: at + 1 for at in ends}
    assert (found["bad_row"].path, found["bad_row"].lines) == (path.name, (places[30],))
    assert found["repeated_options"].lines == (places[40],)


def test_a_table_that_cannot_be_read_is_told(responses: Path, protocol: Protocol, tmp_path: Path) -> None:
    rows = table_rows(responses)[:3]
    for suffix in (".parquet", ".csv", ".jsonl"):
        write_table(tmp_path / f"t{suffix}", [{k: v for k, v in row.items() if k != "label"} for row in rows])
        with pytest.raises(DataError, match=r"lacks the column\(s\) label. It has model, dataset, language, item"):
            read_answers(tmp_path / f"t{suffix}", protocol)
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"t.parquet is not a parquet file"):
        read_answers(tmp_path / "t.parquet", protocol)
    (tmp_path / "t.csv").write_bytes(b"model,dataset,language,item,response,label\n\xff\n")
    with pytest.raises(DataError, match=r"t.csv is not a CSV file"):
        read_answers(tmp_path / "t.csv", protocol)
    write_rows(tmp_path / "t.jsonl", [rows[0], {**rows[1], "model": None}])
    with pytest.raises(DataError, match=r"t.jsonl:2: model, dataset or language is missing"):
        read_answers(tmp_path / "t.jsonl", protocol)
    (tmp_path / "t.xlsx").write_bytes(b"")
    with pytest.raises(DataError, match=r"t.xlsx is not a table that can be read. Give one of .parquet, .csv, .jsonl"):
        read_answers(tmp_path / "t.xlsx", protocol)


def test_broken_lines_of_a_table_are_found(responses: Path, protocol: Protocol, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write_rows(path, table_rows(responses))
    path.write_bytes(b"oops\n" + path.read_bytes())
    answers, findings = read_answers(path, protocol)
    assert len(answers) == 12
    assert [(one.kind, one.path, one.lines) for one in findings] == [("not_jsonl", "t.jsonl", (1,))]


def test_the_same_input_gives_the_same_bytes(responses: Path, protocol: Protocol, tmp_path: Path) -> None:
    options = ScoreOptions(protocol, num_resamples=50)
    for name in ("a", "b"):
        score(responses, tmp_path / name, options)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == [
        "comparisons.jsonl", "findings.jsonl", "intervals.jsonl", "knowledge.csv", "parsing.jsonl", "report.html",
        "scores.csv", "scores.jsonl",
    ]  # fmt: skip
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_csv_agrees_with_the_scores(responses: Path, protocol: Protocol, tmp_path: Path) -> None:
    result = score(responses, tmp_path, ScoreOptions(protocol, report=False, num_resamples=20))
    with (tmp_path / "scores.csv").open(encoding="utf-8", newline="") as stream:
        table = {(row["model"], row["dataset"], row["language"]): row for row in csv.DictReader(stream)}
    assert len(table) == len(result.scores)
    for row in result.scores:
        ours = table[row["model"], row["dataset"], row["language"]]
        for metric in KEYS[4:]:
            value = row[metric]
            assert ours[metric] == ("" if value is None else repr(value))
            assert (ours[f"{metric}_low"] == "") == (value is None)
    knowledge = (tmp_path / "knowledge.csv").read_text(encoding="utf-8").splitlines()
    assert knowledge[0].startswith("model,knowledge,language,n,accuracy,accuracy_low,accuracy_high,ra,")
    assert len(knowledge) == 1 + 2 * 2 * 3


def test_the_page_escapes_and_stands_alone(responses: Path, protocol: Protocol, tmp_path: Path) -> None:
    name = "<script>$x$"
    for path in responses.glob("*/*/small_res_bf16.jsonl"):
        path.rename(path.with_name(f"{name}_res.jsonl"))
    options = ScoreOptions(protocol, num_resamples=20, comparisons=load_pairs("large", name))
    score(responses, tmp_path, options)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;$x$" in page
    assert not re.findall(r"(?:src|href)=\"(?!data:image/png|#)", page)
    # Two types of knowledge and two data sets with two heat maps each, and a scatter per type.
    assert page.count("data:image/png;base64,") == 10
    assert "Nothing was found wrong." in page
    assert ">n/a<" not in page.split('id="compared"')[1].split("</section>")[0].replace("<td>n/a</td><td>n/a</td>", "")


def load_pairs(base: str, other: str) -> tuple[Any, ...]:
    from megalign.clika import Comparison

    return (Comparison(base=base, other=other),)


def test_cells_that_hardly_answer_are_told(responses: Path, tmp_path: Path) -> None:
    """Lower-case letters are wrong, as in the released scorer; nobody should take that for ignorance."""
    for folder, worst in (("DE_trans", False), ("RU", True)):
        path = responses / "x_geo" / folder / "small_res_bf16.jsonl"
        rows = read_rows(path)
        write_rows(path, [{**row, "res": row["res"].lower()} if worst or at else row for at, row in enumerate(rows)])
    printed = tool(responses, "--out", tmp_path, "--resamples", 20)
    assert "     2 x less than half of the responses name an option, the fewest of small on x_geo in ru (0%)" in printed
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "small on x_geo in ru (0.000), small on x_geo in de (0.042)</li>" in page
    row = next(one for one in lines_of(tmp_path / "scores.jsonl") if (one["parse_rate"], one["language"]) == (0, "ru"))
    assert (row["accuracy"], row["en_co"]) == (0, None)


def test_results_need_a_folder(responses: Path, protocol: Protocol, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(ConfigError, match=r"cannot be made a folder: .+ Choose another folder"):
            score(responses, out, ScoreOptions(protocol, report=False, num_resamples=20))
    assert (tmp_path / "file").read_text() == "mine"


def test_errors_end_with_their_code(responses: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    printed = tool(responses, "--out", out, "--strict", "--no-report", code=3)
    assert "findings in the data" in printed
    assert "  Mend the files, or score without --strict" in printed
    assert "names no two models" in tool(responses, "--out", out, "--compare", "large", code=2)
    assert "tiny is to be compared and has no responses" in tool(
        responses, "--out", out, "--compare", "large:tiny", code=2
    )
    assert "does not exist" in tool(tmp_path / "absent", "--out", out, code=3)
    assert not (out / "scores.jsonl").exists()


def test_an_unknown_way_of_parsing_is_told(responses: Path, protocol: Protocol, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"There is no way of parsing 'loose'. Choose released or strict"):
        score(responses, tmp_path, ScoreOptions(protocol, parse="loose"))


def test_the_example_runs_as_written(tmp_path: Path) -> None:
    text = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    command = re.search(r"python tools/score_clika\.py (.+)", text)
    assert command is not None
    words = [str(tmp_path) if word == "runs/clika" else word for word in command[1].split()]
    words = [str(ROOT / word) if word.startswith("examples/") else word for word in words]
    printed = tool(*words)
    for line in re.findall(r"^ +\d+ x .+", text, flags=re.MULTILINE):
        assert line.strip() in printed, line
    rows = lines_of(tmp_path / "scores.jsonl")
    assert {row["dataset"] for row in rows} == {"moon_facts"}
    assert (tmp_path / "report.html").stat().st_size > 50_000
    compared = lines_of(tmp_path / "comparisons.jsonl")
    assert {row["comparison"] for row in compared} == {"mixed against continued pretraining"}


def test_scoring_loads_no_torch() -> None:
    code = (
        "import sys, megalign.clika; print(sorted({'torch', 'megatron', 'transformers', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.strip() == "[]"


def test_released_constants_are_the_papers() -> None:
    tops = {name: one.top_percent for name, one in load_protocol().datasets.items()}
    assert tops == {"x_csqa": 74.6, "x_copa": 96.4, "x_geo": 97.0, "x_name": 92.2}


def test_no_result_of_an_earlier_scoring_stays(responses: Path, protocol: Protocol, tmp_path: Path) -> None:
    out = tmp_path / "out"
    score(responses, out, ScoreOptions(protocol, num_resamples=20))
    before = {path.name for path in out.iterdir()}
    assert {"scores.jsonl", "report.html"} <= before
    score(responses, out, ScoreOptions(protocol, num_resamples=20, report=False))
    assert {path.name for path in out.iterdir()} == before - {"report.html"}
    path = next(responses.glob("x_geo/*/*_res*.jsonl"))
    path.write_bytes(path.read_bytes() + b"not JSON\n")
    with pytest.raises(DataError, match="no JSON object"):
        score(responses, out, ScoreOptions(protocol, num_resamples=20, fail_on_findings=True))
    assert [one.name for one in out.iterdir()] == ["findings.jsonl"]


def test_more_resamples_than_fit_into_memory_are_refused(responses: Path, protocol: Protocol, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"1000000000 resamples.*100000"):
        score(responses, tmp_path / "out", ScoreOptions(protocol, num_resamples=10**9))
