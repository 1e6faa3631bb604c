"""The training step against its peers: a plain PyTorch model and transformers' Trainer; same shapes, batches, AdamW.

    python tests/benchmarks/train_step.py [--shape tiny|12x512] [--batch N] [--rounds 7] [--dtype float32|bfloat16]
                                          [--no-trainer]

Every arm has a process of its own. Rounds interleave the arms, and the median of the rounds' ratios is printed, so that a
busy machine slows all. CPU seconds are printed beside wall seconds. `--dtype` is the engine's; the peers compute in
float32, as they do by default.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F

OURS, PLAIN, TRAINER = "megalign (Megatron-Core)", "plain PyTorch", "transformers Trainer"


@dataclass(frozen=True)
class Shape:
    """A model and a batch."""

    layers: int
    hidden: int
    heads: int
    sequence: int
    vocab: int
    batch: int
    steps: int


SHAPES = {
    "tiny": Shape(3, 128, 4, 128, 3072, 4, 40),
    "12x512": Shape(12, 512, 8, 256, 8192, 2, 3),
}


class PlainLayer(torch.nn.Module):
    """A pre-norm GPT layer with rotary positions as one would write it by hand."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.heads = s.heads
        self.norm1, self.norm2 = torch.nn.LayerNorm(s.hidden), torch.nn.LayerNorm(s.hidden)
        self.qkv, self.proj = torch.nn.Linear(s.hidden, 3 * s.hidden), torch.nn.Linear(s.hidden, s.hidden)
        self.fc1, self.fc2 = torch.nn.Linear(s.hidden, 4 * s.hidden), torch.nn.Linear(4 * s.hidden, s.hidden)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        b, n, h = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = (t * cos + torch.cat([-t.chunk(2, -1)[1], t.chunk(2, -1)[0]], -1) * sin for t in (q, k))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(attended.transpose(1, 2).reshape(b, n, h))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class PlainGPT(torch.nn.Module):
    """Tied embeddings, rotary positions."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(s.vocab, s.hidden)
        torch.nn.init.normal_(self.embedding.weight, std=0.02)
        self.layers = torch.nn.ModuleList(PlainLayer(s) for _ in range(s.layers))
        self.norm = torch.nn.LayerNorm(s.hidden)
        size = s.hidden // s.heads
        angles = torch.outer(torch.arange(s.sequence), 10000.0 ** (-torch.arange(0, size, 2) / size)).repeat(1, 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def plain_step(s: Shape) -> Callable[[np.ndarray, int], float]:
    """One step of the plain model."""
    model = PlainGPT(s)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step(window: np.ndarray, number: int) -> float:
        tokens = torch.from_numpy(window)
        optimizer.zero_grad()
        loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def trainer_round(s: Shape) -> Callable[[list[np.ndarray]], tuple[float, float]]:
    """transformers' Trainer as it comes, on a GPT-NeoX model of the same layers (rotary, sequential residual, tied)."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, Trainer, TrainerCallback, TrainingArguments
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=s.vocab,
            hidden_size=s.hidden,
            num_hidden_layers=s.layers,
            num_attention_heads=s.heads,
            intermediate_size=4 * s.hidden,
            max_position_embeddings=s.sequence,
            rotary_pct=1.0,
            use_parallel_residual=False,
            tie_word_embeddings=True,
            attn_implementation="sdpa",
        )
    )

    class Clock(TrainerCallback):  # type: ignore[misc]
        """The time from the end of the first step to the end of the last."""

        marks: list[tuple[float, float]]

        def on_step_end(self, *_: object, **__: object) -> None:
            self.marks.append((time.perf_counter(), time.process_time()))

    def measure(windows: list[np.ndarray]) -> tuple[float, float]:
        rows = [row for window in [windows[0], *windows] for row in window[:, :-1]]
        data = [{"input_ids": torch.from_numpy(row), "labels": torch.from_numpy(row)} for row in rows]
        clock = Clock()
        clock.marks = []
        with tempfile.TemporaryDirectory() as folder:
            settings = TrainingArguments(
                folder, per_device_train_batch_size=s.batch, max_steps=len(windows) + 1, learning_rate=1e-3,
                weight_decay=0.1, adam_beta2=0.95, lr_scheduler_type="constant", save_strategy="no", report_to=[],
                logging_strategy="no", disable_tqdm=True, use_cpu=True,
            )  # fmt: skip
            Trainer(model, settings, train_dataset=data, callbacks=[clock]).train()
        (wall, cpu), (last_wall, last_cpu) = clock.marks[0], clock.marks[-1]
        return last_wall - wall, last_cpu - cpu

    return measure


