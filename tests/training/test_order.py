"""The order of the data: a pure function of the plan and the seed, whole epochs, exact weights."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from megalign.errors import DataError
from megalign.training.order import DataOrder, Place, Source, key_of, permute

KEYS = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize("key", [0, key_of(7, "a")])
def test_permute_is_a_bijection_at_every_size(key: int) -> None:
    for size in range(1, 301):
        assert sorted(permute(index, size, key) for index in range(size)) == list(range(size)), size


@settings(deadline=None)
@given(st.integers(1, 3000), KEYS)
def test_permute_is_a_bijection_under_every_key(size: int, key: int) -> None:
    assert {permute(index, size, key) for index in range(size)} == set(range(size))


@given(st.integers(1, 2**40), KEYS, st.data())
def test_permute_stays_in_huge_ranges(size: int, key: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    assert 0 <= permute(index, size, key) < size


@pytest.mark.parametrize("size", [2, 3, 5, 7, 10, 21])
def test_over_keys_every_place_is_equally_likely(size: int) -> None:
    """Each row of the (index, place) counts over 3000 keys is uniform: no p-value of 48 below 1e-6."""
    keys = [key_of(number, "uniform") for number in range(3000)]
    for index in range(size):
        counts = Counter(permute(index, size, key) for key in keys)
        assert stats.chisquare([counts[place] for place in range(size)]).pvalue > 1e-6, index


def test_all_orders_of_five_occur_about_equally_often() -> None:
    counts = Counter(tuple(permute(i, 5, key_of(number, "five")) for i in range(5)) for number in range(12_000))
    assert len(counts) == 120
    assert 0.6 < min(counts.values()) / 100 < max(counts.values()) / 100 < 1.5


@pytest.mark.parametrize("size", [100, 1000, 5000])
def test_a_permutation_looks_random(size: int) -> None:
    """Kendall's tau of (index, place) and of (place, next place) within 4.5 deviations of none; few fixed points."""
    deviation = (2 * (2 * size + 5) / (9 * size * (size - 1))) ** 0.5
    for number in range(5):
        places = [permute(index, size, key_of(number, "random")) for index in range(size)]
        assert abs(stats.kendalltau(range(size), places).statistic) < 4.5 * deviation
        assert abs(stats.kendalltau(places[:-1], places[1:]).statistic) < 4.5 * deviation
        assert sum(index == place for index, place in enumerate(places)) <= 8
        assert sum(b - a == 1 for a, b in itertools.pairwise(places)) <= 8


def test_keys_depend_on_the_seed_and_every_name() -> None:
    keys = [key_of(0), key_of(1), key_of(0, "a"), key_of(0, "b"), key_of(0, "a", 1), key_of(0, "a", 2)]
    assert len(set(keys)) == len(keys)
    # Written down, so that keys are the same in every Python and on every machine.
    assert key_of(0, "pretrain", "block") == 0x5E328551C18D5D96


def mixed(*sources: tuple[float, int], seed: int = 3, name: str = "pretrain") -> DataOrder:
    return DataOrder([Source(f"l{i}", weight, windows) for i, (weight, windows) in enumerate(sources)], seed, name)


def test_the_recorded_order_has_not_changed() -> None:
    """Recorded from this program. If it fails, every run that is resumed or repeated reads other data than before: change
    it only together with a new format of checkpoints, and say so in the changelog."""
    order = mixed((20.0, 50), (1.0, 4), seed=1234)
    assert order.fingerprint == "e068a99c87082d4b"
    assert [(p.source, p.epoch, p.window) for p in map(order.place, range(20))] == [
        *((0, 0, window) for window in (44, 34, 35, 16, 42, 12, 10, 49, 17, 22, 24)),
        (1, 0, 2),
        *((0, 0, window) for window in (26, 8, 21, 46, 39, 23, 40, 28)),
    ]
    assert [(p.source, p.epoch, p.window) for p in map(order.place, range(1000, 1005))] == [
        (0, 18, 31),
        (0, 18, 39),
        (0, 19, 6),
        (0, 18, 24),
        (0, 18, 16),
    ]


PLANS = st.lists(st.tuples(st.floats(0.05, 20), st.integers(1, 40)), min_size=1, max_size=4)


@settings(deadline=None, max_examples=60)
@given(PLANS, st.integers(0, 2**31))
def test_every_window_is_read_once_in_every_epoch(plan: list[tuple[float, int]], seed: int) -> None:
    order = mixed(*plan, seed=seed)
    num_samples = 2 * order.block + 3 * max(windows for _, windows in plan)
    assume(num_samples < 10_000)
    seen: list[list[Place]] = [[] for _ in plan]
    for sample in range(num_samples):
        place = order.place(sample)
        seen[place.source].append(place)
    for places, (_, windows) in zip(seen, plan, strict=True):
        by_epoch: dict[int, list[int]] = {}
        for place in places:
            by_epoch.setdefault(place.epoch, []).append(place.window)
        for read in by_epoch.values():
            assert len(set(read)) == len(read)
            assert set(read) <= set(range(windows))
        # Samples of a block are shuffled, so an epoch is over for certain only where a block ends after it.
        whole = num_samples // order.block * order.counts[places[0].source] // windows if places else 0
        assert all(len(by_epoch[epoch]) == windows for epoch in range(whole))


def test_epochs_are_shuffled_anew() -> None:
    order = mixed((1.0, 100))
    epochs = [[order.place(100 * epoch + index).window for index in range(100)] for epoch in range(5)]
    assert all(sorted(epoch) == list(range(100)) for epoch in epochs)
    for first, second in itertools.combinations(epochs, 2):
        assert sum(a == b for a, b in zip(first, second, strict=True)) < 10


