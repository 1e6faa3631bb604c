"""Answer many questions into a JSON-lines file that a stopped run continues: a row per item, in the order of the items."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from megalign.answers.model import AnswerModel, OptionScores, PromptProblem
from megalign.errors import ConfigError, DataError
from megalign.files import is_utf8, lock, make_folder, read_json, write_json

Progress = Callable[[int, int], None]

# A crash of the machine loses the answers of so long at most; a crash of the process loses none that were written.
SYNC_SECONDS = 10.0
# Items answered between writes, in batches: enough to sort by length.
BATCHES_PER_WRITE = 8


@dataclass(frozen=True)
class Item:
    """A question.

    Attributes:
        id: tells it from the others of its file.
        prompt: what the model continues, chat template included where one is used.
        options: texts to choose from; empty for a free answer.
        copied: more keys of the written row.
    """

    id: int | str
    prompt: str
    options: tuple[str, ...] = ()
    copied: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Greedy:
    """Answer with text.

    Attributes:
        max_new_tokens: longest answer.
        stop: texts before which an answer ends.
    """

    max_new_tokens: int
    stop: tuple[str, ...] = ()

    def settings(self) -> dict[str, Any]:
        """What must be the same for a file to be continued."""
        return {"mode": "greedy", "max_new_tokens": self.max_new_tokens, "stop": list(self.stop)}

    def answer(self, model: AnswerModel, items: Sequence[Item]) -> list[dict[str, Any]]:
        """Keys of each item's row: `res`."""
        prompts = [item.prompt for item in items]
        texts = model.generate(prompts, max_new_tokens=self.max_new_tokens, stop=self.stop)
        return [{"res": text} for text in texts]


@dataclass(frozen=True)
class Choice:
    """Answer with the most likely option.

    Attributes:
        names: what is written for each option as `res`; empty for the option's text.
        per_token: compare the mean log-likelihood of an option's tokens in place of the sum.
    """

    names: tuple[str, ...] = ()
    per_token: bool = False

    def settings(self) -> dict[str, Any]:
        """What must be the same for a file to be continued."""
        return {"mode": "choice", "names": list(self.names), "per_token": self.per_token}

    def answer(self, model: AnswerModel, items: Sequence[Item]) -> list[dict[str, Any]]:
        """Keys of each item's row: `res`, and `log_likelihoods` and `num_tokens` of the options."""
        scores = model.score_options([item.prompt for item in items], [item.options for item in items])
        return [
            {
                "res": (self.names or item.options)[best_option(one, per_token=self.per_token)],
                "log_likelihoods": one.log_likelihoods,
                "num_tokens": one.num_tokens,
            }
            for item, one in zip(items, scores, strict=True)
        ]


def best_option(scores: OptionScores, *, per_token: bool = False) -> int:
    """The place of the most likely option, the first of equals."""
    values = [
        total / count if per_token else total
        for total, count in zip(scores.log_likelihoods, scores.num_tokens, strict=True)
    ]
    return max(range(len(values)), key=lambda at: (values[at], -at))


def settings_path(path: Path) -> Path:
    """The file beside the answers that says how they were made."""
    return path.with_name(path.name + ".settings.json")


def answer_items(
    model: AnswerModel,
    items: Sequence[Item],
    path: Path,
    how: Greedy | Choice,
    *,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> int:
    """Answer the items that `path` has no row of, appending rows `{id, input, res, ...}`.

    What a kill left of a write is dropped, as the last digits of likelihoods change with what is computed together. Run
    again with the same arguments to continue; the result is the same file as without the stop.

    Args:
        model: answers.
        items: in the order of the rows.
        path: the file.
        how: greedy text, or the most likely option.
        settings: more that must be the same for the file to be continued, as JSON values.
        progress: called with the number of items answered, and of all, after every write.

    Returns:
        the number of items answered now.

    Raises:
        ConfigError: an item has no options to choose from, is no UTF-8, two have one id; the file was begun with other
            settings.
        DataError: the file is damaged, has rows of other items, or is being written by another process; the model
            cannot answer an item.
    """
    _check_items(items, how)
    wanted = {"model": model.name, "fingerprint": model.fingerprint, "dtype": model.dtype, **how.settings()}
    wanted |= {"num_items": len(items), "items_digest": _digest(items), **(settings or {})}
    make_folder(path.parent)
    with _locked(path) as stream:
        _agree_on_settings(path, stream, wanted)
        size, synced = model.batch_size * BATCHES_PER_WRITE, time.monotonic()
        done = _rows_there(path, stream, items, size)
        todo = [item for item in items if item.id not in done]
        if progress:
            progress(len(done), len(items))
        for start in range(0, len(todo), size):
            chosen = todo[start : start + size]
            stream.write(b"".join(_answered(model, chosen, how, path)))
            stream.flush()
            if time.monotonic() - synced > SYNC_SECONDS:
                os.fsync(stream.fileno())
                synced = time.monotonic()
            if progress:
                progress(len(done) + start + len(chosen), len(items))
        os.fsync(stream.fileno())
    return len(todo)


def _answered(model: AnswerModel, items: Sequence[Item], how: Greedy | Choice, path: Path) -> Iterator[bytes]:
    """Lines of the file."""
    try:
        rows = how.answer(model, items)
    except PromptProblem as error:
        raise DataError(
            f"{path}: the prompt of item {items[error.number].id!r} {error.said}", error.why, error.fix
        ) from None
    for item, row in zip(items, rows, strict=True):
        content = {"id": item.id, "input": item.prompt, **row, **item.copied}
        yield orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE)


