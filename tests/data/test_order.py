import pickle
import time
from collections import Counter
from itertools import chain, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.order import PERIOD, MixturePhase, Order, RowRef, SequenceDataset

PROPERTY = settings(deadline=None, max_examples=50)


def dataset(name: str, *shard_rows: int, row_group_rows: int = 3) -> SequenceDataset:
    return SequenceDataset(name=name, shard_rows=shard_rows, row_group_rows=row_group_rows)


def phase(start_step: int, **weights: float) -> MixturePhase:
    return MixturePhase(start_step=start_step, weights=tuple(weights.items()))


@st.composite
def orders(draw: st.DrawFn) -> Order:
    names = "abcd"[: draw(st.integers(1, 4))]
    shards = st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any)
    datasets = [dataset(n, *draw(shards), row_group_rows=draw(st.integers(1, 5))) for n in names]
    starts = sorted({0, *draw(st.lists(st.integers(1, 12), max_size=2))})
    weight = st.floats(0.01, 1) | st.just(0.0)
    weights = st.fixed_dictionaries(dict.fromkeys(names, weight)).filter(lambda w: any(w.values()))
    phases = [phase(start, **draw(weights)) for start in starts]
    return Order(datasets, phases, draw(st.sampled_from([4, 8, 12])), draw(st.integers(0, 2**70)))


def consumption(order: Order, steps: int, number: int) -> list[tuple[int, int]]:
    """The (shard, row) that one dataset gives over the first steps, in order."""
    refs = chain.from_iterable(order.rows(step) for step in range(steps))
    return [(ref.shard, ref.row) for ref in refs if ref.dataset == number]


@PROPERTY
@given(orders(), st.integers(0, 40))
def test_the_rows_of_a_step_do_not_depend_on_the_number_of_workers(order: Order, step: int) -> None:
    rows = order.rows(step)
    assert len(rows) == order.global_batch
    for world_size in (1, 2, 4):
        parts = [order.worker_rows(step, rank, world_size) for rank in range(world_size)]
        assert list(chain.from_iterable(parts)) == rows


@PROPERTY
@given(orders())
def test_each_epoch_visits_each_row_once_whatever_the_phases(order: Order) -> None:
    for number, data in enumerate(order.datasets):
        every_row = {(shard, row) for shard, rows in enumerate(data.shard_rows) for row in range(rows)}
        given = consumption(order, 25, number)
        for first in range(0, len(given), data.rows):
            epoch = given[first : first + data.rows]
            assert len(set(epoch)) == len(epoch)
            assert set(epoch) <= every_row
        assert given[: data.rows] == sorted(every_row)[: len(given)]


@PROPERTY
@given(orders(), st.data())
def test_random_access_equals_sequential_access(order: Order, data: st.DataObject) -> None:
    sequential = [order.rows(step) for step in range(20)]
    fresh = pickle.loads(pickle.dumps(order))
    for step in data.draw(st.permutations(range(20))):
        assert fresh.rows(step) == sequential[step]


@PROPERTY
@given(orders(), st.floats(0.01, 1))
def test_a_later_phase_changes_nothing_before_it(order: Order, weight: float) -> None:
    last = order.phases[-1].start_step
    longer = Order(order.datasets, [*order.phases, phase(last + 5, a=weight)], order.global_batch, order.seed)
    for step in range(last + 5):
        assert longer.rows(step) == order.rows(step)
    assert longer.rows_used(last + 5) == order.rows_used(last + 5)


@PROPERTY
@given(orders(), st.integers(0, 30))
def test_rows_used_counts_the_rows_of_all_steps_before(order: Order, step: int) -> None:
    assert order.rows_used(step) == [len(consumption(order, step, number)) for number in range(len(order.datasets))]


@PROPERTY
@given(st.lists(st.floats(0.001, 1), min_size=2, max_size=5), st.integers(1, 3000))
def test_every_prefix_holds_the_mixture_to_a_few_rows(weights: list[float], step: int) -> None:
    names = "abcde"[: len(weights)]
    order = Order([dataset(n, 10**6) for n in names], [phase(0, **dict(zip(names, weights, strict=True)))], 64, seed=0)
    total = sum(weights)
    for weight, used in zip(weights, order.rows_used(step), strict=True):
        rounding = step * 64 / PERIOD
        assert abs(used - step * 64 * weight / total) <= 0.5 + len(weights) / 2 + rounding


