"""Writing a token store: units one after the other or side by side, the manifest last.

    STORE/manifest.json                       what a reader needs; written last, so a store without it is unfinished
    STORE/UNIT/zarr.json                      a zarr v3 group
    STORE/UNIT/_unit.json                     counts, sources, and size and crc32c of every file
    STORE/UNIT/{tokens,doc_offsets,word_starts,source,row,urls,url_offsets}/

`tokens` are documents end to end, each closed by the end-of-text id. `doc_offsets` (int64, documents + 1) are token positions.
`word_starts` holds one bit per token, lowest bit first. `source` and `row` say where each document came from (`source` counts
in `sources` of _unit.json), `urls` and `url_offsets` its address. A unit is written under `.tmp-*` and renamed when whole.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from megalign import files
from megalign.corpus.readers import Document
from megalign.corpus.store.zarr_files import Array, ArrayWriter, group_json, json_bytes, write_durably
from megalign.corpus.vocabulary import Vocabulary
from megalign.corpus.words import segmenter_name
from megalign.errors import ConfigError, DataError

FORMAT_VERSION = 1
SPLITS = ("train", "valid")
MANIFEST, UNIT = "manifest.json", "_unit.json"
# The arrays of a unit, and how many times smaller than those of tokens their shards and chunks are.
ARRAY_SCALES = {
    "tokens": 1,
    "doc_offsets": 64,
    "word_starts": 8,
    "source": 64,
    "row": 64,
    "urls": 64,
    "url_offsets": 64,
}
_FLUSH_TOKENS = 1 << 20


def token_dtype(vocabulary_size: int) -> np.dtype[Any]:
    """The smallest unsigned type that holds every id: uint16 up to 65,536 ids, else uint32."""
    return np.dtype(np.uint16 if vocabulary_size <= 1 << 16 else np.uint32)


class UnitWriter:
    """One unit while it is written; made by `StoreWriter.unit`."""

    def __init__(self, folder: Path, vocabulary: Vocabulary, language: str, split: str) -> None:
        self._folder, self._vocabulary = folder, vocabulary
        self.language, self.split = language, split
        self.num_tokens = self.num_documents = self.num_text_bytes = 0
        self._sources: dict[str, int] = {}
        self._token_num_bytes = vocabulary.token_num_bytes
        dtypes: dict[str, npt.DTypeLike] = {
            "tokens": token_dtype(vocabulary.size),
            "doc_offsets": np.int64,
            "word_starts": np.uint8,
        }
        dtypes |= {"source": np.uint32, "row": np.int64, "urls": np.uint8, "url_offsets": np.int64}
        self._arrays = {name: ArrayWriter(folder / name, t, ARRAY_SCALES[name]) for name, t in dtypes.items()}
        self._pending: dict[str, list[Array]] = {name: [] for name in dtypes}
        self._pending_tokens = 0
        self._url_bytes = 0
        self._bits = np.zeros(0, dtype=np.bool_)
        self._push("doc_offsets", np.zeros(1, dtype=np.int64))
        self._push("url_offsets", np.zeros(1, dtype=np.int64))

    def add(self, ids: npt.NDArray[Any], word_starts: npt.NDArray[np.bool_], document: Document) -> None:
        """Add a document.

        Args:
            ids: integers [tokens], the last one the end-of-text id.
            word_starts: which tokens start a segment, bool [tokens].
            document: where it came from; its text is not looked at.

        Raises:
            DataError: the flags do not fit, the document does not end with the end-of-text id, or an id is out of range.
        """
        if len(ids) != len(word_starts):
            raise DataError(f"{document.place}: {len(ids)} ids but {len(word_starts)} word starts.")
        if not len(ids) or ids[-1] != self._vocabulary.eos_id:
            raise DataError(f"{document.place}: the document does not end with id {self._vocabulary.eos_id}.")
        if int(ids.max()) >= self._vocabulary.size or int(ids.min()) < 0:
            raise DataError(
                f"{document.place}: id {int(ids.max())} is outside the vocabulary of {self._vocabulary.size}."
            )
        self.num_tokens += len(ids)
        self.num_documents += 1
        self.num_text_bytes += int(self._token_num_bytes[ids].sum())
        self._push("tokens", ids)
        self._push("word_starts", word_starts)
        self._push("doc_offsets", np.array([self.num_tokens]))
        self._push("source", np.array([self._sources.setdefault(document.source, len(self._sources))]))
        self._push("row", np.array([document.row]))
        url = (document.url or "").encode("utf-8", errors="replace")
        self._url_bytes += len(url)
        self._push("urls", np.frombuffer(url, dtype=np.uint8))
        self._push("url_offsets", np.array([self._url_bytes]))
        self._pending_tokens += len(ids)
        if self._pending_tokens >= _FLUSH_TOKENS:
            self._flush()

    def _push(self, name: str, values: Array) -> None:
        self._pending[name].append(values)

    def _flush(self, last: bool = False) -> None:
        for name, parts in self._pending.items():
            if name == "word_starts":
                flags = np.concatenate([self._bits, *parts])
                whole = len(flags) if last else len(flags) // 8 * 8
                self._bits = flags[whole:]
                self._arrays[name].append(np.packbits(flags[:whole], bitorder="little"))
            elif parts:
                self._arrays[name].append(np.concatenate(parts))
            parts.clear()
        self._pending_tokens = 0

    def abandon(self) -> None:
        for array in self._arrays.values():
            array.abandon()

    def close(self) -> dict[str, Any]:
        """Write everything into the unit's folder; returns the content of _unit.json."""
        self._flush(last=True)
        listed: dict[str, tuple[int, int]] = {}
        listed["zarr.json"] = write_durably(self._folder / "zarr.json", group_json({"megalign": FORMAT_VERSION}))
        for name, array in self._arrays.items():
            array.close()
            listed |= {f"{name}/{path}": entry for path, entry in array.files.items()}
            files.fsync_directory(self._folder / name / "c")
            files.fsync_directory(self._folder / name)
        return {
            "format_version": FORMAT_VERSION,
            "language": self.language,
            "split": self.split,
            "dtype": token_dtype(self._vocabulary.size).name,
            "tokenizer_fingerprint": self._vocabulary.tokenizer.fingerprint,
            "word_segmenter": segmenter_name(self._vocabulary.clone_of.get(self.language, self.language)),
            "tokens": self.num_tokens,
            "documents": self.num_documents,
            "bytes_of_text": self.num_text_bytes,
            "sources": list(self._sources),
            "files": {path: {"bytes": size, "crc32c": crc} for path, (size, crc) in sorted(listed.items())},
        }


