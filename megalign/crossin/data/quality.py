"""The quality gate for translations: what fails is counted and not used in that language, never replaced by English.

Each translated row is held against its English row, field by field. Code, formulas, addresses and numbers are to be kept as they
are, and are left out where the language is tested.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import regex

from megalign.crossin.data.sources import ENGLISH, FIELDS, Lud, Record, parse_named
from megalign.errors import ConfigError
from megalign.translation.languages import Language, language_of, script_shares, small_word_language

REASONS = {
    "missing": "instruction or output is empty",
    "input_presence": "an input where English has none, or none where it has one",
    "untranslated": "the text is the English one, or nearly",
    "wrong_script": "most letters are of another script",
    "wrong_language": "the small words are those of another language",
    "length_ratio": "much longer or shorter than this language's other translations",
    "code_changed": "code, formulas or addresses are not kept",
    "numbers_changed": "numbers are not kept",
}
_CODE = regex.compile(
    r"```.*?(?:```|\Z)|`[^`\n]+`|\$\$.+?\$\$|\$[^$\n]+\$|\\\(.+?\\\)|\\\[.+?\\\]|https?://[^\s<>\"')\]]+", regex.DOTALL
)
_NUMBER = regex.compile(r"\d(?:[\d.,]*\d)?")
_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")


@dataclass(frozen=True)
class Gate:
    """Thresholds.

    Attributes:
        min_letters: of a text without its code, below which language is not tested: names and formulas look alike everywhere.
        min_script_share: of the letters, in the language's scripts.
        max_copied_share: of the English words, that may stand in the same order in the translation.
        max_length_factor: from the median ratio of lengths of this language and field, either way; texts of `min_letters` and more.
        min_kept_code, min_kept_numbers: shares of English code spans and of numbers of two digits and more.
    """

    min_letters: int = 12
    min_script_share: float = 0.5
    max_copied_share: float = 0.7
    max_length_factor: float = 3.0
    min_kept_code: float = 0.8
    min_kept_numbers: float = 0.6

    @classmethod
    def parse(cls, given: Sequence[str]) -> Gate:
        """The gate with thresholds replaced by texts such as "max_copied_share=0.8".

        Raises:
            ConfigError: there is no such threshold, or it is no number.
        """
        known = {one.name: int if one.name == "min_letters" else float for one in fields(cls)}
        values: dict[str, Any] = {}
        for name, text in parse_named(given).items():
            if name not in known:
                raise ConfigError(f"The gate has no {name!r}.", fix=f"Choose of {', '.join(known)}.")
            try:
                values[name] = known[name](text)
            except ValueError:
                raise ConfigError(f"The gate's {name} is {text!r}.", fix="Set a number.") from None
        return cls(**values)

    def __post_init__(self) -> None:
        for name in ("min_script_share", "max_copied_share", "min_kept_code", "min_kept_numbers"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"The gate's {name} is {getattr(self, name)}.", fix="Set a share from 0 to 1.")
        if self.min_letters < 0:
            raise ConfigError(f"The gate's min_letters is {self.min_letters}.", fix="Set 0 or more.")
        if not self.max_length_factor > 1:
            raise ConfigError(f"The gate's max_length_factor is {self.max_length_factor}.", fix="Set more than 1.")


def apply_gate(lud: Lud, gate: Gate | None = None) -> dict[str, dict[str, int]]:
    """Write the failing rows of every language into `lud.failures`; counts by language and reason, each row for its first.

    English rows can only be missing.
    """
    gate = gate or Gate()
    counts: dict[str, dict[str, int]] = {}
    for code in lud.languages:
        language, counted = language_of(code), Counter[str]()
        medians = _median_ratios(lud, code, gate.min_letters)
        for place in range(lud.num_rows):
            english, record = lud.record(ENGLISH, place), lud.record(code, place)
            if code == ENGLISH:
                reason = "missing" if record.missing else None
            else:
                reason = next(_faults(english, record, language, gate, medians), None)
            if reason is not None:
                lud.failures[code, place] = reason
                counted[reason] += 1
        counts[code] = {reason: counted[reason] for reason in REASONS if counted[reason]}
    return counts


def _faults(
    english: Record, record: Record, language: Language, gate: Gate, medians: dict[str, float]
) -> Iterator[str]:
    if record.missing or english.missing:
        yield "missing"
        return
    if bool(record.input.strip()) != bool(english.input.strip()):
        yield "input_presence"
    for name in FIELDS:
        source, text = getattr(english, name), getattr(record, name)
        yield from _language_faults(source, text, language, gate)
        yield from _kept_faults(source, text, gate)
        if name in medians and len(source) >= gate.min_letters:
            factor = (len(text) / len(source)) / medians[name]
            if not 1 / gate.max_length_factor <= factor <= gate.max_length_factor:
                yield "length_ratio"


def _language_faults(source: str, text: str, language: Language, gate: Gate) -> Iterator[str]:
    bare, bare_source = _CODE.sub(" ", text), _CODE.sub(" ", source)
    if _num_letters(bare_source) >= gate.min_letters and _copied_share(bare_source, bare) > gate.max_copied_share:
        yield "untranslated"
    if _num_letters(bare) < gate.min_letters:
        return
    shares = script_shares(bare)
    # A short answer may be a name or a formula that is written alike in both languages.
    kept = _num_letters(bare) < 3 * gate.min_letters and _copied_share(bare, bare_source) > gate.max_copied_share
    if sum(shares.get(script, 0.0) for script in language.scripts) < gate.min_script_share and not kept:
        yield "wrong_script"
    if language.words:
        found = small_word_language(bare)
        if found is not None and found != language.code and found not in language.like:
            yield "wrong_language"


def _kept_faults(source: str, text: str, gate: Gate) -> Iterator[str]:
    spans = _CODE.findall(source)
    if spans:
        whole, code = _squeezed(text), _code_only(text)
        kept = sum(_squeezed(span) in whole or (_code_only(span) or span) in code for span in spans)
        if kept < gate.min_kept_code * len(spans):
            yield "code_changed"
    numbers = _numbers(_CODE.sub(" ", source))
    if numbers:
        there = _numbers(text)
        kept = sum(min(count, there[number]) for number, count in numbers.items())
        if kept < gate.min_kept_numbers * sum(numbers.values()):
            yield "numbers_changed"


def _numbers(text: str) -> Counter[str]:
    """Numbers of two digits and more, without the marks that languages put between digits."""
    found = (regex.sub(r"\D", "", number) for number in _NUMBER.findall(text))
    return Counter(number for number in found if len(number) > 1)


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def _code_only(span: str) -> str:
    """Code without its comments and strings, which may be translated."""
    without = regex.sub(r"#.*$|(?<!:)//.*$|/\*.*?\*/|\"[^\"\n]*\"|'[^'\n]*'", "", span, flags=regex.MULTILINE)
    return str(regex.sub(r"\P{ASCII}|\s", "", without))


def _num_letters(text: str) -> int:
    return sum(character.isalpha() for character in text)


def _copied_share(source: str, text: str) -> float:
    """The share of the source's words that stand in the text in runs of three and more (of all words, where it has fewer)."""
    ours, theirs = (list(map(str.lower, _WORD.findall(one))) for one in (source, text))
    if not ours:
        return 0.0
    size = min(3, len(ours))
    runs = {tuple(theirs[start : start + size]) for start in range(len(theirs) - size + 1)}
    copied: set[int] = set()
    for start in range(len(ours) - size + 1):
        if tuple(ours[start : start + size]) in runs:
            copied.update(range(start, start + size))
    return len(copied) / len(ours)


def _median_ratios(lud: Lud, code: str, min_letters: int) -> dict[str, float]:
    """The median ratio of characters to English, for each field that enough rows have."""
    medians = {}
    for name in FIELDS:
        ratios = []
        for place in range(lud.num_rows):
            source, text = (getattr(lud.record(one, place), name) for one in (ENGLISH, code))
            if len(source) >= min_letters and text.strip():
                ratios.append(len(text) / len(source))
        if len(ratios) >= 8:
            medians[name] = float(np.median(ratios))
    return medians