def _check_items(items: Sequence[Item], how: Greedy | Choice) -> None:
    ids = set()
    for item in items:
        if item.id in ids:
            raise ConfigError(f"Two items have the id {item.id!r}.", "A row could not be told from another.")
        ids.add(item.id)
        if not all(map(is_utf8, (item.prompt, *item.options))):
            raise ConfigError(
                f"Item {item.id!r} is no UTF-8.", "It could not be written.", "Write the prompt in UTF-8."
            )
        if isinstance(how, Choice) and (len(item.options) < 2 or (how.names and len(how.names) < len(item.options))):
            raise ConfigError(
                f"Item {item.id!r} has {len(item.options)} options"
                + (f" and there are {len(how.names)} names for them." if how.names else "."),
                "The most likely option is asked for.",
                "Give two or more options and a name for each, or ask for text.",
            )


def _digest(items: Sequence[Item]) -> str:
    digest = hashlib.sha256()
    for item in items:
        digest.update(orjson.dumps([item.id, item.prompt, item.options, dict(item.copied)]))
    return digest.hexdigest()[:16]


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    with path.open("a+b") as stream:
        if not lock(stream):
            raise DataError(
                f"{path} is being written by another process.", "Rows of both would be mixed.", "Wait for it to end."
            )
        try:
            yield stream
        except BaseException:
            if not path.stat().st_size:  # nothing was answered: leave nothing that looks begun
                path.unlink()
                settings_path(path).unlink(missing_ok=True)
            raise


def _agree_on_settings(path: Path, stream: BinaryIO, wanted: dict[str, Any]) -> None:
    there = settings_path(path)
    if stream.seek(0, os.SEEK_END) == 0:
        write_json(there, wanted)
        return
    found = read_json(there)
    changed = [
        f"{key} was {found.get(key)!r}, is {wanted.get(key)!r}"
        for key in sorted({*found, *wanted})
        if found.get(key) != wanted.get(key)
    ]
    if changed:
        raise ConfigError(
            f"{path} was begun with other settings: {'; '.join(changed)}.",
            "Continuing would mix answers of two kinds.",
            f"Restore the settings, write elsewhere, or remove {path}.",
        )


def _rows_there(path: Path, stream: BinaryIO, items: Sequence[Item], rows_per_write: int) -> set[int | str]:
    """Ids of the rows of the file, of which a torn write is cut off."""
    known = {item.id for item in items}
    done: dict[int | str, int] = {}  # id -> where the row ends
    stream.seek(0)
    end = 0
    for number, line in enumerate(stream, 1):
        if not line.endswith(b"\n"):
            break
        try:
            row = orjson.loads(line)
            name = row["id"]
            if name not in known or name in done:
                raise ValueError(f"the id {name!r} is of no item, or was there before")
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}:{number}: this is not an answer to continue after: {error}.",
                "The file was changed or damaged.",
                f"Remove the line, or {path}.",
            ) from None
        end += len(line)
        done[name] = end
    whole = len(done) if len(done) == len(items) else len(done) // rows_per_write * rows_per_write
    kept = list(done.items())[:whole]
    stream.truncate(kept[-1][1] if kept else 0)
    stream.seek(0, os.SEEK_END)
    return {name for name, _ in kept}
