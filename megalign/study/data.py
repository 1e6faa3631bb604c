"""The data of a study's seed: facts, tokenizer, token store, alignment table. Each is made once and kept."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np

from megalign.config import CorpusConfig, FactsConfig, StudyConfig
from megalign.corpus.build import build_language
from megalign.corpus.facts import FactSet, make_facts, weave_chatter, weave_facts
from megalign.corpus.procedural import ProceduralEnglish
from megalign.corpus.readers import Document, list_files, read_rows
from megalign.corpus.store import StoreWriter, TokenStore
from megalign.corpus.tokenizer import Tokenizer, train_tokenizer
from megalign.corpus.vocabulary import Vocabulary
from megalign.corpus.word_counts import words_of
from megalign.errors import ConfigError, DataError
from megalign.files import new_folder
from megalign.prealign.muse import muse_table
from megalign.prealign.table import AlignmentTable, golden_table

# Text read of a folder before it is shuffled, in characters for each token that is wanted.
_CHARACTERS_PER_TOKEN = 24
_SAMPLE_DOCUMENTS = 200


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


def _with_facts(
    texts: Texts, settings: FactsConfig, facts: FactSet, language: str, role: str, num_documents: int
) -> Iterator[str]:
    """Ordinary documents with chatter, and the facts where the role is to state them."""
    seed = texts.seed
    stream = weave_chatter(
        islice(texts.stream(language, role), num_documents), facts, share=settings.chatter_share, seed=seed
    )
    if role != "train":
        return stream
    return weave_facts(stream, facts, repetitions=settings.repetitions, num_documents=num_documents, seed=seed)


def _first_characters(stream: Iterator[str], limit: int) -> Iterator[str]:
    seen = 0
    for text in stream:
        yield text
        seen += len(text)
        if seen >= limit:
            return


def build_tokenizer(study: StudyConfig, texts: Texts, facts: FactSet | None, path: Path) -> Tokenizer:
    """Train the tokenizer on a balanced sample: as many characters of every language, facts included."""
    corpus = study.corpus
    streams = []
    for language in (corpus.source_language, *corpus.target_languages):
        stream: Iterator[str] = texts.stream(language, "train")
        if facts is not None and study.facts is not None and language == corpus.source_language:
            # About 4 characters a token, 400 a document.
            count = max(_SAMPLE_DOCUMENTS, corpus.source_tokens // 100)
            stream = _with_facts(texts, study.facts, facts, language, "train", count)
        streams.append(_first_characters(stream, corpus.tokenizer_characters))
    return train_tokenizer(chain.from_iterable(streams), corpus.vocab_size, path)


def _num_documents(texts: Texts, facts: FactSet, settings: FactsConfig, tokenizer: Tokenizer, budget: int) -> int:
    """Ordinary documents that fill the budget beside the facts, with a little to spare."""
    language = texts.corpus.source_language
    sample = [len(tokenizer.encode(t)) + 1 for t in islice(texts.stream(language, "train"), _SAMPLE_DOCUMENTS)]
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


def build_store(study: StudyConfig, texts: Texts, facts: FactSet | None, tokenizer: Tokenizer, path: Path) -> None:
    """Write the token store: every language's training text to its budget exactly, and its held-out text."""
    corpus = study.corpus
    source = corpus.source_language
    languages = (source, *corpus.all_target_languages)
    vocabulary = Vocabulary(tokenizer, languages, {corpus.clone_language: source} if corpus.clone else {})
    count = 0
    if facts is not None and study.facts is not None:
        count = _num_documents(texts, facts, study.facts, tokenizer, corpus.source_tokens)
    with new_folder(path) as temporary, StoreWriter(temporary, vocabulary) as writer:
        for language in languages:
            is_clone = language in vocabulary.clone_of
            origin, role = (source, "clone") if is_clone else (language, "train")
            stream = texts.stream(origin, role)
            if facts is not None and study.facts is not None:
                limit = count if role == "train" else 2**62
                stream = _with_facts(texts, study.facts, facts, origin, role, limit)
            budget = corpus.source_tokens if language == source else corpus.target_tokens
            build_language(writer, documents=stream, language=language, split="train", budget_tokens=budget)
            build_language(
                writer,
                documents=texts.stream(origin, "valid"),
                language=language,
                split="valid",
                budget_tokens=corpus.validation_tokens,
            )


def build_table(study: StudyConfig, store: TokenStore) -> AlignmentTable:
    """The alignment table from the words of the stored source text.

    Raises:
        DataError: a dictionary is missing or damaged, or no word is left.
    """
    corpus, settings = study.corpus, study.table
    counts: Counter[str] = Counter()
    for document in store.documents(corpus.source_language):
        counts.update(words_of(store.text(document).text, corpus.source_language))
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


def build_data(study: StudyConfig, seed: int, folder: Path) -> None:
    """Make all data of a seed in `folder`; what is there already is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = None
    if study.facts is not None:
        facts = make_facts(seed, study.facts.num_relations, study.facts.objects_per_relation)
        facts.save(folder / "facts.json")
    texts = Texts(study.corpus, seed)
    store_path = folder / "store"
    if not store_path.exists():
        tokenizer = build_tokenizer(study, texts, facts, folder / "tokenizer.json")
        build_store(study, texts, facts, tokenizer, store_path)
        print(f"token store {store_path} is built", flush=True)
    store = TokenStore.open(store_path)
    for language in store.languages:
        print(f"  {language}: {store.num_tokens(language):,} training tokens", flush=True)
    table = build_table(study, store)
    table.save(folder / "table.parquet")
    print(f"alignment table: {len(table):,} entries, {table.num_rows:,} translations", flush=True)