def engine_step(s: Shape, dtype: str) -> Callable[[np.ndarray, int], float]:
    """One step of the engine."""
    from megalign.config import ModelConfig, OptimizerConfig, ParallelConfig, PrecisionConfig
    from megalign.config.layout import Layout
    from megalign.engine import groups
    from megalign.engine.engine import Engine, LanguageBatch

    layout = Layout(ParallelConfig())
    groups.start(layout, rank=0, world_size=1, local_rank=0, init_method=f"file://{tempfile.mkdtemp()}/rendezvous")
    model = ModelConfig(
        num_layers=s.layers,
        hidden_size=s.hidden,
        num_attention_heads=s.heads,
        ffn_hidden_size=4 * s.hidden,
        sequence_length=s.sequence,
        position_embedding="rotary",
    )
    engine = Engine(
        model,
        layout,
        PrecisionConfig(dtype=dtype),
        vocab_size=s.vocab,
        seed=0,
        optimizer=OptimizerConfig(lr=1e-3, decay="constant"),
        num_steps=10_000,
    )

    def step(window: np.ndarray, number: int) -> float:
        mask = np.ones((s.batch, s.sequence), dtype=np.float32)
        return engine.step([LanguageBatch(window[:, :-1].copy(), window[:, 1:].copy(), mask)], number).loss

    return step


def round_of(step: Callable[[np.ndarray, int], float]) -> Callable[[list[np.ndarray]], tuple[float, float]]:
    """Wall and CPU seconds of a step for each window."""
    taken = 0

    def measure(windows: list[np.ndarray]) -> tuple[float, float]:
        nonlocal taken
        wall, cpu = time.perf_counter(), time.process_time()
        for window in windows:
            taken += 1
            assert math.isfinite(step(window, taken))
        return time.perf_counter() - wall, time.process_time() - cpu

    return measure


def work(pipe: Connection, name: str, s: Shape, dtype: str) -> None:
    """One arm in a process of its own: what the engine sets for its process (malloc) is not the peers'."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    measure = {
        OURS: lambda: round_of(engine_step(s, dtype)),
        PLAIN: lambda: round_of(plain_step(s)),
        TRAINER: lambda: trainer_round(s),
    }[name]()
    rng = np.random.default_rng(0)
    windows = [rng.integers(0, s.vocab, (s.batch, s.sequence + 1)) for _ in range(s.steps)]
    while pipe.recv():
        pipe.send(measure(windows))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--batch", type=int, help="windows of a step, instead of the shape's")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--no-trainer", action="store_true", help="leave transformers' Trainer out")
    arguments = parser.parse_args()
    s = SHAPES[arguments.shape]
    s = replace(s, batch=arguments.batch or s.batch)
    context = multiprocessing.get_context("spawn")
    arms: dict[str, Connection] = {}
    for name in (OURS, PLAIN) if arguments.no_trainer else (OURS, PLAIN, TRAINER):
        arms[name], theirs = context.Pipe()
        context.Process(target=work, args=(theirs, name, s, arguments.dtype), daemon=True).start()
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for _ in range(arguments.rounds + 1):  # the first warms up
        for name, pipe in arms.items():
            pipe.send(True)
            seconds[name].append(pipe.recv())
    tokens = s.batch * s.sequence * s.steps
    print(f"{arguments.shape}: {s}, {arguments.dtype}, {os.environ['OMP_NUM_THREADS']} thread")
    print("| | tokens/s (median) | tokens per CPU second |\n|---|---|---|")
    for name, pairs in seconds.items():
        wall, cpu = (statistics.median(pair[kind] for pair in pairs[1:]) for kind in (0, 1))
        print(f"| {name} | {tokens / wall:,.0f} | {tokens / cpu:,.0f} |")
    for name in list(arms)[1:]:
        for kind, label in ((0, "wall"), (1, "CPU")):
            pairs = zip(seconds[OURS][1:], seconds[name][1:], strict=True)
            ratio = statistics.median(theirs[kind] / own[kind] for own, theirs in pairs)
            print(f"megalign / {name}, tokens per {label} second, median of {arguments.rounds} rounds: {ratio:.3f}")


if __name__ == "__main__":
    main()
