"""Codeswitched windows: by hand, against a reference written out with loops, and on real text."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prealign_fakes import FakeVocabulary, table_of, window_of

from megalign.errors import ConfigError, DataError
from megalign.prealign.codeswitch import Codeswitcher, Switched
from megalign.prealign.encoded import EncodedTable
from megalign.prealign.segments import SegmentHash
from megalign.prealign.table import AlignmentTable, case_variants, golden_table

PIECES = [" the", " river", " bank", " is", " wide", "Fluss", " Ufer", " Uf", "er", "the", "bank"]
VOCABULARY = FakeVocabulary(PIECES)
TABLE = table_of({"bank": {"de": ["Ufer"]}, "river": {"de": ["Fluss"]}})
TEXT = [" the", " river", " is", " wide", ",", " the", " bank", ",", " is"]


def switcher(
    table: AlignmentTable = TABLE, vocabulary: FakeVocabulary = VOCABULARY, **settings: object
) -> Codeswitcher:
    arguments = {"ratio": 1.0, "seed": 3, "targets": {"en": ["de"]}} | settings
    return Codeswitcher(EncodedTable(table, vocabulary), **arguments)


def switch(codeswitcher: Codeswitcher, segments: list[str], length: int, sample_id: int = 0, **kwargs: str) -> Switched:
    language = kwargs.get("language", "en")
    ids, flags = window_of(VOCABULARY, segments, language)
    return codeswitcher.switch(ids, flags, language=language, sample_id=sample_id, length=length)


def pieces(ids: np.ndarray) -> list[str]:
    return [VOCABULARY.pieces[i] for i in ids]


# By hand: " Fluss" is " F", "l", "u", "s", "s"; " Ufer" is one piece.
BY_HAND = {
    "omit": (
        [" the", " F", "l", "u", "s", "s", " is", " wide", ",", " the", " Ufer", ","],
        [" F", "l", "u", "s", "s", " is", " wide", ",", " the", " Ufer", ",", " is"],
        [0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 1, 1],
    ),
    "first_subword": (
        [" the", " F", "l", "u", "s", "s", " is", " wide", ",", " the", " Ufer", ","],
        [" river", "l", "u", "s", "s", " is", " wide", ",", " the", " bank", ",", " is"],
        [1, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1],
    ),
    "vanilla": (
        [" the", " F", "l", "u", "s", "s", " is", " wide", ",", " the", " Ufer", ","],
        [" F", "l", "u", "s", "s", " is", " wide", ",", " the", " Ufer", ",", " is"],
        [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    ),
}


@pytest.mark.parametrize("label_mode", list(BY_HAND))
def test_label_modes_by_hand(label_mode: str) -> None:
    found = switch(switcher(label_mode=label_mode), [*TEXT, *[" the"] * 4], 12)
    tokens, labels, loss_mask = BY_HAND[label_mode]
    assert pieces(found.tokens) == tokens
    assert pieces(found.labels) == labels
    assert found.loss_mask.tolist() == loss_mask
    assert (found.tokens.dtype, found.labels.dtype, found.loss_mask.dtype) == (np.int64, np.int64, np.float32)
    assert (found.num_words, found.num_covered, found.num_switched) == (6, 2, 2)


def test_input_only_is_the_default() -> None:
    assert switch(switcher(), [*TEXT, *[" the"] * 4], 12).loss_mask.tolist() == BY_HAND["omit"][2]


def test_a_word_before_punctuation_is_switched() -> None:
    found = switch(switcher(), [" the", " bank", ",", " the"], 3)
    assert pieces(found.tokens) == [" the", " Ufer", ","]


def test_a_line_start_and_a_bracket_take_the_form_without_space() -> None:
    found = switch(switcher(), ["\n", "bank", " is", " (", "Bank", ")", *[" the"] * 8], 14)
    assert VOCABULARY.decode(found.tokens) == "\nUfer is (Ufer) the the the the"


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_windows_of_a_language_without_targets_stay_as_they_are(ratio: float) -> None:
    segments = [" Ufer", " the", " Ufer", " the"]
    ids, flags = window_of(VOCABULARY, segments, "de")
    found = switcher(ratio=ratio).switch(ids, flags, language="de", sample_id=0, length=3)
    assert found.tokens.tolist() == ids[:3].tolist()
    assert found.labels.tolist() == ids[1:4].tolist()
    assert found.loss_mask.tolist() == [1.0] * 3
    assert (found.num_words, found.num_covered, found.num_switched) == (3, 0, 0)


def test_ratio_zero_is_exactly_the_plain_window() -> None:
    ids, flags = window_of(VOCABULARY, [*TEXT, " the", " bank"], "en")
    found = switcher(ratio=0.0).switch(ids, flags, language="en", sample_id=0, length=8)
    assert found.tokens.tolist() == ids[:8].tolist()
    assert found.labels.tolist() == ids[1:9].tolist()
    assert found.loss_mask.tolist() == [1.0] * 8
    assert (found.num_covered, found.num_switched) == (2, 0)


def test_cut_words_are_not_switched() -> None:
    """A window may begin or end in the middle of a word whose visible part is another word of the table."""
    ids, flags = window_of(VOCABULARY, [" bank", " is", " bank"], "en")
    flags[0] = False
    assert switcher().switch(ids, flags, language="en", sample_id=0, length=2).num_switched == 0
    longer = VOCABULARY.id_of["er"]
    ids, flags = np.append(ids, longer), np.append(flags, False)
    assert switcher().switch(ids, flags, language="en", sample_id=0, length=3).num_covered == 0


def test_a_word_is_whole_or_not_there() -> None:
    """The table's "bank" is not found in a longer word that begins with its token."""
    found = switch(switcher(), [" the", " banker", " is", " the"], 4)
    assert pieces(found.tokens) == [" the", " bank", "er", " is"]
    assert found.num_covered == 0


