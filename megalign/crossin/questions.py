"""Questions in several languages for a model, and its answers as a prediction file in SeaEval's row format.

Questions come from files in that format, with or without predictions, or from the Hub: Cross-MMLU, Cross-LogiQA, Cross-XQuAD.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from megalign.crossin.prompts import TOKENIZER, Tag, Template, user_turn
from megalign.crossin.scoring.match import LETTERS, letters_of
from megalign.errors import ConfigError, DataError, EnvironmentProblem, first_line
from megalign.files import read_json, write_json
from megalign.translation.languages import language_named

MADE, PREDICTIONS = "tune.json", "predictions.json"
TRAINED = "trained"
ON_HUB = {name: f"SeaEval/{name}" for name in ("cross_mmlu", "cross_logiqa", "cross_xquad")}
MODES = ("text", "likelihood")
OPTION_TEXTS = ("letter", "choice", "text")
PROMPT = "Choose the right answer to the question. Give only the answer.\n\nQuestion:\n{question}\n\nChoices:\n{choices}\n\nAnswer:"
CONTEXT_PROMPT = (
    "Read the text and choose the right answer to the question. Give only the answer.\n\nText:\n{context}\n\nQuestion:\n{question}\n\n"
    "Choices:\n{choices}\n\nAnswer:"
)

Row = Mapping[str, Any]

_LETTER = re.compile(r"^\([A-J]\)\s*")


@dataclass(frozen=True)
class AskOptions:
    """How questions are asked.

    Attributes:
        mode: text (greedy answers) or likelihood (the most likely option).
        options: what likelihood compares: letter ("(A)"), choice (its whole text, per token), or text (the choice without its letter,
            per token; for prompts that do not list the choices).
        template: of megalign.crossin.prompts, "tokenizer", or None: that of the adapter's training where its folder says so, else plain.
        prompt: with {question}, {choices} and, for questions with a text, {context}; None for the default.
        tag: appended to the prompt, for the question's own language; "trained" for that of the adapter's data; empty for none.
        languages: of the files, by their names there; empty for all.
        max_new_tokens: of a text answer.
        max_questions: the first so many only.
        first_line: a text answer ends at its first line.
    """

    mode: str = "text"
    options: str = "letter"
    template: str | None = None
    prompt: str | None = None
    tag: str = ""
    languages: tuple[str, ...] = ()
    max_new_tokens: int = 32
    max_questions: int | None = None
    first_line: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (("mode", self.mode, MODES), ("options", self.options, OPTION_TEXTS)):
            if value not in known:
                raise ConfigError(f"{name} is {value!r}.", fix=f"Choose {' or '.join(known)}.")


def read_questions(name: str, *, allow_download: bool = False) -> list[dict[str, Any]]:
    """Rows of a file (json, jsonl), or of cross_mmlu, cross_logiqa or cross_xquad on the Hub.

    Raises:
        ConfigError: a name on the Hub without `allow_download`.
        DataError: missing, damaged, or no questions.
        EnvironmentProblem: datasets is not installed.
    """
    path = Path(name)
    if name in ON_HUB and not path.exists():
        if not allow_download:
            raise ConfigError(f"{name} is on the Hub.", fix="Allow the download, or name a local file.")
        return _from_hub(ON_HUB[name])
    try:
        content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
        rows = (
            [orjson.loads(line) for line in content.splitlines() if line.strip()]
            if path.suffix == ".jsonl"
            else orjson.loads(content)
        )
    except (FileNotFoundError, IsADirectoryError):
        raise DataError(f"{path} does not exist or is no file.") from None
    except orjson.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: {error}.") from None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(
            f"{path} holds no questions.", 'A row is {"id", "<Language>": {"question", "choices", "answer"}}.'
        )
    return rows


def chosen_rows(rows: Sequence[dict[str, Any]], options: AskOptions, source: str) -> list[dict[str, Any]]:
    """Copies of the rows with the wanted languages only, without earlier predictions.

    Raises:
        DataError: a row lacks a language, its question or its choices.
    """
    kept = rows[: options.max_questions]
    languages = options.languages or tuple(
        dict.fromkeys(key for row in kept for key, cell in row.items() if isinstance(cell, Mapping))
    )
    chosen = []
    for place, row in enumerate(kept):
        copy: dict[str, Any] = {"id": str(place + 1) if row.get("id") is None else row["id"]}
        for language in languages:
            cell = row.get(language)
            if not isinstance(cell, Mapping) or not isinstance(cell.get("question"), str):
                raise DataError(f"{source}: row {place + 1} has no question in {language}.")
            choices = cell.get("choices")
            if not isinstance(choices, list) or not 2 <= len(choices) <= len(LETTERS):
                raise DataError(f"{source}: row {place + 1} has no list of choices in {language}.")
            if not all(isinstance(choice, str) for choice in choices):
                raise DataError(f"{source}: row {place + 1} has a choice in {language} that is no text.")
            copy[language] = {
                key: cell[key] for key in ("question", "choices", "answer", "context") if cell.get(key) is not None
            }
        chosen.append(copy)
    if not languages or not chosen:
        raise DataError(f"{source} holds no questions.")
    return chosen


def turn_of(cell: Row, language: str, options: AskOptions) -> str:
    """The user's turn that asks a question.

    Raises:
        ConfigError: the prompt cannot be filled in.
    """
    prompt = (CONTEXT_PROMPT if cell.get("context") else PROMPT) if options.prompt is None else options.prompt
    parts = {"question": cell["question"], "choices": "\n".join(cell["choices"]), "context": cell.get("context", "")}
    try:
        text = prompt.format(**parts)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError):
        raise ConfigError(
            f"The prompt {prompt!r} cannot be filled in.",
            fix="Use {question}, {choices} and {context}; {{ for a brace.",
        ) from None
    if cell["question"] not in text:
        raise ConfigError(f"The prompt {prompt!r} holds no question.", fix="Write {question} where it is to stand.")
    tag = Tag(options.tag)
    return user_turn(text, tag.apply("", language_named(language).code)) if options.tag else text


def as_trained(model: str, options: AskOptions) -> AskOptions:
    """The options with what they leave to the adapter's training filled in: the template (else plain), and the tag.

    Raises:
        ConfigError: the training's tag is asked for, and the folder does not say which it was.
    """
    made = Path(model) / MADE
    recorded = read_json(made) if made.is_file() else {}
    template, tag = options.template or recorded.get("template") or "plain", recorded.get("tag")
    if options.tag != TRAINED:
        tag = options.tag
    elif tag is None:
        raise ConfigError(
            f"{model} does not say with which tag it was trained.",
            "It is known of adapters that were tuned on a mix of tools/build_crossin.py.",
            "Write the tag itself, such as [{code}].",
        )
    return replace(options, template=template, tag=tag)


@dataclass(frozen=True)
class Asked:
    """Questions that are ready to be asked.

    Attributes:
        source: the file of the questions, or their name on the Hub.
        rows: in SeaEval's row format, with the wanted languages only.
        turns: the user's turn of each (place of the row, language).
        options: how they are asked, template and tag filled in.
    """

    source: str
    rows: list[dict[str, Any]]
    turns: dict[tuple[int, str], str]
    options: AskOptions


def prepare(model_path: str, questions: str, options: AskOptions, *, allow_download: bool = False) -> Asked:
    """Read the questions and put them into words, before a model is loaded.

    Args:
        model_path: of the model that is to be asked, for the template and the tag of its training.
        questions: file, or name on the Hub.
        options: how they are asked.
        allow_download: may fetch questions by name.

    Raises:
        ConfigError, DataError, EnvironmentProblem: see read_questions, chosen_rows, as_trained, turn_of and Template.of.
    """
    options = as_trained(model_path, options)
    if options.template != TOKENIZER:
        Template.of(options.template or "plain")
    rows = chosen_rows(read_questions(questions, allow_download=allow_download), options, questions)
    turns = {
        (place, language): turn_of(cell, language, options)
        for place, row in enumerate(rows)
        for language, cell in row.items()
        if language != "id"
    }
    return Asked(questions, rows, turns, options)


def ask(model: Any, asked: Asked, out: Path, progress: Callable[[int, int], None] | None = None) -> Path:
    """Ask a model, and write out/predictions.json; run again to continue.

    Args:
        model: an open AnswerModel.
        asked: what `prepare` made.
        out: folder; answers.jsonl in it holds the answers as they come.
        progress: gets the number of answers, and of all.

    Returns:
        the prediction file.

    Raises:
        ConfigError: the model has no chat template and is to be asked with it; `out` holds answers to other questions, or
            the questions themselves.
    """
    from megalign.answers import Choice, Greedy, Item, answer_items

    rows, options = asked.rows, asked.options
    if Path(asked.source).resolve() == (out / PREDICTIONS).resolve():
        raise ConfigError(
            f"{asked.source} holds the questions, and would be replaced by the answers.", fix="Choose another folder."
        )
    named = options.template or "plain"
    framed = model.chat_prompt if named == TOKENIZER else Template.of(named).prompt
    items = []
    for (place, language), turn in asked.turns.items():
        texts = _option_texts(rows[place][language]["choices"], options) if options.mode == "likelihood" else ()
        items.append(Item(f"{place} {language}", framed(turn), texts))
    how: Greedy | Choice = Choice(per_token=options.options != "letter")
    if options.mode == "text":
        how = Greedy(options.max_new_tokens, ("\n",) if options.first_line else ())
    path = out / "answers.jsonl"
    answer_items(model, items, path, how, settings={"template": named}, progress=progress)
    for line in path.read_bytes().splitlines():
        answer = orjson.loads(line)
        place, _, language = answer["id"].partition(" ")
        cell = rows[int(place)][language]
        cell["model_input"] = answer["input"]
        if options.mode == "text":
            cell["model_prediction"] = answer["res"]
        else:
            values = answer["log_likelihoods"]
            if options.options != "letter":
                values = [value / count for value, count in zip(values, answer["num_tokens"], strict=True)]
            cell["option_log_likelihoods"] = values
            cell["model_prediction"] = cell["choices"][max(range(len(values)), key=values.__getitem__)]
    write_json(out / PREDICTIONS, rows)
    return out / PREDICTIONS


def _option_texts(choices: Sequence[str], options: AskOptions) -> tuple[str, ...]:
    if options.options == "letter":
        return tuple(f"({LETTERS[number]})" for number in letters_of(tuple(choices)))
    return tuple(_LETTER.sub("", choice) if options.options == "text" else choice for choice in choices)


def _from_hub(name: str) -> list[dict[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise EnvironmentProblem("datasets is not installed.", fix="pip install megalign[hf]") from None
    try:
        return [dict(row) for row in load_dataset(name, split="test")]
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{name} cannot be loaded: {first_line(error)}.") from None
