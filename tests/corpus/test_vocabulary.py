"""The vocabulary with clones: shifted ids, a shared end of text, the same words underneath."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from megalign.corpus.tokenizer import Tokenizer, train_tokenizer
from megalign.corpus.vocabulary import Vocabulary
from megalign.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_tokenizer(["the cat sat on the mat"] * 3, 270, tmp_path_factory.mktemp("t") / "tokenizer.json")


def test_a_clone_is_shifted_and_shares_the_end_of_text(tokenizer: Tokenizer) -> None:
    vocabulary = Vocabulary(tokenizer, ("en", "en-clone"), {"en-clone": "en"})
    size = tokenizer.vocab_size
    assert vocabulary.size == 2 * size
    english, clone = vocabulary.encode("the cat", "en"), vocabulary.encode("the cat", "en-clone")
    assert clone.tolist() == [i + size for i in english.tolist()]
    assert clone.dtype == np.uint32
    assert vocabulary.decode(np.concatenate([english, clone, [vocabulary.eos_id]])) == "the catthe cat"
    with_eos = np.append(english, np.uint32(vocabulary.eos_id))
    assert vocabulary.shift(with_eos, "en-clone").tolist() == [*clone.tolist(), vocabulary.eos_id]
    assert vocabulary.token_num_bytes[clone].tolist() == vocabulary.token_num_bytes[english].tolist()
    assert vocabulary.row_sources()[clone].tolist() == english.tolist()
    assert vocabulary.row_sources()[:size].tolist() == list(range(size))
    assert vocabulary.language_range("en-clone") == (size, 2 * size)
    assert vocabulary.language_range("en") == (0, 0)
    assert vocabulary.offset("en-clone") == size


def test_without_clones_and_with_two(tokenizer: Tokenizer) -> None:
    plain = Vocabulary(tokenizer, ("en", "de"))
    assert plain.size == tokenizer.vocab_size
    assert plain.encode("cat", "de").tolist() == plain.encode("cat", "en").tolist()
    two = Vocabulary(tokenizer, ("en", "a", "b"), {"a": "en", "b": "en"})
    assert two.size == len(two.token_num_bytes) == len(two.row_sources()) == 3 * tokenizer.vocab_size
    assert two.decode(two.encode("cat", "b")) == "cat"
    assert len({plain.fingerprint, two.fingerprint}) == 2


def test_json_round_trip_names_its_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    vocabulary = Vocabulary(tokenizer, ("en", "en-clone"), {"en-clone": "en"})
    content = json.loads(json.dumps(vocabulary.to_json()))
    assert Vocabulary.from_json(content, tokenizer).fingerprint == vocabulary.fingerprint
    other = train_tokenizer(["another text"], 262, tmp_path / "t.json")
    with pytest.raises(DataError, match=r"is not the vocabulary's"):
        Vocabulary.from_json(content, other)


def test_wrong_languages(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="named twice in en, en"):
        Vocabulary(tokenizer, ("en", "en"))
    with pytest.raises(ConfigError, match="The clone x is not among the languages en"):
        Vocabulary(tokenizer, ("en",), {"x": "en"})
    with pytest.raises(ConfigError, match="copies a, itself a clone"):
        Vocabulary(tokenizer, ("en", "a", "b"), {"a": "en", "b": "a"})
    vocabulary = Vocabulary(tokenizer, ("en",))
    with pytest.raises(ConfigError, match=r"The language fr is unknown. The vocabulary has en"):
        vocabulary.encode("x", "fr")
    with pytest.raises(DataError, match="outside the vocabulary of 2"):
        vocabulary.decode([vocabulary.size])
