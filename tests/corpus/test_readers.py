"""Readers: every format gives the same documents; every kind of bad input says what is wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest
import zstandard

from megalign.corpus.readers import BadRow, Document, list_files, read_documents, read_rows
from megalign.errors import DataError

TEXTS = ["The cat sat.", "Zwei Vögel.\n", "我们在这里"]


def write_parquet(path: Path, texts: list[str | None], **options: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    urls = [f"http://a/{i}" for i in range(len(texts))]
    parquet.write_table(pyarrow.table({"text": texts, "url": urls, "source": urls}), path, **options)


def test_culturax_layout_reads_one_language(tmp_path: Path) -> None:
    write_parquet(tmp_path / "de" / "de_part_00001.parquet", TEXTS[1:])
    write_parquet(tmp_path / "de" / "de_part_00000.parquet", TEXTS[:1])
    write_parquet(tmp_path / "en" / "en_part_00000.parquet", ["other"])
    assert list(read_documents(tmp_path, "de")) == [
        Document(TEXTS[0], "de/de_part_00000.parquet", 0, "http://a/0", "http://a/0"),
        Document(TEXTS[1], "de/de_part_00001.parquet", 0, "http://a/0", "http://a/0"),
        Document(TEXTS[2], "de/de_part_00001.parquet", 1, "http://a/1", "http://a/1"),
    ]
    assert [d.text for d in read_documents(tmp_path / "en", "de")] == ["other"]
    assert [d.text for d in read_documents(tmp_path / "d*" / "*1.parquet")] == TEXTS[1:]


def test_row_groups_keep_row_numbers(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [str(i) for i in range(7)], row_group_size=3)
    (file,) = list_files(tmp_path)
    assert [row.row for group in (2, 0) for row in read_rows(file, group)] == [6, 0, 1, 2]


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_jsonl(tmp_path: Path, ending: str) -> None:
    content = "".join(json.dumps({"text": text, "url": "u"}) + "\n" for text in TEXTS).encode()
    pack = {".jsonl": bytes, ".jsonl.gz": gzip.compress, ".jsonl.zst": zstandard.compress}[ending]
    # Two concatenated streams are one file, as `cat` and parallel compressors make them.
    (tmp_path / f"x{ending}").write_bytes(pack(content) + pack(content))
    read = list(read_documents(tmp_path))
    assert [d.text for d in read] == TEXTS * 2
    assert [d.row for d in read] == list(range(6))
    assert {d.url for d in read} == {"u"}


def test_text_folder_is_a_document_a_file(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.txt").write_text("one\ntwo")
    (tmp_path / "a.txt").write_text("three")
    (tmp_path / "README.md").write_text("not read")
    assert list(read_documents(tmp_path)) == [Document("three", "a.txt", 0), Document("one\ntwo", "b/1.txt", 0)]


def test_bad_rows_are_named(tmp_path: Path) -> None:
    lines = [
        b'{"text": "ok"}',
        b'{"text": ""}',
        b"{oops",
        b'{"txt": 1}',
        b'{"text": 3}',
        b'{"text": null}',
        b"",
        b'{"text": "\xff"}',
    ]
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    rows = list(read_rows(list_files(tmp_path)[0]))
    reasons = [row.reason.split(" (")[0] if isinstance(row, BadRow) else "" for row in rows]
    assert reasons == [
        "",
        "empty text",
        "not JSON",
        "no field text",
        "text is a int",
        "text is null",
        "empty line",
        "not JSON",
    ]
    with pytest.raises(DataError, match=r"x.jsonl:1 has no usable text: empty text"):
        list(read_documents(tmp_path))


def test_bad_parquet_rows(tmp_path: Path) -> None:
    text = pyarrow.array([b"fine", b"\xff\xfe", None, b" \n"], type=pyarrow.binary())
    column = pyarrow.StringArray.from_buffers(4, text.buffers()[1], text.buffers()[2], text.buffers()[0])
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "x.parquet")
    rows = list(read_rows(list_files(tmp_path)[0]))
    assert isinstance(rows[0], Document)
    assert rows[0].text == "fine"
    assert [r.reason for r in rows[1:] if isinstance(r, BadRow)] == ["text is not UTF-8", "text is null", "empty text"]
    (tmp_path / "y.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match="text is not UTF-8"):
        list(read_documents(tmp_path / "y.txt"))


def test_missing_inputs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist or is empty"):
        list(read_documents(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"\*\.parquet does not exist or is empty"):
        list(read_documents(tmp_path / "*.parquet"))
    (tmp_path / "a.csv").write_text("text")
    with pytest.raises(DataError, match=r"has no file that can be read. Read are .parquet, .jsonl"):
        list(read_documents(tmp_path))


def test_broken_files(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"words": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet has no column text; it has words"):
        list(read_documents(tmp_path / "a.parquet"))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"b.parquet is broken: .* truncated or half-copied"):
        list(read_documents(tmp_path / "b.parquet"))
    line = (json.dumps({"text": "a" * 50}) + "\n").encode()
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(line * 100)[:-20])
    with pytest.raises(DataError, match=r"c.jsonl.gz is broken"):
        list(read_documents(tmp_path / "c.jsonl.gz"))
    (tmp_path / "d.jsonl.zst").write_bytes(b"no zstd")
    with pytest.raises(DataError, match=r"d.jsonl.zst is broken"):
        list(read_documents(tmp_path / "d.jsonl.zst"))


def test_truncated_zstd_is_not_taken_for_its_end(tmp_path: Path) -> None:
    lines = b"".join((json.dumps({"text": f"{i} {i * 7919 % 1000}"}) + "\n").encode() for i in range(20000))
    (tmp_path / "d.jsonl.zst").write_bytes(zstandard.compress(lines)[:-500])
    with pytest.raises(DataError, match=r"d.jsonl.zst is broken"):
        list(read_documents(tmp_path))


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "first"}\r\n{"text": "second"}\r\n')
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfthird")
    assert [d.text for d in read_documents(tmp_path)] == ["first", "second", "third"]


def test_text_as_bytes_is_read_and_two_columns_of_text_are_refused(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"text": [TEXTS[2].encode(), b"\xff"]}), tmp_path / "a.parquet")
    rows = list(read_rows(list_files(tmp_path / "a.parquet")[0]))
    assert [getattr(row, "text", None) or row.reason for row in rows] == [TEXTS[2], "text is not UTF-8"]
    twice = pyarrow.table([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    parquet.write_table(twice, tmp_path / "b.parquet")
    with pytest.raises(DataError, match="has several columns text; it has text, text"):
        list(read_documents(tmp_path / "b.parquet"))


def test_a_language_that_the_layout_lacks_is_an_error(tmp_path: Path) -> None:
    write_parquet(tmp_path / "de" / "de_part_00000.parquet", TEXTS)
    write_parquet(tmp_path / "en" / "en_part_00000.parquet", TEXTS)
    with pytest.raises(DataError, match=r"has no folder of the language ed; it has de, en\."):
        list_files(tmp_path, "ed")
