"""Words and word starts against a regular expression and byte-by-byte brute force."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import regex
from hypothesis import example, given
from hypothesis import strategies as st

from megalign.corpus import words
from megalign.corpus.readers import read_documents
from megalign.corpus.tokenizer import Tokenizer, train_tokenizer
from megalign.corpus.words import Segments, segment, segment_lines, segmenter_name, word_starts
from megalign.errors import DataError

RANGES = "".join(f"\\U{a:08x}-\\U{b:08x}" for a, b in words._UNSPACED)
ALONE = rf"[[{RANGES}]&&\p{{L}}]"
MARK = r"[\p{M}\u200c\u200d]"
# A letter or digit with its marks; a mark on anything else counts as a letter.
LETTER = rf"(?:[\p{{L}}_--[{RANGES}]]|(?<![\p{{L}}\p{{N}}_\p{{M}}\u200c\u200d]){MARK}){MARK}*"
DIGIT = rf"\p{{N}}{MARK}*"
WORD = rf"(?:{LETTER}|{DIGIT}|(?<=[\p{{L}}_\p{{M}}\u200c\u200d--[{RANGES}]])['\u2019](?=[\p{{L}}_\p{{M}}--[{RANGES}]])|(?<=\p{{N}})[.,](?=\p{{N}}))+"
PATTERN = regex.compile(rf"(?V1) ?(?P<word>{WORD})| ?(?P<alone>{ALONE}{MARK}*)|(?:(?! ?{WORD}| ?{ALONE}).)+", regex.S)


def pieces(text: str, language: str = "en") -> list[tuple[str, bool]]:
    segments, content = segment(text, language), text.encode()
    bounds = [*segments.starts.tolist(), segments.num_bytes]
    return [(content[a:b].decode(), bool(w)) for (a, b), w in zip(pairwise(bounds), segments.is_word, strict=True)]


def expected(text: str) -> list[tuple[str, bool]]:
    return [(m.group(), m.lastgroup is not None) for m in PATTERN.finditer(text)]


def test_english() -> None:
    assert pieces("The bank, isn't 3.14 far-off  (it) \n\nNext_one.") == [
        ("The", True), (" bank", True), (",", False), (" isn't", True), (" 3.14", True), (" far", True), ("-", False),
        ("off", True), ("  (", False), ("it", True), (") \n\n", False), ("Next_one", True), (".", False),
    ]  # fmt: skip
    assert pieces("dogs' 'tis 1,000, x.") == [
        ("dogs", True), ("' '", False), ("tis", True), (" 1,000", True), (",", False), (" x", True), (".", False),
    ]  # fmt: skip
    assert pieces("") == []
    assert pieces(" ") == [(" ", False)]
    assert pieces(" a") == [(" a", True)]
    assert pieces("  a") == [(" ", False), (" a", True)]


def test_other_scripts() -> None:
    assert pieces("l’été où") == [("l’été", True), (" où", True)]
    assert pieces("مرحباً بالعالم، هنا") == [("مرحباً", True), (" بالعالم", True), ("،", False), (" هنا", True)]
    assert pieces("我们 ok", "ja") == [("我", True), ("们", True), (" ok", True)]
    assert pieces("नमस्ते दुनिया") == [("नमस्ते", True), (" दुनिया", True)]
    assert pieces("e\u0301a b") == [("e\u0301a", True), (" b", True)]


# The reference's rules for marks hold for text in which marks stand on letters or digits, as in all real text.
ATOMS = [
    "a",
    "É",
    "ß",
    "7",
    "٣",
    " ",
    "  ",
    "\n",
    ",",
    ".",
    "'",
    "’",
    "-",
    "_",
    "(",
    "我",
    "の",
    "ก",
    "ж",
    "🙂",
    "e\u0301",
    "ค\u0e31",
]


@given(st.lists(st.sampled_from(ATOMS), max_size=40).map("".join))
@example("a'b 1.2 'x' .5 我'a a'我")
@example(" 我 我  a  我")
def test_segments_equal_a_regular_expression(text: str) -> None:
    assert pieces(text) == expected(text)


@given(st.text())
def test_segments_cover_any_text(text: str) -> None:
    segments = segment(text, "en")
    assert segments.num_bytes == len(text.encode())
    assert "".join(piece for piece, _ in pieces(text)) == text
    assert (np.diff(segments.starts) > 0).all()


def test_real_text_equals_the_regular_expression(reference_data: Path) -> None:
    for language in ("en", "de", "ru", "fr"):
        for number, document in enumerate(read_documents(reference_data / "culturax_like", language)):
            if number == 15:
                break
            assert pieces(document.text[:20000], language) == expected(document.text[:20000])


def test_chinese_follows_rjieba() -> None:
    rjieba = pytest.importorskip("rjieba", reason="rjieba is not installed")
    text = "我们在北京大学学习 machine learning，很好。价格3.5元"
    assert pieces(text, "zh") == [
        ("我们", True), ("在", True), ("北京大学", True), ("学习", True), (" machine", True), (" learning", True),
        ("，", False), ("很", True), ("好", True), ("。", False), ("价格", True), ("3.5", True), ("元", True),
    ]  # fmt: skip
    sentence = "他来到了网易杭研大厦小明硕士毕业于中国科学院计算所"
    assert [piece for piece, _ in pieces(sentence, "zh")] == rjieba.cut(sentence, hmm=True)
    assert "rjieba" in segmenter_name("zh")
    assert "rjieba" not in segmenter_name("en")


def test_chinese_without_rjieba_is_a_character_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_jieba", lambda: None)
    assert pieces("我们 a", "zh") == [("我", True), ("们", True), (" a", True)]
    assert segmenter_name("zh") == segmenter_name("en")


@pytest.mark.parametrize("language", ["en", "zh"])
@given(st.lists(st.lists(st.sampled_from([*ATOMS, "\n", "我们在"]), max_size=6).map("".join), min_size=1, max_size=6))
def test_texts_together_have_the_segments_they_have_alone(language: str, texts: list[str]) -> None:
    together = segment_lines(texts, language)
    starts, is_word, offset = [], [], 0
    for text in texts:
        alone = segment(text, language)
        starts += [*(alone.starts + offset).tolist(), offset + alone.num_bytes]
        is_word += [*alone.is_word.tolist(), False]
        offset += alone.num_bytes + 1
    assert together.starts.tolist() == starts
    assert together.is_word.tolist() == is_word
    assert together.num_bytes == offset


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    texts = ["the bank, the banks. it's 我们在 die Größe " * 5, "aa bb  cc" * 9]
    return train_tokenizer(texts, 300, tmp_path_factory.mktemp("t") / "tokenizer.json")


@given(st.lists(st.sampled_from([*ATOMS, "the", " bank", " 我们", " Größe"]), max_size=30).map("".join))
def test_word_starts_equal_brute_force(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    segments = segment(text, "en")
    brute = []
    offset = 0
    for i in ids.tolist():
        brute.append(offset in set(segments.starts.tolist()))
        offset += len(tokenizer.decode_bytes([i]))
    flags = word_starts(tokenizer.token_num_bytes[ids], segments)
    assert flags.dtype == np.bool_
    assert flags.tolist() == brute
    assert not len(flags) or flags[0]


def test_punctuation_ends_a_word_and_a_boundary_inside_a_token_is_not_flagged() -> None:
    segments = Segments(np.array([0, 5, 6]), np.array([True, False, True]), 9)
    assert word_starts(np.array([3, 2, 1, 3]), segments).tolist() == [True, False, True, True]
    assert word_starts(np.array([5, 4]), segments).tolist() == [True, True]
    assert word_starts(np.array([4, 5]), segments).tolist() == [True, False]
    # A token without bytes does not start the word that begins behind it.
    assert word_starts(np.array([5, 0, 1, 3]), segments).tolist() == [True, False, True, True]


def test_tokens_that_do_not_cover_the_text() -> None:
    with pytest.raises(DataError, match=r"The tokens cover 3 bytes of a text of 2. The tokenizer changes the text"):
        word_starts(np.array([3]), segment("ab", "en"))
    with pytest.raises(DataError, match="not valid Unicode"):
        segment("é\udc00", "en")
