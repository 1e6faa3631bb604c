"""Pairs of inference in the formats in which XNLI is spread."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import zstandard

from megalign.corpus.entailment import LABELS, Pair, make_pairs
from megalign.corpus.inference_files import read_pairs, write_pairs
from megalign.errors import DataError

GERMAN = [
    Pair('Er sagte "Nein".', "Er sagte etwas.", "entailment"),
    Pair("Es regnet.", "Es ist Montag.", "neutral"),
    Pair("Es regnet.", "Es ist trocken.", "contradiction"),
]


def table(path: Path, header: str, *rows: str) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def xnli_1(path: Path) -> Path:
    """xnli.test.tsv: all languages in one file, what has no gold label included."""
    header = "language\tgold_label\tsentence1_binary_parse\tsentence1\tsentence2\tpromptID"
    rows = [f"de\t{pair.label}\t\t{pair.premise}\t{pair.hypothesis}\t{n}" for n, pair in enumerate(GERMAN)]
    return table(path, header, "fr\tneutral\t\tOui.\tNon.\t9", *rows, "de\t-\t\tUnklar.\tUneins.\t10")


def mt(path: Path) -> Path:
    """multinli.train.de.tsv."""
    named = {"contradiction": "contradictory"}
    rows = (f"{pair.premise}\t{pair.hypothesis}\t{named.get(pair.label, pair.label)}" for pair in GERMAN)
    return table(path, "premise\thypo\tlabel", *rows)


def lines(path: Path) -> Path:
    content = [
        {"gold_label": pair.label, "sentence1": pair.premise, "sentence2": pair.hypothesis, "language": "de"}
        for pair in GERMAN
    ]
    text = "".join(json.dumps(line) + "\n" for line in [*content, {**content[0], "language": "fr"}])
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def columns(**more: Any) -> pa.Table:
    return pa.table({"premise": [p.premise for p in GERMAN], "hypothesis": [p.hypothesis for p in GERMAN],
                     "label": [LABELS.index(p.label) for p in GERMAN], **more})  # fmt: skip


def hub_parquet(path: Path) -> Path:
    parquet.write_table(columns(), path)
    return path


def hub_folder(path: Path) -> Path:
    """What `datasets` writes with save_to_disk: arrow streams and JSON files."""
    path.mkdir()
    with (
        pa.OSFile(str(path / "data-00000-of-00001.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, columns().schema) as out,
    ):
        out.write_table(columns())
    (path / "dataset_info.json").write_text("{}")
    return path


def all_languages(path: Path) -> Path:
    """The configuration all_languages of the hub's xnli."""
    rows = [
        {
            "premise": {"de": pair.premise, "fr": "Oui."},
            "hypothesis": {"language": ["fr", "de"], "translation": ["Non.", pair.hypothesis]},
            "label": LABELS.index(pair.label),
        }
        for pair in GERMAN
    ]
    parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize(
    ("write", "name"),
    [(xnli_1, "a.tsv"), (mt, "b.tsv"), (lines, "c.jsonl"), (lines, "c.jsonl.gz"), (hub_parquet, "d.parquet"),
     (hub_folder, "e"), (all_languages, "f.parquet")],
)  # fmt: skip
def test_every_format_gives_the_same_pairs(write: Any, name: str, tmp_path: Path) -> None:
    assert read_pairs(write(tmp_path / name), "de") == GERMAN


def test_what_is_written_is_read(tmp_path: Path) -> None:
    pairs, _ = make_pairs(0, 30, 3)
    write_pairs(tmp_path / "train.jsonl", pairs, "en")
    assert read_pairs(tmp_path / "train.jsonl", "en") == pairs


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.tsv does not exist"):
        read_pairs(tmp_path / "none.tsv", "de")
    with pytest.raises(DataError, match=r"a\.tsv has no labelled pair in ru"):
        read_pairs(xnli_1(tmp_path / "a.tsv"), "ru")
    with pytest.raises(DataError, match=r"g\.tsv, line 2 has the label 'maybe'"):
        read_pairs(table(tmp_path / "g.tsv", "premise\thypo\tlabel", "x\ty\tmaybe"), "en")
    with pytest.raises(DataError, match=r"h\.tsv, line 2 has none of the fields gold_label, label"):
        read_pairs(table(tmp_path / "h.tsv", "premise\thypo", "x\ty"), "en")
    (tmp_path / "i.jsonl").write_text("{]\n")
    with pytest.raises(DataError, match=r"i\.jsonl, line 1 cannot be read"):
        read_pairs(tmp_path / "i.jsonl", "en")
    (tmp_path / "lines.jsonl").write_text('{"a": 1}\n\n')
    with pytest.raises(DataError, match=r"lines\.jsonl, line 1 has none of the fields"):
        read_pairs(tmp_path / "lines.jsonl", "en")
    (tmp_path / "j.csv").write_text("x")
    with pytest.raises(DataError, match=r"j\.csv is neither \.tsv"):
        read_pairs(tmp_path / "j.csv", "en")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty has no \.parquet or \.arrow file"):
        read_pairs(tmp_path / "empty", "en")


def test_a_byte_order_mark_does_not_hide_the_language(tmp_path: Path) -> None:
    path = xnli_1(tmp_path / "a.tsv")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_pairs(path, "de") == GERMAN


def test_a_joined_file_is_read_to_its_end(tmp_path: Path) -> None:
    lines = [json.dumps({"gold_label": "neutral", "sentence1": name, "sentence2": "x"}).encode() for name in "abc"]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(zstandard.compress(line + b"\n") for line in lines))
    assert [pair.premise for pair in read_pairs(tmp_path / "a.jsonl.zst", "en")] == ["a", "b", "c"]


@pytest.mark.parametrize(("name", "pack"), [("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstandard.compress)])
def test_a_file_that_is_cut_off_is_not_read_in_part(name: str, pack: Any, tmp_path: Path) -> None:
    line = json.dumps({"gold_label": "neutral", "sentence1": "x", "sentence2": "y"}).encode() + b"\n"
    (tmp_path / name).write_bytes(pack(line * 9)[:-3])
    with pytest.raises(DataError, match=r"a\.jsonl\.(gz|zst) cannot be read"):
        read_pairs(tmp_path / name, "en")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.tsv",
            "premise\thypo\tlabel\na\tb\tneutral\nx\ty\tz\tneutral\n",
            "line 3 has more fields than the first line",
        ),
        ("a.tsv", "premise\thypo\tlabel\n" + "x" * 140_000 + "\tb\tneutral\n", "cannot be read: field larger"),
        ("a.jsonl", "[1]\n", "line 1 is no JSON object"),
        ("a.jsonl", '{"label": 1, "premise": ["x", "y"], "hypothesis": "b"}', "line 1 has no text, but"),
        ("a.jsonl", '{"label": 1, "premise": {"translation": ["x"]}, "hypothesis": "b"}', "line 1 has no text, but"),
        ("a.jsonl", '{"label": 1, "premise": 5, "hypothesis": "b"}', "line 1 has no text, but 5"),
    ],
)
def test_rows_that_would_be_misread_are_refused(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    before = csv.field_size_limit(131_072)  # Python's own; libraries that are imported before may have raised it
    try:
        with pytest.raises(DataError, match=message):
            read_pairs(tmp_path / name, "en")
    finally:
        csv.field_size_limit(before)
