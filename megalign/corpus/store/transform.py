"""Stores made from stores: clones, unions, compressed archives."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from megalign import files
from megalign.corpus.build import cut_to_fit
from megalign.corpus.readers import Document
from megalign.corpus.store.check import check_store
from megalign.corpus.store.reader import TokenStore, read_unit_json
from megalign.corpus.store.writer import (
    ARRAY_SCALES,
    MANIFEST,
    SPLITS,
    UNIT,
    StoreWriter,
    UnitWriter,
    token_dtype,
    write_manifest,
)
from megalign.corpus.store.zarr_files import SHARD_ELEMENTS, ArrayWriter, group_json, write_durably
from megalign.corpus.vocabulary import Vocabulary
from megalign.errors import ConfigError, DataError

ARCHIVE = "archive.json"


def clone_store(source: Path, output: Path, language: str, clone: str, budget_tokens: int | None = None) -> TokenStore:
    """Write a store of a language's clone: the same text with ids shifted by the vocabulary size (En-Clone).

    The new store holds the clone alone, in the vocabulary of the source plus the clone; `merge_stores` joins the two.

    Args:
        source: a store with the language.
        output: the new store.
        language: what to clone.
        clone: name of the clone.
        budget_tokens: exactly this many training tokens, from the first document on; None for all.

    Raises:
        DataError: the source lacks the language, or has fewer tokens than the budget.
        ConfigError: the budget is below 2, the clone's name is taken, or the language is itself a clone.
    """
    if budget_tokens is not None and budget_tokens < 2:
        raise ConfigError(f"A budget of {budget_tokens} tokens for {clone} holds no document.", fix="Set 2 or more.")
    store = TokenStore.open(source)
    old = store.vocabulary
    vocabulary = Vocabulary(old.tokenizer, (*old.languages, clone), old.clone_of | {clone: language})
    available = store.num_tokens(language)
    if budget_tokens is not None and budget_tokens > available:
        raise DataError(f"The store {source} has {available} tokens of {language}, fewer than {budget_tokens}.")
    left = available if budget_tokens is None else budget_tokens
    with _new_store(output) as folder, StoreWriter(folder, vocabulary) as writer:
        for split in SPLITS:
            if not store.has(language, split):
                continue
            with writer.unit(f"{clone}/{split}", clone, split) as unit:
                for document in store.documents(language, split):
                    ids, flags = document.ids, document.word_starts
                    if split == "train":
                        ids, flags = cut_to_fit(ids, flags, left)
                        left -= len(ids)
                    shifted = vocabulary.shift(ids.astype(np.uint32), clone)
                    unit.add(shifted, flags, Document("", document.source, document.row, document.url))
                    if split == "train" and left == 0:
                        break
    return TokenStore.open(output)


def merge_stores(sources: Sequence[Path], output: Path) -> TokenStore:
    """Write the union of stores with one tokenizer. Units are hard-linked where the file system allows, else copied.

    Raises:
        DataError: a source is damaged or named twice, or the sources differ in tokenizer, in word segmenter or in the ids
            of a clone.
    """
    for number, source in enumerate(sources):
        if source.resolve() in [other.resolve() for other in sources[:number]]:
            raise DataError(f"{source} is named twice.", "Its text would count twice.", "Name each store once.")
    stores = [TokenStore.open(source) for source in sources]
    for source in sources:
        if problems := check_store(source, deep=False):
            raise DataError(f"The store {source} is damaged: {problems[0].message}", fix="Run check_store.py.")
    vocabulary = _union(stores)
    entries: list[dict[str, Any]] = []
    with _new_store(output) as folder:
        writer = StoreWriter(folder, vocabulary)
        for number, store in enumerate(stores):
            for entry in store.manifest["units"]:
                taken = any(entry["path"] == other["path"] for other in entries)
                language, _, name = entry["path"].rpartition("/")
                path = f"{language}/{number:02d}-{name}" if taken else entry["path"]
                if store.dtype == token_dtype(vocabulary.size):
                    _link_tree(store.path / entry["path"], folder / path)
                    entries.append(entry | {"path": path})
                else:
                    with writer.unit(path, entry["language"], entry["split"]) as unit:
                        _copy_documents(store, entry, unit)
                    entries.append(next(made for made in writer.entries() if made["path"] == path))
        write_manifest(folder, vocabulary, entries)
    return TokenStore.open(output)


@contextmanager
def _new_store(output: Path) -> Iterator[Path]:
    """A folder that appears under the name `output` when the block ends without an error.

    Raises:
        DataError: something is there already.
    """
    if (output / MANIFEST).exists():
        raise DataError(f"The store {output} is finished.", fix="Choose another folder, or remove this one.")
    if _is_something(output):
        raise DataError(f"{output} exists and is no finished store.", fix="Choose another folder, or remove this one.")
    with files.new_folder(output) as folder:
        yield folder


def _is_something(path: Path) -> bool:
    """Whether a path holds anything: an empty folder is nobody's loss."""
    return path.exists() and not (path.is_dir() and not any(path.iterdir()))


