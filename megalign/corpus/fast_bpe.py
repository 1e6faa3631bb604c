"""Byte-level BPE by `tiktoken`, for tokenizer files whose ids it gives exactly.

It does where nothing but one pre-tokenization pattern and the merges decides the ids, and every token longer than a byte is
made by one merge, in the order of the ids: then merging by rank of the pair and by rank of the union are the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import tiktoken

# GPT-2's pattern (Radford et al. 2019), which the pre-tokenizer ByteLevel(use_regex=True) applies, is
#   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
# Its lookahead makes the matcher backtrack. It only says that white space before anything else gives its last character to
# what follows; with the text cut there first, the pattern without it matches the same, twice as fast.
_GPT2_WITHOUT_LOOKAHEAD = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+"""
# The characters that \s matches: Unicode's White_Space.
_SPACES = (*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000)
_IS_SPACE = np.zeros(0x3002, dtype=np.bool_)
_IS_SPACE[list(_SPACES)] = True
_IS_SPACE_ASCII = _IS_SPACE[:256].tobytes()
# Python's \s matches all of Unicode's White_Space and four control characters.
_SPACES_BEFORE = re.compile(r"\s\s\S")


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each of the 256 bytes, inverted."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF = byte_alphabet()
_TO_LATIN_1 = str.maketrans({char: chr(byte) for char, byte in _BYTE_OF.items()})


def token_bytes(token: str) -> bytes:
    """The bytes a token of a byte-level vocabulary stands for."""
    return token.translate(_TO_LATIN_1).encode("latin-1")


def is_byte_level(tokens: Mapping[str, int]) -> bool:
    """Whether tokens are written in GPT-2's byte alphabet, and each byte is one."""
    return set("".join(tokens)) <= _BYTE_OF.keys() and _BYTE_OF.keys() <= tokens.keys()


class FastBPE:
    """A byte-level BPE. Made by `FastBPE.of`."""

    def __init__(self, pattern: str | None, ranks: dict[bytes, int]) -> None:
        self._cut = pattern is None
        self._bpe = tiktoken.Encoding(
            "bpe", pat_str=pattern or _GPT2_WITHOUT_LOOKAHEAD, mergeable_ranks=ranks, special_tokens={}
        )

    @classmethod
    def of(cls, spec: Mapping[str, Any], special: set[str]) -> FastBPE | None:
        """The same tokenizer for tiktoken; None where its ids could differ.

        Args:
            spec: the content of a tokenizer.json.
            special: tokens that stand for no text.
        """
        model, is_plain, pattern = spec["model"], *_pattern(spec)
        if not is_plain or model.get("type") != "BPE" or spec.get("normalizer"):
            return None
        if any(not token["special"] for token in spec.get("added_tokens", [])):
            return None
        if model.get("dropout") or model.get("byte_fallback") or model.get("continuing_subword_prefix"):
            return None
        ordinary = {token: index for token, index in model["vocab"].items() if token not in special}
        if not is_byte_level(ordinary):
            return None
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        unions = [left + right for left, right in merges]
        longer = sorted((token for token in ordinary if len(token) > 1), key=ordinary.__getitem__)
        if unions != longer:
            return None
        return cls(pattern, {token_bytes(token): index for token, index in ordinary.items()})

    def encode(self, text: str) -> list[int]:
        """Ids of a text that is valid Unicode."""
        ids: list[int] = []
        start = 0
        for cut in _cuts(text) if self._cut else ():
            ids += self._bpe.encode_ordinary(text[start:cut])
            start = cut
        ids += self._bpe.encode_ordinary(text[start:])
        return ids


def _cuts(text: str) -> list[int]:
    """Where the last of several white-space characters stands that is followed by anything else."""
    if len(text) < 256 and not _SPACES_BEFORE.search(text):
        return []  # single words: setting up the arrays would take longer than encoding
    if text.isascii():
        space = np.frombuffer(text.encode("ascii").translate(_IS_SPACE_ASCII), dtype=np.bool_)
    else:
        points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        space = _IS_SPACE.take(points, mode="clip")
    cuts: list[int] = (np.flatnonzero(space[:-2] & space[1:-1] & ~space[2:]) + 1).tolist()
    return cuts


def _pattern(spec: Mapping[str, Any]) -> tuple[bool, str | None]:
    """Whether the pre-tokenizer is that of a plain byte-level BPE, and its pattern where that is not GPT-2's."""
    pre = spec.get("pre_tokenizer") or {}
    if pre.get("type") == "ByteLevel":
        return not pre["add_prefix_space"] and pre["use_regex"], None
    steps = pre.get("pretokenizers", []) if pre.get("type") == "Sequence" else []
    if [step["type"] for step in steps] != ["Split", "ByteLevel"]:
        return False, None
    split, level = steps
    plain = not (level["add_prefix_space"] or level["use_regex"] or split["invert"]) and split["behavior"] == "Isolated"
    return plain and "Regex" in split["pattern"], split["pattern"].get("Regex")
