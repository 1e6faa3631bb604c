"""The order of the data: a pure function of the plan and the seed, whole epochs, exact weights."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from megalign.errors import ConfigError, DataError
from megalign.training.order import DataOrder, Mixture, Place, Source, key_of, permute

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
    assert order.fingerprint() == "29cdf1b33a8f8c99"
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
def test_positions_in_epochs_stops_when_the_most_repeated_source_is_there(
    plan: list[tuple[float, int]], epochs: float
) -> None:
    order = mixed(*plan)
    num_samples = order.positions_in_epochs(epochs)
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
    assert [order.positions_in_epochs(epochs) for epochs in (1, 2, 0.5)] == [37, 74, 18]


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
    assert plan_of(**changes).fingerprint() != plan_of().fingerprint()


def test_the_fingerprint_does_not_change_without_the_plan() -> None:
    assert plan_of().fingerprint() == plan_of().fingerprint()
    same = plan_of(weights=(40.0, 2.0))
    assert same.fingerprint() == plan_of().fingerprint()
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


STAGED = (
    [Source("en", 3.0, 40), Source("de", 1.0, 11), Source("math", 0.0, 7)],
    [Mixture(50, (1.0, 1.0, 0.0)), Mixture(120, (1.0, 0.0, 2.0))],
)


def staged(*, later: int = 2, skip: list[list[int]] | None = None) -> DataOrder:
    sources, mixtures = STAGED
    return DataOrder(sources, 5, later=mixtures[:later], skip=skip or [])


def test_a_later_mixture_begins_at_the_end_of_a_block_and_has_its_own_weights() -> None:
    order = staged()
    assert order.starts == [0, 52, 120]
    read = [order.place(sample).source for sample in range(420)]
    assert Counter(read[:52]) == {0: 39, 1: 13}
    assert Counter(read[52:120]) == {0: 34, 1: 34}
    assert Counter(read[120:]) == {0: 100, 2: 200}
    assert order.consumed(300) == [Counter(read[:300])[source] for source in range(3)]


def test_sources_go_on_where_the_mixture_before_left_them() -> None:
    """No window is read twice, or left out, where mixtures meet: every epoch but the last is whole."""
    order = staged()
    seen: list[list[Place]] = [[], [], []]
    for sample in range(1200):
        place = order.place(sample)
        seen[place.source].append(place)
    for places, source in zip(seen, order.sources, strict=True):
        epochs = Counter(place.epoch for place in places)
        assert len(epochs) >= 3
        for epoch in sorted(epochs)[:-2]:
            assert sorted(p.window for p in places if p.epoch == epoch) == list(range(source.num_windows))


def test_a_mixture_added_later_leaves_what_was_read() -> None:
    one, two, three = (staged(later=number) for number in range(3))
    assert [one.place(s) for s in range(52)] == [two.place(s) for s in range(52)] == [three.place(s) for s in range(52)]
    assert [two.place(s) for s in range(120)] == [three.place(s) for s in range(120)]
    assert one.fingerprint(52) == two.fingerprint(52) == three.fingerprint(52)
    assert one.fingerprint(53) != two.fingerprint(53) == three.fingerprint(120)
    assert two.fingerprint(121) != three.fingerprint(121)
    assert len({one.fingerprint(), two.fingerprint(), three.fingerprint()}) == 3


def test_skipped_samples_are_left_out_and_nothing_else_moves() -> None:
    order = staged(skip=[[60, 62], [10, 14], [15, 15], [130, 130]])
    left_out = {*range(60, 63), *range(10, 16), 130}
    assert order.skip == [(10, 15), (60, 62), (130, 130)]
    ids = [order.sample_at(position) for position in range(400)]
    assert ids == [sample for sample in range(410) if sample not in left_out]
    assert [order.place(sample) for sample in range(300)] == [staged().place(sample) for sample in range(300)]
    for position in (0, 9, 10, 11, 54, 55, 120, 121, 399):
        read = Counter(order.place(sample).source for sample in ids[:position])
        assert order.consumed(position) == [read[source] for source in range(3)]


def test_skipping_what_lies_ahead_does_not_change_what_was_read() -> None:
    plain = staged()
    assert staged(skip=[[30, 40]]).fingerprint(30) == plain.fingerprint(30)
    assert staged(skip=[[30, 40]]).fingerprint(31) != plain.fingerprint(31)
    assert staged(skip=[[30, 40], [200, 210]]).fingerprint(100) == staged(skip=[[30, 40]]).fingerprint(100)


def test_epochs_are_counted_over_mixtures() -> None:
    order = staged()
    # math has 7 windows and two thirds of the samples from 120 on; de has 11, and a half of those from 52 on.
    assert order.positions_in_epochs(1) == 44  # de: a quarter of them
    assert order.positions_in_epochs(4) == 52 + (44 - 13) * 2  # de again, by half of them
    assert order.positions_in_epochs(6) == 120 + 42 * 3 // 2  # math
    assert staged(skip=[[100, 109]]).positions_in_epochs(6) == 173


@pytest.mark.parametrize(
    ("later", "skip", "message"),
    [
        ([Mixture(0, (1.0, 1.0, 0.0))], [], "A mixture begins at sample 0, not behind sample 0 where the one before"),
        ([Mixture(90, (1.0, 1.0, 0.0)), Mixture(50, (1.0, 1.0, 0.0))], [], "Order data.stages by after_tokens"),
        ([], [[7, 3]], "data.skip_samples has the range [7, 3]."),
    ],
)
def test_plans_out_of_order_are_refused(later: list[Mixture], skip: list[list[int]], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DataOrder(STAGED[0], 5, later=later, skip=skip)
    assert message in str(caught.value)
