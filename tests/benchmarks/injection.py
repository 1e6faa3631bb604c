"""Injection steps: packed words of real lengths against the layout of the paper's code, a row of 30 tokens for each word.

    python tests/benchmarks/injection.py [--shape tiny|12x512] [--entries 128] [--pairs 5]

Both arms are the engine's own step at equal levels, words and loss (the padded one with the whole matrix of similarities);
they differ in how words lie in rows, and give the same loss. Pairs are interleaved in one process for the times; each
arm's peak memory is taken in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from train_step import SHAPES, Shape

from megalign.config import InjectConfig, ModelConfig, OptimizerConfig, ParallelConfig, PrecisionConfig
from megalign.config.layout import Layout
from megalign.prealign.words import WordBatch

PADDED_TOKENS = 30
ARMS = ("packed", "padded")


def word_batch(s: Shape, entries: int, seed: int) -> WordBatch:
    """Pairs of words of 1 to 5 sub-words, most of them short, packed into rows of 32."""
    rng = np.random.default_rng(seed)
    lengths = rng.choice([1, 2, 3, 4, 5], size=2 * entries, p=[0.35, 0.35, 0.18, 0.08, 0.04])
    rows: list[list[int]] = [[]]
    for word, length in enumerate(lengths):
        if len(rows[-1]) + length > 32:
            rows.append([])
        rows[-1].extend([word] * length)
    owner = np.full((len(rows), 32), -1)
    for number, row in enumerate(rows):
        owner[number, : len(row)] = row
    starts = np.r_[0, np.cumsum(lengths)[:-1]]
    tokens, positions = np.zeros_like(owner), np.zeros_like(owner)
    flat = rng.integers(1, s.vocab, lengths.sum())
    tokens[owner >= 0] = flat
    positions[owner >= 0] = np.arange(lengths.sum()) - np.repeat(starts, lengths)
    surface = np.unique(
        [hash(tuple(flat[a : a + n])) for a, n in zip(starts, lengths, strict=True)], return_inverse=True
    )
    return WordBatch(tokens, positions, owner, 2 * entries, np.arange(2 * entries) // 2, surface[1], (2 * entries,), 0)


def one_word_a_row(words: WordBatch) -> WordBatch:
    """The same words, each at the start of a row of its own."""
    shape = (words.num_words, PADDED_TOKENS)
    tokens, positions, owner = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.full(shape, -1)
    held = words.word_of_token >= 0
    row, column = words.word_of_token[held], words.position_ids[held]
    tokens[row, column], positions[row, column], owner[row, column] = words.tokens[held], column, row
    return replace(words, tokens=tokens, position_ids=positions, word_of_token=owner)


def stepper(s: Shape) -> Callable[[WordBatch, int], float]:
    """The engine's step on words alone."""
    from megalign.engine import groups
    from megalign.engine.engine import Engine

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
    settings = InjectConfig(steps=1)
    optimizer = OptimizerConfig(lr=1e-9, decay="constant")  # weights stay what they are: losses can be compared
    engine = Engine(model, layout, PrecisionConfig(), vocab_size=s.vocab, seed=0, optimizer=optimizer, num_steps=10_000)
    return lambda words, step: sum(engine.step([words], step, inject=settings).level_losses)


def in_layout(words: WordBatch, arm: str) -> WordBatch:
    """The words as an arm lays them out."""
    return words if arm == "packed" else one_word_a_row(words)


def peak_bytes(shape: str, entries: int, arm: str, pipe: multiprocessing.connection.Connection) -> None:
    """Peak of the process over two steps, above what it held before them."""
    torch.set_num_threads(1)
    step = stepper(SHAPES[shape])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in (1, 2):
        step(in_layout(word_batch(SHAPES[shape], entries, number), arm), number)
    pipe.send(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--entries", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shape, entries = arguments.shape, arguments.entries
    memory: dict[str, int] = {}
    for arm in ARMS:
        receiver, sender = multiprocessing.get_context("spawn").Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(target=peak_bytes, args=(shape, entries, arm, sender))
        process.start()
        memory[arm] = receiver.recv()
        process.join()
    step = stepper(SHAPES[shape])
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for pair in range(arguments.pairs + 1):  # the first pair warms up
        words = word_batch(SHAPES[shape], entries, pair)
        losses = []
        for arm in ARMS:
            batch = in_layout(words, arm)
            start = time.process_time()
            losses.append(step(batch, 2 * pair + 1 + len(losses)))
            seconds[arm].append(time.process_time() - start)
        assert abs(losses[0] / losses[1] - 1) < 1e-4, losses
    print(f"{shape}: {2 * entries} words a step, {SHAPES[shape]}, float32, one thread")
    print("| layout | words per CPU second (median) | peak memory of a step, MB |\n|---|---|---|")
    for arm in ARMS:
        rate = 2 * entries / statistics.median(seconds[arm][1:])
        print(f"| {arm} | {rate:,.0f} | {memory[arm] / 1e6:,.0f} |")
    ratio = statistics.median(b / a for a, b in zip(seconds["packed"][1:], seconds["padded"][1:], strict=True))
    print(f"packed / padded, words per CPU second, median of {arguments.pairs} pairs: {ratio:.1f}")


if __name__ == "__main__":
    main()
