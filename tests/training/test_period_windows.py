"""Facts that periods of pretraining state: each as often as asked, in its period, whole, the same for any reader."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from megalign.config.run import RunDataConfig, SourceConfig
from megalign.corpus.build import build_language
from megalign.corpus.knowledge.facts import Knowledge
from megalign.corpus.knowledge.periods import make_periods
from megalign.corpus.procedural import ProceduralEnglish
from megalign.corpus.store import StoreWriter, TokenStore
from megalign.corpus.tokenizer import train_tokenizer
from megalign.corpus.vocabulary import Vocabulary
from megalign.errors import ConfigError
from megalign.prealign.codeswitch import Codeswitcher
from megalign.prealign.encoded import EncodedTable
from megalign.prealign.table import AlignmentTable, Entry, Translation
from megalign.training.period_windows import PeriodWindows
from megalign.training.samples import Samples

LENGTH, PER_PERIOD = 64, 120
CLONES = {"en-clone": "en"}


@pytest.fixture(scope="module")
def knowledge() -> Knowledge:
    return make_periods(
        0, ["en"], clone_of=CLONES, num_periods=3, period_steps=30, frequencies=[1, 5], facts_per_cell=6
    )


@pytest.fixture(scope="module")
def store(knowledge: Knowledge, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    folder = tmp_path_factory.mktemp("periods")
    english = ProceduralEnglish(0)
    said = [knowledge.in_language("en", [fact]) for fact in knowledge.facts]
    texts = [one.statement(one.facts[0]) for one in said]
    documents = english.documents("tokenizer")
    tokenizer = train_tokenizer([*texts, *(next(documents) for _ in range(300))], 600, folder / "tokenizer.json")
    with StoreWriter(folder / "store", Vocabulary(tokenizer, ("en", "en-clone"), CLONES)) as writer:
        for language, tokens in (("en", 12000), ("en-clone", 3000)):
            build_language(writer, documents=english.documents(language), language=language, budget_tokens=tokens)
    return TokenStore.open(folder / "store")


def windows_of(knowledge: Knowledge, store: TokenStore, **changes: Any) -> PeriodWindows:
    settings = {"length": LENGTH, "samples_per_period": PER_PERIOD, "seed": 4, **changes}
    return PeriodWindows(knowledge, store.vocabulary, **settings)


def test_every_fact_is_stated_in_its_period_as_often_as_asked(knowledge: Knowledge, store: TokenStore) -> None:
    windows, vocabulary = windows_of(knowledge, store), store.vocabulary
    for period in range(3):
        stated: Counter[tuple[str, str]] = Counter()
        for sample in range(period * PER_PERIOD, (period + 1) * PER_PERIOD):
            if (window := windows.at(sample)) is None:
                continue
            assert window.ids[0] == vocabulary.eos_id, "a fact is read right after an end of text, as it is asked"
            low, high = vocabulary.language_range("en-clone")
            ids = window.ids[window.ids != vocabulary.eos_id]
            assert (((ids >= low) & (ids < high)) == (window.language == "en-clone")).all()
            for part in np.split(window.ids, np.flatnonzero(window.ids == vocabulary.eos_id)):
                if text := vocabulary.decode(part[part != vocabulary.eos_id]):
                    stated[window.language, text] += 1
        expected = Counter()
        for fact in knowledge.facts:
            if fact.period == period:
                said = knowledge.in_language("en", [fact])
                expected[str(fact.stated_in), said.statement(said.facts[0])] += fact.times
        assert stated == expected
    assert windows.at(3 * PER_PERIOD) is None


def test_statements_of_a_fact_are_spread_over_the_period(knowledge: Knowledge, store: TokenStore) -> None:
    windows = windows_of(knowledge, store)
    (fact, *_) = knowledge.select("en", period=1, times=5)
    said = knowledge.in_language("en", [fact])
    wanted = said.statement(said.facts[0])
    found = [(n, windows.at(n)) for n in range(PER_PERIOD, 2 * PER_PERIOD)]
    samples = [n for n, one in found if one and wanted in store.vocabulary.decode(one.ids[one.ids != 0])]
    assert max(samples) - min(samples) > PER_PERIOD / 2
    languages = [one.language for _, one in found if one]
    assert len({"en", "en-clone"} & set(languages[: len(languages) // 2])) == 2


def test_words_are_flagged_as_in_a_store(knowledge: Knowledge, store: TokenStore) -> None:
    windows = windows_of(knowledge, store)
    window = next(one for n in range(PER_PERIOD) if (one := windows.at(n)) and one.language == "en")
    for start, end in zip(np.flatnonzero(window.flags), [*np.flatnonzero(window.flags)[1:], None], strict=True):
        text = store.vocabulary.decode(window.ids[start:end])
        assert text.strip().isalpha() or text in (".", "", store.vocabulary.decode([store.eos_id]))


def samples_of(store: TokenStore, windows: PeriodWindows | None, switcher: Codeswitcher | None = None) -> Samples:
    sources = [SourceConfig(language="en", weight=4.0), SourceConfig(language="en-clone", weight=1.0)]
    data = RunDataConfig(store=str(store.path), sources=sources)
    return Samples(store, data, LENGTH, 9, switcher=switcher, periods=windows)


def test_samples_are_ordinary_or_stated(knowledge: Knowledge, store: TokenStore) -> None:
    windows = windows_of(knowledge, store)
    plain, mixed = samples_of(store, None), samples_of(store, windows)
    num_stated = 0
    for number in reversed(range(2 * PER_PERIOD)):  # in any order
        window = windows.at(number)
        tokens, labels, mask = mixed.sample(number)
        if window is None:
            for own, other in zip((tokens, labels, mask), plain.sample(number), strict=True):
                assert (own == other).all()
            continue
        num_stated += 1
        assert (tokens == window.ids[:-1]).all()
        assert (labels == window.ids[1:]).all()
        filled = (tokens == store.eos_id) & (labels == store.eos_id)
        assert (mask == ~filled).all(), "what fills a window up is no target"
        source = mixed.sources[mixed.micro_batches(number, 1, rank=0, world=1, size=1)[0].sources[0]]
        assert source.read_as == window.language
    assert 10 < num_stated < PER_PERIOD


def test_stated_windows_are_switched_like_text(knowledge: Knowledge, store: TokenStore) -> None:
    words = [
        "lives",
        "works",
        "speaks",
        "plays",
        "married",
        "owns",
        "was",
        "born",
        "studied",
        "at",
        "for",
        "in",
        "is",
        "to",
    ]
    table = AlignmentTable([Entry(word, 50, (Translation("en-clone", word, "golden"),)) for word in words], "en")
    encoded = EncodedTable(table, store.vocabulary, "en")
    targets = {"en": ["en-clone"], "en-clone": ["en"]}
    switcher = Codeswitcher(encoded, ratio=1.0, label_mode="omit", seed=0, targets=targets)
    windows = windows_of(knowledge, store)
    samples = samples_of(store, windows, switcher)
    number = next(n for n in range(PER_PERIOD) if (one := windows.at(n)) and one.language == "en")
    tokens, labels, mask = samples.sample(number)
    low, high = store.vocabulary.language_range("en-clone")
    switched = (tokens >= low) & (tokens < high)
    text = store.vocabulary.decode(tokens[switched]).split()
    assert text
    assert set(text) <= set(words)
    assert tokens.shape == labels.shape == mask.shape == (LENGTH,)
    assert not mask[(tokens == store.eos_id) & (labels == store.eos_id)].any()


def test_readers_agree_and_changes_are_told(knowledge: Knowledge, store: TokenStore) -> None:
    one, other = windows_of(knowledge, store), windows_of(knowledge, store)
    for number in (5, 300, 17, 200):
        first, second = one.at(number), other.at(number)
        assert (first is None) == (second is None)
        assert first is None or second is None or (first.ids == second.ids).all()
    assert one.fingerprint == other.fingerprint
    assert one.fingerprint != windows_of(knowledge, store, seed=5).fingerprint
    assert one.fingerprint != windows_of(knowledge, store, samples_per_period=121).fingerprint


def test_facts_that_do_not_fit_are_refused(knowledge: Knowledge, store: TokenStore) -> None:
    with pytest.raises(ConfigError, match=r"The facts of period 0 fill \d+ windows; the period reads 20 samples"):
        windows_of(knowledge, store, samples_per_period=20).at(0)
    with pytest.raises(ConfigError, match=r"The statement '.*' has \d+ tokens, a window 8"):
        windows_of(knowledge, store, length=8).at(0)


def test_a_run_without_periods_has_none(tmp_path: Path) -> None:
    from megalign.training.inputs import RunInputs

    inputs = RunInputs(SimpleNamespace(data=SimpleNamespace(periods=None)), None)  # type: ignore[arg-type]
    assert inputs.period_facts is None
    assert inputs.periods is None
