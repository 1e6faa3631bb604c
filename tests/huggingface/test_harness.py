"""lm-evaluation-harness over our engine against its own Hugging Face model on the export: equal scores, every layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import harness_tasks
import numpy as np
import pytest
import ranks
import saved_runs
import small_study
import yaml

from megalign.config import validate
from megalign.errors import ConfigError
from megalign.evaluation.harness_run import HarnessSettings, reading
from megalign.evaluation.huggingface import export_run

pytest.importorskip("lm_eval")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return harness_tasks.write_tasks(tmp_path_factory.mktemp("tasks") / "tasks")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without clones: an exported tokenizer has no text for a clone's ids, which our own answers have."""
    folder = tmp_path_factory.mktemp("plain")
    return saved_runs.write_run(saved_runs.build_plain_files(folder), folder / "run", {"tensor": 2}, **saved_runs.LLAMA)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and no cache of data that others made."""
    for name, value in {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def expected(plain: Path, tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results and samples of the harness's `hf` on the export; the start token once in whole texts too."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    folder = export_run(plain, tmp_path_factory.mktemp("hf") / "export").folder
    found: dict[str, Any] = {"results": {}, "samples": {}}
    for names, more in ((["tiny_choice", "tiny_say"], {}), (["tiny_text"], {"add_bos_token": False})):
        manager = TaskManager(include_path=str(tasks))
        settings = {"pretrained": str(folder), "device": "cpu", **more}
        part = simple_evaluate(
            "hf", model_args=settings, tasks=names, task_manager=manager, batch_size=3, bootstrap_iters=0
        )
        for key in found:
            found[key] |= part[key]
    return found


@pytest.mark.parametrize(
    "parallel", [{"tensor": 2}, pytest.param({"tensor": 2, "pipeline": 2}, marks=pytest.mark.slow)], ids=str
)
def test_scores_are_those_of_hf_on_the_export(
    parallel: dict[str, int], expected: dict[str, Any], plain: Path, tasks: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    settings = harness_tasks.settings_of(tasks, out, harness_tasks.NAMES)
    ranks.run(harness_tasks.evaluate, ranks.layout_of(**parallel), plain, settings, timeout_seconds=400)
    found = json.loads((out / "results.json").read_text())
    for task, metrics in expected["results"].items():
        for name, value in metrics.items():
            if "," in name and "stderr" not in name:
                assert found["results"][task][name] == pytest.approx(value, rel=1e-4), (task, name)
    for task in harness_tasks.NAMES:
        for ours, sample in zip(harness_tasks.responses(out, task), expected["samples"][task], strict=True):
            theirs = json.loads(json.dumps(sample["resps"]))
            if task == "tiny_choice":
                assert np.allclose([one[0][0] for one in ours], [one[0][0] for one in theirs], atol=2e-4)
                assert [one[0][1] for one in ours] == [one[0][1] for one in theirs]
            elif task == "tiny_text":
                assert ours[0][0] == pytest.approx(theirs[0][0], rel=1e-5)
            else:
                assert ours == theirs
    assert found["config"]["model_fingerprint"]
    assert found["num_cut_contexts"] == 0
    assert (out / "results.md").read_text().count("tiny_choice") == 1
    said = harness_tasks.responses(out, "tiny_say")
    assert len({text for answer in said for text in answer[0]}) > 2, "alike answers would not show a mix-up"


def test_a_stopped_evaluation_goes_on(runs: dict[str, Path], tasks: Path, tmp_path: Path) -> None:
    settings = harness_tasks.settings_of(tasks, tmp_path / "out", ["tiny_choice"])
    for first, second, kept_first, kept_second in ranks.run(
        harness_tasks.stopped_and_continued, ranks.layout_of(tensor=2), runs["llama"], settings, timeout_seconds=200
    ):
        assert "-1.25" not in first
        assert "-1.25" in second, "the changed line was not read"
        differing = [key for key, value in kept_first.items() if kept_second[key] != value]
        assert kept_first.keys() == kept_second.keys()
        assert [kept_second[key] for key in differing] == [[-1.25, True]]


def broken_tasks(folder: Path) -> dict[str, str]:
    """Write task files that lm-evaluation-harness stumbles over; name -> the kind of error."""
    good = yaml.safe_load((folder / "tiny_choice.yaml").read_text())
    changes: dict[str, tuple[dict[str, Any], str]] = {
        "broken_key": ({"no_such_key": 1}, "TypeError"),
        "broken_template": ({"doc_to_text": "{{q"}, "TemplateSyntaxError"),
        "broken_field": ({"doc_to_target": "{{nothing}}"}, "UndefinedError"),
        "broken_choices": ({"doc_to_choice": ["", ""]}, "IndexError"),
        "broken_split": ({"test_split": "dev"}, "KeyError"),
    }
    for name, (change, _) in changes.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**good, "task": name, **change}))
    return {name: kind for name, (_, kind) in changes.items()}


def test_an_evaluation_ended_at_its_first_line_starts_anew(runs: dict[str, Path], tasks: Path, tmp_path: Path) -> None:
    for number, content in enumerate(("", '{"model": "hal')):
        out = tmp_path / str(number)
        out.mkdir()
        (out / "progress.jsonl").write_text(content)
        settings = harness_tasks.settings_of(tasks, out, ["tiny_choice"])
        ranks.run(harness_tasks.evaluate, ranks.layout_of(), runs["learned"], settings, timeout_seconds=400)
        assert json.loads((out / "results.json").read_text())["results"]["tiny_choice"]


@pytest.mark.parametrize("text", ["garbage", "{", "a=1,b"])
def test_settings_of_generation_are_pairs(text: str) -> None:
    with pytest.raises(ConfigError, match="is not of the form key=value"):
        validate(HarnessSettings, {"out": "x", "tasks": ["y"], "gen_kwargs": text}, "the options")


def test_a_stop_text_may_look_like_a_number(runs: dict[str, Path]) -> None:
    from megalign.evaluation.harness import MegalignLM

    lm = MegalignLM(str(runs["learned"]), batch_size="4")
    try:
        assert lm._generation({"until": 5, "max_gen_toks": 3}) == (3, ("5",))
    finally:
        lm.model.close()


def test_what_cannot_be_evaluated(runs: dict[str, Path], tasks: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "progress.jsonl").write_text('{"model": "another"}\n')
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "progress.jsonl").write_bytes(b"\xff\n")
    cases = [
        ("tiny_nothing", {}, "lm-evaluation-harness has no task tiny_nothing"),
        ("tiny_remote", {}, "Task data are read from local files unless a download is allowed"),
        ("tiny_sampled", {}, "A task samples: "),
        ("tiny_long", {}, "generates up to 256 tokens; the model takes 32 with the prompt"),
        ("tiny_choice", {"language": "xx"}, "The language xx is unknown"),
        ("tiny_choice", {"out": str(begun)}, "was begun with {'model': 'another'}, this is"),
        ("tiny_choice", {"out": str(damaged)}, "is damaged"),
        ("tiny_say", {"gen_kwargs": "max_gen_toks=0"}, "A task generates 0 tokens"),
        ("tiny_say", {"gen_kwargs": "max_gen_toks=many"}, "A task generates 'many' tokens"),
        ("tiny_say", {"gen_kwargs": "temperature=warm"}, "A task samples: "),
        *((name, {}, f"The tasks {name} cannot be evaluated: {kind}") for name, kind in broken_tasks(tasks).items()),
    ]
    settings = [
        {**harness_tasks.settings_of(tasks, tmp_path / str(n), [task]), **more}
        for n, (task, more, _) in enumerate(cases)
    ]
    (told,) = ranks.run(harness_tasks.refusals, ranks.layout_of(), runs["learned"], settings, timeout_seconds=400)
    for text, (_, _, message) in zip(told, cases, strict=True):
        assert message in text


def test_the_layout_is_the_runs_without_replicas(runs: dict[str, Path]) -> None:
    config = reading(runs["rotary"])
    assert (config.parallel.tensor, config.parallel.pipeline, config.parallel.data) == (2, 2, 1)
    with pytest.raises(ConfigError, match="The tasks are not shared between replicas"):
        reading(runs["rotary"], ["parallel.data=2"])


def test_a_clones_tasks_have_its_ids(runs: dict[str, Path]) -> None:
    from megalign.evaluation.harness import MegalignLM

    lm = MegalignLM(str(runs["learned"]), batch_size="4", language="en-clone")
    try:
        assert lm.tok_encode("the house")[0] == 0 == lm.prefix_token_id
        assert min(lm.tok_encode("the house", add_special_tokens=False)) > 400
    finally:
        lm.model.close()
    with pytest.raises(ConfigError, match="batch_size is auto"):
        MegalignLM(str(runs["learned"]), batch_size="auto")


@pytest.mark.slow
def test_both_command_lines(runs: dict[str, Path], tasks: Path, tmp_path: Path) -> None:
    """`megalign lm-eval` in the run's layout, and the harness's own command line with our model in its registry."""
    import subprocess
    import sys

    out = tmp_path / "out"
    arguments = ["--tasks", "tiny_choice,tiny_text", "--include-path", tasks, "--out", out, "--limit", "3"]
    done = small_study.megalign("lm-eval", runs["llama"], *arguments)
    assert done.returncode == 0, done.stderr
    assert "word_perplexity|" in done.stdout
    ours = json.loads((out / "results.json").read_text())["results"]
    command = [sys.executable, "-m", "megalign.evaluation.harness", "run", "--model", "megalign"]
    arguments = [f"--model_args=run={runs['llama']}", "--tasks=tiny_choice", f"--include_path={tasks}", "--limit=3"]
    theirs = subprocess.run(
        [*command, *arguments, f"--output_path={tmp_path / 'harness'}"],
        env=small_study.clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert theirs.returncode == 0, theirs.stderr
    (path,) = (tmp_path / "harness").rglob("results_*.json")
    assert json.loads(path.read_text())["results"]["tiny_choice"]["acc,none"] == ours["tiny_choice"]["acc,none"]
    no_tasks = small_study.megalign("lm-eval", runs["llama"])
    assert (no_tasks.returncode, "No tasks are named" in no_tasks.stderr) == (2, True)
