"""Rows of instruction data as token ids: the prompt is read, the answer is learned."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from megalign.crossin.prompts import Template, user_turn
from megalign.errors import DataError, EnvironmentProblem


@dataclass(frozen=True, slots=True)
class Example:
    """A row as ids: the first `num_prompt_tokens` are read, the others are labels."""

    ids: tuple[int, ...]
    num_prompt_tokens: int

    @property
    def num_labels(self) -> int:
        """Tokens that are learned."""
        return len(self.ids) - self.num_prompt_tokens


@dataclass(frozen=True)
class Examples:
    """All rows of a data set, in their order.

    Attributes:
        num_dropped, num_cut: rows that were too long.
        fingerprint: hex digits that change with any id.
    """

    examples: list[Example]
    num_dropped: int
    num_cut: int
    fingerprint: str


def read_rows(path: Path) -> list[Mapping[str, Any]]:
    """Rows of a folder that tools/build_crossin.py wrote, of a jsonl file, or of a saved data set.

    Raises:
        DataError: none there, or damaged.
        EnvironmentProblem: a saved data set, and datasets is not installed.
    """
    if path.is_dir() and (path / "mix.jsonl").is_file():
        path = path / "mix.jsonl"
    elif path.is_dir():
        path = path / "dataset" if (path / "dataset").is_dir() else path
        return _dataset_rows(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist.", fix="Name a mix's folder, a jsonl file or a saved data set.")
    rows = []
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                try:
                    rows.append(orjson.loads(line.removeprefix(codecs.BOM_UTF8)))
                except orjson.JSONDecodeError as error:
                    raise DataError(f"{path}:{number} is not JSON: {error}.") from None
    if not rows:
        raise DataError(f"{path} holds no rows.", "There is nothing to learn.")
    return rows


def encode(
    rows: Sequence[Mapping[str, Any]], tokenizer: Any, template: Template | None, context_tokens: int, too_long: str
) -> Examples:
    """Rows as ids. Prompt and answer are encoded apart, so that the answer begins where generation would.

    The tokenizer's end-of-text token closes an answer whose template does not write special tokens itself.

    Args:
        rows: with prompt and completion, with messages (the last one is learned), or with instruction, input and output.
        tokenizer: of the model.
        template: frames the turn; None takes prompt and completion of the rows.
        context_tokens: longest sequence.
        too_long: error, drop or cut.

    Raises:
        DataError: a row without a text to learn; a row that is too long, with too_long = error; with cut, a prompt that leaves no label.
    """
    examples: list[Example] = []
    long: list[tuple[str, int, int]] = []
    num_dropped = num_cut = 0
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(f"row {number} is no object.", fix="A row is {instruction, input, output}.")
        name = str(row.get("id", f"row {number}"))
        prompt, completion = _texts(row, name, template)
        special = template is None or not template.writes_special_tokens
        prompt_ids = _encoded(tokenizer, prompt, special)
        answer_ids = _encoded(tokenizer, completion, False)
        if special and tokenizer.eos_token_id is not None:
            answer_ids.append(tokenizer.eos_token_id)
        if not prompt_ids or not answer_ids:
            raise DataError(f"{name}: the {'answer' if prompt_ids else 'prompt'} has no tokens.", "It has no label.")
        length = len(prompt_ids) + len(answer_ids)
        if length > context_tokens:
            long.append((name, len(prompt_ids), length))
            if too_long == "drop":
                num_dropped += 1
                continue
            if too_long == "cut" and len(prompt_ids) < context_tokens:
                num_cut += 1
                answer_ids = answer_ids[: context_tokens - len(prompt_ids)]
            else:
                _refuse(long[-1], context_tokens, too_long)
        examples.append(Example((*prompt_ids, *answer_ids), len(prompt_ids)))
    if not examples:
        raise DataError(f"All {num_dropped} rows are longer than {context_tokens} tokens.", "Nothing is left to learn.")
    return Examples(examples, num_dropped, num_cut, _fingerprint(examples))


def _texts(row: Mapping[str, Any], name: str, template: Template | None) -> tuple[str, str]:
    if template is None:
        prompt, completion = row.get("prompt"), row.get("completion")
        if not isinstance(prompt, str) or not isinstance(completion, str):
            raise DataError(f"{name} has no prompt and completion.", fix="Set a template, or build the data with one.")
        return prompt, completion
    messages = row.get("messages")
    if messages:
        is_chat = isinstance(messages, list) and all(isinstance(one, Mapping) for one in messages)
        if not is_chat or [one.get("role") for one in messages] != ["user", "assistant"]:
            raise DataError(f"{name} is no question with one answer.", "Chats of several turns are not supported.")
        turn, answer = (one.get("content") for one in messages)
    elif "instruction" in row and "output" in row:
        turn, answer = row["instruction"], row["output"]
        if isinstance(turn, str):
            turn = user_turn(turn, str(row.get("input") or ""))
    else:
        raise DataError(f"{name} has neither messages nor instruction and output.")
    if not (isinstance(turn, str) and isinstance(answer, str)):
        raise DataError(f"{name}: question and answer are to be texts.")
    if not (turn.strip() and answer.strip()):
        raise DataError(f"{name} has an empty {'answer' if turn.strip() else 'question'}.", "It has no label.")
    return template.prompt(turn), template.completion(turn, answer)


def _encoded(tokenizer: Any, text: str, special: bool) -> list[int]:
    ids = list(tokenizer(text, add_special_tokens=special)["input_ids"])
    # Some tokenizers close every text; here the prompt goes on.
    return ids[:-1] if special and ids and ids[-1] == tokenizer.eos_token_id and len(ids) > 1 else ids


def _refuse(row: tuple[str, int, int], context_tokens: int, too_long: str) -> None:
    name, num_prompt, length = row
    if num_prompt >= context_tokens:
        raise DataError(
            f"{name}: the prompt alone has {num_prompt} tokens, and a sequence has {context_tokens}.",
            "No label would be left, and a batch without labels has no loss.",
            "Raise context_tokens, shorten the row, or set too_long: drop.",
        )
    raise DataError(
        f"{name} has {length} tokens, and a sequence has {context_tokens}.",
        "too_long is error, so that nothing is lost unseen." if too_long == "error" else "",
        "Raise context_tokens, or set too_long to drop or cut.",
    )


def _fingerprint(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(orjson.dumps([example.num_prompt_tokens, example.ids]))
    return digest.hexdigest()[:16]


def _dataset_rows(path: Path) -> list[Mapping[str, Any]]:
    try:
        from datasets import load_from_disk
    except ImportError:
        raise EnvironmentProblem("datasets is not installed.", fix="pip install megalign[hf]") from None
    try:
        return list(load_from_disk(str(path)))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} holds neither mix.jsonl nor a saved data set: {error}") from None


def batches(
    examples: Sequence[Example], order: Sequence[int], batch_size: int, pack_tokens: int | None
) -> Iterator[list[list[int]]]:
    """Batches of sequences; a sequence is a list of places of examples.

    Args:
        examples: of the data set.
        order: their places, in the order of an epoch.
        batch_size: sequences of a batch; the last may have fewer.
        pack_tokens: put examples into a sequence, in their order, as long as they fit; None for one each.
    """
    sequences: list[list[int]] = []
    room = 0
    for place in order:
        length = len(examples[place].ids)
        if pack_tokens is not None and sequences and length <= room:
            sequences[-1].append(place)
            room -= length
        else:
            sequences.append([place])
            room = (pack_tokens or length) - length
    for start in range(0, len(sequences), batch_size):
        yield sequences[start : start + batch_size]