def test_a_period_of_slots_holds_the_rounded_weights_exactly() -> None:
    order = Order([dataset("a", 99), dataset("b", 99)], [phase(0, a=0.25, b=0.75)], PERIOD, seed=0)
    assert Counter(ref.dataset for ref in order.rows(7)) == {0: PERIOD // 4, 1: PERIOD // 4 * 3}


def test_slots_of_a_dataset_are_evenly_spaced() -> None:
    order = Order([dataset("a", 99), dataset("b", 99)], [phase(0, a=1, b=3)], 16, seed=0)
    assert [ref.dataset for ref in order.rows(0)] == [1, 0, 1, 1] * 4


def test_later_epochs_permute_row_groups_and_keep_rows_in_order_within_them() -> None:
    order = Order([dataset("a", 40, 41, row_group_rows=4)], [phase(0, a=1)], 81, seed=3)
    epochs = [order.rows(epoch) for epoch in range(3)]
    assert epochs[0] == sorted(epochs[0])
    assert sorted(epochs[1]) == sorted(epochs[2]) == epochs[0]
    assert epochs[1] != epochs[0] != epochs[2] != epochs[1]
    for before, after in pairwise(epochs[1]):
        if before.row % 4 < 3 and after.row % 4 > 0:
            assert after == before._replace(row=before.row + 1)


def test_another_dataset_or_seed_changes_only_what_it_must() -> None:
    a, b = dataset("a", 50), dataset("b", 50)
    alone = Order([a], [phase(0, a=1)], 10, seed=1)
    mixed = Order([b, a], [phase(0, a=1, b=1)], 10, seed=1)
    assert consumption(alone, 20, 0)[:100] == consumption(mixed, 20, 1)[:100]
    assert Order([a], [phase(0, a=1)], 10, seed=2).rows(7) != alone.rows(7)


def test_the_order_never_changes_between_versions() -> None:
    order = Order([dataset("a", 7, 5), dataset("b", 9)], [phase(0, a=2, b=1), phase(3, b=1)], 6, seed=42)
    rows = {step: " ".join(f"{d}{s}{r}" for d, s, r in order.rows(step)) for step in (0, 2, 5, 1000)}
    assert rows == {
        0: "000 100 001 002 101 003",
        2: "011 104 012 013 105 014",
        5: "103 104 105 106 107 108",
        1000: "103 104 105 100 101 102",
    }


def test_a_step_of_a_billion_rows_is_found_quickly() -> None:
    order = Order([dataset("a", *[10**6] * 1000, row_group_rows=1024)], [phase(0, a=1)], 512, seed=0)
    late = 5 * 10**9 // 512
    order.rows(late)  # draws the epoch's permutation
    began = time.perf_counter()
    for step in range(late, late + 20):
        assert len(order.rows(step)) == 512
    assert (time.perf_counter() - began) / 20 < 0.05


def test_the_last_row_of_a_large_dataset_fits() -> None:
    order = Order([dataset("a", 2**31 - 1)], [phase(0, a=1)], 1, seed=0)
    assert order.rows(2**31 - 2) == [RowRef(0, 0, 2**31 - 2)]


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([], "start the first at 0"),
        ([phase(1, a=1)], "start the first at 0"),
        ([phase(0, a=1), phase(0, a=1)], "each after the last"),
        ([phase(0, c=1)], r"unknown datasets \['c'\]; there are \['a', 'empty'\]"),
        ([phase(0, a=0)], "with one above 0"),
        ([phase(0, a=-1)], "weights of 0 or more"),
        ([phase(0, a=float("nan"))], "finite"),
        ([phase(0, a=1, empty=1)], "which have no rows"),
        ([MixturePhase(start_step=0, weights=(("a", 1.0), ("a", 2.0)))], "names a dataset twice"),
    ],
)
def test_a_mixture_that_cannot_be_followed_is_refused(phases: list[MixturePhase], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Order([dataset("a", 5), dataset("empty", 0)], phases, 4, seed=0)


def test_a_weight_too_small_for_the_pattern_is_refused() -> None:
    with pytest.raises(ValueError, match="less than 1/65536"):
        Order([dataset("a", 5), dataset("b", 5)], [phase(0, a=1, b=1e-7)], 4, seed=0)


def test_uneven_splits_and_negative_steps_are_refused() -> None:
    order = Order([dataset("a", 5)], [phase(0, a=1)], 4, seed=0)
    with pytest.raises(ValueError, match="must divide the global batch"):
        order.worker_rows(0, 0, 3)
    with pytest.raises(ValueError, match="ranks go from 0"):
        order.worker_rows(0, 2, 2)
    with pytest.raises(ValueError, match="steps count from 0"):
        order.rows(-1)
    with pytest.raises(ValueError, match="at least 1 row"):
        Order([dataset("a", 5)], [phase(0, a=1)], 0, seed=0)
    with pytest.raises(ValueError, match="each dataset needs its own name"):
        Order([dataset("a", 5), dataset("a", 5)], [phase(0, a=1)], 1, seed=0)
