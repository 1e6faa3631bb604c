"""The data of a study's seed: facts, tokenizer, token store, alignment table. Each is made once and kept."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np

from megalign.config import CorpusConfig, StudyConfig
from megalign.corpus.build import build_language
from megalign.corpus.knowledge.facts import Knowledge
from megalign.corpus.procedural import ProceduralEnglish
from megalign.corpus.readers import Document, list_files, read_rows
from megalign.corpus.store import StoreWriter, TokenStore
from megalign.corpus.store.transform import merge_stores
from megalign.corpus.tokenizer import Tokenizer, train_tokenizer
from megalign.corpus.vocabulary import Vocabulary
from megalign.corpus.word_counts import words_of
from megalign.errors import ConfigError, DataError
from megalign.files import new_folder
from megalign.prealign.muse import muse_table
from megalign.prealign.table import AlignmentTable, golden_table
from megalign.study.said import Said

# Text read of a folder before it is shuffled, in characters for each token that is wanted.
_CHARACTERS_PER_TOKEN = 24
_SAMPLE_DOCUMENTS = 200
_PARTS = "parts"


class Texts:
    """Endless or finite streams of documents for a language and a role: "train", "clone" or "valid".

    Procedural text has a stream of its own for each role. Documents of a folder are dealt to the roles by a hash of
    their text, so that equal documents never stand on two sides, and come in an order that depends on the seed.
    """

    def __init__(self, corpus: CorpusConfig, seed: int) -> None:
        self.corpus, self.seed = corpus, seed
        self._english = ProceduralEnglish(seed) if corpus.kind == "procedural" else None
        self._read: dict[str, list[str]] = {}

    def stream(self, language: str, role: str) -> Iterator[str]:
        """Documents of a language in a role."""
        if self._english is not None:
            return self._english.documents(role)
        return (text for text in self._documents(language) if self._role(language, text) == role)

    def _role(self, language: str, text: str) -> str:
        corpus = self.corpus
        is_source = language == corpus.source_language
        train = corpus.source_tokens if is_source else corpus.target_tokens
        clone = corpus.target_tokens if is_source and corpus.clone else 0
        digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"role", key=str(self.seed).encode()).digest()
        point = int.from_bytes(digest, "little") / 2**64 * (corpus.validation_tokens + clone + train)
        return (
            "valid"
            if point < corpus.validation_tokens
            else "clone"
            if point < corpus.validation_tokens + clone
            else "train"
        )

    def _documents(self, language: str) -> list[str]:
        if language not in self._read:
            self._read[language] = list(self._shuffled(language))
        return self._read[language]

    def _shuffled(self, language: str) -> list[str]:
        corpus = self.corpus
        wanted = (corpus.source_tokens + corpus.target_tokens + corpus.validation_tokens) * _CHARACTERS_PER_TOKEN
        rng = np.random.default_rng([self.seed, *language.encode()])
        path = Path(corpus.path or "")
        if corpus.target_languages and path.is_dir() and not (path / language).is_dir():
            raise DataError(
                f"The folder {path} has no folder {language!r}.",
                "With several languages each has its own; text of another would be taken for this one.",
                "Correct corpus.path, corpus.source_language or corpus.target_languages.",
            )
        files = list_files(path, language)
        texts: list[str] = []
        characters = 0
        for number in rng.permutation(len(files)):
            for row in read_rows(files[number]):
                if isinstance(row, Document):
                    texts.append(row.text)
                    characters += len(row.text)
            if characters >= wanted:
                break
        return [texts[number] for number in rng.permutation(len(texts))]


def _first_characters(stream: Iterator[str], limit: int) -> Iterator[str]:
    seen = 0
    for text in stream:
        yield text
        seen += len(text)
        if seen >= limit:
            return


def build_tokenizer(study: StudyConfig, texts: Texts, said: Said, path: Path) -> Tokenizer:
    """Train the tokenizer on a balanced sample: as many characters of every language, facts included."""
    corpus = study.corpus
    streams = []
    for language in (corpus.source_language, *corpus.target_languages):
        # About 4 characters a token, 400 a document.
        count = max(_SAMPLE_DOCUMENTS, corpus.source_tokens // 100) if said.facts is not None else 2**62
        own = language == corpus.source_language or isinstance(said.facts, Knowledge)
        stream = said.weave(texts.stream(language, "train"), language, "train" if own else "sample", count)
        streams.append(_first_characters(chain(said.period_statements(language), stream), corpus.tokenizer_characters))
    return train_tokenizer(chain.from_iterable(streams), corpus.vocab_size, path)


def _num_documents(study: StudyConfig, texts: Texts, said: Said, tokenizer: Tokenizer, budget: int) -> int:
    """Ordinary documents that fill the budget beside the facts, with a little to spare."""
    language, settings = study.corpus.source_language, study.facts
    facts = said.facts_in(language)
    assert facts is not None
    assert settings is not None
    documents: Iterator[str] = islice(texts.stream(language, "train"), _SAMPLE_DOCUMENTS)
    if study.nli is not None:
        documents = said.weave(documents, language, "sample", _SAMPLE_DOCUMENTS)
    sample = [len(tokenizer.encode(text)) + 1 for text in documents]
    statement = float(np.mean([len(tokenizer.encode(facts.statement(fact))) + 0.5 for fact in facts.facts]))
    stated = statement * len(facts.facts) * settings.repetitions
    if stated > 0.8 * budget:
        raise ConfigError(
            f"Stating {len(facts.facts)} facts {settings.repetitions} times takes about {stated:,.0f} of the "
            f"{budget:,} tokens of corpus.source_tokens.",
            "Little ordinary text would remain.",
            "Lower facts.repetitions or facts.num_relations, or raise corpus.source_tokens.",
        )
    return int((budget - stated) / float(np.mean(sample)) * 1.02) + 1


def build_part(study: StudyConfig, texts: Texts, said: Said, tokenizer: Tokenizer, language: str, path: Path) -> None:
    """Write the token store of one language: its training text to its budget exactly, and its held-out text."""
    corpus = study.corpus
    source = corpus.source_language
    languages = (source, *corpus.all_target_languages)
    vocabulary = Vocabulary(tokenizer, languages, {corpus.clone_language: source} if corpus.clone else {})
    is_clone = language in vocabulary.clone_of
    origin, role = (source, "clone") if is_clone else (language, "train")
    budget = corpus.source_tokens if language == source else corpus.target_tokens
    limit = 2**62
    if said.facts is not None and language == source:
        limit = _num_documents(study, texts, said, tokenizer, budget)
    stream = said.weave(texts.stream(origin, role), origin, role, limit)
    held_out = texts.stream(origin, "valid")
    with new_folder(path) as temporary, StoreWriter(temporary, vocabulary) as writer:
        for split, documents, tokens in (("train", stream, budget), ("valid", held_out, corpus.validation_tokens)):
            build_language(writer, documents=documents, language=language, split=split, budget_tokens=tokens)


def check_corpus_store(study: StudyConfig) -> TokenStore:
    """The store that a study of kind store names.

    Raises:
        DataError: there is none, or it has less text than the study wants.
    """
    corpus = study.corpus
    store = TokenStore.open(Path(corpus.path or ""))
    num_ids = store.vocabulary.tokenizer.vocab_size
    if corpus.vocab_size not in (0, num_ids):
        raise DataError(
            f"The tokenizer of the store {corpus.path} has {num_ids:,} ids, corpus.vocab_size is {corpus.vocab_size:,}.",
            fix="Correct corpus.vocab_size, or name another store.",
        )
    for language in languages_of(study):
        wanted = corpus.source_tokens if language == corpus.source_language else corpus.target_tokens
        found = store.num_tokens(language) if store.has(language, "train") else 0
        if found < wanted:
            key = "source_tokens" if language == corpus.source_language else "target_tokens"
            raise DataError(
                f"The store {corpus.path} has {found:,} training tokens of {language}, fewer than corpus.{key}, {wanted:,}.",
                fix="Lower it, or preprocess more text.",
            )
        if not store.has(language, "valid"):
            raise DataError(
                f"The store {corpus.path} has no held-out text of {language}.",
                "Perplexity is measured on it.",
                "Preprocess with --valid-fraction.",
            )
    return store


def build_table(study: StudyConfig, store: TokenStore, more: Iterable[str] = ()) -> AlignmentTable:
    """The alignment table from the words of the stored source text, or of a file.

    Args:
        study, store: the settings and the text.
        more: texts that training reads besides.

    Raises:
        DataError: a file is missing or damaged, or no word is left.
    """
    corpus, settings = study.corpus, study.table
    if settings.kind == "file":
        table = AlignmentTable.load(Path(settings.path or ""))
        return table.top_fraction(settings.fraction) if settings.fraction < 1 else table
    counts: Counter[str] = Counter()
    for document in store.documents(corpus.source_language):
        counts.update(words_of(store.text(document).text, corpus.source_language))
    for text in more:
        counts.update(words_of(text, corpus.source_language))
    if settings.kind == "golden":
        table = golden_table(
            counts,
            source_language=corpus.source_language,
            clone_language=corpus.clone_language,
            min_count=settings.min_count,
        )
    else:
        table = muse_table(
            {language: Path(file) for language, file in settings.dictionaries.items()},
            counts,
            source_language=corpus.source_language,
            min_count=settings.min_count,
            max_translations=settings.max_translations,
        )
    if not len(table):
        raise DataError(
            f"No word of the {corpus.source_language} text entered the alignment table.",
            f"Words must occur more than {settings.min_count} times.",
            "Lower table.min_count or raise corpus.source_tokens.",
        )
    return table.top_fraction(settings.fraction) if settings.fraction < 1 else table


def prepare(study: StudyConfig, seed: int, folder: Path) -> None:
    """Make facts and tokenizer of a seed in `folder`; what is there already is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    said = Said.make(study, seed, folder)
    if not (folder / "tokenizer.json").exists():
        tokenizer = build_tokenizer(study, Texts(study.corpus, seed), said, folder / "tokenizer.json")
        print(f"tokenizer of {tokenizer.vocab_size:,} ids", flush=True)


