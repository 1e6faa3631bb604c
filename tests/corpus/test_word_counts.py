"""Word counts equal a plain loop, whoever counts, and add up."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import regex

from megalign.corpus.preprocess import PreprocessSettings, open_workers, parse_languages
from megalign.corpus.procedural import ProceduralEnglish
from megalign.corpus.tokenizer_sample import balanced_sample
from megalign.corpus.word_counts import count_words, read_counts, words_of, write_counts
from megalign.errors import ConfigError, DataError

TEXTS = list(islice(ProceduralEnglish(1).documents("count"), 80))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for language, part in (("en", TEXTS[:60]), ("de", TEXTS[60:])):
        (tmp_path / "in" / language).mkdir(parents=True)
        for number in range(3):
            lines = (json.dumps({"text": text}) + "\n" for text in part[number::3])
            (tmp_path / "in" / language / f"{number}.jsonl").write_text("".join(lines))
    return tmp_path / "in"


def test_counts_equal_a_plain_loop(corpus: Path) -> None:
    settings = PreprocessSettings(str(corpus), "", parse_languages("en,de"))
    expected = Counter(word for text in TEXTS[:60] for word in regex.findall(r"\p{L}+", text))
    for workers in (1, 2):
        with open_workers(workers) as opened:
            assert opened is not None
            counts = count_words(settings, opened)
        assert counts["en"] == expected
        assert sum(counts["de"].values()) == sum(len(regex.findall(r"\p{L}+", text)) for text in TEXTS[60:])
    with open_workers() as opened:
        assert opened is not None
        lowered = count_words(settings, opened, lowercase=True)["en"]
    assert lowered["the"] == expected["the"] + expected["The"]
    assert "The" not in lowered


def test_words_have_no_space_before_them() -> None:
    assert list(words_of(" It's 3.5, of course; über_all!", "en")) == ["It's", "3.5", "of", "course", "über_all"]


def test_files_are_sorted_and_add_up(tmp_path: Path) -> None:
    first, second = Counter({"b": 2, "a": 2, "é": 5, "rare": 1}), Counter({"a": 1, "c": 9})
    write_counts(tmp_path / "1.tsv", first, minimum=2)
    write_counts(tmp_path / "2.tsv", second)
    assert (tmp_path / "1.tsv").read_text() == "é\t5\na\t2\nb\t2\n"
    total = read_counts([tmp_path / "1.tsv", tmp_path / "2.tsv"])
    assert total == {"é": 5, "a": 3, "b": 2, "c": 9}
    (tmp_path / "3.tsv").write_text("a\t1\nword without count\n")
    with pytest.raises(DataError, match=r"3.tsv, line 2 is not a word, a tab and a count"):
        read_counts([tmp_path / "3.tsv"])
    (tmp_path / "3.tsv").write_text("a\t" + "9" * 5000)
    with pytest.raises(DataError, match=r"3.tsv, line 1 is not a word, a tab and a count"):
        read_counts([tmp_path / "3.tsv"])
    with pytest.raises(DataError, match=r"4.tsv cannot be read"):
        read_counts([tmp_path / "4.tsv"])


def test_a_tokenizer_sample_is_balanced_and_drawn_by_the_seed(corpus: Path) -> None:
    settings = PreprocessSettings(str(corpus), "", parse_languages("en,de"))
    sample = list(balanced_sample(settings, 3000))
    assert sample == list(balanced_sample(settings, 3000))
    english, german = ([t for t in sample if t in part] for part in (TEXTS[:60], TEXTS[60:]))
    assert len(english) + len(german) == len(sample)
    for part in (english, german):
        assert 3000 <= sum(map(len, part)) < 3000 + len(part[-1])
    assert sample != list(balanced_sample(PreprocessSettings(str(corpus), "", settings.languages, seed=1), 3000))
    assert sorted(balanced_sample(settings, 10**9)) == sorted(TEXTS)


def test_bad_rows_are_told_and_an_input_without_text_is_an_error(corpus: Path) -> None:
    (corpus / "en" / "0.jsonl").write_text('{"text": "one two"}\nnot json\n{"text": null}\n')
    (corpus / "de" / "0.jsonl").write_text("")
    settings = PreprocessSettings(str(corpus), "", parse_languages("en,de"), on_bad_row="skip")
    said: list[str] = []
    with open_workers() as opened:
        assert opened is not None
        count_words(settings, opened, say=said.append)
        assert said == ["en: 2 of 43 rows have no usable text and were left out"]
        list(balanced_sample(settings, 10**9, said.append))
        assert said == said[:1] * 2
        for number in range(3):
            (corpus / "de" / f"{number}.jsonl").write_text("not json\n")
        with pytest.raises(DataError, match=r"No document of de is left of 3 rows \(3 bad\)"):
            count_words(settings, opened)
    with pytest.raises(DataError, match=r"No document of de is left of 3 rows \(3 bad\)"):
        list(balanced_sample(settings, 10**9))
    with pytest.raises(ConfigError, match="A sample of 0 bytes"):
        list(balanced_sample(settings, 0))


def test_counts_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"\xef\xbb\xbfthe\t3\r\nof\t2\r\n")
    assert read_counts([tmp_path / "a.tsv"]) == {"the": 3, "of": 2}
    with pytest.raises(DataError, match="cannot be read"):
        read_counts([tmp_path])
