"""What others do with exports and runs: tuning an adapter, asking questions, the command line."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import saved_runs
import small_study

pytest.importorskip("peft")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "crossin"))
from crossin_samples import lines_of, task_rows, write_lines


@pytest.fixture(scope="module")
def long_run(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with windows long enough for questions."""
    return saved_runs.write_run(files, tmp_path_factory.mktemp("long") / "run", sequence_length=256)


def test_an_adapter_is_tuned_on_an_export_and_run_and_export_are_asked(long_run: Path, tmp_path: Path) -> None:
    from megalign.answers import open_model
    from megalign.crossin.questions import AskOptions, ask, prepare
    from megalign.crossin.tuning.settings import TuneConfig
    from megalign.crossin.tuning.train import tune
    from megalign.evaluation.huggingface import export_run

    folder = export_run(long_run, tmp_path / "hf").folder
    data = write_lines(tmp_path / "data.jsonl", task_rows("en", 3) + task_rows("es", 3))
    settings = {
        "base_model": str(folder), "data": str(data), "batch_size": 4, "micro_batch": 4, "context_tokens": 256,
        "dtype": "float32", "device": "cpu", "learning_rate": 0.01, "max_steps": 4, "epochs": 4,
        "lora": {"rank": 4, "alpha": 8, "dropout": 0.0},
    }  # fmt: skip
    tune(TuneConfig.model_validate(settings), tmp_path / "tuned")
    losses = [line["loss"] for line in lines_of(tmp_path / "tuned" / "metrics.jsonl")]
    assert losses[-1] < losses[0] - 0.3
    choices = ["(A) red bird", "(B) blue fish"]
    rows = [
        {"id": str(n), **{lang: {"question": f"{lang} {n}?", "choices": choices, "answer": choices[n % 2]} for lang in ("English", "Spanish")}}
        for n in range(2)
    ]  # fmt: skip
    questions = tmp_path / "questions.json"
    questions.write_text(json.dumps(rows))
    answers = {}
    for name in (str(long_run), str(folder), str(tmp_path / "tuned" / "adapter")):
        out = tmp_path / Path(name).name / "asked"
        out.mkdir(parents=True)
        asked = prepare(name, str(questions), AskOptions("likelihood", template="plain"))
        with open_model(name, device="cpu") as model:
            answers[name] = json.loads(ask(asked=asked, model=model, out=out).read_text())
    said = [[json.dumps(row) for row in answers[name]] for name in (str(long_run), str(folder))]
    numbers = [[float(x) for x in re.findall(r"-\d+\.\d+", " ".join(one))] for one in said]
    assert numbers[0], "likelihoods are in the answers"
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-3)


@pytest.mark.slow
def test_the_commands(long_run: Path, tmp_path: Path) -> None:
    out, start = tmp_path / "hf", tmp_path / "start"
    done = small_study.megalign("export", long_run, out, "--checkpoint", "step_00000007")
    assert done.returncode == 0, done.stderr
    assert re.search(r"largest difference of logits \S+ \(tolerance", done.stdout)
    assert "GPT2LMHeadModel, 800 ids" in done.stdout
    done = small_study.megalign("import", out, start, "--vocab-size-multiple", "128")
    assert done.returncode == 0, done.stderr
    assert "96 rows of padding have a probability of" in done.stdout
    assert f"initial_weights={start}" in done.stdout
    again = small_study.megalign("export", long_run, out)
    assert (again.returncode, "exists already" in again.stderr) == (2, True)
    missing = small_study.megalign("export", long_run, tmp_path / "x", "--checkpoint", "step_00000099")
    assert (missing.returncode, "holds no weights to read" in missing.stderr) == (3, True)