class StoreWriter:
    """A store while it is written. Used as a context manager, it finishes the store when the block ends without an error.

    Args:
        path: the store's folder; a new one, or an unfinished store to go on with.
        vocabulary: of all units.

    Raises:
        DataError: the folder holds a finished store.
    """

    def __init__(self, path: Path, vocabulary: Vocabulary) -> None:
        self.path, self.vocabulary = path, vocabulary
        if (path / MANIFEST).exists():
            raise DataError(f"The store {path} is finished.", fix="Choose another folder, or remove this one.")
        path.mkdir(parents=True, exist_ok=True)
        self._units: dict[str, dict[str, Any]] = {}

    @contextmanager
    def unit(self, name: str, language: str, split: str = "train") -> Iterator[UnitWriter]:
        """Write a unit; it appears in the store when the block ends without an error.

        Args:
            name: folder of the unit within the store, such as "en/part_00000"; unique.
            language: one of the vocabulary's.
            split: "train" or "valid".

        Raises:
            ConfigError: the name, language or split is not possible.
        """
        self.vocabulary.offset(language)
        if split not in SPLITS:
            raise ConfigError(f"The split {split!r} is unknown.", fix="Use train or valid.")
        if name in self._units or not _is_plain(name):
            raise ConfigError(f"The unit name {name!r} is taken or is no plain relative path.")
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".tmp-{target.name}-", dir=target.parent))
        temporary.chmod(0o755)
        writer = UnitWriter(temporary, self.vocabulary, language, split)
        try:
            yield writer
            entry = publish_unit(temporary, target, writer.close())
        except BaseException:
            writer.abandon()
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._units[name] = entry

    def entries(self) -> list[dict[str, Any]]:
        """The manifest's entries of the units written so far."""
        return [{"path": name} | entry for name, entry in self._units.items()]

    def finish(self) -> None:
        """Write the manifest over the units written, in the order of their names' first use.

        Raises:
            DataError: there is no unit.
        """
        write_manifest(self.path, self.vocabulary, self.entries())

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()


def _is_plain(name: str) -> bool:
    parts = name.split("/")
    return bool(name) and all(part and not part.startswith(".") and "\0" not in part for part in parts)


def publish_unit(temporary: Path, target: Path, description: dict[str, Any]) -> dict[str, Any]:
    """Write _unit.json, put the folder in its place durably; returns the unit's entry for the manifest, less its path."""
    content = json_bytes(description)
    write_durably(temporary / UNIT, content)
    files.fsync_directory(temporary)
    if target.exists():
        shutil.rmtree(target)
    temporary.replace(target)
    files.fsync_directory(target.parent)
    return unit_entry(description, content)


def unit_entry(description: dict[str, Any], content: bytes) -> dict[str, Any]:
    """A unit's entry in the manifest, from its _unit.json."""
    keys = ("language", "split", "tokens", "documents", "bytes_of_text")
    return {key: description[key] for key in keys} | {"crc32c": google_crc32c.value(content)}


def write_manifest(path: Path, vocabulary: Vocabulary, units: Iterable[dict[str, Any]]) -> None:
    """Write manifest.json and tokenizer.json: the store is then finished.

    Raises:
        DataError: there is no unit.
    """
    units = list(units)
    if not units:
        raise DataError(f"The store {path} has no unit.", "Nothing was written into it.")
    used = {unit["language"] for unit in units}
    vocabulary.tokenizer.save(path / "tokenizer.json")
    manifest = {
        "format_version": FORMAT_VERSION,
        "tokenizer_fingerprint": vocabulary.tokenizer.fingerprint,
        "eos_token": vocabulary.tokenizer.eos_token,
        "vocabulary": vocabulary.to_json(),
        "dtype": token_dtype(vocabulary.size).name,
        "eos_id": vocabulary.eos_id,
        "word_segmenter": {
            language: segmenter_name(vocabulary.clone_of.get(language, language))
            for language in vocabulary.languages
            if language in used
        },
        "languages": [language for language in vocabulary.languages if language in used],
        "units": units,
    }
    files.write_bytes(path / MANIFEST, json_bytes(manifest))
