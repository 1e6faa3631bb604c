"""Which option a response names, by the rules of SeaEval v0.1 and without its draws (Wang et al. 2023, arXiv:2309.04766).

A response is cut into sentences. First, each sentence votes for the longest of the choices (as written, in lower or upper case)
and of "(A)", "(a)", "(B)" ... that it contains. Where no sentence does, each votes for a lone letter or a choice's text without its
letter. The option with most votes is the answer. SeaEval draws at random between two options with equally many votes, and among
all where nothing matches; here such a response is undecided, and the options of that draw are kept.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from megalign.errors import DataError

LETTERS = "ABCDEFGHIJ"
_SENTENCE = re.compile(r"[^!?。.]+[!?。.]?")
_HALF_WIDTH = str.maketrans("，。“”‘’！？【】《》（）", ",.\"\"''!?[]<>()")
_STRIPPED = "(。$,|！\\!.？?)，；：…—·《》“”‘’{}[]（）、/\n\t\r\v\f "
# Lower-case "a" is a word of many languages, so only a capital counts as the letter: it is replaced by characters of private use before
# the sentence is lowered. As long as the mark of v0.1, since candidates are tried by length.
_LONE_A = " " + "\ue000" * 8 + " "
# Stands for a text without any sentence, so that a choice "..." is named by a response "...".
_NO_SENTENCE = "\ue001\ue001"
_LONGEST_REMEMBERED = 64


@dataclass(frozen=True)
class Matcher:
    """Matches responses to one question's choices.

    Attributes:
        choices: the options' texts, "(A) ..." and so on, at most ten; their letters are those written, else by place.

    Raises:
        DataError: fewer than two choices, or more than ten.
    """

    choices: tuple[str, ...]
    _written: list[tuple[str, int]] = field(init=False)
    _spoken: list[tuple[str, int]] = field(init=False)
    _remembered: dict[str, tuple[int, ...]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not 2 <= len(self.choices) <= len(LETTERS):
            raise DataError(
                f"A question has {len(self.choices)} choices.", f"Two to {len(LETTERS)} can be told apart by letter."
            )
        written: dict[str, int] = {}
        spoken: dict[str, int] = {}
        for place, (choice, number) in enumerate(zip(self.choices, letters_of(self.choices), strict=True)):
            letter = LETTERS[number]
            for text in (choice, choice.lower(), choice.upper(), f"({letter})", f"({letter.lower()})"):
                written[text] = place
            spoken[_LONE_A if letter == "A" else f" {letter.lower()} "] = place
            spoken[choice[4:].lower()] = place
        cut: dict[str, int] = {}
        for text, place in _longest_first(spoken):
            cut[sentences(text)[0]] = place
        object.__setattr__(self, "_written", _longest_first(written))
        object.__setattr__(self, "_spoken", [(text, place) for text, place in cut.items() if len(text) > 1])

    def options(self, response: str) -> tuple[int, ...]:
        """Places of the options the response may mean: one where it is decided; two for a tie; all where nothing matches."""
        known = self._remembered.get(response)
        if known is None:
            known = self._options(response)
            if len(response) <= _LONGEST_REMEMBERED:
                self._remembered[response] = known
        return known

    def _options(self, response: str) -> tuple[int, ...]:
        everything = tuple(range(len(self.choices)))
        if not response.strip():
            return everything
        parts = sentences(response.translate(_HALF_WIDTH))
        votes = [vote for part in parts if (vote := self._written_in(part)) is not None]
        if not votes:
            votes = [vote for part in parts if (vote := self._spoken_in(part)) is not None]
        if not votes:
            return everything
        (first, most), *others = Counter(votes).most_common(2)
        return (first, others[0][0]) if others and others[0][1] == most else (first,)

    def _written_in(self, sentence: str) -> int | None:
        lowered = sentence.lower()
        best, place = "", None
        # Of equally long candidates, one found as written comes before one found in lower case only.
        for where in (sentence, lowered):
            for text, option in self._written:
                if len(text) <= len(best):
                    break
                if text in where:
                    best, place = text, option
                    break
        return place

    def _spoken_in(self, sentence: str) -> int | None:
        alone = f" {sentence.strip(_STRIPPED)} ".replace(" A ", _LONE_A).lower()
        return next((option for text, option in self._spoken if text in alone), None)


def sentences(text: str) -> list[str]:
    """The text cut after ".", "!", "?" and "。"; one mark for a text without any sentence."""
    return _SENTENCE.findall(text) or [_NO_SENTENCE]


def _longest_first(candidates: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(candidates.items(), key=lambda one: len(one[0]), reverse=True)


@lru_cache(maxsize=1 << 15)
def matcher(choices: tuple[str, ...]) -> Matcher:
    """The matcher of these choices, made once: files of several models ask the same questions."""
    return Matcher(choices)


@lru_cache(maxsize=1 << 15)
def letters_of(choices: tuple[str, ...]) -> tuple[int, ...]:
    """The letters' numbers of choices "(B) ...", 1 for B: options agree over languages by letter. Places where letters are not clear."""
    marked = [choice[:1] == "(" and choice[2:3] == ")" and choice[1] in LETTERS for choice in choices]
    letters = tuple(LETTERS.index(choice[1]) for choice in choices) if all(marked) else ()
    return letters if len(set(letters)) == len(choices) else tuple(range(len(choices)))


def answer_place(answer: str, choices: Sequence[str]) -> int | None:
    """The place of the right answer among the choices: it is one of them, or a letter such as "B" or "(B)"; None if neither."""
    if answer in choices:
        return choices.index(answer)
    letter = answer.strip().strip("()").upper()
    letters = [LETTERS[number] for number in letters_of(tuple(choices))]
    return letters.index(letter) if letter in letters else None
