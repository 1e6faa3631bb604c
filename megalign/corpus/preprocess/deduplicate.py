"""Exact duplicates, found without holding the texts or all of their hashes in memory.

Each task writes the 128-bit hashes of its texts, sorted. Marking then goes through the range of hashes piece by piece, reads
the same range of every task, and marks all but the first in the order of tasks and rows.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megalign import files
from megalign.corpus.preprocess.plan import Task, read_task
from megalign.corpus.preprocess.select import Selection
from megalign.corpus.preprocess.settings import PreprocessSettings
from megalign.errors import DataError

_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("place", "<i8")])
_RANGE_RECORDS = 4 << 20


def hash_path(work: Path, task: int) -> Path:
    """Where a task's hashes stand."""
    return work / "hashes" / f"{task:06d}.npy"


def duplicates_path(work: Path, task: int) -> Path:
    """Where the places of a task's duplicates stand."""
    return work / "duplicates" / f"{task:06d}.npy"


def hash_task(settings: PreprocessSettings, work: Path, task: Task) -> int:
    """Write the sorted hashes of a task's documents, unless they are there; returns the task's index.

    Memory holds 24 bytes per document of the task.
    """
    path = hash_path(work, task.index)
    if not path.exists():
        selection = Selection(settings)
        rows = selection.keep(enumerate(read_task(task, settings)))
        records = bytearray()
        for place, document in rows:
            records += hashlib.blake2b(_bytes(document.text), digest_size=16).digest() + place.to_bytes(8, "little")
        save_array(path, np.sort(np.frombuffer(records, dtype=_RECORD), order=["high", "low", "place"]))
    return task.index


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogatepass")


def mark_duplicates(work: Path, earlier: list[int], tasks: list[int], range_records: int = _RANGE_RECORDS) -> None:
    """Write the duplicates of `tasks`, which stand after the tasks `earlier`, in order.

    Memory holds about `range_records` hashes and the places of the duplicates found.
    """
    if all(duplicates_path(work, task).exists() for task in tasks):
        return
    order = [*earlier, *tasks]
    hashes = [np.load(hash_path(work, task), mmap_mode="r", allow_pickle=False) for task in order]
    num_ranges = -(-max(sum(map(len, hashes)), 1) // range_records)
    bounds = [round(i * 2**64 / num_ranges) for i in range(num_ranges)] + [2**64]
    found: list[list[npt.NDArray[np.int64]]] = [[] for _ in order]
    cursor = [0] * len(order)
    for upper in bounds[1:]:
        parts, ranks = [], []
        for rank, records in enumerate(hashes):
            last = upper == 2**64
            end = len(records) if last else int(np.searchsorted(records["high"], np.uint64(upper), side="left"))
            parts.append(np.asarray(records[cursor[rank] : end]))
            ranks.append(np.full(end - cursor[rank], rank, dtype=np.int64))
            cursor[rank] = end
        part, rank_of = np.concatenate(parts), np.concatenate(ranks)
        by = np.lexsort([part["place"], rank_of, part["low"], part["high"]])
        part, rank_of = part[by], rank_of[by]
        again = np.zeros(len(part), dtype=np.bool_)
        again[1:] = (part["high"][1:] == part["high"][:-1]) & (part["low"][1:] == part["low"][:-1])
        for rank in np.unique(rank_of[again]).tolist():
            found[rank].append(part["place"][again & (rank_of == rank)])
    for rank, task in enumerate(order[len(earlier) :], start=len(earlier)):
        save_array(duplicates_path(work, task), np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *found[rank]])))


def load_duplicates(work: Path, task: int) -> npt.NDArray[np.int64]:
    """Places of a task's duplicates, int64, increasing.

    Raises:
        DataError: they were not marked.
    """
    try:
        return np.asarray(np.load(duplicates_path(work, task), allow_pickle=False))
    except FileNotFoundError:
        raise DataError(f"The duplicates of task {task} were not marked.") from None


def save_array(path: Path, values: npt.NDArray[np.generic]) -> None:
    """Write a .npy file, whole or not at all."""
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=False)
    files.write_bytes(path, stream.getvalue())
