"""What is known of a data set before scoring: number of options, chance, the accuracy that counts as 1. Users extend it by a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from megalign.config.load import read_yaml, validate
from megalign.config.sections import Section
from megalign.errors import ConfigError, DataError

RELEASED = Path(__file__).with_name("datasets.yaml")
LANGUAGE_CODE = re.compile(r"[a-z]{2,3}(-[a-z0-9]{2,8})*")
MAX_OPTIONS = 26


class DataSet(Section):
    """A multiple-choice data set, its options lettered from A.

    Attributes:
        num_options: options per question, 2 to 26.
        knowledge: the type of knowledge its scores are averaged under, such as basic or factual.
        top_percent: the accuracy whose re-scaled accuracy is 1.
        top_model: instead of top_percent, the model among the input whose English accuracy is the top.
        num_items: questions per language where known; checked, not needed for scores.
        instructions: language -> what stands before a question asked without example, where the released prompts of this data
            set differ from the others'.
    """

    num_options: Annotated[int, Field(ge=2, le=MAX_OPTIONS)]
    knowledge: Annotated[str, Field(min_length=1)]
    top_percent: Annotated[float | int, Field(gt=0, le=100)] | None = None
    top_model: str | None = None
    num_items: Annotated[int, Field(ge=1)] | None = None
    instructions: dict[str, str] = Field(default_factory=dict)

    @property
    def chance_percent(self) -> float:
        """The accuracy of a guess, in percent."""
        return 100 / self.num_options

    @property
    def letters(self) -> str:
        """The letters of the options."""
        return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: self.num_options]

    @model_validator(mode="after")
    def _one_top(self) -> DataSet:
        if (self.top_percent is None) == (self.top_model is None):
            raise ValueError("give either top_percent or top_model")
        if self.top_percent is not None and self.top_percent <= self.chance_percent:
            raise ValueError(f"top_percent {self.top_percent} is not above chance, {self.chance_percent:g}")
        return self


class Comparison(Section):
    """Two models whose scores are compared, paired over items: `other` minus `base`."""

    base: str
    other: str
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> Comparison:
        """`BASE:OTHER` as a comparison; ConfigError where it names no two models."""
        base, colon, other = text.partition(":")
        if not (colon and base and other):
            raise ConfigError(f"{text!r} names no two models.", fix="Write --compare BASE:OTHER.")
        return cls(base=base, other=other)


class Protocol(Section):
    """The data sets with their constants, names of language folders, and the pairs of models to compare."""

    datasets: dict[str, DataSet] = Field(default_factory=dict)
    languages: dict[str, str] = Field(default_factory=dict)
    comparisons: list[Comparison] = Field(default_factory=list)

    def dataset(self, name: str) -> DataSet:
        """The data set of that name.

        Raises:
            DataError: no such data set.
        """
        if name not in self.datasets:
            raise DataError(
                f"The data set {name} is unknown.",
                f"Known are {', '.join(sorted(self.datasets))}; without its number of options it cannot be scored.",
                "Describe it in a data-set file and give that by --datasets.",
            )
        return self.datasets[name]

    def language(self, folder: str) -> str:
        """The language code a folder's name stands for: lower-cased, without `_trans`; the file's `languages` come first.

        Raises:
            DataError: the name is no language code.
        """
        code = self.languages.get(folder, folder.lower().removesuffix("_trans"))
        if not LANGUAGE_CODE.fullmatch(code):
            raise DataError(
                f"{folder!r} is no language code.",
                "Scores are kept by language; a code has two or three letters, such as de.",
                f"Map it under `languages` in a data-set file ({folder}: CODE), or leave that folder out of the input.",
            )
        return code


def load_protocol(path: Path | None = None, *, top_model: str | None = None) -> Protocol:
    """The released constants, extended by a user's file of the same form: entries of the same name are replaced, new ones added.

    Args:
        path: a YAML file with any of `datasets`, `languages` and `comparisons`.
        top_model: take every data set's top from this model's English accuracy instead.

    Raises:
        ConfigError: not YAML, unknown keys, wrong values.
    """
    released = validate(Protocol, read_yaml(RELEASED), str(RELEASED))
    own = validate(Protocol, read_yaml(path), str(path)) if path else Protocol()
    datasets = {**released.datasets, **own.datasets}
    if top_model is not None:
        if not top_model:
            raise ConfigError("The top model has no name.", fix="Name a model that is among the responses.")
        datasets = {
            name: one.model_copy(update={"top_percent": None, "top_model": top_model}) for name, one in datasets.items()
        }
    return Protocol(
        datasets=datasets,
        languages={**released.languages, **own.languages},
        comparisons=[*released.comparisons, *own.comparisons],
    )
