"""Documents into units of a store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megalign.corpus.readers import Document
from megalign.corpus.store.writer import StoreWriter
from megalign.corpus.tokenizer import Tokenizer
from megalign.corpus.vocabulary import Vocabulary
from megalign.corpus.words import segment_lines, word_starts
from megalign.errors import ConfigError, DataError

_BATCH_DOCUMENTS, _BATCH_CHARS = 64, 1 << 20


@dataclass(frozen=True, slots=True)
class Counts:
    """What a build wrote: tokens with end-of-text ids, documents, and bytes of text."""

    tokens: int
    documents: int
    bytes_of_text: int


def split_of(text: str, valid_fraction: float) -> str:
    """ "train" or "valid", decided by the text alone, so that equal documents never fall on both sides.

    Args:
        text: the document.
        valid_fraction: expected share of documents in "valid", from 0 to 1.
    """
    digest = hashlib.blake2b(text.encode("utf-8", errors="surrogatepass"), digest_size=8, person=b"split").digest()
    return "valid" if int.from_bytes(digest, "little") < valid_fraction * 2**64 else "train"


def encode_documents(
    documents: Iterable[Document], vocabulary: Vocabulary, language: str
) -> Iterator[tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_], Document]]:
    """Ids with the end-of-text id [tokens], word-start flags [tokens] and the document, in order.

    The words of a clone are those of the language it copies. The end-of-text id is flagged.

    Raises:
        DataError: a text is not valid Unicode, or the tokenizer does not keep its bytes.
    """
    segmented_as = vocabulary.clone_of.get(language, language)
    for batch in _batches(documents):
        # Text that is all ASCII is divided faster.
        ascii_only = [document.text.isascii() for document in batch]
        encoded: dict[int, tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]] = {}
        for kind in (True, False):
            places = [place for place, is_ascii in enumerate(ascii_only) if is_ascii is kind]
            chosen = [batch[place] for place in places]
            if chosen:
                encoded |= zip(places, _encode_batch(chosen, vocabulary.tokenizer, segmented_as), strict=True)
        for place, document in enumerate(batch):
            ids, flags = encoded[place]
            yield vocabulary.shift(ids, language), flags, document


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in lists of bounded length and size."""
    batch: list[Document] = []
    num_chars = 0
    for document in documents:
        batch.append(document)
        num_chars += len(document.text)
        if len(batch) == _BATCH_DOCUMENTS or num_chars >= _BATCH_CHARS:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch


def _encode_batch(
    batch: list[Document], tokenizer: Tokenizer, language: str
) -> list[tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]]:
    """Ids with the end-of-text id and word-start flags of each document."""
    # The space that some tokenizers add belongs to the first word, like any space before a word.
    texts = [f" {document.text}" if tokenizer.adds_space else document.text for document in batch]
    try:
        encoded = tokenizer.encode_batch([document.text for document in batch])
        segments = segment_lines(texts, language)
    except DataError as error:
        raise DataError(f"{batch[0].place} to {batch[-1].place}: {error}") from None
    eos = np.array([tokenizer.eos_id], dtype=np.uint32)
    ids = np.concatenate([part for one in encoded for part in (one, eos)])
    ends = np.cumsum([len(one) + 1 for one in encoded])
    num_bytes = tokenizer.token_num_bytes[ids]
    # The end-of-text id stands where `segment_lines` has a line feed.
    num_bytes[ends - 1] = 1
    covered, present = np.cumsum(num_bytes)[ends - 1], np.cumsum([len(text.encode()) + 1 for text in texts])
    if (wrong := np.flatnonzero(covered != present)).size:
        raise DataError(
            f"{batch[int(wrong[0])].place}: the tokens do not cover the text.",
            "The tokenizer changes the text, so word boundaries cannot be found in its tokens.",
            "Use a byte-level tokenizer, or a SentencePiece model with byte fallback.",
        )
    flags = word_starts(num_bytes, segments)
    return list(zip(np.split(ids, ends[:-1]), np.split(flags, ends[:-1]), strict=True))


def build_language(
    writer: StoreWriter,
    *,
    documents: Iterable[Document | str],
    language: str,
    split: str = "train",
    vocabulary: Vocabulary | None = None,
    budget_tokens: int | None = None,
    unit_name: str | None = None,
) -> Counts:
    """Write documents of one language as one unit.

    Args:
        writer: the store.
        documents: texts, or documents that say where they came from; with a budget they may be endless.
        language: one of the vocabulary's.
        split: "train" or "valid".
        vocabulary: the writer's, which is also the default.
        budget_tokens: exactly this many tokens are written, end-of-text ids included; the last document is cut to fit and
            ends with the end-of-text id. None writes all.
        unit_name: folder of the unit in the store; `{language}/{split}` by default.

    Raises:
        ConfigError: the budget is below 2, or the vocabulary is not the writer's.
        DataError: the documents end before the budget, or there is none.
    """
    if budget_tokens is not None and budget_tokens < 2:
        raise ConfigError(f"A budget of {budget_tokens} tokens for {language} holds no document.", fix="Set 2 or more.")
    if vocabulary is not None and vocabulary.fingerprint != writer.vocabulary.fingerprint:
        raise ConfigError("The vocabulary is not the store's.", fix="Leave it out.")
    vocabulary = writer.vocabulary
    named = (
        Document(d, unit_name or f"{language}/{split}", i) if isinstance(d, str) else d for i, d in enumerate(documents)
    )
    with writer.unit(unit_name or f"{language}/{split}", language, split) as unit:
        for ids, flags, document in encode_documents(named, vocabulary, language):
            if budget_tokens is not None:
                ids, flags = cut_to_fit(ids, flags, budget_tokens - unit.num_tokens)
            unit.add(ids, flags, document)
            if unit.num_tokens == budget_tokens:
                break
        if budget_tokens is not None and unit.num_tokens < budget_tokens:
            raise DataError(
                f"The {split} documents of {language} have {unit.num_tokens} tokens, fewer than the budget of {budget_tokens}.",
                fix="Lower the budget, or give more text.",
            )
        if not unit.num_documents:
            raise DataError(f"There is no {split} document of {language}.")
        return Counts(unit.num_tokens, unit.num_documents, unit.num_text_bytes)


def cut_to_fit(
    ids: npt.NDArray[np.uint32], flags: npt.NDArray[np.bool_], room: int
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
    """A document of at most `room` tokens that ends with the end-of-text id.

    Cut or not, its last token is the end-of-text id; with room for one token, that is all it has.
    """
    if len(ids) <= room:
        return ids, flags
    return np.concatenate([ids[: room - 1], ids[-1:]]), np.concatenate([flags[: room - 1], flags[-1:]])
