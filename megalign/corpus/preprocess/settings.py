"""What a preprocessing run is asked to do. The store it makes depends on nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import regex

from megalign.errors import ConfigError

ON_BAD_ROW = ("error", "skip", "quarantine")
_LANGUAGE = regex.compile(r"[^\W_][\w-]*")


@dataclass(frozen=True, slots=True)
class LanguageBudget:
    """A language and how much of it is wanted.

    Attributes:
        language: its code, which is also its folder in the CulturaX layout and in the store.
        budget_tokens: training tokens, end-of-text ids included; None for all there are.

    Raises:
        ConfigError: the language cannot be the name of a folder of the store.
    """

    language: str
    budget_tokens: int | None = None

    def __post_init__(self) -> None:
        if not _LANGUAGE.fullmatch(self.language):
            raise ConfigError(
                f"{self.language!r} cannot be the name of a language.",
                "It names a folder of the store.",
                "Use letters, digits, - and _, beginning with a letter or a digit.",
            )


def parse_languages(text: str) -> tuple[LanguageBudget, ...]:
    """Read "en=2e6,de=all,zh" (a language alone means all).

    Raises:
        ConfigError: a budget is no number of at least 2, or a language is named twice.
    """
    budgets = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        language, _, amount = (piece.strip() for piece in part.partition("="))
        try:
            number = None if amount in ("", "all") else float(amount.replace("_", ""))
            budget = None if number is None else int(number)
            if not language or (budget is not None and (budget != number or budget < 2)):
                raise ValueError
        except (ValueError, OverflowError):
            raise ConfigError(
                f"The language {part!r} cannot be read.", fix="Write en=2e6 (a whole number of tokens) or en=all."
            ) from None
        budgets.append(LanguageBudget(language, budget))
    if not budgets:
        raise ConfigError("No language is named.", fix="Write --languages en=2e6,de=all.")
    if len({budget.language for budget in budgets}) < len(budgets):
        raise ConfigError(f"A language is named twice in {text}.")
    return tuple(budgets)


@dataclass(frozen=True, slots=True)
class PreprocessSettings:
    """Settings of a run.

    Attributes:
        input: a file, folder, glob, or `hub:ID`.
        tokenizer: a tokenizer.json or its folder.
        languages: in the order of the store.
        seed: orders the parts of a language that has a budget.
        valid_fraction: share of documents held out as "valid", by a hash of their text.
        min_length_chars: shorter documents are left out.
        deduplicate: keep only the first of equal texts of a language.
        keep_urls: if any, only documents whose address matches one of these regular expressions.
        drop_urls: documents whose address matches one are left out.
        collections: if any, only documents whose field `source` is one of these.
        on_bad_row: "error" stops, "skip" counts, "quarantine" also writes the row to quarantine.jsonl.
        max_bad_fraction: the build fails when more of its rows are bad.
        unit_text_bytes: a unit is closed after this many bytes of text.
        eos_token: the tokenizer's end-of-text token; None for the first of the usual ones that it has.
    """

    input: str
    tokenizer: str
    languages: tuple[LanguageBudget, ...]
    seed: int = 0
    valid_fraction: float = 0.0
    min_length_chars: int = 0
    deduplicate: bool = False
    keep_urls: tuple[str, ...] = ()
    drop_urls: tuple[str, ...] = ()
    collections: tuple[str, ...] = ()
    on_bad_row: str = "error"
    max_bad_fraction: float = 0.01
    unit_text_bytes: int = 64 * 2**20
    eos_token: str | None = None

    def __post_init__(self) -> None:
        if self.on_bad_row not in ON_BAD_ROW:
            raise ConfigError(f"on_bad_row is {self.on_bad_row!r}.", fix=f"Use {', '.join(ON_BAD_ROW)}.")
        for name in ("valid_fraction", "max_bad_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}.", fix="Set it from 0 to 1.")
        if self.unit_text_bytes < 1:
            raise ConfigError(f"unit_text_bytes is {self.unit_text_bytes}.", fix="Set it to 1 or more.")
        for pattern in self.keep_urls + self.drop_urls:
            try:
                regex.compile(pattern)
            except regex.error as error:
                raise ConfigError(f"The pattern {pattern!r} is no regular expression: {error}.") from None

    def to_json(self) -> dict[str, Any]:
        """A JSON value that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> PreprocessSettings:
        """Read what `to_json` wrote."""
        values = {f.name: content[f.name] for f in fields(cls) if f.name in content}  # older ones lack eos_token
        values["languages"] = tuple(LanguageBudget(**entry) for entry in content["languages"])
        for name in ("keep_urls", "drop_urls", "collections"):
            values[name] = tuple(values[name])
        return cls(**values)
