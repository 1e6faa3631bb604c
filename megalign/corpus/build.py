"""Documents into units of a store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from megalign.corpus.readers import Document
from megalign.corpus.store.writer import StoreWriter
from megalign.corpus.vocabulary import Vocabulary
from megalign.corpus.words import segment, word_starts
from megalign.errors import ConfigError, DataError

_BATCH_DOCUMENTS = 64


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
    tokenizer, eos = vocabulary.tokenizer, np.array([vocabulary.eos_id], dtype=np.uint32)
    segmented_as = vocabulary.clone_of.get(language, language)
    num_bytes, flag = tokenizer.token_num_bytes, np.ones(1, dtype=np.bool_)
    stream = iter(documents)
    while batch := list(islice(stream, _BATCH_DOCUMENTS)):
        try:
            encoded = tokenizer.encode_batch([document.text for document in batch])
        except DataError as error:
            raise DataError(f"{batch[0].place} to {batch[-1].place}: {error}") from None
        for document, ids in zip(batch, encoded, strict=True):
            try:
                flags = word_starts(num_bytes[ids], segment(document.text, segmented_as))
            except DataError as error:
                raise DataError(f"{document.place}: {error.what}", error.why, error.fix) from None
            ids = np.concatenate([vocabulary.shift(ids, language), eos])
            yield ids, np.concatenate([flags, flag]), document


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