def encode_language(study: StudyConfig, seed: int, folder: Path, language: str) -> None:
    """Make a language's token store in `folder`; after `prepare`. What is there already is kept."""
    if (folder / "store").exists() or (part := _part(folder, language)).exists():
        return
    said = Said.load(study, seed, folder)
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    build_part(study, Texts(study.corpus, seed), said, tokenizer, language, part)
    print(f"{language}: {TokenStore.open(part).num_tokens(language):,} training tokens", flush=True)


def join(study: StudyConfig, seed: int, folder: Path) -> None:
    """Make the store of all languages and the alignment table in `folder`; after `encode_language` of each language."""
    more: Iterable[str] = ()
    if study.corpus.kind == "store":
        store = check_corpus_store(study)
    else:
        if not (folder / "store").exists():
            with new_folder(folder / "store") as temporary:
                merge_stores([_part(folder, language) for language in languages_of(study)], temporary)
        # The files of the parts are those of the store: hard links, where the file system has them.
        shutil.rmtree(folder / _PARTS, ignore_errors=True)
        store = TokenStore.open(folder / "store")
        more = Said.load(study, seed, folder).period_statements(study.corpus.source_language)
    table = build_table(study, store, more)
    folder.mkdir(parents=True, exist_ok=True)
    table.save(folder / "table.parquet")
    print(f"alignment table: {len(table):,} entries, {table.num_rows:,} translations", flush=True)


def languages_of(study: StudyConfig) -> list[str]:
    """The languages that are encoded, the source language first."""
    return [study.corpus.source_language, *study.corpus.all_target_languages]


def _part(folder: Path, language: str) -> Path:
    return folder / _PARTS / language


def build_data(study: StudyConfig, seed: int, folder: Path) -> None:
    """Make all data of a seed in `folder`, one thing after another; what is there already is kept."""
    if study.corpus.kind != "store":
        prepare(study, seed, folder)
        for language in languages_of(study):
            encode_language(study, seed, folder, language)
    join(study, seed, folder)
