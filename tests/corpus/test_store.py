"""The token store: readable by zarr-python, equal to plain arrays, whole or absent, every damage found."""

from __future__ import annotations

import gc
import json
import resource
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from megalign.corpus.readers import Document
from megalign.corpus.store import StoreWriter, TokenStore, check_store, token_dtype, writer, zarr_files
from megalign.corpus.store.zarr_files import ArrayWriter, json_bytes, map_array
from megalign.corpus.tokenizer import Tokenizer, train_tokenizer
from megalign.corpus.vocabulary import Vocabulary
from megalign.errors import ConfigError, DataError

Plain = dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray, Document]]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_tokenizer(["the cat sat on the mat"] * 3, 270, tmp_path_factory.mktemp("t") / "tokenizer.json")


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(tokenizer, ("en", "en-clone", "de"), {"en-clone": "en"})


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of 2048 tokens in chunks of 512, so that small stores have edges."""
    monkeypatch.setattr(zarr_files, "SHARD_ELEMENTS", 2048)
    monkeypatch.setattr(zarr_files, "CHUNK_ELEMENTS", 512)
    monkeypatch.setattr(writer, "_FLUSH_TOKENS", 300)


def random_documents(
    rng: np.random.Generator, count: int, size: int, eos: int
) -> list[tuple[np.ndarray, np.ndarray, Document]]:
    made = []
    for row in range(count):
        length = int(rng.integers(1, 60))
        ids = np.append(rng.integers(1, size, length), eos).astype(np.uint32)
        ids[:-1][ids[:-1] == eos] += 1
        flags = rng.random(length + 1) < 0.6
        flags[[0, -1]] = True
        url = None if row % 3 == 0 else f"http://é/{row}"
        made.append((ids, flags, Document("", f"file{row % 4}", row, url)))
    return made


def build(path: Path, vocabulary: Vocabulary, units: dict[str, tuple[str, str, int]], seed: int = 0) -> Plain:
    rng = np.random.default_rng(seed)
    plain: Plain = {}
    with StoreWriter(path, vocabulary) as store:
        for name, (language, split, count) in units.items():
            documents = random_documents(rng, count, vocabulary.size, vocabulary.eos_id)
            with store.unit(name, language, split) as unit:
                for document in documents:
                    unit.add(*document)
            plain.setdefault((language, split), []).extend(documents)
    return plain


UNITS = {
    "en/a": ("en", "train", 150),
    "de/a": ("de", "train", 3),
    "en/b": ("en", "train", 1),
    "en/c": ("en", "train", 120),
    "en/v": ("en", "valid", 5),
    "en-clone/a": ("en-clone", "train", 2),
}


@pytest.mark.usefixtures("small_shards")
def test_everything_written_is_read(tmp_path: Path, vocabulary: Vocabulary) -> None:
    plain = build(tmp_path / "s", vocabulary, UNITS)
    store = TokenStore.open(tmp_path / "s")
    assert store.languages == ("en", "en-clone", "de")
    assert store.vocabulary.fingerprint == vocabulary.fingerprint
    assert store.eos_id == vocabulary.eos_id
    assert store.has("en", "valid")
    assert not store.has("de", "valid")
    for (language, split), documents in plain.items():
        ids = np.concatenate([d[0] for d in documents])
        flags = np.concatenate([d[1] for d in documents])
        assert store.num_tokens(language, split) == len(ids)
        assert store.num_documents(language, split) == len(documents)
        assert store.num_text_bytes(language, split) == vocabulary.token_num_bytes[ids].sum()
        whole = store.window(language, 0, len(ids), split)
        assert whole.dtype == np.uint16
        assert np.array_equal(whole, ids)
        assert np.array_equal(store.word_start_flags(language, 0, len(ids), split), flags)
        offsets = np.cumsum([0] + [len(d[0]) for d in documents])
        assert np.array_equal(store.document_offsets(language, split), offsets)
        for index, stored in enumerate(store.documents(language, split)):
            written = documents[index]
            assert np.array_equal(stored.ids, written[0])
            assert np.array_equal(stored.word_starts, written[1])
            assert (stored.source, stored.row, stored.url) == (written[2].source, written[2].row, written[2].url)
            assert stored.start == offsets[index]
            assert store.document_at(language, stored.start, split) == index
            assert store.document_at(language, stored.start + len(stored.ids) - 1, split) == index
            assert store.text(stored).text == vocabulary.decode(written[0])
    assert check_store(tmp_path / "s") == []


@pytest.mark.usefixtures("small_shards")
def test_every_window_equals_the_plain_array(tmp_path: Path, vocabulary: Vocabulary) -> None:
    plain = build(tmp_path / "s", vocabulary, UNITS)
    ids = np.concatenate([d[0] for d in plain["en", "train"]])
    flags = np.concatenate([d[1] for d in plain["en", "train"]])
    store = TokenStore.open(tmp_path / "s")
    rng = np.random.default_rng(1)
    edge = store.manifest["units"][0]["tokens"]
    starts = [0, len(ids), len(ids) - 1, edge, edge - 1, edge + 1, 2047, 2048, *rng.integers(0, len(ids), 300).tolist()]
    for start in starts:
        for length in (0, 1, 2, 129, int(rng.integers(0, len(ids) - start + 1))):
            if start + length <= len(ids):
                assert np.array_equal(store.window("en", start, length), ids[start : start + length])
                assert np.array_equal(store.word_start_flags("en", start, length), flags[start : start + length])


@pytest.mark.usefixtures("small_shards")
def test_windows_are_views_and_read_only(tmp_path: Path, vocabulary: Vocabulary) -> None:
    build(tmp_path / "s", vocabulary, UNITS)
    store = TokenStore.open(tmp_path / "s")
    first, second = store.window("en", 5, 20), store.window("en", 10, 20)
    assert np.shares_memory(first, second)
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1


@pytest.mark.usefixtures("small_shards")
def test_zarr_python_reads_a_unit(tmp_path: Path, vocabulary: Vocabulary) -> None:
    plain = build(tmp_path / "s", vocabulary, {"en/a": ("en", "train", 300)})["en", "train"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr-python remarks on _unit.json beside its own files
        group = zarr.open_group(tmp_path / "s" / "en" / "a", mode="r")
        arrays = {name: array[:] for name, array in group.arrays()}
    ids = np.concatenate([d[0] for d in plain])
    assert np.array_equal(arrays["tokens"], ids)
    assert arrays["tokens"].dtype == np.uint16
    flags = np.unpackbits(arrays["word_starts"], bitorder="little", count=len(ids)).astype(bool)
    assert np.array_equal(flags, np.concatenate([d[1] for d in plain]))
    assert np.array_equal(arrays["doc_offsets"], np.cumsum([0] + [len(d[0]) for d in plain]))
    sources = json.loads((tmp_path / "s" / "en" / "a" / "_unit.json").read_text())["sources"]
    assert [sources[i] for i in arrays["source"]] == [d[2].source for d in plain]
    assert arrays["row"].tolist() == [d[2].row for d in plain]
    urls = [
        bytes(arrays["urls"][a:b]).decode()
        for a, b in zip(arrays["url_offsets"], arrays["url_offsets"][1:], strict=False)
    ]
    assert urls == [d[2].url or "" for d in plain]


@given(st.lists(st.integers(0, 700), max_size=5), st.sampled_from([1, 8, 64]))
@settings(max_examples=30)
def test_array_round_trip(tmp_path_factory: pytest.TempPathFactory, lengths: list[int], scale: int) -> None:
    folder = tmp_path_factory.mktemp("a") / "x"
    values = [np.arange(n) * 7 % 251 for n in lengths]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zarr_files, "SHARD_ELEMENTS", 64 * 16)
        patch.setattr(zarr_files, "CHUNK_ELEMENTS", 64 * 4)
        made = ArrayWriter(folder, np.uint32, scale)
        for part in values:
            made.append(part)
        made.close()
    whole = np.concatenate([np.zeros(0, dtype=int), *values])
    assert np.array_equal(np.concatenate([np.zeros(0, dtype=int), *map_array(folder)]), whole)
    assert np.array_equal(zarr.open_array(folder, mode="r")[:], whole)
    for name, (size, crc) in made.files.items():
        content = (folder / name).read_bytes()
        assert (len(content), google_crc32c.value(content)) == (size, crc)


def test_arrays_written_by_zarr_python_are_mapped_or_refused(tmp_path: Path) -> None:
    values = np.arange(1, 1001, dtype=np.uint16)
    for name, chunks, shards, options in (
        ("fine", 100, 400, {"compressors": None}),
        ("packed", 100, 400, {}),
        ("flat", 100, None, {"compressors": None}),
    ):
        array = zarr.create_array(
            tmp_path / name, shape=(1000,), dtype="uint16", chunks=(chunks,), shards=shards and (shards,),
            config={"write_empty_chunks": True}, **options,
        )  # fmt: skip
        array[:] = values
    assert np.array_equal(np.concatenate(map_array(tmp_path / "fine")), values)
    with pytest.raises(DataError, match=r"packed cannot be memory-mapped: its inner codecs are \['bytes', 'zstd'\]"):
        map_array(tmp_path / "packed")
    with pytest.raises(DataError, match="flat cannot be memory-mapped"):
        map_array(tmp_path / "flat")
    shard = tmp_path / "fine" / "c" / "0"
    content = bytearray(shard.read_bytes())
    index = np.frombuffer(content[-68:-4], dtype="<u8").reshape(4, 2)[[1, 0, 2, 3]].tobytes()
    content[-68:] = index + google_crc32c.value(index).to_bytes(4, "little")
    shard.write_bytes(content)
    assert zarr.open_array(tmp_path / "fine", mode="r")[0] == 101, "a zarr reader takes chunks in any order"
    with pytest.raises(DataError, match="inner chunks are missing or out of order"):
        map_array(tmp_path / "fine")


def test_many_units_need_no_open_files(tmp_path: Path, vocabulary: Vocabulary) -> None:
    with StoreWriter(tmp_path / "s", vocabulary) as store:
        for number in range(60):
            with store.unit(f"en/{number:02d}", "en") as unit:
                unit.add(np.array([number, 0], dtype=np.uint32), np.ones(2, dtype=bool), Document("", "f", 0))
    opened = TokenStore.open(tmp_path / "s")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(list(Path("/proc/self/fd").iterdir()))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 10, hard))
        views = [opened.window("en", 2 * number, 1) for number in range(60)]
        flags = opened.word_start_flags("en", 0, 120)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [int(view[0]) for view in views] == list(range(60))
    assert flags.all()


def test_a_window_outlives_its_store(tmp_path: Path, vocabulary: Vocabulary) -> None:
    plain = build(tmp_path / "s", vocabulary, {"en/a": ("en", "train", 50)})["en", "train"]
    store = TokenStore.open(tmp_path / "s")
    view = store.window("en", 3, 100)
    del store
    gc.collect()
    assert np.array_equal(view, np.concatenate([d[0] for d in plain])[3:103])


def test_token_dtype_is_the_smallest_that_fits() -> None:
    assert token_dtype(1 << 16) == np.uint16
    assert token_dtype((1 << 16) + 1) == np.uint32


def test_ids_above_two_bytes_survive(tmp_path: Path, tokenizer: Tokenizer) -> None:
    clones = {f"c{i}": "en" for i in range(250)}
    vocabulary = Vocabulary(tokenizer, ("en", *clones), clones)
    assert vocabulary.size > 1 << 16
    ids = np.array([vocabulary.size - 1, 1, vocabulary.eos_id], dtype=np.uint32)
    with StoreWriter(tmp_path / "s", vocabulary) as store, store.unit("u", "c249") as unit:
        unit.add(ids, np.ones(3, dtype=bool), Document("", "f", 0))
    opened = TokenStore.open(tmp_path / "s")
    assert opened.window("c249", 0, 3).tolist() == ids.tolist()
    assert opened.dtype == np.uint32


def test_two_builds_are_equal_byte_for_byte(tmp_path: Path, vocabulary: Vocabulary) -> None:
    for name in ("a", "b"):
        build(tmp_path / name, vocabulary, UNITS)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path / "b") for p in (tmp_path / "b").rglob("*") if p.is_file())
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    assert TokenStore.open(tmp_path / "a").fingerprint == TokenStore.open(tmp_path / "b").fingerprint
    build(tmp_path / "c", vocabulary, UNITS, seed=1)
    assert TokenStore.open(tmp_path / "c").fingerprint != TokenStore.open(tmp_path / "a").fingerprint


def fail_inside_a_unit(store: StoreWriter) -> None:
    with store.unit("en/a", "en") as unit:
        unit.add(np.array([1, 0], dtype=np.uint32), np.ones(2, dtype=bool), Document("", "f", 0))
        raise RuntimeError("stop")


def test_a_failing_unit_leaves_nothing(tmp_path: Path, vocabulary: Vocabulary) -> None:
    store = StoreWriter(tmp_path / "s", vocabulary)
    with pytest.raises(RuntimeError, match="stop"):
        fail_inside_a_unit(store)
    assert list((tmp_path / "s" / "en").iterdir()) == []
    with pytest.raises(DataError, match="has no unit"):
        store.finish()


def test_leftovers_of_a_killed_writer_are_ignored(tmp_path: Path, vocabulary: Vocabulary) -> None:
    (tmp_path / "s" / "en" / ".tmp-a-xyz" / "tokens").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no finished token store at .* written last"):
        TokenStore.open(tmp_path / "s")
    build(tmp_path / "s", vocabulary, {"en/a": ("en", "train", 3)})
    assert TokenStore.open(tmp_path / "s").num_documents("en") == 3
    assert check_store(tmp_path / "s") == []


def test_opening_reads_the_manifest_alone(tmp_path: Path, vocabulary: Vocabulary) -> None:
    build(tmp_path / "s", vocabulary, UNITS)
    for name in ("en", "de", "en-clone"):
        shutil.rmtree(tmp_path / "s" / name)
    (tmp_path / "s" / "tokenizer.json").unlink()
    store = TokenStore.open(tmp_path / "s")
    assert store.num_documents("en") == 271
    with pytest.raises(DataError, match=r"The array .*tokens is missing"):
        store.window("en", 0, 1)
    with pytest.raises(DataError, match=r"tokenizer.json does not exist"):
        _ = store.vocabulary


def test_reader_errors(tmp_path: Path, vocabulary: Vocabulary) -> None:
    build(tmp_path / "s", vocabulary, UNITS)
    store = TokenStore.open(tmp_path / "s")
    total = store.num_tokens("en")
    for start, length in ((-1, 2), (total, 1), (0, total + 1), (0, -1)):
        with pytest.raises(
            DataError, match=rf"Tokens {start} to {start + length} of en \(train\) are out of range: .* has {total}"
        ):
            store.window("en", start, length)
        with pytest.raises(DataError, match="out of range"):
            store.word_start_flags("en", start, length)
    with pytest.raises(
        DataError, match=r"has no fr \(train\); it has en \(train\), de \(train\), en \(valid\), en-clone \(train\)"
    ):
        store.window("fr", 0, 1)
    with pytest.raises(DataError, match=r"Document 5 of en \(valid\) does not exist: .* has 5"):
        store.document("en", 5, "valid")
    with pytest.raises(DataError, match="out of range"):
        store.document_at("en", total)
    with pytest.raises(DataError, match=r"is finished. Choose another folder"):
        StoreWriter(tmp_path / "s", vocabulary)
    manifest = tmp_path / "s" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 1', '"format_version": 99'))
    with pytest.raises(DataError, match="has format version 99; this program reads 1"):
        TokenStore.open(tmp_path / "s")
    whole = json.loads(manifest.read_text()) | {"format_version": 1}
    for content, missing in (
        ({"format_version": 1}, "tokenizer_fingerprint, eos_token"),
        (whole | {"units": [{}]}, "bytes_of_text, documents, language, path"),
    ):
        manifest.write_text(json.dumps(content))
        with pytest.raises(DataError, match=f"manifest.json is damaged: it has no {missing}"):
            TokenStore.open(tmp_path / "s")
        assert [problem.kind for problem in check_store(tmp_path / "s")] == ["missing_manifest"]
    manifest.write_text("{")
    with pytest.raises(DataError, match=r"manifest.json is damaged"):
        TokenStore.open(tmp_path / "s")


def test_writer_errors(tmp_path: Path, vocabulary: Vocabulary) -> None:
    store = StoreWriter(tmp_path / "s", vocabulary)
    document = Document("", "part", 7)
    for ids, flags, message in (
        ([1, 0], [True], "part:7: 2 ids but 1 word starts"),
        ([1, 2], [True, True], "part:7: the document does not end with id 0"),
        ([], [], "does not end with id 0"),
        ([vocabulary.size, 0], [True, True], f"id {vocabulary.size} is outside the vocabulary of {vocabulary.size}"),
    ):
        with pytest.raises(DataError, match=message), store.unit("u", "en") as unit:
            unit.add(np.array(ids, dtype=np.uint32), np.array(flags, dtype=bool), document)
    for name in ("", "/a", "a//b", "../a", ".hidden"):
        with pytest.raises(ConfigError, match="is taken or is no plain relative path"), store.unit(name, "en"):
            pass
    with pytest.raises(ConfigError, match="The split 'test' is unknown"), store.unit("u", "en", "test"):
        pass
    with pytest.raises(ConfigError, match="The language fr is unknown"), store.unit("u", "fr"):
        pass


def rewrite_unit(store: Path, unit: str) -> None:
    """Make checksums fit the present content, so that only the content can give a damage away."""
    description = json.loads((store / unit / "_unit.json").read_text())
    for name in description["files"]:
        content = (store / unit / name).read_bytes()
        description["files"][name] = {"bytes": len(content), "crc32c": google_crc32c.value(content)}
    (store / unit / "_unit.json").write_bytes(json_bytes(description))
    manifest = json.loads((store / "manifest.json").read_text())
    for entry in manifest["units"]:
        if entry["path"] == unit:
            entry["crc32c"] = google_crc32c.value(json_bytes(description))
    (store / "manifest.json").write_bytes(json_bytes(manifest))


def set_elements(store: Path, unit: str, array: str, dtype: str, change: Callable[[np.ndarray], None]) -> None:
    shard = store / unit / array / "c" / "0"
    content = bytearray(shard.read_bytes())
    size = len(content) - (len(content) - 4) % np.dtype(dtype).itemsize - 4
    change(np.frombuffer(memoryview(content)[:size], dtype=dtype))
    shard.write_bytes(content)
    rewrite_unit(store, unit)


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


def plant(kind: str, store: Path) -> None:
    unit = store / "en" / "a"
    actions: dict[str, Callable[[], object]] = {
        "missing_unit": lambda: shutil.rmtree(unit),
        "missing_file": lambda: (unit / "tokens" / "c" / "0").unlink(),
        "missing_metadata": lambda: (unit / "row" / "zarr.json").unlink(),
        "truncated": lambda: (unit / "tokens" / "c" / "0").write_bytes((unit / "tokens" / "c" / "0").read_bytes()[:-7]),
        "bit_flip_tokens": lambda: flip_bit(unit / "tokens" / "c" / "0"),
        "bit_flip_word_starts": lambda: flip_bit(unit / "word_starts" / "c" / "0"),
        "unit_json": lambda: flip_bit(unit / "_unit.json"),
        "unit_json_gone": lambda: (unit / "_unit.json").unlink(),
        "other_unit": lambda: (shutil.rmtree(unit), shutil.copytree(store / "en" / "c", unit)),
        "offsets": lambda: set_elements(store, "en/a", "doc_offsets", "<i8", lambda x: x.__setitem__(2, x[1])),
        "offsets_end": lambda: set_elements(store, "en/a", "doc_offsets", "<i8", lambda x: x.__setitem__(150, 10**6)),
        "token_id": lambda: set_elements(store, "en/a", "tokens", "<u2", lambda x: x.__setitem__(0, 60000)),
        "document_end": lambda: set_elements(store, "en/a", "doc_offsets", "<i8", lambda x: x.__setitem__(1, x[1] + (1 if x[2] > x[1] + 1 else -1))),
        "inner_eos": lambda: set_elements(store, "en/a", "tokens", "<u2", lambda x: x.__setitem__(0, 0)),
        "word_starts": lambda: set_elements(store, "en/a", "word_starts", "u1", lambda x: x.__setitem__(0, x[0] & 0xFE)),
        "source": lambda: set_elements(store, "en/a", "source", "<u4", lambda x: x.__setitem__(0, 9)),
        "urls": lambda: set_elements(store, "en/a", "url_offsets", "<i8", lambda x: x.__setitem__(1, 10**6)),
        "tokenizer": lambda: (store / "tokenizer.json").unlink(),
        "manifest": lambda: (store / "manifest.json").unlink(),
    }  # fmt: skip
    actions[kind]()


@pytest.mark.parametrize(
    ("kind", "found", "unit"),
    [
        ("missing_unit", "missing_unit", "en/a"),
        ("missing_file", "missing_file", "en/a"),
        ("missing_metadata", "missing_file", "en/a"),
        ("truncated", "truncated", "en/a"),
        ("bit_flip_tokens", "checksum", "en/a"),
        ("bit_flip_word_starts", "checksum", "en/a"),
        ("unit_json", "unit_json", "en/a"),
        ("unit_json_gone", "unit_json", "en/a"),
        ("other_unit", "unit_json", "en/a"),
        ("offsets", "offsets", "en/a"),
        ("offsets_end", "offsets", "en/a"),
        ("token_id", "token_id", "en/a"),
        ("document_end", "document_end", "en/a"),
        ("inner_eos", "document_end", "en/a"),
        ("word_starts", "word_starts", "en/a"),
        ("source", "provenance", "en/a"),
        ("urls", "provenance", "en/a"),
        ("tokenizer", "tokenizer", ""),
        ("manifest", "missing_manifest", ""),
    ],
)
def test_every_damage_is_found_and_nothing_else(
    tmp_path: Path, vocabulary: Vocabulary, kind: str, found: str, unit: str
) -> None:
    build(tmp_path / "s", vocabulary, UNITS)
    plant(kind, tmp_path / "s")
    assert [(p.kind, p.unit) for p in check_store(tmp_path / "s")] == [(found, unit)]
    if kind in ("missing_unit", "missing_file", "truncated", "unit_json", "tokenizer"):
        assert [p.kind for p in check_store(tmp_path / "s", deep=False)] == [found]


def test_damage_met_while_reading(tmp_path: Path, vocabulary: Vocabulary) -> None:
    build(tmp_path / "s", vocabulary, UNITS)
    shard = tmp_path / "s" / "en" / "a" / "tokens" / "c" / "0"
    content = shard.read_bytes()
    shard.write_bytes(content[:-7])
    with pytest.raises(DataError, match=rf"The shard .* is truncated: {len(content) - 7} bytes of {len(content)}"):
        TokenStore.open(tmp_path / "s").window("en", 0, 1)
    shard.write_bytes(content[:-9] + b"\1" + content[-8:])
    with pytest.raises(DataError, match=r"The index of the shard .* is damaged"):
        TokenStore.open(tmp_path / "s").window("en", 0, 1)
    shard.unlink()
    with pytest.raises(DataError, match=r"The shard .* is missing. A zarr library would read zeros"):
        TokenStore.open(tmp_path / "s").window("en", 0, 1)
    shard.write_bytes(content)
    shutil.rmtree(tmp_path / "s" / "de" / "a")
    shutil.copytree(tmp_path / "s" / "en" / "a", tmp_path / "s" / "de" / "a")
    with pytest.raises(DataError, match="is not the unit the store was finished with"):
        TokenStore.open(tmp_path / "s").window("de", 0, 1)
