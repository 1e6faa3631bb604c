"""A set of facts as files: for the scorer, for other programs, and as text to train on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import orjson

from megalign.corpus.keyed_random import generator
from megalign.corpus.knowledge.facts import Knowledge, KnownFact
from megalign.files import make_folder, new_folder, write_bytes

FILES = frozenset({"knowledge.json", "facts.jsonl", "train"})


def statements(
    knowledge: Knowledge, facts: Sequence[KnownFact], language: str, seed: int, *names: str | int
) -> Iterator[str]:
    """Every fact as often as it is to be stated, spread evenly, its wordings in turn.

    The k-th of a fact's n statements falls at random into the k-th n-th of the stream.

    Args:
        knowledge, facts: the set and some of its facts, all stated in `language`.
        language: of the sentences.
        seed, names: fix the order.
    """
    rng = generator(seed, "statements", language, *names)
    said = knowledge.in_language(language, facts)
    places = [
        ((k + rng.random()) / fact.times, number, k) for number, fact in enumerate(facts) for k in range(fact.times)
    ]
    for _, number, k in sorted(places):
        yield said.statement(said.facts[number], wording=k)


def write_facts(knowledge: Knowledge, out: Path, seed: int) -> None:
    """Write knowledge.json, facts.jsonl and train/LANGUAGE.jsonl; the folder appears whole and replaces an older one."""
    make_folder(out.parent)
    with new_folder(out) as folder:
        knowledge.save(folder / "knowledge.json")
        write_bytes(folder / "facts.jsonl", b"".join(orjson.dumps(line) + b"\n" for line in knowledge.lines()))
        make_folder(folder / "train")
        for language in knowledge.stated_in:
            texts = statements(knowledge, knowledge.select(language), language, seed)
            lines = (orjson.dumps({"text": text}) + b"\n" for text in texts)
            write_bytes(folder / "train" / f"{language}.jsonl", b"".join(lines))
