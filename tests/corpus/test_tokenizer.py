"""Tokenizer: ids equal Hugging Face's, bytes are never lost, bad files are named."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from megalign.corpus.procedural import ProceduralEnglish
from megalign.corpus.readers import read_documents
from megalign.corpus.tokenizer import EOS, Tokenizer, train_tokenizer
from megalign.errors import ConfigError, DataError

TEXTS = [*islice(ProceduralEnglish(0).documents("train"), 200), "naïve Übergröße 12,345 don't 我们 \n\n  x\t" * 5]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_tokenizer(TEXTS, 700, tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


@pytest.fixture(scope="module")
def reference(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(tokenizer.to_json())


def hf_ids(reference: tokenizers.Tokenizer, text: str) -> list[int]:
    return list(reference.encode(text, add_special_tokens=False).ids)


def test_layout_of_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.eos_id == 0
    assert tokenizer.vocab_size == 700
    assert tokenizer.is_fast
    assert sorted(tokenizer.decode_bytes([i]) for i in range(1, 257)) == [bytes([b]) for b in range(256)]
    assert tokenizer.decode_bytes([0]) == b""
    assert tokenizer.token_num_bytes[0] == 0
    assert tokenizer.token_num_bytes.dtype == np.int64
    assert tokenizer.token_num_bytes.tolist() == [len(tokenizer.decode_bytes([i])) for i in range(700)]


def test_training_twice_gives_the_same_bytes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    again = train_tokenizer(iter(TEXTS), 700, tmp_path / "t.json")
    assert (tmp_path / "t.json").read_text() == tokenizer.to_json()
    assert again.fingerprint == tokenizer.fingerprint
    other = train_tokenizer(TEXTS, 699, tmp_path / "u.json")
    assert other.fingerprint != tokenizer.fingerprint
    compact = Tokenizer(json.dumps(json.loads(tokenizer.to_json())))
    assert compact.fingerprint == tokenizer.fingerprint


def test_ids_equal_those_of_hugging_face(tokenizer: Tokenizer, reference: tokenizers.Tokenizer) -> None:
    for text in [
        *TEXTS,
        "",
        " ",
        "  a",
        "\xa0b\u2003c",
        "é",
        "🙂👩\u200d👩\u200d👧",
        "x" * 3000,
        "I'LL we'll 's'",
        "\r\n \r",
    ]:
        ids = tokenizer.encode(text)
        assert ids.dtype == np.uint32
        assert ids.tolist() == hf_ids(reference, text)


SPACES = " \t\n\v\f\r\x1c\x1f\x85\xa0\u1680\u180e\u2000\u200a\u200b\u2028\u2029\u202f\u205f\u3000\ufeff"


@given(st.text(alphabet="ab1'sé我." + SPACES))
def test_any_white_space_is_split_as_by_hugging_face(
    tokenizer: Tokenizer, reference: tokenizers.Tokenizer, text: str
) -> None:
    assert tokenizer.encode(text).tolist() == hf_ids(reference, text)


@given(st.text())
def test_any_text_round_trips_with_the_reference_ids(
    tokenizer: Tokenizer, reference: tokenizers.Tokenizer, text: str
) -> None:
    ids = tokenizer.encode(text)
    assert ids.tolist() == hf_ids(reference, text)
    assert tokenizer.decode(ids) == text
    assert int(tokenizer.token_num_bytes[ids].sum()) == len(text.encode())


def test_special_tokens_in_text_are_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(f"a{EOS}b")
    assert tokenizer.eos_id not in ids
    assert tokenizer.decode(ids) == f"a{EOS}b"


def test_cut_characters_decode_to_replacements(tokenizer: Tokenizer) -> None:
    ids = [*map(int, tokenizer.encode("é"))]
    parts = [b for i in ids for b in tokenizer.decode_bytes([i])]
    first = next(i for i in range(1, 257) if tokenizer.decode_bytes([i]) == bytes(parts[:1]))
    assert tokenizer.decode([first]) == "\ufffd"


def test_real_text_ids_equal_those_of_hugging_face(reference_data: Path, tmp_path: Path) -> None:
    """Every document of the shared corpus in all languages (a few of each here; the benchmark runs all)."""
    documents = [
        d.text[:4000]
        for lang in ("en", "de", "ru", "zh", "fr", "ar")
        for d in islice(read_documents(reference_data / "culturax_like", lang), 25)
    ]
    tokenizer = train_tokenizer(documents, 3000, tmp_path / "t.json")
    assert tokenizer.is_fast
    reference = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    for text in documents:
        assert tokenizer.encode(text).tolist() == hf_ids(reference, text)


def llama_like(ignore_merges: bool) -> tokenizers.Tokenizer:
    """A byte-level BPE whose own pattern splits, as Llama 3 and Qwen have it."""
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    made = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=600, initial_alphabet=alphabet, special_tokens=["<|end_of_text|>", "<pad>"], show_progress=False
        ),
    )
    return made


def test_other_byte_level_bpe_is_fast_and_equal() -> None:
    made = llama_like(ignore_merges=True)
    tokenizer = Tokenizer(made.to_str())
    assert tokenizer.is_fast
    assert tokenizer.eos_token == "<|end_of_text|>"
    for text in TEXTS:
        assert tokenizer.encode(text).tolist() == hf_ids(made, text)


def test_tokens_with_two_merges_are_left_to_hugging_face(tokenizer: Tokenizer) -> None:
    spec = json.loads(tokenizer.to_json())
    by_length = sorted((m for m in spec["model"]["merges"] if len(m[0]) > 1), key=lambda m: len("".join(m)))
    left, right = by_length[0]
    spec["model"]["merges"].append([left[0], left[1:] + right])
    spec["model"]["vocab"].setdefault(left[1:] + right, 700)
    changed = Tokenizer(json.dumps(spec))
    assert not changed.is_fast
    reference = tokenizers.Tokenizer.from_str(json.dumps(spec))
    assert [i.tolist() for i in changed.encode_batch(TEXTS)] == [hf_ids(reference, text) for text in TEXTS]


def test_sentencepiece_like_goes_through_hugging_face() -> None:
    made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    made.normalizer = normalizers.Replace(" ", "\u2581")
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>"]
    byte_tokens = [f"<0x{b:02X}>" for b in range(256)]
    made.train_from_iterator(
        [t.replace(" ", "\u2581") for t in TEXTS[:-1]],
        trainers.BpeTrainer(
            vocab_size=700, special_tokens=special + byte_tokens, show_progress=False, max_token_length=12
        ),
    )
    spec = json.loads(made.to_str())
    spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] in special]
    tokenizer = Tokenizer(json.dumps(spec))
    assert not tokenizer.is_fast
    assert tokenizer.eos_token == "</s>"
    text = "The cat</s> 我 sat"
    ids = tokenizer.encode(text)
    assert tokenizer.eos_id not in ids
    assert tokenizer.decode(ids) == text
    assert int(tokenizer.token_num_bytes[ids].sum()) == len(text.encode())


def test_bad_files(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"missing.json does not exist"):
        Tokenizer.load(tmp_path / "missing.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"cannot be used: This is not a tokenizer.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"binary.json is not a tokenizer.json"):
        Tokenizer.load(tmp_path / "binary.json")
    with pytest.raises(DataError, match=r"no end-of-text token <stop>"):
        Tokenizer(tokenizer.to_json(), eos_token="<stop>")
    with pytest.raises(ConfigError, match=r"vocabulary of 256 tokens is too small"):
        train_tokenizer(["a"], 256, tmp_path / "t.json")
    with pytest.raises(DataError, match=r"not below the vocabulary size 700"):
        tokenizer.decode([700])


def test_lone_surrogates_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="not valid Unicode: surrogates not allowed at character 2"):
        tokenizer.encode("ab\ud800")


def test_save_keeps_the_content(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path).to_json() == tokenizer.to_json()
