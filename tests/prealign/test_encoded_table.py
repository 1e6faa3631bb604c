"""The table in token ids."""

from __future__ import annotations

import pytest
from prealign_fakes import FakeVocabulary, table_of

from megalign.errors import DataError
from megalign.prealign.encoded import EncodedTable, has_spaces
from megalign.prealign.table import golden_table

ENTRIES = {
    "bank": {"de": ["Bank", "Ufer"], "zh": ["银行", "河岸"]},
    "bench": {"de": ["Bank"], "zh": ["行"]},
    "hotel": {"de": ["hotel"]},
}


def word(encoded: EncodedTable, index: int) -> list[int]:
    return encoded.ids[encoded.offsets[index] : encoded.offsets[index + 1]].tolist()


def test_words_have_the_form_of_running_text() -> None:
    vocabulary = FakeVocabulary([" bank", "bank"])
    encoded = EncodedTable(table_of(ENTRIES), vocabulary)
    decoded = [vocabulary.decode(word(encoded, i)) for i in range(encoded.num_words)]
    assert decoded == [" bank", " Bank", " Ufer", "银行", "河岸", " bench", " Bank", "行"]
    assert word(encoded, 0) == [vocabulary.id_of[" bank"]]
    assert [encoded.languages[i] for i in encoded.language] == ["en", "de", "de", "zh", "zh", "en", "de", "zh"]
    assert encoded.entry.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert encoded.entry_offsets.tolist() == [0, 5, 8, 8]


def test_equal_ids_and_only_they_are_one_surface() -> None:
    encoded = EncodedTable(table_of(ENTRIES), FakeVocabulary())
    assert encoded.surface.tolist() == [0, 1, 2, 3, 4, 5, 1, 6]


def test_an_entry_whose_words_are_all_alike_is_left_out_and_counted() -> None:
    encoded = EncodedTable(table_of(ENTRIES), FakeVocabulary())
    assert encoded.batch_entries.tolist() == [0, 1]
    assert (encoded.num_words_repeated, encoded.num_entries_left_out, encoded.num_words_too_long) == (1, 1, 0)


def test_long_words_are_left_out_and_counted() -> None:
    encoded = EncodedTable(
        table_of({"a": {"de": ["abcdefgh", "ab"]}, "abcdefgh": {"de": ["c"]}}), FakeVocabulary(), max_word_tokens=4
    )
    assert encoded.num_words_too_long == 2
    assert encoded.num_entries_left_out == 1
    assert encoded.num_words == 2


def test_clone_words_are_shifted_and_look_different() -> None:
    vocabulary = FakeVocabulary(clone_of={"en-clone": "en"})
    encoded = EncodedTable(golden_table({"bank": 100}), vocabulary)
    assert word(encoded, 1) == [i + len(vocabulary.pieces) for i in word(encoded, 0)]
    assert encoded.surface.tolist() == [0, 1]


def test_languages_without_spaces() -> None:
    vocabulary = FakeVocabulary(clone_of={"copy": "zh"})
    found = {
        language: has_spaces(vocabulary, language) for language in ("en", "zh", "zh-Hant", "ja", "th", "copy", "de")
    }
    assert found == {"en": True, "zh": False, "zh-Hant": False, "ja": False, "th": False, "copy": False, "de": True}


def test_errors() -> None:
    with pytest.raises(DataError, match="starts from 'en', the run from 'fr'"):
        EncodedTable(table_of(ENTRIES), FakeVocabulary(), "fr")
    with pytest.raises(DataError, match=r"None of the 1 entries .* nothing to align"):
        EncodedTable(table_of({"hotel": {"de": ["hotel"]}}), FakeVocabulary(), "en")
