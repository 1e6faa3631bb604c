"""What codeswitching costs: start-up with a large table, and windows of training beside the training step.

    python tests/benchmarks/codeswitching.py [--entries 75000] [--shape tiny|12x512] [--no-step]

The table has two target languages of invented words with Zipf's frequencies. CPU seconds of one thread, so that a busy
machine does not count.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from megalign.corpus.tokenizer import train_tokenizer
from megalign.corpus.vocabulary import Vocabulary
from megalign.corpus.words import segment, word_starts
from megalign.prealign.codeswitch import Codeswitcher
from megalign.prealign.encoded import EncodedTable
from megalign.prealign.table import AlignmentTable, Entry, Translation

T = TypeVar("T")
SYLLABLES = {
    "en": "ba re to li nu ka se mo di pa",
    "de": "schen gru pfa ter lich ung zel kö rau mit",
    "ru": "ба ре то ли ну ка се мо ди па",
}


def timed(name: str, work: Callable[[], T]) -> T:
    """Do something and print the CPU seconds it took."""
    start = time.process_time()
    result = work()
    print(f"{name}: {time.process_time() - start:.2f} CPU seconds")
    return result


def words(language: str, count: int) -> list[str]:
    """Different invented words."""
    rng, syllables = np.random.default_rng(len(language) + ord(language[0])), SYLLABLES[language].split()
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choice(syllables, size=rng.integers(2, 7)))] = None
    return list(found)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=75_000)
    parser.add_argument("--shape", default="12x512")
    parser.add_argument("--no-step", action="store_true")
    arguments = parser.parse_args()
    english, german, russian = (words(language, arguments.entries) for language in SYLLABLES)
    entries = [
        Entry(
            word, 100 + arguments.entries - n, (Translation("de", german[n], "x"), Translation("ru", russian[n], "x"))
        )
        for n, word in enumerate(english)
    ]
    folder = Path(tempfile.mkdtemp())
    AlignmentTable(entries, "en").save(folder / "table.parquet")
    rng = np.random.default_rng(0)
    ranks = np.minimum(rng.zipf(1.3, size=400_000), arguments.entries) - 1
    text = " ".join(english[rank] for rank in ranks)
    tokenizer = train_tokenizer(
        [text[:400_000], " ".join(german[:5000]), " ".join(russian[:5000])], 8192, folder / "t.json"
    )
    vocabulary = Vocabulary(tokenizer, ("en", "de", "ru"))

    table = timed("table read", lambda: AlignmentTable.load(folder / "table.parquet"))
    encoded = timed("table in token ids", lambda: EncodedTable(table, vocabulary))
    targets = {"en": ["de", "ru"], "de": ["en"], "ru": ["en"]}
    switcher = timed("codeswitching, 3 directions", lambda: Codeswitcher(encoded, ratio=0.05, seed=0, targets=targets))

    from train_step import SHAPES, engine_step

    shape = SHAPES[arguments.shape]
    ids = vocabulary.encode(text, "en").astype(np.int64)
    flags = word_starts(vocabulary.token_num_bytes[ids], segment(text, "en"))
    length, slack = shape.sequence, shape.sequence // 4
    starts = range(0, min(len(ids) - length - slack - 1, 2000 * length), length)
    for name in ("first reading", "second reading"):
        begin = time.process_time()
        for number, start in enumerate(starts):
            part = slice(start, start + length + 1 + slack)
            switcher.switch(ids[part], flags[part], language="en", sample_id=number, length=length)
        per_window = (time.process_time() - begin) / len(starts)
        print(f"a window of {length} tokens, {name} of {len(starts)}: {1e6 * per_window:.0f} CPU microseconds")
    if arguments.no_step:
        return
    step, costs = engine_step(shape), []
    for number in range(1, 5):
        begin = time.process_time()
        step(rng.integers(0, shape.vocab, (shape.batch, shape.sequence + 1)), number)
        costs.append(time.process_time() - begin)
    share = per_window * shape.batch / min(costs[1:])
    print(
        f"a step of {arguments.shape}, {shape.batch} windows: {min(costs[1:]):.3f} CPU seconds; switching them: {share:.3%}"
    )


if __name__ == "__main__":
    main()
