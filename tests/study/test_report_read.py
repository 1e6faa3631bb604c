"""Reading a study's files: what is accepted, what is refused and how."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_study import STEPS, score_lines, study_json, write_lines, write_run, write_study

from megalign.errors import DataError
from megalign.study.report.read import read_study


def test_final_scores_are_those_of_the_largest_step(tmp_path: Path) -> None:
    write_study(tmp_path)
    study, runs, notes = read_study(tmp_path)
    assert [method.name for method in study.methods] == ["joint", "prealign", "only_target"]
    assert study.targets == ("en-clone",)
    assert [(run.method, run.seed) for run in runs[:3]] == [("joint", 0), ("joint", 1), ("prealign", 0)]
    expected = [line for line in score_lines("prealign", 0) if line["step"] == STEPS[-1]]
    found = {score.key: score.value for score in runs[2].final_scores}
    assert found == {(line["metric"], line["language"], line["level"]): line["value"] for line in expected}
    assert len(runs[2].scores) == len(score_lines("prealign", 0))
    assert not notes


def test_every_state_of_a_run_has_a_name(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(json.dumps(study_json(seeds=[0, 1, 2, 3])))
    write_run(tmp_path, "joint", 0)
    write_run(tmp_path, "joint", 1, status=None, steps=STEPS[:3])
    write_run(tmp_path, "joint", 2, status="stopped on request", steps=STEPS[:4])
    _, runs, _ = read_study(tmp_path)
    assert [run.status for run in runs[:4]] == ["done", "no run.json yet", "stopped on request", "not started"]
    assert [run.finished for run in runs[:4]] == [True, False, False, False]
    assert [run.last_step for run in runs[:4]] == [831, 300, 500, None]


def test_a_line_cut_short_is_left_out_of_a_run_under_way_and_refused_in_a_finished_one(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(json.dumps(study_json(seeds=[0])))
    run = write_run(tmp_path, "joint", 0, status=None)
    for name in ("scores.jsonl", "metrics.jsonl"):
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[:-10])
    _, runs, notes = read_study(tmp_path)
    assert len(runs[0].scores) == len(score_lines("joint", 0)) - 1
    assert sorted(notes) == [
        f"joint, seed 0: the last line of {n} is not complete; it is left out."
        for n in ("metrics.jsonl", "scores.jsonl")
    ]
    (run / "run.json").write_text('{"status": "done"}')
    with pytest.raises(DataError, match=rf"scores.jsonl, line {len(score_lines('joint', 0))} is not JSON"):
        read_study(tmp_path)


def test_a_repeated_step_counts_once_and_is_said(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(json.dumps(study_json(seeds=[0])))
    run = write_run(tmp_path, "joint", 0)
    again = {"metric": "perplexity", "language": "en", "level": None, "step": 831, "value": 7.5, "unit": "perplexity"}
    with (run / "scores.jsonl").open("a") as stream:
        stream.write(json.dumps(again) + "\n")
    _, runs, notes = read_study(tmp_path)
    assert [score.value for score in runs[0].final_scores if score.key == ("perplexity", "en", None)] == [7.5]
    assert notes == ("joint, seed 0: 1 line(s) of scores.jsonl repeat a step; the last one counts.",)


def test_a_metric_that_the_last_step_lacks_is_said(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(json.dumps(study_json(seeds=[0])))
    run = write_run(tmp_path, "joint", 0)
    write_lines(
        run / "scores.jsonl",
        [line for line in score_lines("joint", 0) if line["metric"] != "perplexity" or line["step"] < 831],
    )
    _, runs, notes = read_study(tmp_path)
    assert "perplexity" not in {score.metric for score in runs[0].final_scores}
    assert notes == ("joint, seed 0: not measured at the last step, so in the curves only: perplexity.",)


def test_undefined_and_infinite_values_are_read(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(json.dumps(study_json(seeds=[0])))
    run = write_run(tmp_path, "joint", 0)
    write_lines(
        run / "scores.jsonl",
        [
            {"metric": "en_co", "language": "de", "level": None, "step": 1, "value": None, "unit": "share"},
            {
                "metric": "perplexity",
                "language": "en",
                "level": None,
                "step": 1,
                "value": float("inf"),
                "unit": "perplexity",
            },
        ],
    )
    assert [score.value for score in read_study(tmp_path)[1][0].final_scores] == [None, float("inf")]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("study.json", "{", r"study.json is not JSON"),
        (
            "study.json",
            json.dumps({**study_json(), "seeds": ["0"]}),
            r"study.json: seeds.0: Input should be a valid integer \(found '0'\)",
        ),
        (
            "study.json",
            json.dumps({**study_json(), "methods": [{"name": "../../x"}]}),
            r"'../../x' cannot be a method's name",
        ),
        ("study.json", json.dumps({**study_json(), "methods": [{"name": ""}]}), r"'' cannot be a method's name"),
        ("study.json", json.dumps({**study_json(), "seeds": [1, 1]}), r"names a seed twice: 1, 1"),
        ("study.json", json.dumps({**study_json(), "languages": ["en", "a/b"]}), r"'a/b' cannot be a language's name"),
        ("study.json", json.dumps({**study_json(), "reference_language": "fr"}), r"reference language 'fr' is not one"),
        ("runs/joint/seed0/run.json", "[]", r"seed0/run.json: content: Input should be an object"),
        (
            "runs/joint/seed0/run.json",
            '{"status": 3}',
            r"seed0/run.json: status: Input should be a valid string \(found '3'\)",
        ),
        ("runs/joint/seed0/run.json", b"\xff\xfe", r"seed0/run.json is not JSON"),
        (
            "runs/joint/seed0/scores.jsonl",
            '{"metric": "a", "step": 1, "value": 2}\n\n',
            r"scores.jsonl, line 2 is not JSON",
        ),
        (
            "runs/joint/seed0/scores.jsonl",
            '{"metric": "a", "step": 1, "value": 2}\n{"metric": "a", "step": 1, "value": "2"}\n',
            r"scores.jsonl, line 2: value: Input should be a valid number \(found '2'\)",
        ),
        (
            "runs/joint/seed0/scores.jsonl",
            '{"metric": "a", "value": 2}\n',
            r"scores.jsonl, line 1: step: Field required",
        ),
        ("runs/joint/seed0/metrics.jsonl", '{"stage": "inject", "step": 1.5}\n', r"metrics.jsonl, line 1: step: "),
        (
            "runs/joint/seed0/scores.jsonl",
            '{"metric": "clka", "step": 1, "value": 2, "unit": "nats"}\n',
            r"clka has the unit 'share' in joint, seed 1, but 'nats' before",
        ),
    ],
)
def test_a_broken_file_is_refused_by_name_and_line(
    tmp_path: Path, file: str, content: str | bytes, message: str
) -> None:
    write_study(tmp_path)
    (tmp_path / file).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=message):
        read_study(tmp_path)


def test_missing_files_are_refused_where_they_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"study.json does not exist"):
        read_study(tmp_path)
    write_study(tmp_path)
    (tmp_path / "runs/joint/seed0/metrics.jsonl").unlink()
    assert read_study(tmp_path)[1][0].training == ()
    (tmp_path / "runs/joint/seed0/scores.jsonl").write_bytes(b"")
    with pytest.raises(DataError, match=r"joint/seed0/scores.jsonl is empty, but run.json says that the run is done"):
        read_study(tmp_path)
    (tmp_path / "runs/joint/seed0/scores.jsonl").unlink()
    with pytest.raises(
        DataError, match=r"joint/seed0/scores.jsonl does not exist, but run.json says that the run is done"
    ):
        read_study(tmp_path)