def test_equal_hashes_do_not_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a hash that only counts tokens, all words of one token look alike; none but the right ones is found."""
    monkeypatch.setattr(SegmentHash, "segments", lambda self, ids, starts, ends: (ends - starts).astype(np.uint64))
    codeswitcher = switcher(table_of({"bank": {"de": ["Ufer"]}}))
    found = switch(codeswitcher, [" the", " bank", " is", " bank", " the"], 4)
    assert (found.num_covered, found.num_switched) == (2, 2)
    assert pieces(found.tokens) == [" the", " Ufer", " is", " Ufer"]


def test_the_end_of_a_document_ends_a_word_even_without_flags() -> None:
    ids, flags = window_of(VOCABULARY, [" the", " bank", "<eos>", "bank", " is", " the"], "en")
    flags[3] = False
    found = switcher().switch(ids, flags, language="en", sample_id=0, length=5)
    assert pieces(found.tokens) == [" the", " Ufer", "", "U", "f"]
    assert found.num_words == 3


def test_too_few_tokens_are_filled_up_without_loss() -> None:
    vocabulary = FakeVocabulary([" b"])
    codeswitcher = switcher(table_of({"bank": {"de": ["b"]}}), vocabulary)
    ids, flags = window_of(vocabulary, ["a", " bank", "c", "a"], "en")
    found = codeswitcher.switch(ids, flags, language="en", sample_id=0, length=6)
    a, b, c = (vocabulary.id_of[piece] for piece in ("a", " b", "c"))
    assert found.tokens.tolist() == [a, b, c, a, 0, 0]
    assert found.labels.tolist() == [b, c, a, 0, 0, 0]
    assert found.loss_mask.tolist() == [0, 1, 1, 0, 0, 0]


def test_switches_depend_on_seed_sample_and_position_alone() -> None:
    segments = TEXT * 20
    one, other = switcher(ratio=0.5), switcher(ratio=0.5)
    forward = [switch(one, segments, 100, sample_id=i).tokens.tolist() for i in range(6)]
    backward = [switch(other, segments, 100, sample_id=i).tokens.tolist() for i in reversed(range(6))]
    assert forward == backward[::-1]
    assert len({tuple(tokens) for tokens in forward}) == 6
    assert switch(switcher(ratio=0.5, seed=4), segments, 100).tokens.tolist() != forward[0]
    # What stands after the window does not matter, nor do the label mode and a longer slack.
    assert switch(switcher(ratio=0.5, label_mode="vanilla"), segments * 2, 100).tokens.tolist() == forward[0]


def test_the_share_switched_is_ratio_times_coverage() -> None:
    codeswitcher = switcher(ratio=0.05)
    totals = np.zeros(3)
    for sample_id in range(200):
        found = switch(codeswitcher, TEXT * 40, 256, sample_id=sample_id)
        totals += (found.num_words, found.num_covered, found.num_switched)
    coverage = totals[1] / totals[0]
    assert coverage == pytest.approx(2 / 7, abs=0.01)
    # About 10000 covered words: one standard deviation of the rate is 0.0022.
    assert totals[2] / totals[1] == pytest.approx(0.05, abs=0.009)


def test_clone_words_switch_both_ways() -> None:
    vocabulary = FakeVocabulary(PIECES, clone_of={"en-clone": "en"})
    codeswitcher = switcher(
        golden_table({"bank": 100, "Bank": 100}), vocabulary, targets={"en": ["en-clone"], "en-clone": ["en"]}
    )
    original, flags = window_of(vocabulary, [" the", " bank", " is"], "en")
    cloned, _ = window_of(vocabulary, [" the", " bank", " is"], "en-clone")
    there = codeswitcher.switch(original, flags, language="en", sample_id=0, length=2)
    assert there.tokens.tolist() == [original[0], cloned[1]]
    back = codeswitcher.switch(cloned, flags, language="en-clone", sample_id=0, length=2)
    assert back.tokens.tolist() == [cloned[0], original[1]]


def test_hit_rate_counts_whole_words_and_no_punctuation() -> None:
    windows = [window_of(VOCABULARY, TEXT, "en"), window_of(VOCABULARY, [" bank", ",", " the"], "en")]
    # Seven whole words, of which " river", " bank" and " bank" are covered; each window's last segment may go on.
    assert switcher().hit_rate(windows, language="en") == pytest.approx(3 / 7)
    assert switcher().hit_rate([], language="en") == 0.0


def test_a_table_in_another_form_than_the_text_has_no_hits() -> None:
    """The fault the self-test is for: keys without the space that running text has."""
    ids, flags = window_of(VOCABULARY, TEXT, "en")

    class DropsSpace(FakeVocabulary):
        def encode(self, text: str, language: str) -> np.ndarray:
            return super().encode(text.lstrip(), language)

    assert switcher().hit_rate([(ids, flags)], language="en") > 0.3
    assert switcher(vocabulary=DropsSpace(PIECES)).hit_rate([(ids, flags)], language="en") == 0.0


def test_errors() -> None:
    with pytest.raises(ConfigError, match=r"ratio is 5; it is a share from 0 to 1. Set it to 0.05"):
        switcher(ratio=5)
    with pytest.raises(ConfigError, match=r"label mode 'none' is unknown. Use one of omit, first_subword, vanilla"):
        switcher(label_mode="none")
    with pytest.raises(ConfigError, match="has no 'fr' words"):
        switcher(targets={"en": ["fr"]})
    with pytest.raises(DataError, match=r"window of 3 tokens and 3 word flags cannot give 3 positions. .* at least 4"):
        switch(switcher(), [" the", " bank", " is"], 3)
    with pytest.raises(DataError, match="window of 3 tokens and 2 word flags"):
        switcher().switch(np.zeros(3), np.zeros(2, dtype=bool), language="en", sample_id=0, length=2)


# ---- A reference with loops, on text instead of ids ----

REFERENCE_TABLE = {
    "a": {"de": ["ab", "Ufer"], "ru": ["б"]},
    "ab": {"de": ["b"], "ru": ["бан", "нк", "к"]},
    "Ab": {"de": ["Fluss"]},
    "bank": {"de": ["bank", "Bank"]},
    "the": {"ru": ["банк"]},
}
WORDS = ["a", "ab", "Ab", "AB", "A", "bank", "BANK", "the", "The", "is", "river"]
REFERENCE_TARGETS = {"en": ["de", "ru"], "de": ["en"]}
REFERENCE = EncodedTable(table_of(REFERENCE_TABLE), VOCABULARY)


def uniform(seed: int, sample_id: int, position: int, draw: int) -> float:
    mask = 2**64 - 1
    digest = hashlib.blake2b(f"codeswitch {seed} {sample_id} {draw}".encode(), digest_size=8).digest()
    x = (int.from_bytes(digest, "little") + (position + 1) * 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return ((x ^ (x >> 31)) >> 11) * 2.0**-53


def reference_translations(segment: str, language: str) -> list[list[str]]:
    """Per target language the translations a segment can be replaced by."""
    space, bare = (" ", segment[1:]) if segment.startswith(" ") else ("", segment)
    for variant in range(4):
        options: dict[str, list[str]] = {}
        for entry in table_of(REFERENCE_TABLE).entries:
            by_language = {"en": [entry.word]}
            for translation in entry.translations:
                by_language.setdefault(translation.language, []).append(translation.text)
            for source in by_language.get(language, []):
                if case_variants(source)[variant] != bare:
                    continue
                for target in REFERENCE_TARGETS[language]:
                    for text in by_language.get(target, []):
                        form = space + case_variants(text)[variant]
                        known = options.setdefault(target, [])
                        if form not in (segment, *known):
                            known.append(form)
        options = {target: texts for target, texts in options.items() if texts}
        if options:
            return list(options.values())
    return []


def reference_switch(
    segments: list[str], language: str, mode: str, ratio: float, sample_id: int, length: int
) -> tuple[list[int], list[int], list[float], tuple[int, int, int]]:
    out: list[int] = []
    labels: list[int] = []
    carries: list[float] = []
    counts = [0, 0, 0]
    position = 0
    for index, segment in enumerate(segments):
        ids = [0] if segment == "<eos>" else VOCABULARY.encode(segment, language).tolist()
        is_last = index == len(segments) - 1
        options = reference_translations(segment, language)
        is_word = any(c.isalnum() for c in segment) and segment != "<eos>"
        inside = len(out) < length and not is_last
        counts[0] += is_word and inside
        counts[1] += bool(options) and inside
        if options and not is_last and uniform(3, sample_id, position, 0) < ratio:
            counts[2] += inside
            texts = options[int(uniform(3, sample_id, position, 1) * len(options))]
            text = texts[int(uniform(3, sample_id, position, 2) * len(texts))]
            new = VOCABULARY.encode(text, language).tolist()
            out += new
            labels += [ids[0], *new[1:]] if mode == "first_subword" else new
            first = 0.0 if mode == "omit" else 1.0
            carries += [first, *[1.0 if mode == "vanilla" else 0.0] * (len(new) - 1)]
        else:
            out += ids
            labels += ids
            carries += [1.0] * len(ids)
        position += len(ids)
    out += [0] * length
    labels += [0] * (length + 1)
    carries += [0.0] * (length + 1)
    return out[:length], labels[1 : length + 1], carries[1 : length + 1], (counts[0], counts[1], counts[2])


SEGMENT = st.one_of(
    st.sampled_from([" " + word for word in WORDS] + WORDS), st.sampled_from([",", " (", "\n", "<eos>", " 12", ". "])
)


@settings(max_examples=300, deadline=None)
@given(
    segments=st.lists(SEGMENT, min_size=2, max_size=30),
    language=st.sampled_from(["en", "de"]),
    mode=st.sampled_from(["omit", "first_subword", "vanilla"]),
    ratio=st.sampled_from([0.05, 0.5, 1.0]),
    sample_id=st.integers(0, 2**40),
    data=st.data(),
)
def test_any_window_is_as_the_reference_switches_it(
    segments: list[str], language: str, mode: str, ratio: float, sample_id: int, data: st.DataObject
) -> None:
    ids, flags = window_of(VOCABULARY, segments, language)
    length = data.draw(st.integers(1, len(ids) - 1))
    codeswitcher = Codeswitcher(REFERENCE, ratio=ratio, label_mode=mode, seed=3, targets=REFERENCE_TARGETS)
    found = codeswitcher.switch(ids, flags, language=language, sample_id=sample_id, length=length)
    tokens, labels, loss_mask, counts = reference_switch(segments, language, mode, ratio, sample_id, length)
    assert found.tokens.tolist() == tokens
    assert found.labels.tolist() == labels
    assert found.loss_mask.tolist() == loss_mask
    assert (found.num_words, found.num_covered, found.num_switched) == counts
    assert len(found.tokens) == len(found.labels) == len(found.loss_mask) == length


# ---- The real tokenizer and word segmentation ----

SENTENCES = [
    "The river bank, wide and green, was quiet.",
    'He said: "the bank (of the river) is closed", and left.',
    "Bank notes\nThe river has two banks. A BANK is a bank!",
]


def test_real_tokenizer_real_segmentation(tmp_path: Path) -> None:
    from megalign.corpus.tokenizer import train_tokenizer
    from megalign.corpus.vocabulary import Vocabulary
    from megalign.corpus.words import segment, word_starts

    tokenizer = train_tokenizer(SENTENCES * 5, 400, tmp_path / "tokenizer.json")
    vocabulary = Vocabulary(tokenizer, ("en", "en-clone"), {"en-clone": "en"})
    counts = dict.fromkeys(("the", "river", "bank", "of", "is"), 100)
    encoded = EncodedTable(golden_table(counts), vocabulary, "en")
    codeswitcher = Codeswitcher(encoded, ratio=1.0, seed=0, targets={"en": ["en-clone"]})
    text = SENTENCES[1] + " " + SENTENCES[2]
    ids = vocabulary.encode(text, "en")
    flags = word_starts(vocabulary.token_num_bytes[ids], segment(text, "en"))
    ids, flags = np.append(ids, vocabulary.eos_id), np.append(flags, True)
    found = codeswitcher.switch(ids, flags, language="en", sample_id=0, length=len(ids) - 1)
    # He said the bank of the river is closed and left | Bank notes The river has two banks A BANK is a bank
    assert (found.num_words, found.num_covered, found.num_switched) == (23, 12, 12)
    assert codeswitcher.hit_rate([(ids, flags)], language="en") == pytest.approx(12 / 23)
    low, high = vocabulary.language_range("en-clone")
    switched = "".join(
        tokenizer.decode([int(i) - low]).upper() if low <= i < high else tokenizer.decode([int(i)]).lower()
        for i in found.tokens
    )
    expected = (
        'he said: "THE BANK (OF THE RIVER) IS closed", and left. BANK notes\nTHE RIVER has two banks. a BANK IS a BANK!'
    )
    assert switched == expected
    assert vocabulary.decode(found.tokens) == text


@pytest.mark.reference_data
def test_running_text_is_hit_as_often_as_the_table_covers_it(reference_data: Path, tmp_path: Path) -> None:
    """Real prose, a real dictionary: words found by their ids are those found by their letters."""
    import pyarrow.parquet as pq

    from megalign.corpus.tokenizer import train_tokenizer
    from megalign.corpus.vocabulary import Vocabulary
    from megalign.corpus.words import segment, word_starts
    from megalign.prealign.muse import muse_table

    part = next((reference_data / "culturax_like" / "en").glob("*.parquet"))
    texts = [text[:4000] for text in pq.read_table(part, columns=["text"])["text"].to_pylist()[:60]]
    words: list[str] = []
    for text in texts:
        found, data = segment(text, "en"), text.encode()
        ends = np.append(found.starts[1:], found.num_bytes)
        spans = zip(found.starts[found.is_word], ends[found.is_word], strict=True)
        words += [data[a:b].decode().strip() for a, b in spans]
    counts = {word: words.count(word) for word in set(words)}
    table = muse_table({"de": reference_data / "muse" / "en-de.txt"}, counts, min_count=3)
    vocabulary = Vocabulary(train_tokenizer(texts, 2000, tmp_path / "tokenizer.json"), ("en", "de"))
    codeswitcher = Codeswitcher(EncodedTable(table, vocabulary), ratio=0.05, seed=0, targets={"en": ["de"]})
    windows = []
    for text in texts:
        ids = vocabulary.encode(text, "en")
        flags = word_starts(vocabulary.token_num_bytes[ids], segment(text, "en"))
        windows.append((np.append(ids, vocabulary.eos_id), np.append(flags, True)))
    rate = codeswitcher.hit_rate(windows, language="en")
    # A word whose only translations are written like it is in the table and yet nothing to switch.
    changing = {e.word for e in table.entries if any(t.text != e.word for t in e.translations)}
    by_letters = sum(count for word, count in counts.items() if set(case_variants(word)) & changing) / len(words)
    assert by_letters > 0.3
    assert rate == pytest.approx(by_letters, abs=0.03)
