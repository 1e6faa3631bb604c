"""The alignment table and its builders."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prealign_fakes import table_of

from megalign.errors import ConfigError, DataError
from megalign.prealign.muse import muse_table
from megalign.prealign.table import AlignmentTable, Entry, Translation, case_variants, golden_table


def dictionary(folder: Path, text: str, name: str = "en-de.txt") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def texts(table: AlignmentTable, word: str) -> list[tuple[str, str]]:
    (entry,) = [entry for entry in table.entries if entry.word == word]
    return [(translation.language, translation.text) for translation in entry.translations]


def test_golden_takes_words_above_the_count_most_frequent_first() -> None:
    table = golden_table({"rare": 20, "bank": 21, "The": 50, "the": 500})
    assert [(entry.word, entry.frequency) for entry in table.entries] == [("the", 500), ("The", 50), ("bank", 21)]
    assert texts(table, "bank") == [("en-clone", "bank")]
    assert table.languages == ("en-clone",)
    assert len(table) == table.num_rows == table.num_identical == 3


def test_muse_keeps_the_order_and_sums_the_case_forms(tmp_path: Path) -> None:
    path = dictionary(tmp_path, "bank bank\nbank\tUfer\nbank bank\nnew york\tNew York\nBANK böschung\n\nrare selten\n")
    counts = {"bank": 15, "Bank": 10, "rare": 5, "new york": 30}
    table = muse_table({"de": path}, counts, max_translations=2)
    assert texts(table, "bank") == [("de", "bank"), ("de", "Ufer")]
    assert texts(table, "new york") == [("de", "New York")]
    assert {entry.word: entry.frequency for entry in table.entries} == {"bank": 25, "new york": 30}
    assert table.num_identical == 1
    assert table.build_counts == {"lines": 6, "bad_lines": 0, "repeated": 1, "over_limit": 1, "words_too_rare": 1}


def test_muse_counts_bad_lines_and_joins_languages(tmp_path: Path) -> None:
    good = "".join(f"word{i} wort{i}\n" for i in range(30))
    german = dictionary(tmp_path, good + "only-one\na b c\n")
    russian = dictionary(tmp_path, "word1 слово\r\n", "en-ru.txt")
    table = muse_table({"de": german, "ru": russian}, {f"word{i}": 100 for i in range(30)})
    assert table.build_counts["bad_lines"] == 2
    assert texts(table, "word1") == [("de", "wort1"), ("ru", "слово")]
    assert table.languages == ("de", "ru")


def test_muse_refuses_what_is_no_dictionary(tmp_path: Path) -> None:
    prose = dictionary(tmp_path, "bank bank\nThis is a line of prose.\nAnd another one of them.\n")
    with pytest.raises(DataError, match=r"en-de.txt:2: not a dictionary line: 'This is a line.*2 of 3 lines") as error:
        muse_table({"de": prose}, {"bank": 100})
    assert error.value.exit_code == 3
    with pytest.raises(DataError, match=r"en-de.txt has no dictionary line"):
        muse_table({"de": dictionary(tmp_path, "\n\n")}, {})
    with pytest.raises(DataError, match=r"missing.txt cannot be read: No such file"):
        muse_table({"de": tmp_path / "missing.txt"}, {})
    latin = tmp_path / "latin.txt"
    latin.write_bytes("bank bank\nshore böschung\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin.txt:2: not UTF-8 text"):
        muse_table({"de": latin}, {})
    with pytest.raises(ConfigError, match="max_translations is 0"):
        muse_table({"de": prose}, {}, max_translations=0)


def test_top_fraction_keeps_the_most_frequent() -> None:
    table = golden_table({f"word{i}": 1000 - i for i in range(10)})
    assert [entry.word for entry in table.top_fraction(0.25).entries] == ["word0", "word1"]
    assert len(table.top_fraction(0.001)) == 1
    assert len(table.top_fraction(1.0)) == 10
    for wrong in (0.0, 25, -0.5):
        with pytest.raises(ConfigError, match=rf"is {wrong}; it must be above 0 and at most 1.*set it to 0.25"):
            table.top_fraction(wrong)


def test_merge_is_a_union_with_the_own_translations_first() -> None:
    one = table_of({"bank": {"de": ["Ufer"]}, "tree": {"de": ["Baum"]}})
    two = table_of({"river": {"de": ["Fluss"]}, "bank": {"ru": ["банк"], "de": ["Bank", "Ufer"]}})
    merged = one.merge(two)
    assert texts(merged, "bank") == [("de", "Ufer"), ("ru", "банк"), ("de", "Bank")]
    assert [row["rank"] for row in merged.rows() if row["word"] == "bank"] == [0, 0, 1]
    assert {entry.word: entry.frequency for entry in merged.entries} == {"bank": 1000, "tree": 999, "river": 1000}
    with pytest.raises(DataError, match="'en' words cannot be merged with one of 'de' words"):
        one.merge(table_of({"Baum": {"en": ["tree"]}}, "de"))


def test_coverage_counts_types_and_tokens_in_every_case() -> None:
    coverage = table_of({"bank": {"de": ["Ufer"]}}).coverage({"bank": 5, "Bank": 3, "BANK": 1, "bAnk": 1, "tree": 10})
    assert (coverage.num_types, coverage.num_types_covered) == (5, 3)
    assert (coverage.num_tokens, coverage.num_tokens_covered) == (20, 9)
    assert coverage.types == pytest.approx(0.6)
    assert coverage.tokens == pytest.approx(0.45)


def test_case_variants() -> None:
    assert case_variants("iPhone") == ("iPhone", "iphone", "IPhone", "IPHONE")
    assert set(case_variants("银行")) == {"银行"}


def test_parquet_round_trip_is_exact_and_reproducible(tmp_path: Path) -> None:
    table = muse_table({"de": dictionary(tmp_path, "bank Bank\nbank Ufer\nthe die\n")}, {"bank": 40, "the": 900})
    table.save(tmp_path / "one.parquet")
    table.save(tmp_path / "two.parquet")
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    loaded = AlignmentTable.load(tmp_path / "one.parquet")
    assert loaded.entries == table.entries
    assert (loaded.source_language, loaded.languages) == ("en", ("de",))
    assert loaded.build_counts == table.build_counts
    columns = pq.read_table(tmp_path / "one.parquet").to_pydict()
    assert columns["word"] == ["the", "bank", "bank"]
    assert columns["translation"] == ["die", "Bank", "Ufer"]
    assert columns["rank"] == [0, 0, 1]
    assert columns["frequency"] == [900, 40, 40]


def test_load_refuses_other_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no alignment table at"):
        AlignmentTable.load(tmp_path / "missing.parquet")
    text = dictionary(tmp_path, "not parquet")
    with pytest.raises(DataError, match="not a readable parquet file"):
        AlignmentTable.load(text)
    pq.write_table(pa.table({"word": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"not an alignment table of format version 1 \(found: no version\)"):
        AlignmentTable.load(tmp_path / "other.parquet")
    golden_table({"bank": 100}).save(tmp_path / "good.parquet")
    good = pq.read_table(tmp_path / "good.parquet")
    pq.write_table(good.drop_columns("rank"), tmp_path / "columns.parquet")
    with pytest.raises(DataError, match=r"other columns than an alignment table"):
        AlignmentTable.load(tmp_path / "columns.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "good.parquet").read_bytes()[:-20])
    with pytest.raises(DataError, match="not a readable parquet file"):
        AlignmentTable.load(tmp_path / "cut.parquet")
    twice = pa.concat_tables([good, good.set_column(5, good.schema.field(5), [[7]])])
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(DataError, match=r"'bank' has several frequencies: \[7, 100\]"):
        AlignmentTable.load(tmp_path / "twice.parquet")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (Entry("bank", 1, ()), "'bank' has no translation"),
        (Entry("bank", 1, (Translation("de", " ", "x"),)), "'bank' has an empty word or translation"),
        (Entry("", 1, (Translation("de", "Ufer", "x"),)), "'' has an empty word or translation"),
        (Entry("bank", 1, (Translation("de", "Ufer", "x"), Translation("de", "Ufer", "y"))), "same translation twice"),
        (Entry("bank", 1, (Translation("en", "shore", "x"),)), "translation in its own language, 'en'"),
        (Entry("known", 1, (Translation("de", "bekannt", "x"),)), "two entries for the word 'known'"),
    ],
)
def test_broken_entries_are_refused(entry: Entry, message: str) -> None:
    with pytest.raises(DataError, match=message):
        AlignmentTable([Entry("known", 5, (Translation("de", "bekannt", "x"),)), entry], "en")


@pytest.mark.reference_data
def test_the_real_dictionaries_are_read_whole(reference_data: Path) -> None:
    path = reference_data / "muse" / "en-de.txt"
    lines = path.read_text(encoding="utf-8").splitlines()
    words = {line.split()[0] for line in lines}
    table = muse_table({"de": path}, dict.fromkeys(words, 100), max_translations=1000)
    assert table.build_counts["bad_lines"] == 0
    assert len(table) == len(words)
    assert {(row["word"], row["translation"]) for row in table.rows()} == {tuple(line.split()) for line in lines}
