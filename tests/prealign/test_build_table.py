"""Tables from several sources, with case and scripts as in the corpus, and the report on a table against brute force."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from prealign_fakes import table_of
from tool_command import tool

from megalign.errors import ConfigError, DataError, EnvironmentProblem
from megalign.prealign.build import TableOptions, build_table, case_forms
from megalign.prealign.scripts import script_converter
from megalign.prealign.table import AlignmentTable, Entry, Translation
from megalign.prealign.table_report import as_text, report_on

REPOSITORY = Path(__file__).resolve().parents[2]
COUNTS = {"the": 900, "The": 100, "berlin": 1, "Berlin": 60, "house": 50, "House": 5, "us": 30, "US": 40, "few": 20}


@pytest.fixture
def dictionaries(tmp_path: Path) -> dict[str, Path]:
    german = "the der\nthe die\nberlin berlin\nhouse haus\nhouse Haus\nus uns\nfew wenige\n"
    chinese = "the 這\nhouse 房子\nhouse 屋\nberlin 柏林\nus 我們\nus 我们\n"
    (tmp_path / "en-de.txt").write_text(german, encoding="utf-8")
    (tmp_path / "en-zh.txt").write_text(chinese, encoding="utf-8")
    return {"de": tmp_path / "en-de.txt", "zh": tmp_path / "en-zh.txt"}


def words_of(table: AlignmentTable) -> dict[str, list[str]]:
    return {entry.word: [f"{t.language}:{t.text}" for t in entry.translations] for entry in table.entries}


def test_case_forms_are_those_of_the_corpus() -> None:
    assert case_forms(COUNTS) == {
        "the": ("the", 1000), "berlin": ("Berlin", 61), "house": ("house", 55), "us": ("US", 70), "few": ("few", 20),
    }  # fmt: skip
    assert case_forms({"b": 1, "B": 1}) == {"b": ("B", 2)}


def test_several_dictionaries_as_they_are_written(dictionaries: dict[str, Path]) -> None:
    said: list[str] = []
    table = build_table(TableOptions(COUNTS, dictionaries=dictionaries), say=said.append)
    assert words_of(table) == {
        "the": ["de:der", "de:die", "zh:這"],
        "us": ["de:uns", "zh:我們", "zh:我们"],
        "berlin": ["de:berlin", "zh:柏林"],
        "house": ["de:haus", "de:Haus", "zh:房子", "zh:屋"],
    }
    assert said == ["dictionaries (de, zh): 4 words, 12 translations, 13 lines, 1 words too rare"]


def test_case_and_scripts_of_the_corpus(dictionaries: dict[str, Path]) -> None:
    pytest.importorskip("opencc")
    german = {"haus": 3, "Haus": 90, "Berlin": 40, "der": 100, "Der": 20}
    options = TableOptions(
        COUNTS, dictionaries=dictionaries, scripts={"zh": "simplified"}, case_counts={"en": COUNTS, "de": german}
    )
    assert words_of(build_table(options)) == {
        "the": ["de:der", "de:die", "zh:这"],
        "US": ["de:uns", "zh:我们"],
        "Berlin": ["de:Berlin", "zh:柏林"],
        "house": ["de:Haus", "zh:房子", "zh:屋"],
    }
    traditional = build_table(TableOptions(COUNTS, dictionaries=dictionaries, scripts={"zh": "traditional"}))
    assert words_of(traditional)["us"] == ["de:uns", "zh:我們"]


def test_a_clone_s_words_are_united_by_case_with_their_originals() -> None:
    golden = build_table(TableOptions(COUNTS, clone_language="en-clone"))
    assert words_of(golden)["US"] == ["en-clone:US"]
    united = build_table(TableOptions(COUNTS, clone_language="en-clone", case_counts={"en": COUNTS}))
    assert words_of(united) == {word: [f"en-clone:{word}"] for word in ("the", "Berlin", "house", "US")}


def test_the_most_frequent_share_is_kept(dictionaries: dict[str, Path]) -> None:
    options = TableOptions(COUNTS, dictionaries=dictionaries, fraction=0.5, min_count=10, max_translations=1)
    assert words_of(build_table(options)) == {"the": ["de:der", "zh:這"], "us": ["de:uns", "zh:我們"]}


def test_empty_tables_and_unknown_languages_are_refused(dictionaries: dict[str, Path]) -> None:
    with pytest.raises(DataError, match=r"No word entered the alignment table.*more than 5000 times"):
        build_table(TableOptions(COUNTS, dictionaries=dictionaries, min_count=5000))
    with pytest.raises(ConfigError, match=r"has no 'ru' words whose writing could be changed\. It has en, de, zh"):
        build_table(TableOptions(COUNTS, dictionaries=dictionaries, case_counts={"ru": {}}))
    with pytest.raises(ConfigError, match=r"no script 'hans'\. Use one of simplified, traditional"):
        build_table(TableOptions(COUNTS, dictionaries=dictionaries, scripts={"zh": "hans"}))


def test_without_opencc_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "opencc":
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EnvironmentProblem, match=r"OpenCC is not installed.*pip install megalign\[zh\]"):
        script_converter("simplified")


REPORTED = {
    "bank": {"de": ["Bank", "Ufer"], "zh": ["银行", "bank"]},
    "shore": {"de": ["Ufer", "Bank"], "zh": ["岸", "T恤"]},
    "seat": {"de": ["Bank"], "zh": ["seats"]},
    "hotel": {"de": ["Hotel", "großes Haus"], "zh": ["1984"]},
}
CORPORA = {"en": {"bank": 10, "Shore": 5, "tree": 85}, "de": {"BANK": 3, "ufer": 2, "Baum": 5}}


def test_the_report_counts_what_is_there() -> None:
    german, chinese = report_on(table_of(REPORTED), CORPORA)
    assert (german.num_words, german.num_translations, german.num_multiword) == (4, 7, 1)
    assert (german.num_identical, german.examples_identical) == (2, ("bank", "hotel"))
    assert (german.num_different, german.num_collisions, german.num_words_colliding) == (4, 2, 3)
    assert german.worst_collisions == (("Bank", 3), ("Ufer", 2))
    assert german.num_other_script == 0
    assert german.sources == {"test": 7}
    assert german.source_coverage is not None
    assert german.target_coverage is not None
    # By hand: "bank" and "Shore" are in the table whatever their case, "tree" and "Baum" are not.
    assert (german.source_coverage.num_types_covered, german.source_coverage.num_tokens_covered) == (2, 15)
    assert (german.target_coverage.num_types_covered, german.target_coverage.num_tokens_covered) == (2, 5)
    assert (chinese.num_identical, chinese.num_other_script) == (1, 1)
    assert chinese.examples_other_script == (("seat", "seats"),)
    assert (chinese.num_collisions, chinese.target_coverage) == (0, None)


def test_the_report_against_brute_force() -> None:
    """Hundreds of random entries, counted pair by pair."""
    import numpy as np

    rng = np.random.default_rng(0)
    entries = {
        f"w{n}": {"de": list(dict.fromkeys(f"x{m}" if m else f"W{n}" for m in rng.integers(0, 60, size=3)))}
        for n in range(200)
    }
    counts = {f"w{n}": int(rng.integers(1, 50)) for n in range(150, 3000)}
    table = table_of(entries)
    (report,) = report_on(table, {"en": counts})
    pairs = [(word, text) for word, by in entries.items() for text in by["de"]]
    assert report.num_translations == len(pairs)
    assert report.num_identical == sum(text == word.upper() for word, text in pairs)
    shared = [text for text in {t for _, t in pairs} if sum(t == text for _, t in pairs) > 1]
    assert report.num_collisions == len(shared)
    assert report.num_words_colliding == len({word for word, text in pairs if text in shared})
    assert report.worst_collisions[0][1] == max(sum(t == text for _, t in pairs) for text in shared)
    most = sorted(counts, key=lambda word: (-counts[word], word))[:1000]
    covered = sum(counts[word] for word in most if word in entries)
    assert dict(report.band_coverage) == pytest.approx({1000: covered / sum(counts[word] for word in most)})


def test_the_report_is_shown_and_written(tmp_path: Path) -> None:
    table = table_of(REPORTED)
    reports = report_on(table, CORPORA)
    text = as_text(table, reports)
    assert text.startswith("source language en: 4 words, 13 translations into de, zh")
    assert "covers of the source corpus: 15.0% of 100 running words, 66.7% of 3 types" in text
    assert "most words: Bank (3), Ufer (2)" in text
    assert "in another script: 1 (16.7%), such as seat -> seats" in text
    assert json.loads(json.dumps([report.to_json() for report in reports]))[0]["num_collisions"] == 2
    unknown = AlignmentTable([Entry("bank", 1, (Translation("tlh", "x", "test"),))], "en")
    assert "scripts: not known for this language" in as_text(unknown, report_on(unknown))


def test_the_tools_from_counts_to_report(tmp_path: Path, dictionaries: dict[str, Path]) -> None:
    (tmp_path / "en.tsv").write_text("".join(f"{word}\t{count}\n" for word, count in COUNTS.items()))
    out = tmp_path / "table.parquet"
    muse = [part for language, path in dictionaries.items() for part in ("--muse", f"{language}={path}")]
    built = tool("build_table", "--counts", tmp_path / "en.tsv", *muse, "--fraction", 0.5, "--out", out)
    assert f"{out}: 2 words, 6 translations" in built
    shown = tool("inspect_table", out, "--counts", f"en={tmp_path / 'en.tsv'}", "--json", tmp_path / "report.json")
    assert "covers of the source corpus: 88.7% of 1,206 running words, 44.4% of 9 types" in shown
    assert json.loads((tmp_path / "report.json").read_text())[1]["language"] == "zh"
    assert tool("inspect_table", out, "--word", "US") == (
        "us  70  de  0  uns  (muse)\nus  70  zh  0  我們  (muse)\nus  70  zh  1  我们  (muse)\n"
    )
    assert "has no word 'xyzzy'" in tool("inspect_table", out, "--word", "xyzzy", code=3)
    refused = tool("build_table", "--counts", tmp_path / "en.tsv", "--translate", "de", "--out", out, code=2)
    assert "No translator is named" in refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fraction": float("nan")}, "fraction is nan"),
        ({"fraction": 2.0}, "fraction is 2.0"),
        ({"fraction": 0.0}, "fraction is 0.0"),
        ({"min_count": -1}, "min_count is -1"),
        ({"max_words": -5}, "max_words is -5"),
        ({"max_translations": 0}, "max_translations is 0"),
        ({"clone_language": "en"}, "en is the source language"),
        ({"dictionaries": {"de": Path("x")}, "clone_language": "de"}, "de cannot be a clone and have other words too"),
    ],
)
def test_options_that_make_no_table_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TableOptions(COUNTS, **changes)
