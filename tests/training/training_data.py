"""A small real store, its golden table, and the configuration of a run over them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from megalign.config import RunConfig, apply_overrides, validate
from megalign.corpus.build import build_language
from megalign.corpus.procedural import ProceduralEnglish
from megalign.corpus.store import StoreWriter
from megalign.corpus.tokenizer import train_tokenizer
from megalign.corpus.vocabulary import Vocabulary
from megalign.corpus.word_counts import words_of
from megalign.prealign.table import golden_table

SEQUENCE_LENGTH = 32
ENGLISH_TOKENS, CLONE_TOKENS = 6000, 400


def build_files(folder: Path, seed: int = 0, min_count: int = 5) -> Path:
    """`folder`/store with English and its clone, other documents in each, and `folder`/table.parquet."""
    english = ProceduralEnglish(seed)
    texts = list(islice(english.documents("train"), 60))
    tokenizer = train_tokenizer(texts, 400, folder / "tokenizer.json")
    vocabulary = Vocabulary(tokenizer, ("en", "en-clone"), {"en-clone": "en"})
    with StoreWriter(folder / "store", vocabulary) as writer:
        for language, stream, budget in (("en", "train", ENGLISH_TOKENS), ("en-clone", "clone", CLONE_TOKENS)):
            build_language(writer, documents=english.documents(stream), language=language, budget_tokens=budget)
    counts = Counter(word for text in texts for word in words_of(text, "en"))
    golden_table(counts, min_count=min_count).save(folder / "table.parquet")
    return folder


def run_config(files: Path, folder: Path, **changes: Any) -> RunConfig:
    """12 steps of pretraining with codeswitching after 6 steps of injection; `changes` has dots written as __."""
    content = {
        "name": "test",
        "folder": str(folder),
        "method": "prealign",
        "seed": 5,
        "model": {
            "num_layers": 2,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "ffn_hidden_size": 64,
            "sequence_length": SEQUENCE_LENGTH,
            "position_embedding": "rotary",
        },
        "data": {
            "store": str(files / "store"),
            "table": str(files / "table.parquet"),
            "sources": [{"language": "en", "weight": 10.0}, {"language": "en-clone", "weight": 1.0}],
        },
        "train": {
            "steps": 12,
            "global_batch_size": 4,
            "micro_batch_size": 2,
            "log_interval": 1,
            "optimizer": {"lr": 1e-2},
        },
        "inject": {"steps": 6, "entries_per_step": 8, "row_width_tokens": 16},
        "codeswitch": {"ratio": 0.3},
    }
    overrides = [(key.replace("__", "."), value) for key, value in changes.items()]
    return validate(RunConfig, apply_overrides(content, overrides), "test")


@contextmanager
def broken_off_after(num_steps: int) -> Iterator[None]:
    """Inside, a run of this process is interrupted as it begins another step."""
    from megalign.engine.engine import Engine

    step, taken = Engine.step, 0

    def breaking(self: Engine, *arguments: Any, **named: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken > num_steps:
            raise KeyboardInterrupt
        return step(self, *arguments, **named)

    Engine.step = breaking  # type: ignore[method-assign]
    try:
        yield
    finally:
        Engine.step = step  # type: ignore[method-assign]
