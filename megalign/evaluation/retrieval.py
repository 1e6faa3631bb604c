"""Sentence retrieval: is a sentence's translation its nearest neighbour among a thousand others?

A sentence is the mean of its tokens' vectors at a level of the model (input embedding, every layer, output embedding),
each sentence computed alone, as words are for the alignment. Both directions are asked, by cosine. States of one language
share large common directions; centred scores subtract each language's mean first (Libovický et al. 2020,
arXiv 2004.05160), which leaves what tells sentences of a language apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import orjson

from megalign.corpus.vocabulary import Vocabulary
from megalign.engine.engine import Engine
from megalign.errors import DataError
from megalign.evaluation.scores import Score
from megalign.intervals import wilson_interval
from megalign.prealign.words import WordBatch, pack


def read_sentences(
    folder: Path, languages: Sequence[str], clone_of: dict[str, str], limit: int
) -> dict[str, list[str]]:
    """Parallel sentences by language, in the order of the first language's file.

    Args:
        folder: `LANGUAGE.jsonl` each, lines {"id": ..., "text": ...}; lines with one id are translations of each other.
        languages: those wanted; a clone reads its original's file.
        clone_of: clone -> original.
        limit: at most so many, the first ones.

    Raises:
        DataError: a file is missing or broken, or the files have other ids.
    """
    found = {name: _read_file(folder / f"{clone_of.get(name, name)}.jsonl") for name in languages}
    first = languages[0]
    ids = list(found[first])
    for name, texts in found.items():
        odd = set(ids) ^ set(texts)
        if odd:
            raise DataError(
                f"{folder / f'{clone_of.get(name, name)}.jsonl'} and {folder / f'{first}.jsonl'} are not parallel: the id "
                f"{min(odd)!r} stands in one of them.",
                "Translations are known by their id.",
                "Leave sentences out that are not in all languages.",
            )
    return {name: [texts[key] for key in ids[:limit]] for name, texts in found.items()}


def _read_file(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise DataError(
            f"There is no file {path} of parallel sentences.",
            "Retrieval is measured in every language that the store has held-out text of.",
            "Add it, or leave evaluate.parallel_sentences out.",
        )
    found: dict[str, str] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            content = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise DataError(f"{path}:{number} is not JSON: {error}.") from None
        key, text = (content.get("id"), content.get("text")) if isinstance(content, dict) else (None, None)
        if not isinstance(key, str) or not isinstance(text, str) or not text.strip():
            raise DataError(f"{path}:{number} is not of the form {{'id': 'a1', 'text': 'A sentence.'}}.")
        if key in found:
            raise DataError(f"{path}:{number} has the id {key!r} a second time.")
        found[key] = text
    if len(found) < 2:
        raise DataError(f"{path} has {len(found)} sentences; among one there is nothing to retrieve.")
    return found


def sentence_vectors(
    engine: Engine, vocabulary: Vocabulary, sentences: Sequence[str], language: str, *, length: int, batch_size: int
) -> tuple[np.ndarray, int]:
    """The mean vector of each sentence at every level.

    Calls `engine.interrupt` before every batch, on all ranks equally often.

    Args:
        engine, vocabulary: the model.
        sentences: what is computed.
        language: they are encoded as this language.
        length: tokens a sentence may have; longer ones are cut.
        batch_size: rows of `length` tokens computed at once; short sentences share a row, blind to each other.

    Returns:
        float32 [levels, sentences, hidden size], and the number of sentences that were cut.
    """
    encoded = [vocabulary.encode(text, language).astype(np.int64) for text in sentences]
    num_cut = sum(len(ids) > length for ids in encoded)
    encoded = [ids[:length] for ids in encoded]
    row, column = pack(np.array([len(ids) for ids in encoded]), length)
    order = np.argsort(row, kind="stable")
    parts = []
    for first in range(0, int(row.max()) + 1, batch_size):
        own = order[(row[order] >= first) & (row[order] < first + batch_size)]
        engine.interrupt()
        (vectors,) = engine.represent([_batch_of([encoded[n] for n in own], row[own] - first, column[own], length)])
        parts.append(vectors)
    place = np.argsort(order)
    return np.concatenate(parts, axis=1)[:, place], num_cut


def _batch_of(sentences: Sequence[np.ndarray], row: np.ndarray, column: np.ndarray, width: int) -> WordBatch:
    """Sentences in rows as the engine takes words, for one rank."""
    shape = (int(row.max()) + 1, width)
    tokens, position_ids = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    owner = np.full(shape, -1, dtype=np.int64)
    for number, ids in enumerate(sentences):
        span = slice(column[number], column[number] + len(ids))
        tokens[row[number], span], position_ids[row[number], span] = ids, np.arange(len(ids))
        owner[row[number], span] = number
    numbers = np.arange(len(sentences))
    return WordBatch(tokens, position_ids, owner, len(sentences), numbers, numbers, (len(sentences),), 0)


def retrieval_scores(
    engine: Engine,
    vocabulary: Vocabulary,
    sentences: dict[str, list[str]],
    *,
    length: int,
    batch_size: int,
    step: int,
) -> Iterator[Score]:
    """Retrieval@1 between the first language and every other one, at every level, with Wilson intervals.

    Scores are of the other language: `sentence_retrieval_into` asks with sentences of the first language among those of the
    other, `sentence_retrieval_from` the other way round, both also `_centred`. `sentences_cut` is the share of sentences
    that were longer than `length`.

    Args:
        engine, vocabulary: the model.
        sentences: by language, parallel; see `read_sentences`.
        length, batch_size: see `sentence_vectors`.
        step: training step the scores belong to.
    """
    source, *others = sentences
    limits = {"length": length, "batch_size": batch_size}
    mine, _ = sentence_vectors(engine, vocabulary, sentences[source], source, **limits)
    for language in others:
        theirs, num_cut = sentence_vectors(engine, vocabulary, sentences[language], language, **limits)
        n = len(sentences[language])
        yield _share("sentences_cut", language, None, step, num_cut, n)
        for level, (ours, other) in enumerate(zip(mine, theirs, strict=True)):
            for suffix, (left, right) in {"": (ours, other), "_centred": (_centred(ours), _centred(other))}.items():
                into, back = hits(left, right)
                yield _share(f"sentence_retrieval_into{suffix}", language, level, step, into, n)
                yield _share(f"sentence_retrieval_from{suffix}", language, level, step, back, n)


def hits(left: np.ndarray, right: np.ndarray) -> tuple[int, int]:
    """How many rows of `left` have their own row of `right` as the nearest by cosine, and the other way round.

    A tie is no hit: vectors that are all alike retrieve nothing.
    """
    cosine = _unit(left) @ _unit(right).T
    own = np.diagonal(cosine).copy()
    np.fill_diagonal(cosine, -np.inf)
    return int((own > cosine.max(axis=1)).sum()), int((own > cosine.max(axis=0)).sum())


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    unit: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


def _centred(vectors: np.ndarray) -> np.ndarray:
    centred: np.ndarray = vectors - vectors.mean(axis=0, dtype=np.float64)
    return centred


def _share(metric: str, language: str, level: int | None, step: int, hits: int, n: int) -> Score:
    low, high = wilson_interval(hits, n)
    return Score(metric, language, level, step, hits / n, low, high, n, "share")
