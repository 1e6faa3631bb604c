"""Documents of a data set on the Hugging Face hub, read as a stream through the optional package `datasets`."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megalign.corpus.readers import BadRow, Document, InputFile, make_row
from megalign.errors import DataError, EnvironmentProblem

PREFIX = "hub:"
# A stream does not say how long it is.
UNKNOWN_BYTES = 1 << 40


def input_file(name: str) -> InputFile:
    """`hub:ID` as an input. The id may also be a local folder, which `datasets` reads in the same way.

    Raises:
        EnvironmentProblem: `datasets` is not installed.
    """
    if importlib.util.find_spec("datasets") is None:
        raise EnvironmentProblem(
            f"The input {name} needs the package datasets.", fix="Install megalign[hf], or give local files."
        )
    return InputFile(Path(name.removeprefix(PREFIX)), name, "hub")


def read_rows(file: InputFile, language: str) -> Iterator[Document | BadRow]:
    """The rows of a language (a folder of the data set), in the order of its files.

    A gated data set needs the token that `huggingface-cli login` or the variable HF_TOKEN gives.

    Raises:
        DataError: the data set or the language in it cannot be found or read.
    """
    for number, row in enumerate(_open(file, language)):
        yield make_row(row.get("text"), f"{file.source}/{language}", number, row.get("url"), row.get("source"))


def _open(file: InputFile, language: str) -> Any:
    load_dataset = importlib.import_module("datasets").load_dataset
    try:
        return load_dataset(str(file.path), data_dir=language, split="train", streaming=True)
    except (OSError, ValueError) as error:
        raise DataError(
            f"The data set {file.path} has no {language} that can be read: {error}.",
            fix="Is the name right? A gated data set needs its conditions accepted and HF_TOKEN set.",
        ) from None