def test_place_is_pure() -> None:
    """Asked in another order, of another object, and again: the same. Nothing knows how long the run is."""
    plan = (7.0, 30), (2.0, 9), (0.5, 100)
    order = mixed(*plan)
    forwards = [order.place(sample) for sample in range(500)]
    assert [mixed(*plan).place(sample) for sample in (499, 3, 250, 3)] == [forwards[s] for s in (499, 3, 250, 3)]
    assert [order.place(sample) for sample in reversed(range(500))] == forwards[::-1]


def test_sources_are_mixed_inside_a_block_and_not_by_turns() -> None:
    order = mixed((20.0, 1000), (1.0, 1000))
    assert order.counts == [20, 1]
    positions = [next(p for p in range(21) if order.place(21 * block + p).source == 1) for block in range(2100)]
    counts = Counter(positions)
    assert stats.chisquare([counts[p] for p in range(21)]).pvalue > 1e-6


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ([1.0], [1]),
        ([0.25, 0.25], [1, 1]),
        ([20.0, 1.0], [20, 1]),
        ([1.0, 100.0], [1, 100]),
        ([0.5, 0.3, 0.2], [5, 3, 2]),
    ],
)
def test_simple_weights_are_met_exactly_by_the_smallest_block(weights: list[float], counts: list[int]) -> None:
    order = mixed(*((weight, 10) for weight in weights))
    assert order.counts == counts
    assert order.block == sum(counts)


@settings(deadline=None)
@given(st.lists(st.floats(0.05, 20), min_size=1, max_size=5))
def test_weights_are_met(weights: list[float]) -> None:
    order = mixed(*((weight, 10) for weight in weights))
    assert order.block <= 4096
    for weight, count in zip(weights, order.counts, strict=True):
        share = weight / sum(weights)
        # Within 0.1 %, or to a sample in the largest block, which is all that can be done for a rare source.
        assert abs(count / order.block / share - 1) <= max(1e-3, 1.0 / (share * 2048))


@settings(deadline=None, max_examples=40)
@given(PLANS, st.integers(0, 300))
def test_consumed_counts_the_samples_of_every_source(plan: list[tuple[float, int]], num_samples: int) -> None:
    order = mixed(*plan)
    counted = Counter(order.place(sample).source for sample in range(num_samples))
    assert order.consumed(num_samples) == [counted[source] for source in range(len(plan))]


@settings(deadline=None, max_examples=60)
@given(PLANS, st.sampled_from([0.5, 1.0, 3.0, 7.5]))
def test_samples_in_epochs_stops_when_the_most_repeated_source_is_there(
    plan: list[tuple[float, int]], epochs: float
) -> None:
    order = mixed(*plan)
    num_samples = order.samples_in_epochs(epochs)
    assume(num_samples < 50_000)
    # Expected reads: what a source has had at this length on average; a block may be up to its count ahead or behind.
    expected = [num_samples * count / order.block for count in order.counts]
    reached = [n / windows for n, (_, windows) in zip(expected, plan, strict=True)]
    assert max(reached) <= epochs
    more = [(num_samples + 1) * count / order.block / w for count, (_, w) in zip(order.counts, plan, strict=True)]
    assert max(more) > epochs * (1 - 1e-12)
    for real, wanted, count in zip(order.consumed(num_samples), expected, order.counts, strict=True):
        assert abs(real - wanted) <= count


def test_a_single_source_is_read_exactly_as_often_as_asked() -> None:
    order = mixed((1.0, 37))
    assert [order.samples_in_epochs(epochs) for epochs in (1, 2, 0.5)] == [37, 74, 18]


def plan_of(**changes: object) -> DataOrder:
    values: dict[str, object] = {"weights": (20.0, 1.0), "windows": (50, 4), "names": ("en", "de"), "seed": 1}
    values |= {"name": "pretrain"} | changes
    sources = [Source(*row) for row in zip(values["names"], values["weights"], values["windows"], strict=True)]  # type: ignore[call-overload]
    return DataOrder(sources, values["seed"], values["name"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": (10.0, 1.0)},
        {"windows": (50, 5)},
        {"names": ("en", "fr")},
        {"seed": 2},
        {"name": "inject"},
        {"names": ("de", "en")},
    ],
)
def test_the_fingerprint_changes_with_the_plan(changes: dict[str, object]) -> None:
    assert plan_of(**changes).fingerprint != plan_of().fingerprint


def test_the_fingerprint_does_not_change_without_the_plan() -> None:
    assert plan_of().fingerprint == plan_of().fingerprint
    same = plan_of(weights=(40.0, 2.0))
    assert same.fingerprint == plan_of().fingerprint
    assert [same.place(i) for i in range(300)] == [plan_of().place(i) for i in range(300)]


def test_two_orders_of_one_run_share_nothing() -> None:
    pretrain, inject = plan_of(), plan_of(name="inject")
    assert [pretrain.place(i) for i in range(21)] != [inject.place(i) for i in range(21)]


def test_sources_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(DataError) as caught:
        mixed((1.0, 10), (1.0, 0))
    assert str(caught.value) == (
        "The source l1 has not a single training window. Its text is shorter than model.sequence_length + 1 tokens. "
        "Give it more text, or leave it out of data.sources."
    )
    with pytest.raises(DataError) as caught:
        mixed((10_000.0, 10), (1.0, 10))
    assert str(caught.value) == (
        "The source l1 has less than 1 in 8192 of the samples. It would hardly ever be read. "
        "Raise its weight, or leave it out of data.sources."
    )
