"""SentencePiece models: the ids are SentencePiece's own, no byte is lost, and models that rewrite text are refused."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from megalign.corpus.build import build_language
from megalign.corpus.procedural import ProceduralEnglish
from megalign.corpus.store import StoreWriter, TokenStore, check_store
from megalign.corpus.store.describe import marked_text
from megalign.corpus.tokenizer import Tokenizer
from megalign.corpus.vocabulary import Vocabulary
from megalign.errors import DataError

TEXTS = list(islice(ProceduralEnglish(0).documents("train"), 200))
KEEPING = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}


def train(folder: Path, **options: object) -> Path:
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    settings = (
        {"vocab_size": 600, "byte_fallback": True, "minloglevel": 2, "hard_vocab_limit": False} | KEEPING | options
    )
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_prefix=str(folder / "spm"), **settings
    )
    return folder / "spm.model"


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
@pytest.mark.parametrize("prefix", [True, False])
def test_ids_and_bytes(tmp_path: Path, model_type: str, prefix: bool) -> None:
    path = train(tmp_path, model_type=model_type, add_dummy_prefix=prefix)
    import sentencepiece

    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokenizer = Tokenizer.load(path)
    assert not tokenizer.is_fast
    assert tokenizer.vocab_size == reference.vocab_size()
    assert tokenizer.eos_token == "</s>"
    assert tokenizer.eos_id == reference.eos_id()
    assert tokenizer.adds_space is prefix
    for text in [*TEXTS[:60], "Ünïcode 我们  two spaces", "line\nbreak </s>"]:
        ids = tokenizer.encode(text)
        assert ids.tolist() == reference.encode(text)
        assert tokenizer.decode(ids) == (" " if prefix else "") + text
        assert int(tokenizer.token_num_bytes[ids].sum()) == len(text.encode()) + prefix
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert again.fingerprint == tokenizer.fingerprint


def test_a_store_with_a_sentencepiece_tokenizer_has_its_words(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(train(tmp_path, model_type="bpe"))
    with StoreWriter(tmp_path / "s", Vocabulary(tokenizer, ("en",))) as writer:
        build_language(writer, documents=["The cat, again.", *TEXTS[:5]], language="en")
    store = TokenStore.open(tmp_path / "s")
    assert check_store(tmp_path / "s") == []
    assert marked_text(store, store.document("en", 0)) == " The| cat|,| again|."
    assert np.array_equal(store.document("en", 1).ids[:-1], tokenizer.encode(TEXTS[0]))


def test_models_that_cannot_be_used(tmp_path: Path) -> None:
    path = train(tmp_path, normalization_rule_name="nmt_nfkc")
    with pytest.raises(DataError, match=r"rewrites text before it encodes it \(normalizer nmt_nfkc\).*identity"):
        Tokenizer.load(path)
    with pytest.raises(DataError, match="normalizer identity"):
        Tokenizer.load(train(tmp_path, remove_extra_whitespaces=True))
    with pytest.raises(DataError, match=r"is of type 4\. Use a unigram or BPE model"):
        Tokenizer.load(train(tmp_path, model_type="char"))
    content = path.read_bytes()
    for broken in (b"", b"\xff" * 9, content[: len(content) // 2], b'{"model": {}}'):
        (tmp_path / "broken.model").write_bytes(broken)
        with pytest.raises(DataError, match=r"broken.model is not a SentencePiece model"):
            Tokenizer.load(tmp_path / "broken.model")
    with pytest.raises(DataError, match=r"none.model does not exist"):
        Tokenizer.load(tmp_path / "none.model")
