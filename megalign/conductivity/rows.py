"""Rows of knowledge as a model reads them: prompt, answer, and where the answer starts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from megalign.answers import AnswerModel
from megalign.clika.knowledge import Row
from megalign.errors import DataError


@dataclass(frozen=True)
class Example:
    """Ids of a prompt, its answer and the end-of-text token; those from `num_context` on are learned."""

    ids: tuple[int, ...]
    num_context: int


def prompt_of(row: Row, model: AnswerModel, form: str) -> str:
    """The row's question up to where the answer starts, alike in training and asking."""
    text = f"{row.prompt} {row.input}".rstrip()
    return model.chat_prompt(text) if form == "chat" else f"Question: {text}\nAnswer:"


def examples_of(rows: Sequence[Row], model: AnswerModel, form: str) -> list[Example]:
    """Rows as ids; answers are split off as `AnswerModel.score_options` does it.

    Raises:
        DataError: a row does not fit into the model.
    """
    examples = []
    for number, row in enumerate(rows):
        answer = row.answer if form == "chat" else f" {row.answer}"
        context, target = model.encode_pair(prompt_of(row, model, form), answer, number)
        ids = (*context, *target, *([] if model.end_id is None else [model.end_id]))
        if model.max_length_tokens is not None and len(ids) - 1 > model.max_length_tokens:
            raise DataError(
                f"Training row {number + 1} has {len(ids)} tokens; {model.name} takes {model.max_length_tokens}.",
                "Its answer would be cut off.",
                "Use a model with longer sequences, or a tokenizer that knows the language.",
            )
        examples.append(Example(ids, len(context)))
    return examples


def batches(num_examples: int, batch_size: int, epochs: int, seed: int) -> Iterator[list[int]]:
    """Places of the examples of every step: each epoch in an order of its own, steps running on over their ends."""
    order = np.concatenate([_epoch(num_examples, epoch, seed) for epoch in range(epochs)])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size].tolist()


def _epoch(num_examples: int, epoch: int, seed: int) -> np.ndarray:
    digest = hashlib.blake2b(f"conductivity {seed} {epoch}".encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little")).permutation(num_examples)


def digest_of(rows: Sequence[Row]) -> str:
    """16 hex digits of what is taught."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr((row.prompt, row.input, row.answer)).encode())
    return digest.hexdigest()[:16]
