"""Samples over a real store: the right windows, the same in every batch layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_data import CLONE_TOKENS, ENGLISH_TOKENS, run_config

from megalign.config import RunConfig, SourceConfig
from megalign.config.run import RunDataConfig
from megalign.config.sections import SwitchedSourceConfig
from megalign.corpus.store import TokenStore
from megalign.engine.engine import LanguageBatch
from megalign.errors import ConfigError, DataError
from megalign.prealign.encoded import EncodedTable
from megalign.prealign.table import AlignmentTable, Entry, Translation
from megalign.training.run import RunInputs
from megalign.training.samples import Samples, build_switcher, check_hit_rate

LENGTH = 32
SOURCES = [SourceConfig(language="en", weight=10.0), SourceConfig(language="en-clone", weight=1.0)]


def data(sources: list[SourceConfig], **settings: Any) -> RunDataConfig:
    return RunDataConfig(store="unused", sources=sources, **settings)


@pytest.fixture(scope="module")
def store(files: Path) -> TokenStore:
    return TokenStore.open(files / "store")


@pytest.fixture(scope="module")
def inputs(files: Path) -> RunInputs:
    return RunInputs.open(run_config(files, Path("unused")))


def fresh(inputs: RunInputs) -> Samples:
    """Samples with codeswitching that have not been read."""
    switcher = build_switcher(inputs.config, inputs.encoded)
    return Samples(inputs.store, data(SOURCES), LENGTH, 5, switcher=switcher)


def rows_of(batches: list[LanguageBatch]) -> tuple[np.ndarray, ...]:
    return tuple(np.concatenate([getattr(b, name) for b in batches]) for name in ("tokens", "labels", "loss_mask"))


def test_windows_are_the_store_s_tokens(store: TokenStore) -> None:
    samples = Samples(store, data(SOURCES), LENGTH, 5)
    assert [source.num_windows for source in samples.order.sources] == [
        (ENGLISH_TOKENS - 1) // LENGTH,
        (CLONE_TOKENS - 1) // LENGTH,
    ]
    languages = set()
    for number in range(400):
        place = samples.order.place(number)
        language = SOURCES[place.source].language
        languages.add(language)
        window = store.window(language, place.window * LENGTH, LENGTH + 1)
        tokens, labels, mask = samples.sample(number)
        assert tokens.tolist() == window[:-1].tolist()
        assert labels.tolist() == window[1:].tolist()
        assert mask.tolist() == [1.0] * LENGTH
        assert (tokens.dtype, labels.dtype, mask.dtype) == (np.int64, np.int64, np.float32)
    assert languages == {"en", "en-clone"}


def test_an_epoch_trains_on_every_token_of_a_window_once(store: TokenStore) -> None:
    samples = Samples(store, data(SOURCES[:1]), LENGTH, 5)
    num_windows = samples.order.sources[0].num_windows
    windows = {samples.order.place(n).window: samples.sample(n) for n in range(num_windows)}
    whole = store.window("en", 0, num_windows * LENGTH + 1)
    assert np.concatenate([windows[w][0] for w in range(num_windows)]).tolist() == whole[:-1].tolist()
    assert np.concatenate([windows[w][1] for w in range(num_windows)]).tolist() == whole[1:].tolist()


def test_a_source_read_as_its_clone_is_shifted_but_for_the_end_of_text(store: TokenStore) -> None:
    original = Samples(store, data(SOURCES[:1]), LENGTH, 5)
    as_clone = [SourceConfig(language="en", weight=3.0, as_clone="en-clone")]
    clone = Samples(store, data(as_clone), LENGTH, 5)
    offset, eos = store.vocabulary.tokenizer.vocab_size, store.vocabulary.eos_id
    assert (original.order.sources[0].language, clone.order.sources[0].language) == ("en", "en-clone")
    num_ends = 0
    for number in range(100):
        for plain, shifted in zip(original.sample(number)[:2], clone.sample(number)[:2], strict=True):
            assert np.where(plain == eos, eos, plain + offset).tolist() == shifted.tolist()
            num_ends += int((plain == eos).sum())
    assert num_ends > 0


@pytest.mark.parametrize("switched", [False, True])
@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_all_ranks_together_read_the_same_batch(
    inputs: RunInputs, store: TokenStore, world: int, micro_batch_size: int, switched: bool
) -> None:
    """Codeswitching too: it is keyed by the sample, so neither ranks, nor micro-batches, nor what was read before matter."""

    def make() -> Samples:
        return fresh(inputs) if switched else Samples(store, data(SOURCES), LENGTH, 5)

    count, first = 16, 48
    reference = [make().sample(number) for number in range(first, first + count)]
    share = count // world
    gathered = []
    for rank in range(world):
        batches = make().micro_batches(first, count, rank=rank, world=world, size=micro_batch_size)
        assert [len(batch.tokens) for batch in batches] == [micro_batch_size] * (share // micro_batch_size)
        gathered += batches
    for column, expected in zip(rows_of(gathered), zip(*reference, strict=True), strict=True):
        assert np.array_equal(column, np.stack(expected))
        assert column.shape == (count, LENGTH)
    if switched:
        plain = Samples(store, data(SOURCES), LENGTH, 5)
        assert any((plain.sample(first + i)[0] != row).any() for i, row in enumerate(rows_of(gathered)[0]))


def test_steps_in_a_row_read_every_sample_once(store: TokenStore) -> None:
    samples = Samples(store, data(SOURCES), LENGTH, 5)
    steps = [rows_of(samples.micro_batches(8 * step, 8, rank=0, world=1, size=2))[0] for step in range(3)]
    assert np.array_equal(np.concatenate(steps), np.stack([samples.sample(number)[0] for number in range(24)]))


def test_codeswitching_changes_with_the_sample_and_the_seed_alone(inputs: RunInputs) -> None:
    """One epoch later the same window is switched anew; the same sample always alike."""
    samples = fresh(inputs)
    num_samples = 2 * samples.order.sources[0].num_windows
    seen: dict[int, list[np.ndarray]] = {}
    for number in range(num_samples):
        place = samples.order.place(number)
        if place.source == 0:
            seen.setdefault(place.window, []).append(samples.sample(number)[0])
    twice = [tokens for tokens in seen.values() if len(tokens) > 1]
    assert len(twice) > 50
    assert sum((a != b).any() for a, b, *_ in twice) > 0.9 * len(twice)
    assert np.array_equal(fresh(inputs).sample(17)[0], fresh(inputs).sample(17)[0])
    other = build_switcher(inputs.config.model_copy(update={"seed": 6}), inputs.encoded)
    reseeded = Samples(inputs.store, data(SOURCES), LENGTH, 5, switcher=other)
    assert any((reseeded.sample(n)[0] != samples.sample(n)[0]).any() for n in range(20))


def test_switched_samples_are_whole_and_their_words_counted(inputs: RunInputs) -> None:
    samples, vocabulary = fresh(inputs), inputs.store.vocabulary
    first_clone = vocabulary.tokenizer.vocab_size
    others, own = 0, 0
    for number in range(300):
        tokens, labels, mask = samples.sample(number)
        assert tokens.shape == labels.shape == mask.shape == (LENGTH,)
        assert tokens.min() >= 0
        assert tokens.max() < vocabulary.size
        # Input-only: what carries loss is text as it stands, never a replacement.
        is_clone = samples.order.place(number).source == 1
        carried = labels[(mask == 1) & (labels != vocabulary.eos_id)]
        assert ((carried >= first_clone) == is_clone).all()
        foreign = (tokens != vocabulary.eos_id) & ((tokens >= first_clone) != is_clone)
        others, own = others + int(foreign.sum()), own + int((~foreign).sum())
    counts = samples.counts
    assert 0 < counts.switched < counts.covered <= counts.words
    # 30 % of the words are drawn; standard deviation of the share is below 1 % with thousands of words.
    assert counts.rate == counts.switched / counts.words
    assert counts.switched / counts.covered == pytest.approx(0.3, abs=4 * (0.21 / counts.covered) ** 0.5)
    assert 0.1 < others / (others + own) < 0.5


def test_counts_of_nothing_have_a_rate_of_zero(store: TokenStore) -> None:
    samples = Samples(store, data(SOURCES), LENGTH, 5)
    samples.sample(0)
    assert (samples.counts.words, samples.counts.rate) == (0, 0.0)


def test_a_language_that_is_not_in_the_store_is_named(store: TokenStore) -> None:
    with pytest.raises(DataError) as caught:
        Samples(store, data([SourceConfig(language="de", weight=1.0)]), LENGTH, 5)
    assert str(caught.value) == (
        "The token store has no training text in 'de'. It has en, en-clone. "
        "Correct data.sources, or build the store with this language."
    )


def test_a_source_shorter_than_a_window_is_refused(store: TokenStore) -> None:
    assert Samples(store, data(SOURCES[1:]), CLONE_TOKENS - 1, 5).order.sources[0].num_windows == 1
    with pytest.raises(DataError, match="The source en-clone has not a single training window"):
        Samples(store, data(SOURCES), CLONE_TOKENS, 5)


def test_codeswitching_needs_two_languages_that_are_read(inputs: RunInputs) -> None:
    for sources, shown in ((SOURCES[:1], "en"), (SOURCES[1:], "en-clone")):
        data = inputs.config.data.model_copy(update={"sources": sources})
        with pytest.raises(ConfigError) as caught:
            build_switcher(inputs.config.model_copy(update={"data": data}), inputs.encoded)
        assert str(caught.value) == (
            "Codeswitching needs 'en' and a language of the alignment table (en, en-clone) among data.sources, which "
            f"has {shown}. Correct data.sources or data.table, or set codeswitch.ratio to 0."
        )


def test_the_hit_rate_is_the_share_of_words_the_table_covers(inputs: RunInputs) -> None:
    rates = check_hit_rate(fresh(inputs), inputs.config)
    assert set(rates) == {"en", "en-clone"}
    assert all(0.3 < rate < 1 for rate in rates.values())
    assert check_hit_rate(Samples(inputs.store, data(SOURCES), LENGTH, 5), inputs.config) == {}


def test_a_table_that_hardly_covers_the_text_is_refused(inputs: RunInputs) -> None:
    table = AlignmentTable([Entry("xylophone", 1, (Translation("en-clone", "xylophone", "golden"),))], "en")
    encoded = EncodedTable(table, inputs.store.vocabulary, "en")
    samples = Samples(inputs.store, data(SOURCES), LENGTH, 5, switcher=build_switcher(inputs.config, encoded))
    with pytest.raises(DataError) as caught:
        check_hit_rate(samples, inputs.config)
    assert str(caught.value) == (
        "The alignment table covers 0.0% of the words of en, below codeswitch.minimum_hit_rate 5.0%. "
        "Codeswitching would hardly happen. "
        "Check that the table was made for this tokenizer's text and languages, or lower the minimum; "
        "codeswitch.sources.en.ratio=0 leaves this source as it is."
    )
    codeswitch = inputs.config.codeswitch.model_copy(update={"minimum_hit_rate": 0.0})
    assert check_hit_rate(samples, inputs.config.model_copy(update={"codeswitch": codeswitch})) == {
        "en": 0.0,
        "en-clone": 0.0,
    }


def switching(inputs: RunInputs, **sources: SwitchedSourceConfig) -> RunConfig:
    """The run with other settings for some sources; keys with _ for -."""
    named = {name.replace("_", "-"): source for name, source in sources.items()}
    return inputs.config.model_copy(
        update={"codeswitch": inputs.config.codeswitch.model_copy(update={"sources": named})}
    )


def test_a_source_can_be_left_as_it_is(inputs: RunInputs) -> None:
    """It is neither switched nor tested for words of the table; the others are switched as before."""
    config = switching(inputs, en_clone=SwitchedSourceConfig(ratio=0.0))
    switcher = build_switcher(config, inputs.encoded)
    samples = Samples(inputs.store, data(SOURCES), LENGTH, 5, switcher=switcher)
    assert set(check_hit_rate(samples, config)) == {"en"}
    plain, usual = Samples(inputs.store, data(SOURCES), LENGTH, 5), fresh(inputs)
    for number in range(100):
        expected = plain if samples.order.place(number).source == 1 else usual
        for found, other in zip(samples.sample(number), expected.sample(number), strict=True):
            assert np.array_equal(found, other)
    counts = samples.counts_by_language
    assert counts["en-clone"].words > 0 == counts["en-clone"].switched
    assert samples.counts.switched == counts["en"].switched > 0


def test_sources_have_ratios_of_their_own(inputs: RunInputs) -> None:
    config = switching(inputs, en=SwitchedSourceConfig(ratio=0.6), en_clone=SwitchedSourceConfig(ratio=0.1))
    samples = Samples(inputs.store, data(SOURCES), LENGTH, 5, switcher=build_switcher(config, inputs.encoded))
    for number in range(1500):
        samples.sample(number)
    for language, ratio in (("en", 0.6), ("en-clone", 0.1)):
        counts = samples.counts_by_language[language]
        deviation = (ratio * (1 - ratio) / counts.covered) ** 0.5
        assert counts.switched / counts.covered == pytest.approx(ratio, abs=4 * deviation)
        assert counts.covered > 400


def test_one_direction_alone(inputs: RunInputs) -> None:
    """The paper's codeswitching goes both ways; a source's targets say otherwise."""
    config = switching(inputs, en=SwitchedSourceConfig(targets=["en-clone"]), en_clone=SwitchedSourceConfig(ratio=0.0))
    assert set(build_switcher(config, inputs.encoded).lookups) == {"en"}
    with pytest.raises(ConfigError, match="The alignment table has no 'fr' words"):
        build_switcher(switching(inputs, en=SwitchedSourceConfig(targets=["fr"])), inputs.encoded)


def test_settings_of_sources_that_are_not_read_are_refused(files: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"codeswitch\.sources names fr, which is not among data\.sources: en, en-clone"
    ):
        run_config(files, Path("unused"), codeswitch__sources={"fr": {"ratio": 0.0}})
    # Without codeswitching nobody asks: presets take sources away.
    run_config(files, Path("unused"), codeswitch__sources={"fr": {"ratio": 0.0}}, codeswitch__ratio=0.0)
