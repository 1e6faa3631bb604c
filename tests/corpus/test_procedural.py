"""The procedural corpus: deterministic, of the promised size and shape, learnable, neither trivial nor random."""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import islice

import numpy as np

from megalign.corpus.keyed_random import generator
from megalign.corpus.lexicon import ADJECTIVES, FRAMES, NOUNS, VERBS, past, plural, third_person
from megalign.corpus.procedural import ProceduralEnglish, word_types


def take(seed: int, stream: str, count: int) -> list[str]:
    return list(islice(ProceduralEnglish(seed).documents(stream), count))


def words(text: str) -> list[str]:
    return re.findall(r"\w+|[.,]", text.lower())


def test_lexicon_counts_and_no_word_twice() -> None:
    nouns = [noun for group in NOUNS.values() for noun in group]
    adjectives = [word for group in ADJECTIVES.values() for word in group]
    assert (len(nouns), len(VERBS), len(adjectives)) == (240, 100, 60)
    assert not [word for word, count in Counter([*nouns, *VERBS, *adjectives]).items() if count > 1]
    classes = {name for frame in FRAMES for name in frame.subjects + frame.objects}
    assert classes | {name for key in ADJECTIVES for name in key.split()} == set(NOUNS)


def test_inflections() -> None:
    assert [plural(w) for w in ("cat", "torch", "berry", "day", "box")] == [
        "cats",
        "torches",
        "berries",
        "days",
        "boxes",
    ]
    assert [third_person(w) for w in ("carry", "obey", "wash")] == ["carries", "obeys", "washes"]
    assert [past(w) for w in ("carry", "obey", "taste", "help")] == ["carried", "obeyed", "tasted", "helped"]


def test_same_seed_and_stream_same_text_else_other_text() -> None:
    assert take(3, "train", 20) == take(3, "train", 20)
    assert not set(take(3, "train", 50)) & set(take(3, "valid", 50))
    assert not set(take(3, "train", 50)) & set(take(4, "train", 50))


def test_streams_share_the_language_of_their_seed() -> None:
    def frequencies(seed: int, stream: str) -> Counter[str]:
        return Counter(w for text in take(seed, stream, 400) for w in words(text))

    def overlap(a: Counter[str], b: Counter[str]) -> float:
        return sum((a & b).values()) / max(a.total(), b.total())

    here = frequencies(1, "train")
    assert overlap(here, frequencies(1, "valid")) > overlap(here, frequencies(2, "train")) + 0.05


def test_documents_look_like_english() -> None:
    documents = take(0, "train", 300)
    types = word_types()
    for text in documents:
        sentences = re.findall(r"[^.]+\.", text)
        assert 6 <= len(sentences) <= 14
        assert " ".join(s.strip() for s in sentences) == text
        assert all(re.fullmatch(r"[A-Z][a-z]*(,? [a-z]+)+\.", s.strip()) for s in sentences)
        assert set(words(text)) - {".", ","} <= types
        assert not re.search(r"\b[Aa] [aeio]|\b[Aa]n [^aeiou]", text)
    assert 780 <= len(types) <= 880


def test_every_word_type_occurs() -> None:
    seen = {word for text in take(0, "train", 6000) for word in words(text)}
    assert len(word_types() - seen) <= 0.02 * len(word_types())


def test_entropy_is_that_of_a_language_a_small_model_learns() -> None:
    """A smoothed trigram model predicts held-out words far better than word frequencies do, yet not perfectly."""
    train = [["<s>", "<s>", *words(text)] for text in take(0, "train", 3000)]
    valid = [["<s>", "<s>", *words(text)] for text in take(0, "valid", 200)]
    counts = [Counter(tuple(d[i - n : i + 1]) for d in train for i in range(2, len(d))) for n in range(3)]
    contexts: list[Counter[tuple[str, ...]]] = []
    distinct: list[Counter[tuple[str, ...]]] = []
    for table in counts:
        contexts.append(Counter())
        distinct.append(Counter())
        for gram, count in table.items():
            contexts[-1][gram[:-1]] += count
            distinct[-1][gram[:-1]] += 1

    def probability(gram: tuple[str, ...]) -> float:  # Witten-Bell
        lower = probability(gram[1:]) if len(gram) > 1 else 1 / 900
        n = len(gram) - 1
        types = distinct[n][gram[:-1]]
        total = contexts[n][gram[:-1]] + types
        return (counts[n][gram] + types * lower) / total if total else lower

    def perplexity(order: int) -> float:
        logs = [math.log(probability(tuple(d[i - order : i + 1]))) for d in valid for i in range(2, len(d))]
        return math.exp(-sum(logs) / len(logs))

    unigram, trigram = perplexity(0), perplexity(2)
    assert 120 < unigram < 320
    assert 12 < trigram < 32
    assert trigram < unigram / 5


def test_generator_depends_on_seed_and_names_only() -> None:
    first = generator(1, "a", "b").random(4)
    np.random.default_rng(0).random(100)
    assert np.array_equal(first, generator(1, "a", "b").random(4))
    assert not np.array_equal(first, generator(1, "ab").random(4))
    assert not np.array_equal(first, generator(2, "a", "b").random(4))
    assert first[0] == 0.545895900629025
