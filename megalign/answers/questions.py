"""Answer CLiKA's questions with a model: files in the layout that tools/score_clika.py reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megalign.answers.items import Choice, Greedy, Item, answer_items
from megalign.answers.model import AnswerModel
from megalign.answers.open import open_model
from megalign.clika.questions import Question, QuestionFile
from megalign.errors import ConfigError

MODES = ("text", "letters")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class AnswerSettings:
    """How questions are answered.

    Attributes:
        mode: "text", greedy; "letters", the option letter that is most likely after the prompt.
        chat: put the prompt into the model's chat template.
        max_new_tokens: longest text. The scorer reads how it starts.
        name: in the names of the files; None for the model's own.
    """

    mode: str = "text"
    chat: bool = False
    max_new_tokens: int = 8
    name: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"The mode is {self.mode!r}.", fix=f"Set {' or '.join(MODES)}.")


def answer_questions(
    name_or_path: str,
    files: Sequence[QuestionFile],
    out: Path,
    settings: AnswerSettings,
    progress: Callable[[int], None] = lambda done: None,
    **opening: Any,
) -> list[Path]:
    """Write `out`/DATASET/LANGUAGE/MODEL_res.jsonl (MODEL-letters_res.jsonl) for every file of questions. Rerun to continue.

    Args:
        name_or_path: the model.
        files: the questions.
        out: the folder.
        settings: how.
        progress: told the number of questions answered so far.
        opening: arguments of open_model.

    Raises:
        ConfigError: a file was begun with other settings, or the model has no chat template.
        DataError: the model or a prompt cannot be used.
    """
    written, before = [], 0
    with open_model(name_or_path, **opening) as model:
        # Run names have slashes, which would be folders.
        name = re.sub(r"[^\w.-]+", "-", settings.name or model.name)
        # Scored beside its texts, as a model of its own.
        name += "-letters" if settings.mode == "letters" else ""
        for file in files:
            path = out / file.dataset / file.folder / f"{name}_res.jsonl"
            items = [_item(one, file.num_options, model, settings) for one in file.questions]
            answer_items(
                model,
                items,
                path,
                _how(file.num_options, settings),
                settings={"chat": settings.chat},
                progress=lambda done, _, before=before: progress(before + done),  # type: ignore[misc]
            )
            before += len(items)
            written.append(path)
    return written


def _how(num_options: int, settings: AnswerSettings) -> Greedy | Choice:
    if settings.mode == "letters":
        return Choice(names=tuple(_LETTERS[:num_options]))
    # Not cut at a line's end, as many models start a new line before they answer.
    return Greedy(settings.max_new_tokens)


def _item(question: Question, num_options: int, model: AnswerModel, settings: AnswerSettings) -> Item:
    prompt = model.chat_prompt(question.prompt) if settings.chat else question.prompt
    # "Answer:" is followed by the letter without a space, as in the released worked example.
    options = tuple(_LETTERS[:num_options]) if settings.mode == "letters" else ()
    return Item(question.id, prompt, options, {"label": question.label, "uuid": question.uuid})
