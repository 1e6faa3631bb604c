"""Answer matching: the rules of SeaEval v0.1 spelled out as cases, and what is undecided."""

from __future__ import annotations

import pytest

from megalign.crossin.scoring.match import Matcher, answer_place, letters_of, matcher, sentences
from megalign.errors import DataError

CHOICES = ("(A) red bird", "(B) blue fish", "(C) green frog", "(D) grey horse")
ALL = (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("response", "options"),
    [
        ("(B)", (1,)),
        ("(b) it is", (1,)),
        ("The answer is (C) green frog.", (2,)),
        ("(D) GREY HORSE", (3,)),
        ("（B）", (1,)),  # full-width brackets
        ("B", (1,)),
        ("<pad> B", (1,)),
        ("Answer: A", (0,)),
        ("a", ALL),  # lower-case "a" is a word
        ("I think a bird", ALL),
        ("b", (1,)),
        ("B.", (1,)),
        ("Blue fish", (1,)),
        ("it is the green frog, surely", (2,)),
        ("(A). No, (B). Yes, (B).", (1,)),  # two sentences against one
        ("(A). (B).", (0, 1)),  # a tie
        ("(A) and (B)", (0,)),  # one sentence: the first of equally long candidates
        ("A red bird (B)", (1,)),  # a letter in brackets comes before a choice's words
        ("(A) red bird or (B)", (0,)),  # the longest candidate
        ("blue fish. green frog! blue fish?", (1,)),
        ("", ALL),
        (" \n ", ALL),
        ("...", ALL),
        ("none of them", ALL),
        ("ABCD", ALL),
        ("是B吗。不，是 B 。", (1,)),
        ("(C)。(C)。(D)", (2,)),
    ],
)
def test_a_response_names_options(response: str, options: tuple[int, ...]) -> None:
    assert Matcher(CHOICES).options(response) == options


def test_of_several_equal_counts_the_two_named_first_tie() -> None:
    assert Matcher(CHOICES).options("(C). (A). (B).") == (2, 0)


def test_a_choice_of_punctuation_is_named_by_punctuation() -> None:
    assert Matcher(("(A) !", "(B) yes")).options("?!") == (0,)


def test_a_choice_is_cut_after_its_first_sentence() -> None:
    assert (
        Matcher(("(A) Rome", "(B) Oslo! A city")).options("in Oslo! Yes") == ALL[:2]
    )  # "oslo!" stands in no stripped sentence
    assert Matcher(("(A) Rome", "(B) Oslo. A city")).options("It is (b)") == (1,)


def test_sentences() -> None:
    assert sentences("One. Two! 三。四？") == ["One.", " Two!", " 三。", "四？"]
    assert sentences("...") == sentences("")


def test_answers_are_remembered_and_the_same() -> None:
    one = matcher(CHOICES)
    assert one is matcher(tuple(CHOICES))
    assert [one.options("(B)") for _ in range(2)] == [(1,), (1,)]


@pytest.mark.parametrize("count", [1, 11])
def test_choices_that_have_no_letters(count: int) -> None:
    with pytest.raises(DataError, match=f"A question has {count} choices"):
        Matcher(tuple(f"choice {number}" for number in range(count)))


def test_letters_of_choices_and_answers() -> None:
    assert letters_of(("(C) green", "(A) red", "(B) blue")) == (2, 0, 1)
    assert letters_of(("(C) green", "red", "(B) blue")) == (0, 1, 2)
    assert letters_of(("(C) green", "(C) red")) == (0, 1)
    assert letters_of(("(x) green", "(A) red")) == (0, 1)
    assert answer_place("(B) blue fish", CHOICES) == 1
    assert answer_place("b", CHOICES) == 1
    assert answer_place("(D)", CHOICES) == 3
    turned = ("(C) green", "(A) red", "(B) blue")
    assert answer_place("A", turned) == 1
    assert Matcher(turned).options("(A)") == Matcher(turned).options("The answer is A") == (1,)
    assert answer_place("E", CHOICES) is None
    assert answer_place("blue fish", CHOICES) is None
