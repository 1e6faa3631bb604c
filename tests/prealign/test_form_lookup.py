"""Words of the table found in text in every form, with their translations in the same form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prealign_fakes import FakeVocabulary, table_of

from megalign.errors import ConfigError
from megalign.prealign.encoded import EncodedTable
from megalign.prealign.lookup import FormLookup, SegmentHash

VOCABULARY = FakeVocabulary([" bank", "bank", " Bank", "ank"])
TABLE = {
    "bank": {"de": ["Bank", "ufer"], "zh": ["银行", "河岸"], "ru": ["банк"]},
    "Bank": {"de": ["Geldhaus"]},
    "bench": {"de": ["Bank"], "zh": ["岸"]},
    "hotel": {"de": ["hotel", "Gasthof"]},
    "radio": {"de": ["radio"]},
}


def lookup_of(language: str, targets: Sequence[str]) -> FormLookup:
    return FormLookup(EncodedTable(table_of(TABLE), VOCABULARY), language, targets)


def found(lookup: FormLookup, text: str, language: str = "en") -> set[str] | None:
    """All translations a form can be replaced by; None where it is not in the lookup."""
    ids = VOCABULARY.encode(text, language).astype(np.int64)
    (form,) = lookup.find(ids, np.array([0]), np.array([len(ids)])).tolist()
    if form < 0:
        return None
    assert lookup.confirm(ids, np.array([0]), np.array([form])).tolist() == [True]
    draws = [(a, b) for a in np.arange(0, 1, 0.05) for b in np.arange(0, 1, 0.05)]
    chosen = lookup.choose(np.full(len(draws), form), np.array([a for a, _ in draws]), np.array([b for _, b in draws]))
    flat, lengths = lookup.translations(chosen)
    return {VOCABULARY.decode(part) for part in np.split(flat, np.cumsum(lengths)[:-1])}


def test_the_translation_takes_the_form_of_the_word() -> None:
    lookup = lookup_of("en", ["de"])
    assert found(lookup, " bank") == {" Bank", " ufer"}
    assert found(lookup, "bank") == {"Bank", "ufer"}
    assert found(lookup, " BANK") == {" UFER", " GELDHAUS"}
    assert found(lookup, " Bench") == {" Bank"}
    assert found(lookup, "BENCH") == {"BANK"}
    assert found(lookup, "bEnch") is None
    assert found(lookup, "  bank") is None


def test_a_form_the_table_writes_is_that_words_own() -> None:
    assert found(lookup_of("en", ["de"]), " Bank") == {" Geldhaus"}
    assert found(lookup_of("en", ["ru"]), " Bank") == {" Банк"}


def test_translations_that_change_nothing_are_no_translations() -> None:
    lookup = lookup_of("en", ["de"])
    assert found(lookup, " hotel") == {" Gasthof"}
    assert found(lookup, " radio") is None


def test_scripts_without_spaces() -> None:
    assert found(lookup_of("en", ["zh"]), " bank") == {"银行", "河岸"}
    assert found(lookup_of("en", ["zh"]), "BANK") == {"银行", "河岸"}
    chinese = lookup_of("zh", ["en"])
    assert found(chinese, "银行", "zh") == {" bank"}
    assert found(chinese, " 银行", "zh") is None


def test_the_other_direction_gathers_all_entries_and_languages_meet_in_an_entry() -> None:
    german = lookup_of("de", ["en"])
    assert found(german, " Bank", "de") == {" bank", " bench"}
    assert found(german, " Ufer", "de") == {" Bank"}
    assert found(lookup_of("de", ["ru"]), " ufer", "de") == {" банк"}


def test_each_language_is_as_likely_as_the_others() -> None:
    lookup = lookup_of("en", ["de", "zh", "ru"])
    ids = VOCABULARY.encode(" bank", "en").astype(np.int64)
    form = lookup.find(ids, np.array([0]), np.array([len(ids)]))
    rng = np.random.default_rng(0)
    count = 6000
    flat, lengths = lookup.translations(lookup.choose(np.repeat(form, count), rng.random(count), rng.random(count)))
    texts = [VOCABULARY.decode(part) for part in np.split(flat, np.cumsum(lengths)[:-1])]
    shares = {text: texts.count(text) / count for text in set(texts)}
    expected = {" Bank": 1 / 6, " ufer": 1 / 6, "银行": 1 / 6, "河岸": 1 / 6, " банк": 1 / 3}
    assert shares == pytest.approx(expected, abs=0.02)


def test_long_forms_are_left_out() -> None:
    encoded = EncodedTable(
        table_of({"abcdef": {"de": ["x"]}, "ab": {"de": ["uvwxyz", "y"]}}),
        FakeVocabulary(["abcdef", " abcdef"]),
        max_word_tokens=4,
    )
    lookup = FormLookup(encoded, "en", ["de"])
    assert lookup.max_form_tokens <= 4
    # " abcdef" is one token, " ABCDEF" six: two cases of the former with and without space, six forms of "ab".
    assert lookup.num_forms == 2 + 6


def test_a_table_without_matching_words_finds_nothing() -> None:
    lookup = FormLookup(EncodedTable(table_of({"a": {"de": ["b"]}, "c": {"ru": ["к"]}}), VOCABULARY), "ru", ["de"])
    assert lookup.num_forms == 0
    assert lookup.find(np.array([5, 6]), np.array([0]), np.array([1])).tolist() == [-1]


def test_unknown_languages_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"has no 'fr' words. It has en, de, zh, ru"):
        lookup_of("en", ["fr"])
    with pytest.raises(ConfigError, match="'de' cannot be codeswitched to itself"):
        lookup_of("de", ["en", "de"])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 7), min_size=2, max_size=40), st.data())
def test_segment_hashes_are_equal_for_equal_ids_alone(ids: list[int], data: st.DataObject) -> None:
    bounds = sorted(data.draw(st.sets(st.integers(0, len(ids)), min_size=2)))
    starts, ends = np.array(bounds[:-1]), np.array(bounds[1:])
    array = np.array(ids)
    hashes = SegmentHash(8).segments(array, starts, ends).tolist()
    # Computed alone, at another place: the hash of a segment depends on its ids only.
    alone = [
        int(SegmentHash(8).segments(array[a:b], np.array([0]), np.array([b - a]))[0])
        for a, b in zip(starts, ends, strict=True)
    ]
    assert hashes == alone
    segments = [tuple(ids[a:b]) for a, b in zip(starts, ends, strict=True)]
    assert len(set(hashes)) == len(set(segments))
