"""Words: where they start in a text, and which tokens start them.

A text is divided into segments that cover all of it. A segment is a word (with the one space before it, as in byte-level BPE
tokens such as " bank") or the material between words, so "the bank, it" is "the", " bank", ",", " it". The rules are those
of Unicode's default word boundaries (UAX #29) where they matter for a dictionary: letters, marks, digits and underscores
run together; an apostrophe between letters and a point or comma between digits do not end a word; a hyphen does. In scripts
written without spaces (Han, kana, Thai, Lao, Khmer, Burmese, Tibetan) every character with its marks is a word, except that
Han text of the language "zh" follows `rjieba` where that is installed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from megalign.errors import DataError

Bools = npt.NDArray[np.bool_]
Offsets = npt.NDArray[np.int64]
Codes = npt.NDArray[np.uint8]

# Ordered so that words are made of what is at least ALONE, and runs of what is at least LETTER.
OTHER, SPACE, APOSTROPHE, POINT, MARK, ALONE, LETTER, DIGIT = range(8)
# First and last code points of scripts that do not separate words by spaces.
_UNSPACED = (
    (0x0E00, 0x0EFF), (0x0F00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF),
)  # fmt: skip
_HAN = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))
_RULES = "1"


@dataclass(frozen=True, slots=True)
class Segments:
    """A text divided without gaps.

    Attributes:
        starts: byte offset of each segment in the UTF-8 text, int64 [segments], increasing, the first 0.
        is_word: whether the segment is a word, bool [segments].
        num_bytes: length of the text.
    """

    starts: Offsets
    is_word: Bools
    num_bytes: int


@cache
def _classes() -> Codes:
    """The class of every code point, uint8 [0x110000]."""
    table = np.zeros(0x110000, dtype=np.uint8)
    # Code points outside these two ranges are not assigned, or private.
    for first, end in ((0, 0x34000), (0xE0000, 0xE0200)):
        categories = np.array(list(map(unicodedata.category, map(chr, range(first, end)))))
        major = categories.view("U1")[::2]
        for letter, code in (("L", LETTER), ("N", DIGIT), ("M", MARK)):
            table[first:end][major == letter] = code
    table[[0x200C, 0x200D]] = MARK
    for first, last in _UNSPACED:
        part = table[first : last + 1]
        part[part == LETTER] = ALONE
    table[ord("_")] = LETTER
    table[[ord("'"), 0x2019]] = APOSTROPHE
    table[[ord("."), ord(",")]] = POINT
    table[ord(" ")] = SPACE
    return table


@cache
def _ascii_classes() -> bytes:
    """The classes of bytes of ASCII text, as a table for bytes.translate."""
    return _classes()[:256].tobytes()


@cache
def _jieba() -> Any:
    """The `rjieba` module, or None where it is not installed."""
    if importlib.util.find_spec("rjieba") is None:
        return None
    import rjieba

    return rjieba


def segmenter_name(language: str) -> str:
    """The name and version of what divides texts of a language; two stores with the same name have the same words."""
    name = f"unicode-words-{_RULES}/ucd-{unicodedata.unidata_version}"
    if _base(language) == "zh" and _jieba() is not None:
        return f"{name}/rjieba-{importlib.metadata.version('rjieba')}"
    return name


def _base(language: str) -> str:
    return language.split("-")[0]


def segment(text: str, language: str) -> Segments:
    """Divide a text into words and what lies between them.

    Args:
        text: any Unicode text.
        language: a language code; only "zh" (and "zh-...") is treated apart.

    Raises:
        DataError: the text has lone surrogates, that is, cannot be UTF-8.
    """
    return _segment(text, language, None)


def segment_lines(texts: Sequence[str], language: str) -> Segments:
    """Divide several texts at once, as if one by one: short texts take far less time together.

    The result is that of the texts joined, each followed by a line feed, which is a segment of its own.

    Raises:
        DataError: a text has lone surrogates.
    """
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    separators = np.cumsum(lengths + 1) - 1
    return _segment("\n".join(texts) + "\n", language, np.concatenate([separators - lengths, separators]))


def _segment(text: str, language: str, breaks: Offsets | None) -> Segments:
    """Segments of a text; one starts at each of `breaks`, which are characters."""
    if text.isascii():
        points: npt.NDArray[Any] = np.zeros(0, dtype=np.uint32)
        offsets = None
        classes = np.frombuffer(text.encode("ascii").translate(_ascii_classes()), dtype=np.uint8)
    else:
        try:
            points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        except UnicodeEncodeError as error:
            raise DataError(f"A text is not valid Unicode: {error.reason} at character {error.start}.") from None
        widths = (points >= 0x80).view(np.uint8) + np.uint8(1)
        widths += points >= 0x800
        widths += points >= 0x10000
        offsets = np.zeros(points.size + 1, dtype=np.int64)
        np.cumsum(widths, out=offsets[1:])
        classes = _classes().take(points)
    num_bytes = int(offsets[-1]) if offsets is not None else classes.size
    if not classes.size:
        return Segments(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.bool_), 0)
    wordlike, starts = _boundaries(classes)
    if _base(language) == "zh" and offsets is not None and (jieba := _jieba()) is not None:
        _follow_jieba(text, points, starts, jieba)
    if breaks is not None:
        starts[breaks] = True
    where = np.flatnonzero(starts)
    # The space before a word belongs to the word: move the word's start onto it.
    spaced = wordlike[where] & (where > 0)
    spaced &= classes[np.maximum(where - 1, 0)] == SPACE
    is_word = wordlike[where]
    where = where - spaced
    # A segment that was only that space is gone.
    keep = np.ones(where.size, dtype=np.bool_)
    keep[:-1] = where[1:] != where[:-1]
    where, is_word = where[keep], is_word[keep]
    return Segments(offsets[where] if offsets is not None else where, is_word, num_bytes)


def _boundaries(classes: Codes) -> tuple[Bools, Bools]:
    """Which characters belong to words, and which start a segment; bool [characters] each. Spaces are not yet moved."""
    # A mark takes the class of what it stands on; a mark on nothing wordlike is a letter of its own.
    if (marks := classes == MARK).any():
        base = np.maximum.accumulate(np.where(marks, -1, np.arange(classes.size)))
        under = np.where(base >= 0, classes[np.maximum(base, 0)], OTHER)
        classes = np.where(marks, np.where(under >= ALONE, under, LETTER), classes)
    run = classes >= LETTER
    joiners = np.flatnonzero((classes == APOSTROPHE) | (classes == POINT))
    joiners = joiners[(joiners > 0) & (joiners < classes.size - 1)]
    between = np.where(classes[joiners] == POINT, DIGIT, LETTER)
    run[joiners] = (classes[joiners - 1] == between) & (classes[joiners + 1] == between)
    starts = np.ones(classes.size, dtype=np.bool_)
    np.not_equal(run[1:], run[:-1], out=starts[1:])
    alone = classes == ALONE
    if not alone.any():
        return run, starts
    # A run goes on, and so does what is no word; a lone character always starts, unless it is a mark on one.
    starts[1:] |= alone[1:] | alone[:-1]
    starts[1:] &= ~(marks[1:] & alone[1:] & alone[:-1])
    return run | alone, starts


def _follow_jieba(text: str, points: npt.NDArray[Any], starts: Bools, jieba: Any) -> None:
    """Between two Han characters, start a word where `rjieba` does, in place."""
    han = np.zeros(points.size, dtype=np.bool_)
    for first, last in _HAN:
        han |= (points >= first) & (points <= last)
    lengths = np.fromiter(map(len, jieba.cut(text, hmm=True)), dtype=np.int64)
    cuts = np.zeros(points.size + 1, dtype=np.bool_)
    cuts[np.cumsum(lengths)] = True
    inside = han[1:] & han[:-1]
    starts[1:][inside] = cuts[1:-1][inside]


def word_starts(token_num_bytes_of_ids: npt.NDArray[np.int64], segments: Segments) -> Bools:
    """Which tokens start a segment, bool [tokens].

    A token is flagged when its first byte is the first byte of a segment, the leading space included; a word is the tokens
    from one flag to the next. A segment that starts inside a token is not flagged, so its tokens join the segment before and
    match no dictionary. The first token that has bytes is always flagged.

    Args:
        token_num_bytes_of_ids: bytes of text per token, int64 [tokens], summing to the text's length.
        segments: of the same text.

    Raises:
        DataError: the tokens do not cover the text.
    """
    ends = np.cumsum(token_num_bytes_of_ids)
    if (int(ends[-1]) if ends.size else 0) != segments.num_bytes:
        raise DataError(
            f"The tokens cover {int(ends[-1]) if ends.size else 0} bytes of a text of {segments.num_bytes}.",
            "The tokenizer changes the text, so word boundaries cannot be found in its tokens.",
        )
    is_start = np.zeros(segments.num_bytes + 1, dtype=np.bool_)
    is_start[segments.starts] = True
    # A token without bytes stands where the next one does; that one starts the segment.
    flags: Bools = is_start[ends - token_num_bytes_of_ids] & (token_num_bytes_of_ids > 0)
    return flags
