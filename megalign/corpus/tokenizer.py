"""Byte-level BPE tokenizers: trained with Hugging Face `tokenizers`, applied with `tiktoken` where the ids are the same.

`tiktoken` is five to eight times faster. It is used when the file describes a plain byte-level BPE (no normalizer, one
pre-tokenization pattern, every token made by exactly one merge); any other tokenizer.json goes through `tokenizers` itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from megalign import files
from megalign.corpus.fast_bpe import FastBPE, is_byte_level, token_bytes
from megalign.corpus.sentencepiece_model import convert_sentencepiece
from megalign.errors import ConfigError, DataError

Ids = npt.NDArray[np.uint32]

EOS = "<|endoftext|>"
KNOWN_EOS = (EOS, "</s>", "<|end_of_text|>", "<|eot_id|>", "<eos>", "<|im_end|>")


def train_tokenizer(texts: Iterable[str], vocab_size: int, path: Path) -> Tokenizer:
    """Train a byte-level BPE and save it as a Hugging Face `tokenizer.json`.

    Id 0 is `<|endoftext|>`, ids 1 to 256 are the bytes, then the merges in the order they were learned. The same texts in
    the same order give the same file, byte for byte.

    Args:
        texts: training documents.
        vocab_size: tokens in all, at least 257. Fewer come out where the texts have too few pairs.
        path: the file to write.

    Raises:
        ConfigError: `vocab_size` is below 257.
    """
    if vocab_size < 257:
        raise ConfigError(
            f"A byte-level vocabulary of {vocab_size} tokens is too small.",
            "256 bytes and the end-of-text token must fit.",
            "Set vocab_size to 257 or more.",
        )
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        # Sorted: the alphabet comes as a set, and its order would decide the ids.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    files.write_text(path, tokenizer.to_str(pretty=True) + "\n")
    return Tokenizer.load(path)


class Tokenizer:
    """Text to ids and back.

    Special tokens written out in a text are ordinary text: only a program puts an end-of-text id into a sequence.

    Attributes:
        vocab_size: number of ids; every id is below it.
        eos_id: id of the end-of-text token.
        is_fast: whether `tiktoken` encodes.
    """

    def __init__(self, content: str, eos_token: str | None = None) -> None:
        self._content = content
        try:
            self._spec: dict[str, Any] = orjson.loads(content)
            added = {token["content"]: token for token in self._spec.get("added_tokens", [])}
            self._special = {token for token, entry in added.items() if entry["special"]}
            self._fast = FastBPE.of(self._spec, self._special)
            listed = self._spec["model"]["vocab"]
            vocabulary = {piece: i for i, (piece, _) in enumerate(listed)} if isinstance(listed, list) else listed
            self._vocabulary: dict[str, int] = vocabulary | {token: entry["id"] for token, entry in added.items()}
            if self._fast is None:
                self._hf = self._as_tokenizers()
        except Exception as error:  # `tokenizers` raises bare Exception
            raise DataError(f"This is not a tokenizer.json: {type(error).__name__} {error}.") from None
        self.is_fast = self._fast is not None
        self.vocab_size = max(self._vocabulary.values()) + 1
        candidates = [eos_token] if eos_token else [token for token in KNOWN_EOS if token in self._vocabulary]
        if not candidates or candidates[0] not in self._vocabulary:
            raise DataError(
                f"The tokenizer has no end-of-text token {eos_token or ', '.join(KNOWN_EOS)}.",
                "Every document in a store ends with it.",
                "Name it: eos_token, --eos-token.",
            )
        self.eos_token: str = candidates[0]
        self._special.add(self.eos_token)
        self.eos_id: int = self._vocabulary[self.eos_token]

    def _as_tokenizers(self) -> Any:
        spec = self._spec
        if spec["model"]["type"] == "Unigram":
            # A unigram model finds its special pieces in plain text: give them names that are in no text (U+FDD0 is no
            # character), at the same ids.
            pieces = [[f"\ufdd0{i}" if p in self._special else p, s] for i, (p, s) in enumerate(spec["model"]["vocab"])]
            added = [token for token in spec.get("added_tokens", []) if not token["special"]]
            spec = spec | {"model": spec["model"] | {"vocab": pieces}, "added_tokens": added, "post_processor": None}
        made = tokenizers.Tokenizer.from_str(orjson.dumps(spec).decode())
        made.encode_special_tokens = True
        return made

    @classmethod
    def load(cls, path: Path, eos_token: str | None = None) -> Tokenizer:
        """Read a `tokenizer.json`, or the one in a folder, or a SentencePiece model.

        Args:
            path: the file or folder; a file whose name ends with .model is a SentencePiece model.
            eos_token: the end-of-text token; by default the first of the usual ones that the file has.

        Raises:
            DataError: the file is missing, is no tokenizer.json, or has no such end-of-text token.
        """
        path = path / "tokenizer.json" if path.is_dir() else path
        try:
            content = convert_sentencepiece(path) if path.suffix == ".model" else path.read_text(encoding="utf-8")
            return cls(content, eos_token)
        except FileNotFoundError:
            raise DataError(f"The tokenizer {path} does not exist.", fix="Train one or name its file.") from None
        except UnicodeDecodeError as error:
            raise DataError(f"The tokenizer {path} is not a tokenizer.json: {error}.") from None
        except DataError as error:
            raise DataError(f"The tokenizer {path} cannot be used: {error.what}", error.why, error.fix) from None

    def save(self, path: Path) -> None:
        """Write the tokenizer.json this was read from, unchanged."""
        files.write_text(path, self._content)

    def to_json(self) -> str:
        """The content of the tokenizer.json."""
        return self._content

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the sha256 of the file's content in canonical JSON with the end-of-text token."""
        canonical = orjson.dumps([self._spec, self.eos_token], option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(canonical).hexdigest()[:16]

    def encode(self, text: str) -> Ids:
        """Ids of a text, uint32 [tokens], without an end-of-text id.

        Raises:
            DataError: the text has lone surrogates, that is, cannot be UTF-8.
        """
        try:
            if self._fast is not None:
                if not text.isascii():
                    text.encode("utf-8")  # tiktoken would replace what cannot be encoded
                return np.array(self._fast.encode(text), dtype=np.uint32)
            return np.array(self._hf.encode(text, add_special_tokens=False).ids, dtype=np.uint32)
        except UnicodeEncodeError as error:
            raise DataError(f"A text is not valid Unicode: {error.reason} at character {error.start}.") from None

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """`encode` of each text."""
        if self._fast is not None:
            return [self.encode(text) for text in texts]
        encodings = self._hf.encode_batch(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes the ids stand for; the end-of-text id stands for none."""
        table = self._token_bytes
        try:
            return b"".join(table[int(i)] for i in ids)
        except IndexError:
            raise DataError(f"An id is not below the vocabulary size {self.vocab_size}.") from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text the ids stand for; bytes that are not UTF-8 (a cut character) become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    @cached_property
    def adds_space(self) -> bool:
        """Whether encoding puts a space before the text, as SentencePiece models do ("dummy prefix")."""
        return self.decode_bytes(self.encode("a")) == b" a"

    @cached_property
    def token_num_bytes(self) -> npt.NDArray[np.int64]:
        """Length of each token in bytes of text, int64 [vocab_size]; 0 for special tokens."""
        return np.array([len(token) for token in self._token_bytes], dtype=np.int64)

    @cached_property
    def _token_bytes(self) -> list[bytes]:
        table = [b""] * self.vocab_size
        ordinary = {token: index for token, index in self._vocabulary.items() if token not in self._special}
        byte_level = is_byte_level(ordinary)
        for token, index in ordinary.items():
            if byte_level:
                table[index] = token_bytes(token)
            elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                table[index] = bytes([int(token[3:5], 16)])
            else:
                table[index] = token.replace("\u2581", " ").encode()
        return table
