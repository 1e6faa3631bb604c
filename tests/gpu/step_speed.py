"""The training step on this device: tokens a second, TFLOP/s, MFU, memory, in bfloat16 and in each FP8 recipe it can do.

    python tests/gpu/step_speed.py [--preset 1.3b] [--micro-batch 4] [--steps 20] [--out figures.json]

One process, random text. FP8 that the machine refuses is listed with its reason. Runs on a CPU too (give a small preset).
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megalign.config import ModelConfig, OptimizerConfig, ParallelConfig, PrecisionConfig, model_preset
from megalign.config.layout import Layout
from megalign.engine import groups
from megalign.engine.batch import LanguageBatch
from megalign.engine.device import DEVICE, device_name, peak_memory_bytes
from megalign.engine.engine import Engine
from megalign.errors import MegalignError
from megalign.scaling.devices import load_devices, recognise
from megalign.scaling.flops import achieved_flops, training_flops_per_token, utilisation

VOCAB_SIZE = 50_304
ARMS: dict[str, dict[str, Any]] = {
    "bfloat16": {"dtype": "bfloat16"},
    **{
        f"fp8 {recipe}": {"dtype": "bfloat16", "fp8": recipe}
        for recipe in ("delayed", "tensorwise", "blockwise", "mxfp8")
    },
}


def wait_for_device() -> None:
    """Until everything that was queued is computed."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def measure(model: ModelConfig, precision: PrecisionConfig, micro_batch: int, steps: int) -> dict[str, Any]:
    """Median seconds of a step after three that warm up, and what follows from them."""
    engine = Engine(
        model,
        Layout(ParallelConfig()),
        precision,
        vocab_size=VOCAB_SIZE,
        seed=0,
        optimizer=OptimizerConfig(lr=1e-4, decay="constant"),
        num_steps=1000,
    )
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rng = np.random.default_rng(0)
    text = rng.integers(0, VOCAB_SIZE, (micro_batch, model.sequence_length + 1))
    batch = LanguageBatch(text[:, :-1].copy(), text[:, 1:].copy(), np.ones(text[:, 1:].shape, dtype=np.float32))
    seconds = []
    for step in range(1, steps + 4):
        wait_for_device()
        start = time.perf_counter()
        loss = engine.step([batch], step).loss
        wait_for_device()
        seconds.append(time.perf_counter() - start)
    del engine
    gc.collect()  # its parts point at each other; the next arm needs the memory
    median = statistics.median(seconds[3:])
    tokens_per_second = micro_batch * model.sequence_length / median
    flops = training_flops_per_token(model, VOCAB_SIZE)
    device = recognise(device_name(), load_devices())
    # Against the peak of bfloat16 for every arm: what FP8 gains is then seen in the ratio.
    peak = device.peak(PrecisionConfig(dtype=precision.dtype)) if device else None
    return {
        "step_seconds": median,
        "tokens_per_second": tokens_per_second,
        "tflops": achieved_flops(tokens_per_second, flops, 1) / 1e12,
        "mfu_of_bfloat16_peak": utilisation(tokens_per_second, flops, 1, peak),
        "peak_memory_bytes": peak_memory_bytes(),
        "last_loss": loss,
    }


def main() -> None:
    """Measure, print a table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="1.3b")
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    model = ModelConfig.model_validate(model_preset(arguments.preset))
    with tempfile.TemporaryDirectory() as folder:
        groups.start(Layout(ParallelConfig()), rank=0, world_size=1, local_rank=0, init_method=f"file://{folder}/meet")
        found: dict[str, dict[str, Any]] = {}
        for name, settings in ARMS.items():
            try:
                found[name] = measure(
                    model, PrecisionConfig.model_validate(settings), arguments.micro_batch, arguments.steps
                )
            except MegalignError as error:
                found[name] = {"refused": str(error)}
        groups.stop()
    print(f"{arguments.preset} on {device_name()}, micro-batch {arguments.micro_batch} x {model.sequence_length}")
    print("| | tokens/s | TFLOP/s | MFU (bf16 peak) | GB | against bf16 |\n|---|---|---|---|---|---|")
    for name, row in found.items():
        if "refused" in row:
            print(f"| {name} | refused: {row['refused']} | | | | |")
            continue
        mfu = "n/a" if row["mfu_of_bfloat16_peak"] is None else f"{row['mfu_of_bfloat16_peak']:.1%}"
        ratio = row["tokens_per_second"] / found["bfloat16"]["tokens_per_second"]
        print(
            f"| {name} | {row['tokens_per_second']:,.0f} | {row['tflops']:.3g} | {mfu} | "
            f"{row['peak_memory_bytes'] / 1e9:.1f} | {ratio:.2f} |"
        )
    if arguments.out:
        content = {"device": device_name(), "torch": torch.__version__, "model": arguments.preset, "arms": found}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
