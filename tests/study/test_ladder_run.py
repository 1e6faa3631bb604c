"""A small ladder from its YAML file to the fit, through the commands."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_study

from megalign.files import read_json


@pytest.mark.slow
def test_a_ladder_runs_continues_and_is_fitted(tmp_path: Path) -> None:
    ladder = {"sizes": [16, 32, 48], "target_ratios": [20, 10], "ratios_of": {"prealign": [20]}}
    ladder["budget"] = {"source_tokens": 6000}
    path = small_study.write(tmp_path / "ladder.yaml", name="rungs", ladder=ladder, train__evaluate_interval=None)
    arguments = ("study", "run", path, "--out", tmp_path / "runs")
    first = small_study.megalign(*arguments)
    assert first.returncode == 0, first.stdout + first.stderr
    folder = tmp_path / "runs" / "rungs"
    assert f"megalign scaling fit {folder} --out {folder / 'scaling'}" in first.stdout
    scores = sorted(folder.glob("runs/*/*/scores.jsonl"))
    assert len(scores) == 9
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in scores}

    # Continued: one run is lost with its marker, the others are left alone.
    lost = folder / "runs" / "joint-w32-r10" / f"seed{small_study.SEED}"
    (folder / "steps" / f"run-joint-w32-r10-seed{small_study.SEED}.json").unlink()
    (lost / "scores.jsonl").unlink()
    again = small_study.megalign(*arguments)
    assert again.returncode == 0, again.stdout + again.stderr
    for path, (content, modified) in before.items():
        assert path.read_bytes() == content
        assert (path.stat().st_mtime_ns == modified) == (path.parent != lost)

    fitted = small_study.megalign("scaling", "fit", folder, "--out", folder / "scaling")
    assert fitted.returncode == 0, fitted.stdout + fitted.stderr
    content = read_json(folder / "scaling" / "fits.json")
    assert [one["reasons"][0][:34] for one in content["curves"] if one["metric"] == "nll_per_token"] == [
        "3 sizes support 3 parameters exact"
    ] * 4
    # A batch is 4 windows of 64 tokens: 6,300 and 6,600 tokens make 24 and 25 steps.
    for label, steps in (("joint-w16-r20", 24), ("joint-w16-r10", 25), ("prealign-w48-r20", 24)):
        assert read_json(folder / "runs" / label / f"seed{small_study.SEED}" / "run.json")["steps"]["pretrain"] == steps
    assert {one["parameters"] for one in content["effective_data_multipliers"]} == {
        one["parameters"] for one in content["gains"]
    }
