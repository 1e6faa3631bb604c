"""One-dimensional zarr v3 arrays of uncompressed shards, written as a stream and read by memory mapping.

A shard file is its inner chunks in order without gaps, then an index of (offset, length) per inner chunk as little-endian
uint64, then the crc32c of the index (zarr v3 `sharding_indexed`, index at the end). The elements of a shard are therefore one
run of bytes, and a mapped shard is an ndarray. Any zarr v3 library can read these files; arrays by other writers are mapped
too, if their inner chunks are uncompressed and in order, and refused otherwise.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
import numpy.typing as npt
import orjson

from megalign.errors import DataError

Array = npt.NDArray[Any]

SHARD_ELEMENTS = 16 * 2**20
CHUNK_ELEMENTS = 64 * 2**10
_ABSENT = np.uint64(2**64 - 1)

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]


def group_json(attributes: dict[str, Any]) -> bytes:
    """The zarr.json of a group."""
    return json_bytes({"zarr_format": 3, "node_type": "group", "attributes": attributes})


def json_bytes(content: Any) -> bytes:
    """Indented JSON with a final newline, the same bytes for the same content."""
    return orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _array_json(length: int, dtype: np.dtype[Any], shard: int, chunk: int) -> bytes:
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    data_codec = little if dtype.itemsize > 1 else {"name": "bytes"}
    sharding = {
        "chunk_shape": [chunk],
        "codecs": [data_codec],
        "index_codecs": [little, {"name": "crc32c"}],
        "index_location": "end",
    }
    return json_bytes(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [length],
            "data_type": dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0,
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": {},
        }
    )


class ArrayWriter:
    """Append elements to a new array; memory does not grow with its length.

    Args:
        folder: the array's folder, to be created.
        dtype: an unsigned or signed integer type.
        scale: elements of this array per 1/scale tokens: shards and chunks are `scale` times smaller than those of tokens.

    Attributes:
        length: elements appended so far.
        files: after `close`, path within the folder -> (bytes, crc32c) of every file.
    """

    def __init__(self, folder: Path, dtype: npt.DTypeLike, scale: int = 1) -> None:
        self._folder, self._dtype = folder, np.dtype(dtype).newbyteorder("<")
        self._shard, self._chunk = SHARD_ELEMENTS // scale, CHUNK_ELEMENTS // scale
        self.length = 0
        self.files: dict[str, tuple[int, int]] = {}
        self._stream: BinaryIO | None = None
        self._crc = google_crc32c.Checksum()
        (folder / "c").mkdir(parents=True)

    def append(self, values: Array) -> None:
        """Add elements at the end; they must fit the array's type."""
        values = np.ascontiguousarray(values, dtype=self._dtype)
        while values.size:
            if self._stream is None:
                self._stream = (self._folder / "c" / str(self.length // self._shard)).open("wb")
                self._crc = google_crc32c.Checksum()
            room = self._shard - self.length % self._shard
            self._write(values[:room].tobytes())
            self.length += min(room, values.size)
            if self.length % self._shard == 0:
                self._end_shard(self._shard)
            values = values[room:]

    def _write(self, content: bytes) -> None:
        assert self._stream is not None
        self._stream.write(content)
        self._crc.update(content)

    def _end_shard(self, filled: int) -> None:
        """Pad the last chunk with zeros, write the index, close the file durably."""
        assert self._stream is not None
        present = -(-filled // self._chunk)
        self._write(bytes((present * self._chunk - filled) * self._dtype.itemsize))
        index = np.full((self._shard // self._chunk, 2), _ABSENT, dtype="<u8")
        index[:present, 0] = np.arange(present, dtype=np.uint64) * np.uint64(self._chunk * self._dtype.itemsize)
        index[:present, 1] = self._chunk * self._dtype.itemsize
        self._write(index.tobytes())
        self._write(google_crc32c.value(index.tobytes()).to_bytes(4, "little"))
        name = Path(self._stream.name).name
        self.files[f"c/{name}"] = (self._stream.tell(), int.from_bytes(self._crc.digest(), "big"))
        _close_durably(self._stream)
        self._stream = None

    def close(self) -> None:
        """Write what is pending and the metadata."""
        if self._stream is not None:
            self._end_shard(self.length % self._shard)
        metadata = _array_json(self.length, self._dtype, self._shard, self._chunk)
        self.files["zarr.json"] = write_durably(self._folder / "zarr.json", metadata)

    def abandon(self) -> None:
        """Close the open file without finishing the array."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def _close_durably(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())
    stream.close()


def write_durably(path: Path, content: bytes) -> tuple[int, int]:
    """Write a file inside an unpublished folder; returns its length in bytes and its crc32c."""
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    return len(content), google_crc32c.value(content)


def map_array(folder: Path) -> list[Array]:
    """The shards of an array as read-only mapped ndarrays, cut to the array's length; no shard but the last is short.

    Raises:
        DataError: the array or a shard is missing, is truncated, has a damaged index, or is laid out in a way that cannot
            be mapped (compressed, or inner chunks out of order).
    """
    try:
        metadata = orjson.loads((folder / "zarr.json").read_bytes())
    except FileNotFoundError:
        raise DataError(f"The array {folder} is missing.", fix="Run `megalign store check`.") from None
    except ValueError as error:
        raise DataError(f"{folder / 'zarr.json'} is not JSON: {error}.") from None
    try:
        length, dtype, shard, chunk = _layout(metadata)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(
            f"The array {folder} cannot be memory-mapped: {error}.",
            "Only uncompressed, sharded, little-endian one-dimensional zarr v3 arrays can.",
        ) from None
    return [
        _map_shard(folder / "c" / str(i), min(shard, length - i * shard), dtype, shard, chunk)
        for i in range(-(-length // shard))
    ]


def _layout(metadata: dict[str, Any]) -> tuple[int, np.dtype[Any], int, int]:
    """Length, type, elements per shard and per inner chunk; raises ValueError or KeyError for any other layout."""
    (length,) = metadata["shape"]
    (shard,) = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    (codec,) = metadata["codecs"]
    if codec["name"] != "sharding_indexed":
        raise ValueError(f"its codec is {codec['name']}")
    inner = codec["configuration"]
    (chunk,) = inner["chunk_shape"]
    names = [c["name"] for c in inner["codecs"]], [c["name"] for c in inner["index_codecs"]]
    if names != (["bytes"], ["bytes", "crc32c"]) or inner.get("index_location", "end") != "end":
        raise ValueError(f"its inner codecs are {names[0]} and {names[1]}")
    endian = [
        c.get("configuration", {}).get("endian", "little") for c in (inner["codecs"][0], inner["index_codecs"][0])
    ]
    if endian != ["little", "little"]:
        raise ValueError("it is big-endian")
    dtype = np.dtype(metadata["data_type"])
    if dtype.kind not in "ui":
        raise ValueError(f"its type is {dtype}")
    return length, dtype.newbyteorder("<"), shard, chunk


def _map_file(descriptor: int, size: int) -> npt.NDArray[np.uint8]:
    """A file's bytes, mapped read-only until the last array on them is gone.

    The C library is called because `mmap.mmap` keeps a descriptor open for every mapping (before Python 3.13), and a store
    of a thousand units would exhaust the usual limit of 1024.
    """
    address = _LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    if address == ctypes.c_void_p(-1).value:
        error = ctypes.get_errno()
        raise DataError(f"A file cannot be mapped into memory: {os.strerror(error)}.")
    buffer = (ctypes.c_ubyte * size).from_address(address)
    weakref.finalize(buffer, _LIBC.munmap, ctypes.c_void_p(address), ctypes.c_size_t(size))
    content: npt.NDArray[np.uint8] = np.frombuffer(memoryview(buffer), dtype=np.uint8)
    content.flags.writeable = False
    return content


def _map_shard(path: Path, filled: int, dtype: np.dtype[Any], shard: int, chunk: int) -> Array:
    present, chunk_bytes = -(-filled // chunk), chunk * dtype.itemsize
    index_bytes = shard // chunk * 16 + 4
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size < present * chunk_bytes + index_bytes:
                raise DataError(
                    f"The shard {path} is truncated: {size} bytes of {present * chunk_bytes + index_bytes}.",
                    fix="Run `megalign store check`, then build its unit again.",
                )
            content = _map_file(stream.fileno(), size)
    except FileNotFoundError:
        raise DataError(
            f"The shard {path} is missing.",
            "A zarr library would read zeros in its place.",
            "Run `megalign store check`, then build its unit again.",
        ) from None
    tail = content[size - index_bytes :].tobytes()
    if google_crc32c.value(tail[:-4]) != int.from_bytes(tail[-4:], "little"):
        raise DataError(f"The index of the shard {path} is damaged (crc32c).", fix="Build its unit again.")
    index = np.frombuffer(tail[:-4], dtype="<u8").reshape(-1, 2)[:present]
    expected = np.arange(present, dtype=np.uint64) * np.uint64(chunk_bytes)
    if not (np.array_equal(index[:, 0], expected) and (index[:, 1] == chunk_bytes).all()):
        raise DataError(
            f"The shard {path} cannot be memory-mapped: its inner chunks are missing or out of order.",
            "Some writers (zarrs) store chunks as they finish.",
            "Rewrite it with zarr-python's default pipeline and write_empty_chunks=True.",
        )
    return content[: filled * dtype.itemsize].view(dtype)