def _union(stores: Sequence[TokenStore]) -> Vocabulary:
    """The vocabulary of all stores; refuses stores in which an id or a word means different things."""
    first = stores[0]
    languages: dict[str, None] = {}
    clone_of: dict[str, str] = {}
    for store in stores:
        for key in ("tokenizer_fingerprint", "eos_token"):
            if store.manifest[key] != first.manifest[key]:
                raise DataError(
                    f"The stores {first.path} and {store.path} have different tokenizers:"
                    f" {first.manifest[key]} and {store.manifest[key]}.",
                    "Their ids mean different words.",
                )
        languages |= dict.fromkeys(store.vocabulary.languages)
        clone_of |= store.vocabulary.clone_of
    merged = Vocabulary(first.vocabulary.tokenizer, tuple(languages), clone_of)
    segmenters: dict[str, str] = {}
    for store in stores:
        for language, segmenter in store.manifest["word_segmenter"].items():
            if segmenters.setdefault(language, segmenter) != segmenter:
                raise DataError(f"Words of {language} were found by {segmenters[language]} and by {segmenter}.")
        for language in store.languages:
            if store.vocabulary.offset(language) != merged.offset(language):
                raise DataError(
                    f"The ids of the clone {language} in {store.path} are taken by another clone.",
                    fix="Make the clones from one store, one after the other.",
                )
    return merged


def _link_tree(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.is_dir():
            _link_tree(path, target / path.name)
            continue
        try:
            (target / path.name).hardlink_to(path)
        except OSError:
            shutil.copyfile(path, target / path.name)


def _copy_documents(store: TokenStore, entry: dict[str, Any], unit: UnitWriter) -> None:
    one = TokenStore(store.path, store.manifest | {"units": [entry]}, store.fingerprint)
    for document in one.documents(entry["language"], entry["split"]):
        place = Document("", document.source, document.row, document.url)
        unit.add(document.ids.astype(np.uint32), document.word_starts, place)


def archive_store(source: Path, output: Path, level: int = 9) -> None:
    """Write a compressed copy of a store, for keeping: zarr arrays under zstd, `archive.json` instead of the manifest.

    Args:
        source: a store.
        output: the archive's folder.
        level: of zstd, 1 to 22.

    Raises:
        DataError: the source is damaged, or the output is there and is no archive.
    """
    _check_replaceable(output, ARCHIVE, source)
    if problems := check_store(source):
        raise DataError(f"The store {source} is damaged: {problems[0].message}", fix="Run check_store.py.")
    store = TokenStore.open(source)
    with files.new_folder(output) as folder:
        for entry in store.manifest["units"]:
            unit = folder / entry["path"]
            unit.mkdir(parents=True)
            shutil.copyfile(source / entry["path"] / UNIT, unit / UNIT)
            for name in ARRAY_SCALES:
                old = zarr.open_array(source / entry["path"] / name, mode="r")
                new = zarr.create_array(
                    unit / name, shape=old.shape, dtype=old.dtype, chunks=old.chunks, shards=old.shards,
                    compressors=ZstdCodec(level=level), config={"write_empty_chunks": True},
                )  # fmt: skip
                step = old.shards[0]
                for start in range(0, old.shape[0], step):
                    new[start : start + step] = old[start : start + step]
        _copy_files(source, folder, MANIFEST)
        shutil.copyfile(source / MANIFEST, folder / ARCHIVE)


def restore_archive(archive: Path, output: Path) -> TokenStore:
    """Write the store an archive was made from, byte for byte.

    Raises:
        DataError: there is no archive, it is damaged, or the output is there and is no store.
    """
    manifest = files.read_json(archive / ARCHIVE)
    _check_replaceable(output, MANIFEST, archive)
    with files.new_folder(output) as folder:
        for entry in manifest["units"]:
            _restore_unit(archive / entry["path"], folder / entry["path"])
        _copy_files(archive, folder, ARCHIVE)
        shutil.copyfile(archive / ARCHIVE, folder / MANIFEST)
    return TokenStore.open(output)


def _check_replaceable(output: Path, name: str, source: Path) -> None:
    """Refuse to replace what is not of the kind that is written (has no file `name`), and to write into the source."""
    if output.resolve().is_relative_to(source.resolve()):
        raise DataError(f"{output} is or lies in {source}, which is read.", fix="Choose another folder.")
    if _is_something(output) and not (output / name).is_file():
        raise DataError(f"{output} exists and has no {name}.", "It would be replaced.", "Choose another folder.")


def _copy_files(source: Path, target: Path, but: str) -> None:
    """Copy the files beside the units: the tokenizer, and how the store was built."""
    for path in source.iterdir():
        if path.is_file() and path.name != but:
            shutil.copyfile(path, target / path.name)


def _restore_unit(archived: Path, unit: Path) -> None:
    description = read_unit_json(archived)
    unit.mkdir(parents=True)
    write_durably(unit / "zarr.json", group_json({"megalign": description["format_version"]}))
    for name, scale in ARRAY_SCALES.items():
        try:
            old = zarr.open_array(archived / name, mode="r")
            writer = ArrayWriter(unit / name, old.dtype, scale)
            step = SHARD_ELEMENTS // scale
            for start in range(0, old.shape[0], step):
                writer.append(np.asarray(old[start : start + step]))
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"The archive {archived / name} is damaged: {error}.") from None
        writer.close()
    shutil.copyfile(archived / UNIT, unit / UNIT)
    for name, facts in description["files"].items():
        if google_crc32c.value((unit / name).read_bytes()) != facts["crc32c"]:
            raise DataError(f"The archive {archived} does not give back {name}.", "It is damaged or incomplete.")
