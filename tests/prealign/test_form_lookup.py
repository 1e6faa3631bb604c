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
from megalign.prealign.lookup import FormLookup
from megalign.prealign.segments import SegmentHash, SegmentValues

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


def found(
    lookup: FormLookup, text: str, language: str = "en", vocabulary: FakeVocabulary = VOCABULARY
) -> set[str] | None:
    """All translations a form can be replaced by; None where it is not in the lookup."""
    ids = vocabulary.encode(text, language).astype(np.int64)
    (form,) = lookup.find(ids, np.array([0]), np.array([len(ids)])).tolist()
    return None if form < 0 else {vocabulary.decode(part) for part in translations_of(lookup, form)}


def translations_of(lookup: FormLookup, form: int) -> set[tuple[int, ...]]:
    """Ids of all translations of a form."""
    draws = [(a, b) for a in np.arange(0, 1, 0.05) for b in np.arange(0, 1, 0.05)]
    chosen = lookup.choose(np.full(len(draws), form), np.array([a for a, _ in draws]), np.array([b for _, b in draws]))
    flat, lengths = lookup.translations(chosen)
    return {tuple(part.tolist()) for part in np.split(flat, np.cumsum(lengths)[:-1])}


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


def test_languages_are_drawn_by_weight_among_those_a_word_has() -> None:
    encoded = EncodedTable(table_of(TABLE), VOCABULARY)
    lookup = FormLookup(encoded, "en", {"de": 1.0, "zh": 5.0, "ru": 2.0})
    rng = np.random.default_rng(0)
    count = 6000
    expected = {
        " bank": {" Bank": 1 / 16, " ufer": 1 / 16, "银行": 5 / 16, "河岸": 5 / 16, " банк": 2 / 8},
        " bench": {" Bank": 1 / 6, "岸": 5 / 6},
        " hotel": {" Gasthof": 1.0},
    }
    for text, wanted in expected.items():
        ids = VOCABULARY.encode(text, "en").astype(np.int64)
        form = lookup.find(ids, np.array([0]), np.array([len(ids)]))
        draws = rng.random(count)
        chosen = lookup.choose(np.repeat(form, count), draws, rng.random(count))
        flat, lengths = lookup.translations(chosen)
        texts = [VOCABULARY.decode(part) for part in np.split(flat, np.cumsum(lengths)[:-1])]
        assert {t: texts.count(t) / count for t in set(texts)} == pytest.approx(wanted, abs=0.025)
    alike, same = (FormLookup(encoded, "en", targets) for targets in (["de", "zh"], {"de": 3.0, "zh": 3.0}))
    for text in expected:
        assert found(alike, text) == found(same, text)
    with pytest.raises(ConfigError, match="all must be above 0"):
        FormLookup(encoded, "en", {"de": 0.0})


def test_long_forms_are_left_out() -> None:
    vocabulary = FakeVocabulary(["abcdef", " abcdef"])
    table = table_of({"abcdef": {"de": ["x"]}, "ab": {"de": ["uvwxyz", "y"]}})
    lookup = FormLookup(EncodedTable(table, vocabulary, max_word_tokens=4), "en", ["de"])
    # " abcdef" is one token, " ABCDEF" six.
    assert found(lookup, " abcdef", vocabulary=vocabulary) == {" x"}
    assert found(lookup, " ABCDEF", vocabulary=vocabulary) is None
    assert found(lookup, " ab", vocabulary=vocabulary) == {" y"}
    assert lookup.num_forms == 2


def test_words_are_found_whose_form_a_tokenizer_changes() -> None:
    """One that puts a space before every text and writes ligatures out, as SentencePiece models do."""

    class Normalises(FakeVocabulary):
        def encode(self, text: str, language: str) -> np.ndarray:
            text = text.replace("\ufb01", "fi")
            return super().encode(text if text.startswith(" ") else " " + text, language)

    vocabulary = Normalises([" find", " fisch"])
    vocabulary.is_lossless = False
    table = table_of({"\ufb01nd": {"de": ["\ufb01sch"]}})
    lookup = FormLookup(EncodedTable(table, vocabulary), "en", ["de"])
    assert found(lookup, "find", vocabulary=vocabulary) == {" fisch"}
    assert found(lookup, " FIND", vocabulary=vocabulary) == {" FISCH"}


def test_what_is_found_does_not_depend_on_what_was_looked_for() -> None:
    """Random segments in random windows, through a memory so small that it is emptied again and again."""
    rng = np.random.default_rng(0)
    table = EncodedTable(table_of(TABLE), VOCABULARY)
    small = FormLookup(table, "en", ["de", "zh"], max_segments=5)
    pieces = [
        VOCABULARY.encode(text, "en").astype(np.int64) for text in (" bank", "Bank", " bench", " xyz", "hotel", "a")
    ]
    for _ in range(200):
        chosen = [pieces[i] for i in rng.integers(0, len(pieces), size=6)]
        ends = np.cumsum([len(part) for part in chosen])
        forms = small.find(np.concatenate(chosen), ends - [len(part) for part in chosen], ends).tolist()
        fresh = FormLookup(table, "en", ["de", "zh"])
        for part, form in zip(chosen, forms, strict=True):
            (alone,) = fresh.find(part, np.array([0]), np.array([len(part)])).tolist()
            assert (alone < 0) == (form < 0)
            if form >= 0:
                assert translations_of(small, form) == translations_of(fresh, alone)
        assert len(small._known) <= 5


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


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=6), max_size=60))
def test_segments_keep_their_values(windows: list[list[list[int]]]) -> None:
    """Against a dictionary; the first hashes are made equal, so that different segments meet."""
    known = SegmentValues(3)
    known._hash.segments = (
        lambda ids, starts, ends: np.array(  # type: ignore[method-assign]
            [int(ids[a:b].sum()) for a, b in zip(starts, ends, strict=True)], dtype=np.uint64
        )
    )
    kept: dict[tuple[int, ...], int] = {}
    for window in windows:
        ids, ends = np.concatenate(window).astype(np.int64), np.cumsum([len(part) for part in window])
        starts = ends - [len(part) for part in window]
        values, hashes = known.find(ids, starts, ends)
        assert values.tolist() == [kept.get(tuple(part), SegmentValues.UNKNOWN) for part in window]
        for part, hashed in zip(window, hashes, strict=True):
            twins = [other for other in kept if (sum(other), len(other)) == (sum(part), len(part))]
            known.add(np.array(part), hashed, len(kept))
            if not twins:
                kept[tuple(part)] = len(kept)
    assert len(known) == len(kept)


def test_thousands_of_segments_are_kept_and_found() -> None:
    rng = np.random.default_rng(1)
    known = SegmentValues(50)
    kept: dict[tuple[int, ...], int] = {}
    for _ in range(40):
        lengths = rng.integers(1, 5, size=300)
        ids, ends = rng.integers(0, 50, size=lengths.sum()), np.cumsum(lengths)
        values, hashes = known.find(ids, ends - lengths, ends)
        parts = [tuple(part.tolist()) for part in np.split(ids, ends[:-1])]
        assert values.tolist() == [kept.get(part, SegmentValues.UNKNOWN) for part in parts]
        for part, hashed in zip(parts, hashes, strict=True):
            if part not in kept:
                kept[part] = int(rng.integers(-1, 1000))
                known.add(np.array(part), hashed, kept[part])
    assert len(known) == len(kept) > 5000
