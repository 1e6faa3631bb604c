"""The answers of one prediction file, question by question and language by language."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

INVALID = -1
NO_ANSWER = -2


@dataclass(frozen=True)
class Answers:
    """What a model chose.

    Attributes:
        file: the file as it was named.
        model: the model's name where the file holds one, else empty.
        languages: in the order in which they appear.
        items: the questions' names, unique.
        options: [items, languages] int8, the number of the chosen letter (0 is A); `INVALID` where the response names no option,
            or several equally.
        gold: [items, languages] int8, the right letter's number; `NO_ANSWER` where the right answer is not among the choices.
        num_options: the most choices a question has.
        undecided: for each invalid response, (item, language) -> the letters SeaEval would draw from.
        findings: what is odd about the file, as (kind, message).
    """

    file: str
    model: str
    languages: tuple[str, ...]
    items: tuple[str, ...]
    options: npt.NDArray[np.int8]
    gold: npt.NDArray[np.int8]
    num_options: int
    undecided: Mapping[tuple[int, int], tuple[int, ...]]
    findings: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """How messages and tables name it."""
        return f"{self.file} ({self.model})" if self.model else self.file

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """[items, languages] whether the right letter was chosen."""
        right: npt.NDArray[np.bool_] = self.options == self.gold
        return right

    @property
    def invalid_rate(self) -> float:
        """Share of responses that name no option, or several equally."""
        return float((self.options == INVALID).mean())
