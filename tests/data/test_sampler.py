"""The order is a pure function, windows hold the same rows however they are cut up, and a start in the middle goes on exactly."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltune.data.sampler import InOrder, WindowSampler, epoch_order


def sampler(rows, batch_size=2, accumulate=4, rank=0, world_size=1, start=(0, 0)):
    trained = np.arange(1, rows + 1)
    return WindowSampler(trained, seed=42, batch_size=batch_size, accumulate=accumulate, rank=rank, world_size=world_size, start=start)


def test_the_orders_of_the_walkthrough(shared):
    orders = json.loads((shared / "golden" / "walkthrough_log.json").read_text())["epoch_order"]
    assert [epoch_order(591, 42, epoch) for epoch in range(3)] == orders


def test_591_rows_in_batches_of_2_and_windows_of_4():
    plan = sampler(591)
    batches = list(plan)
    assert len(batches) == len(plan) == 296
    assert plan.windows == 74
    assert [len(batch.rows) for batch in batches[-4:]] == [2, 2, 2, 1]
    assert batches[0].position == (0, 0, 0)
    assert batches[-1].position == (0, 73, 3)


@given(rows=st.integers(1, 60), batch=st.integers(1, 5), accumulate=st.integers(1, 4), world=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_ranks_share_each_window_and_every_row_comes_once(rows, batch, accumulate, world):
    ranks = [list(sampler(rows, batch, accumulate, rank, world)) for rank in range(world)]
    assert {len(one) for one in ranks} == {len(sampler(rows, batch, accumulate, 0, world))}
    assert sorted(row for one in ranks for micro in one for row in micro.rows) == list(range(rows))
    order, size = epoch_order(rows, 42, 0), batch * accumulate * world
    for window in range(-(-rows // size)):
        mine = sorted(row for one in ranks for micro in one if micro.position[1] == window for row in micro.rows)
        assert mine == sorted(order[window * size : (window + 1) * size])
        tokens = {micro.window_tokens for one in ranks for micro in one if micro.position[1] == window}
        assert tokens == {sum(row + 1 for row in mine)}


@pytest.mark.parametrize("start", [(0, 0), (0, 3), (1, 0), (2, 7)])
def test_a_start_in_the_middle_goes_on_exactly(start):
    whole = sampler(60)
    epochs = [list(whole) for _ in range(4)]
    resumed = sampler(60, start=start)
    first = list(resumed)
    assert first == [batch for batch in epochs[start[0]] if batch.position[1] >= start[1]]
    assert list(resumed) == epochs[start[0] + 1]
    assert len(resumed) == len(whole)  # Lightning counts whole epochs


def test_in_order_deals_every_row_once():
    trained = np.ones(7, np.int64)
    ranks = [list(InOrder(trained, batch_size=2, rank=rank, world_size=2)) for rank in range(2)]
    assert [[micro.rows for micro in rank] for rank in ranks] == [[(0, 1), (4, 5)], [(2, 3), (6,)]]
    assert {micro.window_tokens for rank in ranks for micro in rank} == {7}
