"""Every row once, nothing over the capacity, the same plan for the same order, and hardly a place left empty."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltune.data.packing import STRETCH, pack


def test_the_fullest_that_fits_takes_the_row():
    lengths = np.array([5, 3, 6, 2, 4, 5])
    assert pack(lengths, range(6), 10) == [(0, 5), (1, 3), (2, 4)]


def test_rows_longer_than_the_capacity_stand_alone():
    assert pack(np.array([3, 50, 10, 4]), [3, 1, 2, 0], 10) == [(3, 0), (1,), (2,)]


def test_only_the_rows_of_the_order_are_packed():
    assert pack(np.array([4, 5, 6, 7]), [3, 0], 11) == [(3, 0)]
    assert pack(np.array([4, 5]), [], 11) == []
    with pytest.raises(ValueError, match="at least one token"):
        pack(np.array([4]), [0], 0)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=300), st.integers(1, 50), st.randoms(use_true_random=False))
def test_every_row_once_and_nothing_over_the_capacity(lengths, capacity, random):
    lengths, order = np.array(lengths, np.int64), list(range(len(lengths)))
    random.shuffle(order)
    plan = pack(lengths, order, capacity)
    assert sorted(row for rows in plan for row in rows) == sorted(order)
    assert all(lengths[list(rows)].sum() <= capacity or len(rows) == 1 for rows in plan)
    place = {row: position for position, row in enumerate(order)}
    assert all([place[row] for row in rows] == sorted(place[row] for row in rows) for rows in plan)
    assert [place[rows[0]] for rows in plan] == sorted(place[rows[0]] for rows in plan)  # here all rows are one stretch
    assert plan == pack(lengths.astype(np.int32), np.array(order), capacity)


def realistic(rows, seed=0):
    """Lengths as instructions and answers have them: most are short, few are long, none above 2,048."""
    return np.clip(np.random.default_rng(seed).lognormal(5.0, 0.9, rows), 10, 2048).astype(np.int64)


@pytest.mark.parametrize("capacity", [2048, 4096, 8192, 32768])
def test_micro_batches_are_full(capacity):
    lengths = realistic(50_000)
    plan = pack(lengths, np.random.default_rng(1).permutation(len(lengths)), capacity)
    assert lengths.sum() / (len(plan) * capacity) >= 0.99


def test_micro_batches_are_full_where_rows_are_long():
    """Half of the rows fill most of a micro-batch, the other half is short."""
    random = np.random.default_rng(0)
    lengths = np.concatenate([random.integers(1000, 2048, 5000), random.integers(20, 1000, 5000)])
    plan = pack(lengths, random.permutation(len(lengths)), 2048)
    assert lengths.sum() / (len(plan) * 2048) >= 0.97


def test_a_row_stays_near_its_place_in_the_order():
    lengths = realistic(200_000)
    order = np.random.default_rng(2).permutation(len(lengths))
    plan = pack(lengths, order, 4096)
    tokens_before = np.empty(len(lengths), np.int64)
    tokens_before[order] = np.cumsum(lengths[order])
    for number, rows in enumerate(plan):
        assert abs(tokens_before[list(rows)] - number * 4096).max() <= 1.05 * STRETCH * 4096


def test_a_million_rows_take_seconds():
    lengths = realistic(1_000_000)
    order = np.random.default_rng(3).permutation(len(lengths)).tolist()
    begin = time.process_time()
    plan = pack(lengths, order, 8192)
    assert time.process_time() - begin < 10  # measured: 0.5 s
    assert sum(map(len, plan)) == len(lengths)
    assert lengths.sum() / (len(plan) * 8192) >= 0.99
