"""Stores made from stores: clones, unions and archives keep every token and say what they refuse."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from megalign.corpus.build import build_language
from megalign.corpus.procedural import ProceduralEnglish
from megalign.corpus.readers import Document
from megalign.corpus.store import StoreWriter, TokenStore, check_store
from megalign.corpus.store.describe import marked_text, summary, trace
from megalign.corpus.store.transform import archive_store, clone_store, merge_stores, restore_archive
from megalign.corpus.tokenizer import Tokenizer, train_tokenizer
from megalign.corpus.vocabulary import Vocabulary
from megalign.errors import ConfigError, DataError

TEXTS = list(islice(ProceduralEnglish(0).documents("train"), 60))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_tokenizer(TEXTS, 500, tmp_path_factory.mktemp("t") / "tokenizer.json")


def build(path: Path, tokenizer: Tokenizer, language: str = "en", texts: list[str] = TEXTS) -> Path:
    documents = [Document(text, f"{language}.txt", row, f"http://{row}") for row, text in enumerate(texts)]
    with StoreWriter(path, Vocabulary(tokenizer, (language,))) as writer:
        build_language(writer, documents=documents[10:], language=language)
        build_language(writer, documents=documents[:10], language=language, split="valid")
    return path


def contents(store: Path) -> dict[str, bytes]:
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


def test_a_clone_has_the_shifted_ids_of_the_original(tmp_path: Path, tokenizer: Tokenizer) -> None:
    original = TokenStore.open(build(tmp_path / "en", tokenizer))
    clone = clone_store(tmp_path / "en", tmp_path / "clone", "en", "en-clone")
    assert clone.languages == ("en-clone",)
    assert clone.vocabulary.clone_of == {"en-clone": "en"}
    assert check_store(tmp_path / "clone") == []
    for split in ("train", "valid"):
        for old, new in zip(original.documents("en", split), clone.documents("en-clone", split), strict=True):
            expected = [int(i) + tokenizer.vocab_size if i != tokenizer.eos_id else int(i) for i in old.ids]
            assert new.ids.tolist() == expected
            assert np.array_equal(new.word_starts, old.word_starts)
            assert (new.source, new.row, new.url) == (old.source, old.row, old.url)
            assert clone.text(new).text == original.text(old).text


def test_a_clone_with_a_budget(tmp_path: Path, tokenizer: Tokenizer) -> None:
    build(tmp_path / "en", tokenizer)
    clone = clone_store(tmp_path / "en", tmp_path / "clone", "en", "en-clone", budget_tokens=777)
    assert clone.num_tokens("en-clone") == 777
    assert clone.num_documents("en-clone", "valid") == 10
    with pytest.raises(DataError, match=r"has \d+ tokens of en, fewer than 1000000"):
        clone_store(tmp_path / "en", tmp_path / "c2", "en", "en-clone", budget_tokens=10**6)
    with pytest.raises(ConfigError, match="copies en-clone, itself a clone"):
        clone_store(tmp_path / "clone", tmp_path / "c3", "en-clone", "twice")
    with pytest.raises(ConfigError, match="named twice"):
        clone_store(tmp_path / "en", tmp_path / "c4", "en", "en")


def test_a_union_has_everything(tmp_path: Path, tokenizer: Tokenizer) -> None:
    english = TokenStore.open(build(tmp_path / "en", tokenizer))
    german = TokenStore.open(build(tmp_path / "de", tokenizer, "de", TEXTS[5:40]))
    clone = clone_store(tmp_path / "en", tmp_path / "clone", "en", "en-clone")
    more = TokenStore.open(build(tmp_path / "more", tokenizer, "en", TEXTS[20:50]))
    merged = merge_stores([tmp_path / n for n in ("en", "de", "clone", "more")], tmp_path / "all")
    assert check_store(tmp_path / "all") == []
    assert merged.languages == ("en", "de", "en-clone")
    for store, language in ((german, "de"), (clone, "en-clone")):
        whole = store.window(language, 0, store.num_tokens(language))
        assert np.array_equal(merged.window(language, 0, merged.num_tokens(language)), whole)
    both = np.concatenate([s.window("en", 0, s.num_tokens("en")) for s in (english, more)])
    assert np.array_equal(merged.window("en", 0, merged.num_tokens("en")), both)
    assert merged.document("de", 3).source == "de.txt"
    # Units are immutable, so a link is as good as a copy.
    assert (tmp_path / "all/de/train/tokens/c/0").samefile(tmp_path / "de/de/train/tokens/c/0")


def test_a_store_is_in_a_union_once(tmp_path: Path, tokenizer: Tokenizer) -> None:
    build(tmp_path / "en", tokenizer)
    (tmp_path / "same").symlink_to(tmp_path / "en")
    with pytest.raises(DataError, match="same is named twice"):
        merge_stores([tmp_path / "en", tmp_path / "same"], tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_a_union_widens_ids_where_it_must(tmp_path: Path, tokenizer: Tokenizer) -> None:
    build(tmp_path / "en", tokenizer)
    clones = {f"c{i}": "en" for i in range(140)}
    wide = Vocabulary(tokenizer, ("en", *clones), clones)
    with StoreWriter(tmp_path / "wide", wide) as writer:
        build_language(writer, documents=TEXTS[:3], language="c139")
    assert TokenStore.open(tmp_path / "en").dtype == np.uint16
    merged = merge_stores([tmp_path / "en", tmp_path / "wide"], tmp_path / "all")
    assert merged.dtype == np.uint32
    assert check_store(tmp_path / "all") == []
    assert merged.text(merged.document("c139", 1)).text == TEXTS[1]
    first = merged.document("en", 0)
    assert (merged.text(first).text, first.row, first.url) == (TEXTS[10], 10, "http://10")


def test_unions_that_make_no_sense(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path / "en", tokenizer)
    build(tmp_path / "other", train_tokenizer(TEXTS, 400, tmp_path / "t.json"))
    with pytest.raises(DataError, match="have different tokenizers"):
        merge_stores([tmp_path / "en", tmp_path / "other"], tmp_path / "x")
    clone_store(tmp_path / "en", tmp_path / "a", "en", "clone-a")
    clone_store(tmp_path / "en", tmp_path / "b", "en", "clone-b")
    with pytest.raises(DataError, match=r"The ids of the clone clone-b in .* are taken by another clone"):
        merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "y")
    with monkeypatch.context() as patch:
        patch.setattr("megalign.corpus.store.writer.segmenter_name", lambda language: "another")
        build(tmp_path / "words", tokenizer)
    with pytest.raises(DataError, match=r"Words of en were found by unicode-words.* and by another"):
        merge_stores([tmp_path / "en", tmp_path / "words"], tmp_path / "z")
    (tmp_path / "a" / "clone-a" / "train" / "row" / "c" / "0").unlink()
    with pytest.raises(DataError, match=r"The store .*a is damaged: .* is missing"):
        merge_stores([tmp_path / "en", tmp_path / "a"], tmp_path / "w")


def test_an_archive_is_smaller_and_gives_the_store_back(tmp_path: Path, tokenizer: Tokenizer) -> None:
    build(tmp_path / "s", tokenizer)
    archive_store(tmp_path / "s", tmp_path / "archive")
    restore_archive(tmp_path / "archive", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tmp_path / "s")
    assert sum(map(len, contents(tmp_path / "archive").values())) < 0.3 * sum(
        map(len, contents(tmp_path / "s").values())
    )
    with pytest.raises(DataError, match="There is no finished token store"):
        TokenStore.open(tmp_path / "archive")
    with pytest.raises(DataError, match=r"archive.json does not exist"):
        restore_archive(tmp_path / "s", tmp_path / "x")
    shard = tmp_path / "archive" / "en" / "train" / "tokens" / "c" / "0"
    content = bytearray(shard.read_bytes())
    content[40] ^= 0xFF
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"is damaged|does not give back"):
        restore_archive(tmp_path / "archive", tmp_path / "y")
    assert not (tmp_path / "y").exists()
    (tmp_path / "s" / "en" / "train" / "row" / "c" / "0").unlink()
    with pytest.raises(DataError, match=r"The store .*s is damaged"):
        archive_store(tmp_path / "s", tmp_path / "z")


def test_summary_counts_each_language_and_split(tmp_path: Path, tokenizer: Tokenizer) -> None:
    store = TokenStore.open(build(tmp_path / "s", tokenizer))
    train, valid = summary(store)
    assert (train.language, train.split, train.units, train.documents) == ("en", "train", 1, 50)
    assert valid.documents == 10
    assert train.bytes_of_text == sum(len(text) for text in TEXTS[10:])
    assert train.bytes_per_token == pytest.approx(train.bytes_of_text / store.num_tokens("en"))


def test_marked_text_shows_every_word(tmp_path: Path, tokenizer: Tokenizer) -> None:
    vocabulary = Vocabulary(tokenizer, ("en",))
    with StoreWriter(tmp_path / "s", vocabulary) as writer:
        build_language(writer, documents=["The cat, again.", "a " * 50], language="en")
    store = TokenStore.open(tmp_path / "s")
    assert marked_text(store, store.document("en", 0)) == "The| cat|,| again|."
    assert marked_text(store, store.document("en", 1), max_tokens=3) == "a| a| a..."


def test_trace_names_the_documents_of_a_window(tmp_path: Path, tokenizer: Tokenizer) -> None:
    store = TokenStore.open(build(tmp_path / "s", tokenizer))
    owner = [(i, j) for i, d in enumerate(store.documents("en")) for j in range(len(d.ids))]
    for start, length in ((0, 5), (3, 400), (len(owner) - 2, 2), (100, 0)):
        pieces = trace(store, "en", start, length)
        spelled = [(p.document, p.first + k) for p in pieces for k in range(p.tokens)]
        assert spelled == owner[start : start + length]
        assert all((p.source, p.row, p.url) == ("en.txt", p.document + 10, f"http://{p.document + 10}") for p in pieces)
    with pytest.raises(DataError, match="out of range"):
        trace(store, "en", len(owner), 1)


def test_what_is_there_is_not_replaced(tmp_path: Path, tokenizer: Tokenizer) -> None:
    store = build(tmp_path / "s", tokenizer)
    before = contents(store)
    (tmp_path / "own" / "en-clone" / "train").mkdir(parents=True)
    (tmp_path / "own" / "en-clone" / "train" / "notes").write_text("mine")
    (tmp_path / "file").write_text("mine")
    archive_store(store, tmp_path / "archive")
    for name in ("own", "file"):
        with pytest.raises(DataError, match=r"exists and has no archive\.json"):
            archive_store(store, tmp_path / name)
        with pytest.raises(DataError, match=r"exists and has no manifest\.json"):
            restore_archive(tmp_path / "archive", tmp_path / name)
        with pytest.raises(DataError, match="exists and is no finished store"):
            clone_store(store, tmp_path / name, "en", "en-clone")
        with pytest.raises(DataError, match="exists and is no finished store"):
            merge_stores([store], tmp_path / name)
    for inside in (store, store / "en" / "archive"):
        with pytest.raises(DataError, match="is or lies in"):
            archive_store(store, inside)
    assert contents(tmp_path / "own") == {"en-clone/train/notes": b"mine"}
    assert (tmp_path / "file").read_text() == "mine"
    assert contents(store) == before
    archive_store(store, tmp_path / "archive")  # an archive may be made anew


def test_an_archive_keeps_how_the_store_was_built(tmp_path: Path, tokenizer: Tokenizer) -> None:
    store = build(tmp_path / "s", tokenizer)
    (store / "build.json").write_text("{}")
    archive_store(store, tmp_path / "archive")
    restore_archive(tmp_path / "archive", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(store)


@pytest.mark.parametrize("budget", [1, 0, -5])
def test_a_clone_without_room_is_refused(budget: int, tmp_path: Path, tokenizer: Tokenizer) -> None:
    store = build(tmp_path / "s", tokenizer)
    with pytest.raises(ConfigError, match=f"A budget of {budget} tokens for c holds no document"):
        clone_store(store, tmp_path / "c", "en", "c", budget)
    assert not (tmp_path / "c").exists()


def test_a_union_that_fails_leaves_nothing(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = build(tmp_path / "s", tokenizer)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("megalign.corpus.store.transform.write_manifest", full)
    with pytest.raises(OSError, match="No space"):
        merge_stores([store], tmp_path / "all")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_union_without_links_is_a_copy(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    store = build(tmp_path / "s", tokenizer)
    merge_stores([store], tmp_path / "linked")

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    merge_stores([store], tmp_path / "copied")
    assert contents(tmp_path / "copied") == contents(tmp_path / "linked")
    tokens = "en/train/tokens/c/0"
    assert (tmp_path / "linked" / tokens).samefile(store / tokens)
    assert not (tmp_path / "copied" / tokens).samefile(store / tokens)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(OSError, match="No space") as raised:
        merge_stores([store], tmp_path / "full")
    assert raised.value.errno == 28
    assert not (tmp_path / "full").exists()
