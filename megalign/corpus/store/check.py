"""Checking a token store against everything its readers rely on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import orjson

from megalign.corpus.store.reader import Unit, read_manifest
from megalign.corpus.store.writer import UNIT, unit_entry
from megalign.corpus.tokenizer import Tokenizer
from megalign.errors import DataError

_BLOCK_BYTES = 1 << 22
_BLOCK_TOKENS = 1 << 22


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong in a store.

    Attributes:
        unit: path of the unit within the store; empty for the store itself.
        kind: missing_manifest, tokenizer, missing_unit, unit_json, missing_file, truncated, checksum, layout, counts,
            offsets, token_id, document_end, word_starts or provenance.
        message: what is wrong, with the values.
    """

    unit: str
    kind: str
    message: str


def check_store(path: Path, deep: bool = True) -> list[Problem]:
    """Everything wrong with a store.

    Args:
        path: the store.
        deep: read every byte: checksums, ids, offsets, word starts. Otherwise only presence and sizes are checked.
    """
    try:
        manifest, _ = read_manifest(path)
    except DataError as error:
        return [Problem("", "missing_manifest", str(error))]
    problems = list(_check_tokenizer(path, manifest))
    for entry in manifest["units"]:
        problems += check_unit(path, entry, manifest, deep)
    return problems


def _check_tokenizer(path: Path, manifest: dict[str, Any]) -> Iterator[Problem]:
    try:
        tokenizer = Tokenizer.load(path / "tokenizer.json", manifest["eos_token"])
    except DataError as error:
        yield Problem("", "tokenizer", str(error))
        return
    if tokenizer.fingerprint != manifest["tokenizer_fingerprint"]:
        yield Problem(
            "", "tokenizer", f"tokenizer.json is {tokenizer.fingerprint}, not {manifest['tokenizer_fingerprint']}."
        )


def check_unit(path: Path, entry: dict[str, Any], manifest: dict[str, Any], deep: bool = True) -> list[Problem]:
    """Everything wrong with one unit.

    Args:
        path: the store.
        entry: the unit's entry in the manifest.
        manifest: the store's.
        deep: as in `check_store`.
    """
    name, folder = entry["path"], path / entry["path"]
    if not folder.is_dir():
        return [Problem(name, "missing_unit", f"The folder {folder} is missing.")]
    try:
        content = (folder / UNIT).read_bytes()
        description = orjson.loads(content)
        actual = unit_entry(description, content)
        files = dict(description["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [Problem(name, "unit_json", f"{folder / UNIT} is missing or damaged: {type(error).__name__} {error}.")]
    wrong = [
        f"{key} is {value}, the manifest says {entry.get(key)}"
        for key, value in actual.items()
        if value != entry.get(key)
    ]
    if wrong:
        return [Problem(name, "unit_json", f"{folder / UNIT}: {'; '.join(wrong)}.")]
    problems = [problem for file, facts in files.items() for problem in _check_file(name, folder / file, facts, deep)]
    if problems or not deep:
        return problems
    return list(_check_content(name, folder, entry, manifest, len(description["sources"])))


def _check_file(name: str, path: Path, facts: dict[str, int], deep: bool) -> Iterator[Problem]:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        yield Problem(name, "missing_file", f"{path} is missing.")
        return
    if size != facts["bytes"]:
        yield Problem(name, "truncated", f"{path} has {size} bytes instead of {facts['bytes']}.")
    elif deep and _crc_of(path) != facts["crc32c"]:
        yield Problem(name, "checksum", f"{path} does not have the crc32c {facts['crc32c']}: its content changed.")


def _crc_of(path: Path) -> int:
    crc = 0
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            crc = google_crc32c.extend(crc, block)
    return crc


def _check_content(
    name: str, folder: Path, entry: dict[str, Any], manifest: dict[str, Any], num_sources: int
) -> Iterator[Problem]:
    """What checksums cannot tell: whether the content was right when it was written."""
    try:
        unit = Unit(folder, entry)
        offsets = unit.doc_offsets
        _, source, row, urls, url_offsets = unit.provenance
        num_flag_bytes = len(unit.whole("word_starts"))
    except DataError as error:
        yield Problem(name, "layout", str(error))
        return
    if len(offsets) != entry["documents"] + 1 or num_flag_bytes != -(-entry["tokens"] // 8):
        yield Problem(
            name,
            "counts",
            f"{len(offsets)} document offsets and {num_flag_bytes} bytes of word starts"
            f" for {entry['documents']} documents and {entry['tokens']} tokens.",
        )
        return
    if offsets[0] != 0 or offsets[-1] != entry["tokens"] or (np.diff(offsets) <= 0).any():
        bad = np.flatnonzero(np.diff(offsets) <= 0)
        where = f"document {int(bad[0])}" if bad.size else f"ends {int(offsets[0])} and {int(offsets[-1])}"
        yield Problem(name, "offsets", f"The document offsets do not rise from 0 to {entry['tokens']}: {where}.")
        return
    counts = {len(source), len(row), len(url_offsets) - 1}
    if counts != {entry["documents"]} or (len(source) and int(source.max()) >= num_sources):
        yield Problem(name, "provenance", f"Provenance of {sorted(counts)} documents or of unknown sources.")
    elif url_offsets[0] != 0 or int(url_offsets[-1]) != len(urls) or (np.diff(url_offsets) < 0).any():
        yield Problem(name, "provenance", "The offsets of the addresses do not rise.")
    yield from _check_tokens(name, unit, offsets, manifest)


def _check_tokens(name: str, unit: Unit, offsets: Any, manifest: dict[str, Any]) -> Iterator[Problem]:
    size, eos = manifest["vocabulary"]["size"], manifest["eos_id"]
    first, last = offsets[:-1], offsets[1:] - 1
    for start in range(0, unit.num_tokens, _BLOCK_TOKENS):
        length = min(_BLOCK_TOKENS, unit.num_tokens - start)
        ids, flags = unit.tokens(start, length), unit.word_start_flags(start, length)
        if int(ids.max()) >= size:
            at = start + int(np.argmax(ids >= size))
            yield Problem(name, "token_id", f"Token {at} is {int(ids.max())}, not below the vocabulary's {size}.")
            return
        ends = last[(last >= start) & (last < start + length)] - start
        starts = first[(first >= start) & (first < start + length)] - start
        is_eos = ids == eos
        if not is_eos[ends].all():
            yield Problem(
                name, "document_end", f"A document does not end with id {eos} in tokens {start} to {start + length}."
            )
            return
        if int(is_eos.sum()) != len(ends):
            yield Problem(
                name, "document_end", f"Id {eos} stands inside a document in tokens {start} to {start + length}."
            )
            return
        if not flags[starts].all() or not flags[ends].all():
            yield Problem(name, "word_starts", f"A document's first or last token starts no word after token {start}.")
            return
    spare = -unit.num_tokens % 8
    if spare and unit.num_tokens and int(unit.word_bits[-1]) >> (8 - spare):
        yield Problem(name, "word_starts", "Word starts are set behind the last token.")
