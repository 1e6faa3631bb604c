"""Building units: exact budgets, exact bytes, splits by text alone."""

from __future__ import annotations

import json
from itertools import islice, repeat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megalign.corpus.build import build_language, cut_to_fit, encode_documents, split_of
from megalign.corpus.procedural import ProceduralEnglish
from megalign.corpus.readers import Document
from megalign.corpus.store import StoreWriter, TokenStore, check_store
from megalign.corpus.tokenizer import Tokenizer, train_tokenizer
from megalign.corpus.vocabulary import Vocabulary
from megalign.corpus.words import segment, word_starts
from megalign.errors import ConfigError, DataError

TEXTS = list(islice(ProceduralEnglish(0).documents("train"), 100))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_tokenizer(TEXTS, 500, tmp_path_factory.mktemp("t") / "tokenizer.json")


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(tokenizer, ("en", "en-clone"), {"en-clone": "en"})


def test_a_language_and_its_clone(tmp_path: Path, vocabulary: Vocabulary) -> None:
    with StoreWriter(tmp_path / "s", vocabulary) as writer:
        counts = build_language(writer, documents=TEXTS, language="en")
        assert build_language(writer, documents=TEXTS, language="en-clone") == counts
    store = TokenStore.open(tmp_path / "s")
    assert (store.num_tokens("en"), store.num_documents("en")) == (counts.tokens, 100)
    assert counts.bytes_of_text == sum(len(text.encode()) for text in TEXTS)
    for text, english, clone in zip(TEXTS, store.documents("en"), store.documents("en-clone"), strict=True):
        assert english.ids[:-1].tolist() == vocabulary.tokenizer.encode(text).tolist()
        assert english.ids[-1] == clone.ids[-1] == vocabulary.eos_id
        assert (clone.ids[:-1] == english.ids[:-1] + vocabulary.tokenizer.vocab_size).all()
        assert np.array_equal(clone.word_starts, english.word_starts)
        assert store.text(clone).text == store.text(english).text == text
        # Where every boundary is between tokens, flags count segments and the end of text.
        assert english.word_starts.sum() == len(segment(text, "en").starts) + 1
    assert store.document("en", 3).source == "en/train"
    assert store.document("en", 3).row == 3
    assert check_store(tmp_path / "s") == []


@pytest.mark.parametrize("budget", [2, 3, 57, 1000, 5000])
def test_a_budget_is_met_exactly(tmp_path: Path, vocabulary: Vocabulary, budget: int) -> None:
    endless = ProceduralEnglish(0).documents("train")
    with StoreWriter(tmp_path / "s", vocabulary) as writer:
        counts = build_language(writer, documents=endless, language="en", budget_tokens=budget)
    store = TokenStore.open(tmp_path / "s")
    assert counts.tokens == store.num_tokens("en") == budget
    assert store.window("en", budget - 1, 1)[0] == vocabulary.eos_id
    assert check_store(tmp_path / "s") == []
    whole = np.concatenate([vocabulary.encode(text, "en") for text in TEXTS])
    read = store.window("en", 0, budget)
    assert np.array_equal(read[: min(budget - 1, 50)], whole[: min(budget - 1, 50)])


@given(st.lists(st.integers(1, 9), min_size=1, max_size=60), st.integers(2, 80))
def test_cutting_fills_a_budget_exactly(lengths: list[int], budget: int) -> None:
    written = 0
    for length in lengths:
        ids = np.append(np.full(length, 5), 0)
        kept, flags = cut_to_fit(ids, np.ones(length + 1, dtype=bool), budget - written)
        assert len(kept) == len(flags) == min(length + 1, budget - written)
        assert kept[-1] == 0
        assert (kept[:-1] == 5).all()
        written += len(kept)
        if written == budget:
            break
    assert written == min(budget, sum(lengths) + len(lengths))


def test_budget_errors(tmp_path: Path, vocabulary: Vocabulary) -> None:
    writer = StoreWriter(tmp_path / "s", vocabulary)
    with pytest.raises(DataError, match=r"The train documents of en have \d+ tokens, fewer than the budget of 1000000"):
        build_language(writer, documents=TEXTS, language="en", budget_tokens=10**6)
    with pytest.raises(ConfigError, match="A budget of 1 tokens for en holds no document"):
        build_language(writer, documents=TEXTS, language="en", budget_tokens=1)
    with pytest.raises(DataError, match="There is no valid document of en"):
        build_language(writer, documents=[], language="en", split="valid")
    other = Vocabulary(vocabulary.tokenizer, ("en",))
    with pytest.raises(ConfigError, match="The vocabulary is not the store's"):
        build_language(writer, documents=TEXTS, language="en", vocabulary=other)
    assert not [p for p in (tmp_path / "s").rglob("*") if p.is_file()]


def test_bad_text_is_named_by_its_place(vocabulary: Vocabulary) -> None:
    with pytest.raises(DataError, match=r"a:1 to a:1: A text is not valid Unicode"):
        list(encode_documents([Document("x", "a", 0), Document("\ud800", "a", 1)], vocabulary, "en"))


def test_a_tokenizer_that_changes_the_text_is_refused(tokenizer: Tokenizer) -> None:
    spec = json.loads(tokenizer.to_json())
    spec["normalizer"] = {"type": "NFKC"}
    vocabulary = Vocabulary(Tokenizer(json.dumps(spec)), ("en",))
    documents = [Document("plain", "a", 0), Document("ﬁne", "a", 1), Document("x", "a", 2)]
    with pytest.raises(DataError, match=r"a:1: the tokens do not cover the text. The tokenizer changes the text"):
        list(encode_documents(documents, vocabulary, "en"))


def test_batches_do_not_mix_documents(vocabulary: Vocabulary) -> None:
    """Each document's ids and flags are those it has alone, ASCII or not, in the order given."""
    texts = [t for pair in zip(TEXTS, (f"é{t} '我" for t in TEXTS), strict=True) for t in pair] + ["'s", " ", "s'"]
    tokenizer = vocabulary.tokenizer
    for text, (ids, flags, document) in zip(
        texts, encode_documents((Document(t, "", i) for i, t in enumerate(texts)), vocabulary, "en"), strict=True
    ):
        assert document.text == text
        assert ids.tolist() == [*tokenizer.encode(text).tolist(), tokenizer.eos_id]
        alone = word_starts(tokenizer.token_num_bytes[ids[:-1]], segment(text, "en"))
        assert flags.tolist() == [*alone.tolist(), True]


def test_splits_depend_on_the_text_and_meet_the_fraction() -> None:
    texts = [f"text {i}" for i in range(20000)]
    splits = [split_of(text, 0.05) for text in texts]
    assert abs(splits.count("valid") / len(texts) - 0.05) < 0.006
    assert [split_of(text, 0.05) for text in texts] == splits
    # A larger fraction keeps what a smaller one held out.
    assert all(split_of(t, 0.1) == "valid" for t, s in zip(texts, splits, strict=True) if s == "valid")
    assert {split_of(text, 0.0) for text in texts} == {"train"}
    assert {split_of(text, 1.0) for text in texts} == {"valid"}


def test_repeated_short_documents_reach_the_budget(tmp_path: Path, vocabulary: Vocabulary) -> None:
    with StoreWriter(tmp_path / "s", vocabulary) as writer:
        for budget in (2, 7, 8, 9):
            counts = build_language(
                writer, documents=repeat("the"), language="en", budget_tokens=budget, unit_name=f"u{budget}"
            )
            assert counts.tokens == budget
