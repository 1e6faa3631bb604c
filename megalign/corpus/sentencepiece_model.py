"""SentencePiece models as Hugging Face tokenizers, where they keep every byte of a text.

The fields read are those of sentencepiece_model.proto (SentencePiece 0.2). A model whose normalizer rewrites text (nmt_nfkc,
the default of `spm_train`) is refused: word boundaries and bytes per token would be those of another text.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from megalign.errors import DataError

SPACE = "\u2581"
UNIGRAM, BPE = 1, 2
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
Value = int | bytes


def _fields(message: bytes) -> Iterator[tuple[int, Value]]:
    """Field numbers and values of a protocol buffer message; fixed-width values come as their bytes."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(message):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(key & 7)
        if size is None:
            if key & 7 != 2:
                raise ValueError(f"wire type {key & 7}")
            size = varint()
        if position + size > len(message):
            raise ValueError("it is truncated")
        yield key >> 3, message[position : position + size]
        position += size


def _message(value: Value) -> dict[int, Value]:
    if isinstance(value, int):
        raise ValueError("a number stands for a message")
    return dict(_fields(value))


def convert_sentencepiece(path: Path) -> str:
    """The content of a tokenizer.json with the ids of a SentencePiece model (unigram or BPE).

    Raises:
        DataError: the file is no SentencePiece model, is of another type, or its normalizer rewrites text.
    """
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, Value] = {}
    normalizer: dict[int, Value] = {}
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1:
                piece = _message(value)
                text, score = piece[1], piece.get(2, b"\0\0\0\0")
                assert isinstance(text, bytes)
                assert isinstance(score, bytes)
                pieces.append((text.decode(), struct.unpack("<f", score)[0], int(piece.get(3, _NORMAL))))
            elif number == 2:
                trainer = _message(value)
            elif number == 3:
                normalizer = _message(value)
        if not pieces:
            raise ValueError("it has no pieces")
    except FileNotFoundError:
        raise DataError(f"The model {path} does not exist.") from None
    except (ValueError, KeyError, IndexError, AssertionError, struct.error) as error:
        raise DataError(f"{path} is not a SentencePiece model: {error}.") from None
    if normalizer.get(2) or normalizer.get(4, 1):
        name = str(bytes(normalizer.get(1, b"")), "utf-8", "replace") or "default"
        raise DataError(
            f"The SentencePiece model {path} rewrites text before it encodes it (normalizer {name}).",
            "Word boundaries and bytes per token would be those of another text.",
            "Train it with --normalization_rule_name=identity --remove_extra_whitespaces=false.",
        )
    return _assemble(path, pieces, trainer, add_prefix=bool(normalizer.get(3, 1)))


def _assemble(path: Path, pieces: list[tuple[str, float, int]], trainer: dict[int, Value], add_prefix: bool) -> str:
    byte_fallback = any(kind == _BYTE for _, _, kind in pieces)
    unknown = next((i for i, (_, _, kind) in enumerate(pieces) if kind == _UNKNOWN), None)
    model_type = trainer.get(3, UNIGRAM)
    if model_type == UNIGRAM:
        scored = [(text, score) for text, score, _ in pieces]
        made = Tokenizer(models.Unigram(scored, unk_id=unknown, byte_fallback=byte_fallback))
    elif model_type == BPE:
        vocabulary = {text: i for i, (text, _, _) in enumerate(pieces)}
        made = Tokenizer(
            models.BPE(
                vocabulary, _merges(pieces, vocabulary), fuse_unk=True, byte_fallback=byte_fallback,
                unk_token=None if unknown is None else pieces[unknown][0],
            )
        )  # fmt: skip
    else:
        raise DataError(f"The SentencePiece model {path} is of type {model_type!r}.", fix="Use a unigram or BPE model.")
    prefix = [normalizers.Prepend(SPACE)] if add_prefix else []
    made.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", SPACE)])
    made.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    control = [text for text, _, kind in pieces if kind in (_CONTROL, _UNKNOWN)]
    made.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in control])
    own = [text for text, _, kind in pieces if kind == _USER_DEFINED]
    made.add_tokens([AddedToken(text, normalized=False, special=False) for text in own])
    content: str = made.to_str(pretty=True)
    return content + "\n"


def _merges(pieces: list[tuple[str, float, int]], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """The merges behind a BPE model's pieces: every way to make a piece of two others, the best pieces first."""
    merges = []
    for text, score, kind in pieces:
        if kind != _NORMAL:
            continue
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in vocabulary and right in vocabulary:
                merges.append((-score, vocabulary[left], vocabulary[right], left, right))
    return [(left, right) for *_, left, right in sorted(merges)]
