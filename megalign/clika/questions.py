"""Questions to ask: from the released layout, or from a table and put into the released prompt formats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megalign.clika.datasets import Protocol
from megalign.clika.findings import counted, some
from megalign.clika.rows import Item, json_object, opened
from megalign.clika.table import table_rows
from megalign.errors import ConfigError, DataError

FORMATS = ("example", "plain")
COLUMNS = ("dataset", "language", "item", "question", "options", "label")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# The released prompts, word for word: responses are compared with those of other models that were asked in them.
_ASK_ONE = (
    "The following is a multiple choice question. Please choose the most reasonable one from the following options.\n"
)
_ASK_MANY = (
    "The following are multiple choice questions. Please choose the most reasonable one from the following options.\n"
)
_ASK_PREMISE = (
    "Answer the following multiple choice questions by selecting the correct option according to the Premise."
    "Please choose the correct one from the two options A and B.\n"
)
_PREMISE_EXAMPLE = (
    "Premise:The sky turns dark.\nQuestion:What was the cause of this?\nA. It's night.\nB. It's noon.\n"
    "Answer:A. It's night.\n\n"
)


@dataclass(frozen=True)
class Question:
    """One question as it is asked.

    Attributes:
        id: number or name within its file.
        uuid: names the question over languages.
        prompt: up to and with "Answer:".
        label: the letter of the right option.
    """

    id: Item
    uuid: Item
    prompt: str
    label: str


@dataclass(frozen=True)
class QuestionFile:
    """The questions of a data set in a language, `folder` as its folder is named."""

    dataset: str
    folder: str
    num_options: int
    questions: tuple[Question, ...]


def prompt_of(
    question: str,
    options: list[str],
    *,
    premise: str | None = None,
    form: str = "example",
    instruction: str | None = None,
) -> str:
    """A question in the released prompt format.

    Args:
        question: its text.
        options: texts of the options, in the order of their letters.
        premise: what the question is about (x_copa); such questions have a format of their own.
        form: "example", with a worked example before it, as base models were asked; "plain", as chat models were.
        instruction: for "plain", what stands before the question in place of the usual sentence (DataSet.instructions).

    Raises:
        ConfigError: an unknown form, or too few or too many options.
    """
    _check_form(form)
    if not 2 <= len(options) <= len(_LETTERS):
        raise ConfigError(f"A question has {len(options)} options.", fix=f"Give 2 to {len(_LETTERS)}.")
    body = f"Question:{question}\n{_lines(options)}\nAnswer:"
    if premise is not None:
        return _ASK_PREMISE + (_PREMISE_EXAMPLE if form == "example" else "") + f"Premise:{premise}\n{body}"
    if form == "plain":
        return _ASK_ONE + body if instruction is None else f"{instruction}\n{body.removeprefix('Question:')}"
    numbers = ["1", "2", "3", "5", *(str(number) for number in range(6, 28))]
    # With fewer options than the released sets have, the right one stays among them.
    shown = numbers[: len(options)] if len(options) > 3 else [*numbers[: len(options) - 1], "5"]
    right = f"{_LETTERS[shown.index('5')]}. 5"
    return f"{_ASK_MANY}Question:2+3=?\n{_lines(shown)}\nAnswer:{right}\n{body}"


def read_questions(
    source: Path, protocol: Protocol, *, files: str = "*.jsonl", form: str = "example"
) -> list[QuestionFile]:
    """All questions of a folder or a table, by data set and language.

    Args:
        source: a folder `{dataset}/{language}/*.jsonl` with rows id, input, label and optionally uuid, such as the released
            responses; or a table (.parquet, .csv, .jsonl) with the columns dataset, language, item, question, options (a list,
            or a text with a line per option), label and optionally premise.
        protocol: the data sets' constants.
        files: the file read from a folder that holds several.
        form: see prompt_of; for tables.

    Raises:
        DataError: nothing to read, damaged rows, ids that stand twice, several files with other questions in one folder,
            an unknown data set.
        ConfigError: an unknown form, or a pattern of files that cannot be used.
    """
    _check_form(form)
    found = _from_folder(source, protocol, files) if source.is_dir() else _from_table(source, protocol, form)
    if not found:
        raise DataError(
            f"{source} holds no questions.", fix=f"A folder has the layout DATASET/LANGUAGE/ and files {files}."
        )
    return found


def _check_form(form: str) -> None:
    if form not in FORMATS:
        raise ConfigError(f"The prompt format is {form!r}.", fix=f"Set {' or '.join(FORMATS)}.")


def _lines(options: Iterable[str]) -> str:
    return "\n".join(f"{letter}. {text}" for letter, text in zip(_LETTERS, options, strict=False))


def _from_folder(source: Path, protocol: Protocol, files: str) -> list[QuestionFile]:
    found: dict[tuple[str, str], tuple[Path, tuple[Question, ...]]] = {}
    for path in _matching(source, files):
        if path.is_dir():
            continue
        dataset, folder = path.parts[-3:-1]
        letters = protocol.dataset(dataset).letters
        protocol.language(folder)
        with opened(path) as stream:
            rows = [(number, json_object(text)) for number, text in enumerate(stream, 1)]
        questions = tuple(_question(row, letters, f"{path}:{number}") for number, row in rows)
        if not questions:
            raise DataError(f"{path} holds no questions.", fix="Complete the file, or choose others by --files.")
        _require_one_each(questions, str(path))
        before = found.setdefault((dataset, folder), (path, questions))
        if before[1] != questions:
            raise DataError(
                f"{before[0]} and {path} do not hold the same questions.",
                "A model is asked each question once.",
                "Choose by --files, such as --files 'llama_7b_res*.jsonl'.",
            )
    return [
        QuestionFile(dataset, folder, protocol.dataset(dataset).num_options, questions)
        for (dataset, folder), (_, questions) in found.items()
    ]


def _matching(source: Path, files: str) -> list[Path]:
    try:
        return sorted(source.glob(f"*/*/{files}"))
    except ValueError as error:
        raise ConfigError(
            f"--files {files!r} cannot be used: {error}.", fix="Write one such as '*_res.jsonl'."
        ) from None


def _from_table(source: Path, protocol: Protocol, form: str) -> list[QuestionFile]:
    if not source.is_file():
        raise DataError(f"{source} does not exist.", fix="Give a folder of questions or a table.")
    found: dict[tuple[str, str], list[Question]] = {}
    for line, row in table_rows(source, COLUMNS, ("premise",)):
        where = f"{source}:{line}"
        if row is None or not all(isinstance(row.get(name), str) for name in ("dataset", "language", "question")):
            raise DataError(f"{where}: dataset, language or question is missing or no text.")
        dataset, options = protocol.dataset(row["dataset"]), row["options"]
        texts = options.splitlines() if isinstance(options, str) else options
        if not isinstance(texts, list) or len(texts) != dataset.num_options or None in texts:
            raise DataError(f"{where}: options are {texts!r}; {row['dataset']} has {dataset.num_options}.")
        prompt = prompt_of(
            row["question"],
            [str(text) for text in texts],
            premise=row.get("premise") or None,
            form=form,
            instruction=dataset.instructions.get(protocol.language(row["language"])),
        )
        content = {"id": row["item"], "input": prompt, "label": row["label"]}
        questions = found.setdefault((row["dataset"], row["language"]), [])
        questions.append(_question(content, dataset.letters, where))
    for (name, folder), questions in found.items():
        if any(Path(part).name != part for part in (name, folder)):
            raise DataError(f"{source}: {name!r} in {folder!r} cannot be a folder's name.", "Answers are kept in one.")
        _require_one_each(questions, f"{source}, {name} in {folder}")
    return [
        QuestionFile(dataset, folder, protocol.dataset(dataset).num_options, tuple(questions))
        for (dataset, folder), questions in found.items()
    ]


def _require_one_each(questions: Iterable[Question], where: str) -> None:
    repeated = [name for name, count in Counter(one.id for one in questions).items() if count > 1]
    if repeated:
        raise DataError(
            f"{where}: {counted(len(repeated), 'id')} at several questions: {some(repeated)}.",
            "An answer could not be told from another.",
            "Give each question an id of its own.",
        )


def _question(row: dict[str, Any] | None, letters: str, where: str) -> Question:
    if row is None:
        raise DataError(f"{where}: this line is no JSON object.", "A question would be missing.", "Mend the file.")
    name, prompt, label = row.get("id"), row.get("input"), row.get("label")
    if type(name) not in (int, str) or not isinstance(prompt, str) or not isinstance(label, str):
        raise DataError(f"{where}: a question has id (number or text), input (text) and label (text).")
    if len(label) != 1 or label not in letters:
        raise DataError(f"{where}: the label {label!r} is none of {', '.join(letters)}.")
    uuid: Any = row.get("uuid", name)
    assert isinstance(name, int | str)
    return Question(name, uuid, prompt, label)
