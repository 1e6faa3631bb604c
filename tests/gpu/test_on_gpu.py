"""The engine on a GPU against the engine on the CPU of the same machine, and FP8 against bfloat16.

    python -m pytest -m gpu tests/gpu

Without one the kit itself is tried (marked slow). The same functions run on both devices, each in a process of its own; the CPU's sees no GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parent))
from device_run import RECIPES, STEPS

gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def run(task: str, *arguments: object, on_gpu: bool) -> dict[str, Any]:
    """What device_run.py prints, as JSON."""
    environment = {**os.environ, "OMP_NUM_THREADS": "4"} | ({} if on_gpu else {"CUDA_VISIBLE_DEVICES": ""})
    command = [sys.executable, str(Path(__file__).with_name("device_run.py")), task, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert result["device"] == ("cuda" if on_gpu else "cpu")
    return result


@gpu
@needs_gpu
@pytest.mark.parametrize("model", ["gpt", "llama"])
def test_float32_losses_are_those_of_the_cpu(model: str) -> None:
    """Other kernels, other orders of sums; TF32 is off by default. A wrong kernel is off by 1e-3 and more at once."""
    ours, reference = (run("train", model, "float32", "none", on_gpu=on_gpu) for on_gpu in (True, False))
    assert len(ours["losses"]) == STEPS
    np.testing.assert_allclose(ours["losses"], reference["losses"], rtol=2e-4)
    np.testing.assert_allclose(ours["norms"], reference["norms"], rtol=2e-3)


@gpu
@needs_gpu
def test_bfloat16_losses_follow_those_of_float32() -> None:
    ours, reference = (run("train", "gpt", dtype, "none", on_gpu=True) for dtype in ("bfloat16", "float32"))
    np.testing.assert_allclose(ours["losses"], reference["losses"], rtol=0.02)


@gpu
@needs_gpu
@pytest.mark.parametrize("recipe", RECIPES)
def test_fp8_losses_follow_those_of_bfloat16(recipe: str) -> None:
    ours = run("train", "gpt", "bfloat16", recipe, on_gpu=True)
    if "refused" in ours:
        pytest.skip(ours["refused"])
    reference = run("train", "gpt", "bfloat16", "none", on_gpu=True)
    assert ours["losses"] != reference["losses"], "FP8 was ignored"
    np.testing.assert_allclose(ours["losses"], reference["losses"], rtol=0.03)


@gpu
@needs_gpu
def test_a_checkpoint_of_the_gpu_is_read_on_the_cpu(tmp_path: Path) -> None:
    """TransformerEngine's layers there, Megatron's local ones here: names and shapes are the same."""
    written = run("save", tmp_path / "run", on_gpu=True)
    read = run("read", tmp_path / "run", on_gpu=False)
    np.testing.assert_allclose(read["scores"], written["scores"], rtol=2e-4, atol=2e-4)


@gpu
@needs_gpu
def test_injection_is_that_of_the_cpu() -> None:
    ours, reference = (run("inject", on_gpu=on_gpu) for on_gpu in (True, False))
    np.testing.assert_allclose(ours["levels"], reference["levels"], rtol=2e-4)


@pytest.mark.slow
def test_the_kit_works_without_a_gpu(tmp_path: Path) -> None:
    written = run("save", tmp_path / "run", on_gpu=False)
    assert run("read", tmp_path / "run", on_gpu=False)["scores"] == written["scores"]
    trained = run("train", "gpt", "float32", "none", on_gpu=False)["losses"]
    np.testing.assert_allclose(run("train", "gpt", "bfloat16", "none", on_gpu=False)["losses"], trained, rtol=0.02)
    assert "there is no CUDA device" in run("train", "gpt", "bfloat16", "delayed", on_gpu=False)["refused"]
    assert len(run("inject", on_gpu=False)["levels"]) == 5


@pytest.mark.slow
def test_the_script_runs_to_its_figures_without_a_gpu(tmp_path: Path) -> None:
    settings = {
        "PYTHON": sys.executable,
        "PRESET": "tiny",
        "MICRO_BATCH": "1",
        "STEPS": "2",
        "CUDA_VISIBLE_DEVICES": "",
    }
    script = Path(__file__).with_name("run_all.sh")
    done = subprocess.run(
        ["bash", str(script), str(tmp_path / "out")],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    arms = json.loads((tmp_path / "out" / "step_speed.json").read_text(encoding="utf-8"))["arms"]
    assert arms["bfloat16"]["tokens_per_second"] > 0
    assert all("no CUDA device" in arms[name]["refused"] for name in arms if name != "bfloat16")
