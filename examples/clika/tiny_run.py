"""Text, tokenizer, token store and configuration of a tiny model that reads and writes English and German about invented places.

  python examples/clika/tiny_run.py --out runs/tiny        then: megalign train runs/tiny/config.yaml

Its text is about other invented worlds than those that are taught later: it learns the two languages and the form of questions,
none of the facts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import yaml

from megalign.clika.fictional import WorldSettings, invent, knowledge_of
from megalign.corpus.build import build_language
from megalign.corpus.store import StoreWriter
from megalign.corpus.tokenizer import train_tokenizer
from megalign.corpus.vocabulary import Vocabulary
from megalign.files import new_folder, write_text

# The taught worlds have small seeds.
FIRST_SEED = 1_000_000
ROWS_PER_DOCUMENT = 4


def documents(first_world: int, num_worlds: int, part: str) -> Iterator[str]:
    """Texts of a few questions and answers each: German statements (part "de"), all other rows (part "en")."""
    for number in range(first_world, first_world + num_worlds):
        seed = FIRST_SEED + number
        world = invent(WorldSettings(places=40, continents=4, variants=10, seed=seed))
        content = knowledge_of(world, "de")
        german = {one.place for one in content.tests["de"]}
        rows = [
            row
            for row in content.train
            if (not row.input and any(name in row.prompt for name in german)) == (part == "de")
        ]
        order = np.random.default_rng(seed).permutation(len(rows))
        texts = [f"Question: {row.prompt} {row.input}".rstrip() + f"\nAnswer: {row.answer}" for row in rows]
        for start in range(0, len(rows), ROWS_PER_DOCUMENT):
            yield "\n".join(texts[at] for at in order[start : start + ROWS_PER_DOCUMENT])


def main(
    out: Annotated[Path, typer.Option(help="The folder to write; what an earlier call wrote there is replaced.")],
    worlds: Annotated[int, typer.Option(help="Invented worlds in the text.")] = 40,
    steps: Annotated[int, typer.Option(help="Training steps of 16 windows of 128 tokens.")] = 1200,
) -> None:
    """Write everything `megalign train` needs."""
    if out.exists() and not (out / "tokenizer.json").is_file():
        raise typer.BadParameter(f"{out} exists and was not written by this example; it would be replaced.")
    with new_folder(out) as folder:
        sample = [text for part in ("en", "de") for text in documents(0, 2, part)]
        tokenizer = train_tokenizer(sample, 800, folder / "tokenizer.json")
        with StoreWriter(folder / "store", Vocabulary(tokenizer, ("en", "de"))) as writer:
            for part in ("en", "de"):
                build_language(writer, documents=documents(0, worlds, part), language=part)
        config = {
            "name": "tiny",
            "folder": str(out / "run"),
            "model": {
                "num_layers": 4,
                "hidden_size": 128,
                "num_attention_heads": 4,
                "ffn_hidden_size": 512,
                "sequence_length": 128,
                "position_embedding": "rotary",
            },
            "data": {
                "store": str(out / "store"),
                "sources": [{"language": "en", "weight": 4.0}, {"language": "de", "weight": 1.0}],
            },
            "train": {
                "steps": steps,
                "global_batch_size": 16,
                "micro_batch_size": 16,
                "log_interval": 50,
                "optimizer": {"lr": 2e-3, "beta2": 0.98, "weight_decay": 0.01, "embedding_weight_decay": 0.0},
            },
        }
        write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    print(f"megalign train {out / 'config.yaml'}")


if __name__ == "__main__":
    typer.run(main)
