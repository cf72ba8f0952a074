"""The order is a pure function, windows hold the same rows however they are cut up, and a start in the middle goes on exactly."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltune.data.sampler import InOrder, MicroBatch, Window, WindowSampler, epoch_order

PACKED = [(0, 4, 7), (1,), (2, 3), (5, 6), (8, 9)]


def sampler(rows, batch_size=2, accumulate=4, rank=0, world_size=1, start=(0, 0), micro_batches=None):
    return WindowSampler(
        np.arange(1, rows + 1),
        seed=42,
        batch_size=batch_size,
        accumulate=accumulate,
        rank=rank,
        world_size=world_size,
        start=start,
        micro_batches=micro_batches,
    )


def rows_of(window):
    return [row for rows in window.micro_batches for row in rows]


def test_the_orders_of_the_walkthrough(shared):
    orders = json.loads((shared / "golden" / "walkthrough_log.json").read_text())["epoch_order"]
    assert [epoch_order(591, 42, epoch) for epoch in range(3)] == orders


def test_591_rows_in_batches_of_2_and_windows_of_4():
    plan = sampler(591)
    windows = list(plan)
    assert len(windows) == len(plan) == 74
    assert {len(window.micro_batches) for window in windows} == {4}
    assert [len(rows) for rows in windows[-1].micro_batches] == [2, 2, 2, 1]
    assert [window.position for window in windows] == [(0, number) for number in range(74)]
    order = epoch_order(591, 42, 0)
    assert windows[0] == Window((tuple(order[:2]), tuple(order[2:4]), tuple(order[4:6]), tuple(order[6:8])), sum(order[:8]) + 8, 8, (0, 0))
    assert windows[-1].rows == 7


@given(rows=st.integers(1, 60), batch=st.integers(1, 5), accumulate=st.integers(1, 4), world=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_ranks_share_each_window_and_every_row_comes_once(rows, batch, accumulate, world):
    ranks = [list(sampler(rows, batch, accumulate, rank, world)) for rank in range(world)]
    order, size = epoch_order(rows, 42, 0), batch * accumulate * world
    assert {len(one) for one in ranks} == {len(sampler(rows, batch, accumulate, 0, world))} == {-(-rows // size)}
    for number, shares in enumerate(zip(*ranks, strict=True)):
        together = sorted(row for share in shares for row in rows_of(share))
        assert together == sorted(order[number * size : (number + 1) * size])
        assert {share.tokens for share in shares} == {sum(row + 1 for row in together)}
        assert {share.position for share in shares} == {(0, number)}
        assert all(len(share.micro_batches) <= accumulate for share in shares)


@given(rows=st.integers(1, 60), batch=st.integers(1, 5), accumulate=st.integers(1, 4), world=st.integers(1, 3), repeats=st.integers(1, 2))
@settings(max_examples=60, deadline=None)
def test_all_ranks_find_the_share_with_the_most_tokens(rows, batch, accumulate, world, repeats):
    lengths = np.random.default_rng(rows).integers(1, 100, rows)
    ranks = [sampler(rows, batch, accumulate, rank, world) for rank in range(world)]
    for rank in ranks:
        rank.repeats = repeats
    heaviest = {rank.heaviest(lengths)[0] for rank in ranks}
    assert len(heaviest) == 1
    shares = [share for rank in ranks for share in rank]
    most = max(int(lengths[rows_of(share)].sum()) for share in shares)
    (found,) = heaviest
    assert found in shares
    assert int(lengths[rows_of(found)].sum()) == ranks[0].heaviest(lengths)[1].max() == most


@pytest.mark.parametrize(("batch", "accumulate", "world"), [(8, 1, 1), (1, 8, 1), (2, 4, 1), (2, 2, 2), (1, 2, 4)])
def test_a_step_has_the_same_rows_however_it_is_cut_up(batch, accumulate, world):
    ranks = [list(sampler(21, batch, accumulate, rank, world)) for rank in range(world)]
    together = [{row for share in shares for row in rows_of(share)} for shares in zip(*ranks, strict=True)]
    assert together == [set(rows_of(window)) for window in sampler(21, 8, 1)]


def test_a_rank_may_be_left_without_work():
    shares = [list(sampler(3, 2, 1, rank, 3)) for rank in range(3)]
    assert [[len(rows) for rows in share[0].micro_batches] for share in shares] == [[2], [1], []]
    assert {share[0].tokens for share in shares} == {1 + 2 + 3}


@pytest.mark.parametrize("start", [(0, 0), (0, 3), (1, 0), (2, 7)])
@pytest.mark.parametrize("packed", [None, [(3 * number, 3 * number + 1, 3 * number + 2) for number in range(20)] * 2], ids=["", "packed"])
def test_a_start_in_the_middle_goes_on_exactly(start, packed):
    whole = sampler(60, micro_batches=packed)
    epochs = [list(whole) for _ in range(4)]
    resumed = sampler(60, start=start, micro_batches=packed)
    first = list(resumed)
    assert first == [window for window in epochs[start[0]] if window.position[1] >= start[1]]
    assert first
    assert list(resumed) == epochs[start[0] + 1]
    assert len(resumed) == len(whole)  # Lightning counts whole epochs


def test_packed_micro_batches_stay_whole_and_come_in_another_order_each_epoch():
    plan = sampler(10, batch_size=1, accumulate=2, micro_batches=PACKED)
    epochs = [list(plan) for _ in range(3)]
    assert len(plan) == 3
    for epoch, windows in enumerate(epochs):
        assert [len(window.micro_batches) for window in windows] == [2, 2, 1]
        dealt = [rows for window in windows for rows in window.micro_batches]
        assert dealt == [PACKED[number] for number in epoch_order(5, 42, epoch)] == plan.micro_batches(epoch)
        assert sorted(row for rows in dealt for row in rows) == list(range(10))
        assert [window.tokens for window in windows] == [sum(row + 1 for row in rows_of(window)) for window in windows]
    assert epochs[0] != epochs[1] != epochs[2]


@given(world=st.integers(1, 4), accumulate=st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_ranks_share_packed_micro_batches(world, accumulate):
    ranks = [list(sampler(10, 1, accumulate, rank, world, micro_batches=PACKED)) for rank in range(world)]
    assert {len(one) for one in ranks} == {-(-5 // (accumulate * world))}
    assert sorted(rows for one in ranks for window in one for rows in window.micro_batches) == sorted(PACKED)
    assert all(len({share.tokens for share in shares}) == 1 for shares in zip(*ranks, strict=True))


def test_in_order_deals_every_row_once():
    trained = np.ones(7, np.int64)
    ranks = [InOrder(trained, batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    assert [len(rank) for rank in ranks] == [2, 2]
    assert list(ranks[0]) == [MicroBatch((0, 1), 7, 7), MicroBatch((4, 5), 7, 7)]
    assert list(ranks[1]) == [MicroBatch((2, 3), 7, 7), MicroBatch((6,), 7, 7)]


def test_in_order_gives_every_rank_as_many_micro_batches():
    ranks = [list(InOrder(np.ones(1, np.int64), batch_size=2, rank=rank, world_size=2)) for rank in range(2)]
    assert ranks == [[MicroBatch((0,), 1, 1)], [MicroBatch((), 1, 1)]]


def test_a_window_may_come_several_times_each_with_a_number_of_its_own():
    once = list(sampler(21))
    whole = WindowSampler(np.ones(21), seed=42, batch_size=2, accumulate=4, rank=0, world_size=1, repeats=3)
    windows = list(whole)
    assert len(whole) == len(windows) == 3 * len(once)
    assert [window.position for window in windows] == [(0, number) for number in range(9)]
    assert [rows_of(window) for window in windows] == [rows_of(window) for window in once for _ in range(3)]
    later = WindowSampler(np.ones(21), seed=42, batch_size=2, accumulate=4, rank=0, world_size=1, repeats=3, start=(0, 4))
    assert list(later) == windows[4:]
