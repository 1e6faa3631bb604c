"""`megalign plan` as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_study import SEED, megalign
from typer.testing import CliRunner

from megalign.cli.app import app
from megalign.cli.plan import plan
from megalign.config import load_run
from megalign.errors import ConfigError
from megalign.scaling.devices import load_devices
from megalign.study.expand import StudyFolder
from megalign.training.dry_run import dry_run


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content), "utf-8")
    return path


def merged(content: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    result = dict(content)
    for key, value in more.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def test_the_report_says_what_was_asked(tmp_path: Path) -> None:
    numbers, layout = tmp_path / "out" / "plan.json", tmp_path / "layout.yaml"
    done = megalign(
        *("plan", "--model", "1.3b", "--gpus", "8", "--gpu", "a100", "--tokens", "26e9", "--top", "3"),
        *("--global-batch-tokens", "262144", "--recompute", "none", "--price-per-gpu-hour", "2"),
        *("--json", numbers, "--yaml", layout),
    )
    assert done.returncode == 0, done.stderr
    for text in (
        "1.3b: 1,313,722,368 parameters (1,208,602,624 without embeddings)",
        "8 x NVIDIA A100 SXM 80 GB on 1 node: 312 TFLOP/s dense in bfloat16, 80.0 GiB",
        "26 G tokens = 99,183 steps of 256 windows of 1,024",
        "modelled, not calibrated",
        "fastest of",
        "GPU hours",
        "at 2 an hour",
        "micro_batch_size",
        "why others fall",
    ):
        assert text in done.stdout, text
    values = json.loads(numbers.read_text("utf-8"))
    best = values["plans"][0]
    assert best["tokens_per_second"] == max(plan["tokens_per_second"] for plan in values["plans"])
    assert best["cost"] == pytest.approx(2 * best["device_hours"])
    assert best["memory_bytes"]["total"] == sum(v for k, v in best["memory_bytes"].items() if k != "total")
    assert best["step_seconds"]["total"] == pytest.approx(
        sum(v for k, v in best["step_seconds"].items() if k != "total")
    )
    assert values["parameters"] == 1_313_722_368
    sections = yaml.safe_load(layout.read_text("utf-8"))
    assert sections["train"] == {
        "steps": 99_183,
        "global_batch_size": 256,
        "micro_batch_size": best["micro_batch_size"],
    }
    for line in layout.read_text("utf-8").splitlines():
        assert line in done.stdout


@pytest.mark.parametrize(
    "inject",
    [pytest.param(True, id="injection"), pytest.param(False, id="pretraining", marks=pytest.mark.slow)],
)
def test_the_yaml_is_a_run_that_a_dry_run_accepts(content: dict[str, Any], tmp_path: Path, inject: bool) -> None:
    content["train"] = {"steps": 4, "global_batch_size": 16}
    content["model"]["num_layers"] = 4
    if not inject:
        content["inject"]["steps"] = 0
    run = write(tmp_path / "run.yaml", content)
    numbers, layout = tmp_path / "plan.json", tmp_path / "layout.yaml"
    done = megalign(
        *("plan", "--config", run, "--gpus", "8", "--gpus-per-node", "4", "--tokens", "4096", "--precision", "bf16"),
        *("--yaml", layout, "--json", numbers),
    )
    assert done.returncode == 0, done.stderr
    values = json.loads(numbers.read_text("utf-8"))
    sections = yaml.safe_load(layout.read_text("utf-8"))
    assert ("inject" in sections) == inject
    whole = write(tmp_path / "whole.yaml", merged(content, sections))
    checked = megalign("train", whole, "--dry-run", "--device", "h100")
    assert checked.returncode == 0, checked.stderr
    assert "8 ranks" in checked.stdout
    # Not only the best one: every twentieth, and of its memory a dry run says the same.
    for other in values["plans"][::20]:
        own = {
            "parallel": other["parallel"],
            "train": {"steps": 4, "global_batch_size": 16, "micro_batch_size": other["micro_batch_size"]},
            "precision": {"dtype": "bfloat16"},
            "inject": {"lm_batch_size": other["parallel"]["data"]},
        }
        result = dry_run(load_run(write(tmp_path / "other.yaml", merged(content, own))), device=load_devices()["h100"])
        assert result.num_ranks == 8
        if not inject:
            assert result.fullest.total == other["memory_bytes"]["total"]


def test_a_measured_run_calibrates_a_described_device(finished_study: StudyFolder, tmp_path: Path) -> None:
    """A CPU: nothing is known of it, until a file says it."""
    run = finished_study.run("prealign", SEED)
    arguments = ("plan", "--config", run / "config.yaml", "--gpus", "2", "--tokens", "1e6")
    refused = megalign(*arguments, "--from-metrics", run)
    assert refused.returncode == 2
    assert "does not say what the run was measured on: its device, a CPU perhaps" in refused.stderr
    refused = megalign(*arguments, "--measured-on", "a100")
    assert (refused.returncode, refused.stderr.splitlines()[0]) == (
        2,
        "error: --measured-on says what --from-metrics was measured on.",
    )
    core = {
        "title": "One core",
        "memory_bytes": 4e9,
        "memory_bytes_per_second": 1e10,
        "peak_flops": {"float32": 5e10},
        "link_bytes_per_second": 1e9,
        "network_bytes_per_second": 1e8,
        "devices_per_node": 2,
    }
    devices = write(tmp_path / "mine.yaml", {"core": core})
    numbers = tmp_path / "plan.json"
    done = megalign(
        *arguments,
        "--gpu",
        "core",
        "--measured-on",
        "core",
        "--devices",
        devices,
        "--from-metrics",
        run,
        "--json",
        numbers,
    )
    assert done.returncode == 0, done.stderr
    assert "communication as assumed" in " ".join(done.stdout.split())
    assert json.loads(numbers.read_text("utf-8"))["assumptions"]["slowdown"] != 1.1


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"gpus": 8}, "needs a model: give one of --model and --config"),
        ({"model": "13"}, "there is no model preset '13'"),
        ({"model": "13b", "gpu": "h1000"}, r"There is no device 'h1000' in the table.*Did you mean 'h100'"),
        ({"model": "13b", "gpu": "a100", "precision": "fp8"}, "has no peak of NVIDIA A100 SXM 80 GB in FP8"),
        ({"model": "13b", "precision": "int4"}, "--precision is 'int4'"),
        ({"model": "13b", "recompute": ["some"]}, "--recompute is 'some'"),
        ({"model": "13b", "devices": Path("/nowhere.yaml")}, "There is no configuration file /nowhere.yaml"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_wrong_wishes_are_told(wishes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(**wishes)


def test_a_run_without_a_store_needs_the_vocabulary_s_size(content: dict[str, Any], tmp_path: Path) -> None:
    content["data"]["store"] = "/nowhere/store"
    run = write(tmp_path / "run.yaml", content)
    with pytest.raises(ConfigError, match=r"The run's store /nowhere/store does not exist.*--vocab-size"):
        plan(config=run, gpus=1)
    plan(config=run, gpus=1, vocab_size=3000)


def test_where_nothing_fits_the_reasons_stay() -> None:
    done = megalign("plan", "--model", "70b", "--gpus", "4")
    assert done.returncode == 2
    assert "No layout fits." in done.stdout
    assert "does not fit: needs" in done.stdout
    assert "--recompute full" in done.stdout


def test_a_plan_imports_no_torch() -> None:
    code = (
        "import sys; from megalign.cli.plan import plan; plan(model='150m', gpus=2, tokens=1e9);"
        "heavy = {'torch', 'megatron', 'transformers'} & {name.split('.')[0] for name in sys.modules};"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "wish", [("--tokens", "inf"), ("--global-batch-tokens", "inf"), ("--gpus", "1000000007")], ids=lambda wish: wish[0]
)
def test_numbers_beyond_all_sense_are_refused(wish: tuple[str, str]) -> None:
    done = CliRunner().invoke(app, ["plan", "--model", "13b", *wish], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert f"Invalid value for '{wish[0]}'" in done.output
