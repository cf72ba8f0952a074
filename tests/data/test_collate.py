"""A batch says where its rows begin; a step is cut into as few micro-batches as memory allows, and no row is lost or moved."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ltune.data.collate import Step, collate
from ltune.data.rows import IGNORE, Sequence

PAD = 9


def sequence(length, first=10):
    """Its tokens count up from ``first``; all but the first two are trained."""
    ids = np.arange(first, first + length, dtype=np.int32)
    labels = ids.copy()
    labels[:2] = IGNORE
    return Sequence(ids, labels)


def step(micro_batches, lengths, flat=True):
    """Lengths of row 0, 1, ..."""
    sequences = {row: (sequence(length, 10 * (row + 1)),) for row, length in enumerate(lengths)}
    return Step(tuple(micro_batches), sequences, window_tokens=100, window_rows=8, position=(1, 2), flat=flat, pad_id=PAD)


def cut(one, most=None):
    return [batch.rows for batch in one.batches(most)]


# -- a batch ----------------------------------------------------------------------------------------------------------------------


def test_flat_rows_lie_end_to_end():
    batch = collate([sequence(3), sequence(4, 20)], (7, 5), 50, 6, flat=True, pad_id=PAD)
    assert batch.flat
    assert batch.input_ids.tolist() == [[10, 11, 12, 20, 21, 22, 23]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 3]]
    assert batch.attention_mask is None
    assert batch.predict_at.tolist() == [1, 4, 5]
    assert batch.targets.tolist() == [12, 22, 23]
    assert batch.starts.tolist() == [0, 3, 7]
    assert batch.starts.dtype == np.int32
    assert (batch.longest, batch.tokens, batch.window_tokens, batch.rows) == (4, 7, 50, (7, 5))


def test_padded_rows_lie_one_under_the_other_and_starts_leave_the_padding_out():
    batch = collate([sequence(3), sequence(4, 20)], (7, 5), 50, 6, flat=False, pad_id=PAD)
    assert not batch.flat
    assert batch.input_ids.tolist() == [[10, 11, 12, PAD], [20, 21, 22, 23]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch.predict_at.tolist() == [1, 5, 6]
    assert batch.targets.tolist() == [12, 22, 23]
    assert batch.starts.tolist() == [0, 3, 7]
    assert (batch.longest, batch.tokens) == (4, 7)


@pytest.mark.parametrize("flat", [True, False], ids=["flat", "padded"])
def test_a_batch_without_rows_is_one_token_of_which_nothing_is_trained(flat):
    batch = collate([], (), 50, 6, flat=flat, pad_id=PAD)
    assert batch.input_ids.tolist() == [[PAD]]
    assert batch.starts.tolist() == [0, 1]
    assert (batch.longest, batch.tokens, len(batch.targets)) == (1, 0, 0)


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), flat=st.booleans())
@settings(max_examples=50, deadline=None)
def test_starts_bound_each_row(lengths, flat):
    rows = [sequence(length, 10 * (number + 1)) for number, length in enumerate(lengths)]
    batch = collate(rows, tuple(range(len(rows))), 50, 6, flat=flat, pad_id=PAD)
    assert batch.starts.tolist() == [sum(lengths[:number]) for number in range(len(lengths) + 1)]
    assert batch.longest == max(lengths)
    laid = batch.input_ids[0] if flat else batch.input_ids[batch.attention_mask == 1]
    for number, row in enumerate(rows):
        assert laid[batch.starts[number] : batch.starts[number + 1]].tolist() == row.input_ids.tolist()


def test_arrays_become_tensors_that_share_their_memory():
    batch = collate([sequence(3)], (0,), 50, 6, flat=True, pad_id=PAD)
    tensors = batch.tensors()
    assert isinstance(tensors.starts, torch.Tensor)
    assert tensors.starts.dtype is torch.int32
    assert tensors.attention_mask is None
    assert tensors.input_ids.data_ptr() == batch.input_ids.ctypes.data


# -- a step -----------------------------------------------------------------------------------------------------------------------


def test_micro_batches_are_as_configured_where_memory_says_nothing():
    one = step([(2, 0), (1,)], [4, 5, 6])
    assert one.rows == (2, 0, 1)
    assert one.tokens == 15
    batches = one.batches()
    assert [batch.rows for batch in batches] == [(2, 0), (1,)]
    assert [batch.starts.tolist() for batch in batches] == [[0, 6, 10], [0, 5]]
    assert {batch.window_tokens for batch in batches} == {100}


@pytest.mark.parametrize(
    ("most", "parts"),
    [
        (100, [(0, 1, 2, 3, 4, 5)]),
        (12, [(0, 1, 2, 3, 4, 5)]),
        (11, [(0, 1, 2, 3), (4, 5)]),
        (8, [(0, 1, 2, 3), (4, 5)]),
        (7, [(0, 1), (2, 3), (4, 5)]),
        (3, [(0,), (1,), (2,), (3,), (4,), (5,)]),
        (1, [(0,), (1,), (2,), (3,), (4,), (5,)]),
    ],
)
def test_whole_micro_batches_stand_side_by_side_or_are_halved(most, parts):
    assert cut(step([(0, 1), (2, 3), (4, 5)], [2] * 6), most) == parts


def test_halves_of_a_micro_batch_may_stand_beside_the_one_before():
    assert cut(step([(0,), (1, 2, 3, 4)], [2, 3, 3, 3, 3]), 8) == [(0, 1, 2), (3, 4)]


def test_padding_counts_where_rows_are_padded():
    """Four rows of 1 token and one of 3 have 7 tokens; padded to 3, they take 15 places."""
    micro_batches = [(row,) for row in range(5)]
    assert cut(step(micro_batches, [1, 1, 1, 1, 3], flat=True), 7) == [(0, 1, 2, 3, 4)]
    assert cut(step(micro_batches, [1, 1, 1, 1, 3], flat=False), 7) == [(0, 1, 2, 3), (4,)]


def test_a_row_that_is_too_long_stands_alone():
    assert cut(step([(0, 1, 2)], [2, 9, 2]), 4) == [(0,), (1,), (2,)]


def test_a_step_without_rows_has_one_micro_batch_without_any():
    for most in (None, 5):
        (batch,) = step([], []).batches(most)
        assert (batch.rows, batch.tokens, batch.window_tokens) == ((), 0, 100)


@st.composite
def steps(draw, flat):
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=30))
    order = draw(st.permutations(range(len(lengths))))
    size = draw(st.integers(1, 8))
    return step([tuple(order[begin : begin + size]) for begin in range(0, len(order), size)], lengths, flat=flat)


@given(one=steps(flat=True) | steps(flat=False), most=st.integers(1, 200))
@settings(max_examples=300, deadline=None)
def test_every_row_once_in_order_and_no_micro_batch_above_what_fits_but_a_single_row(one, most):
    batches = one.batches(most)
    assert tuple(row for batch in batches for row in batch.rows) == one.rows
    assert sum(batch.tokens for batch in batches) == one.tokens
    assert all(batch.input_ids.size <= most or len(batch.rows) == 1 for batch in batches)
    trained = [int((sequence.labels != IGNORE).sum()) for row in one.rows for sequence in one.sequences[row]]
    assert sum(len(batch.targets) for batch in batches) == sum(trained)


# -- rows of several sequences ----------------------------------------------------------------------------------------------------


def pair(first, *lengths):
    """Sequences with a number each, and one for each of their trained tokens."""
    extras = [{"mark": np.float32(length), "place": np.arange(max(length - 2, 0), dtype=np.float32)} for length in lengths]
    return tuple(Sequence(one.input_ids, one.labels, more) for one, more in zip([sequence(n, first) for n in lengths], extras, strict=True))


@pytest.mark.parametrize("flat", [True, False], ids=["flat", "padded"])
def test_a_rows_sequences_stay_together_and_trained_tokens_know_theirs(flat):
    one = Step(((0, 1),), {0: pair(10, 3, 5), 1: pair(30, 4, 3)}, 50, 6, (0, 0), flat, PAD)
    assert one.tokens == 15
    (batch,) = one.batches()
    batch = batch.tensors()
    assert (batch.rows, batch.sequences, batch.window_rows) == ((0, 1), 4, 6)
    assert batch.owner.tolist() == [0, 1, 1, 1, 2, 2, 3]
    assert batch.extra("mark").tolist() == [3, 5, 4, 3]
    assert batch.extra("place").tolist() == [0, 0, 1, 2, 0, 1, 0]
    assert batch.input_ids.flatten()[batch.ends].tolist() == [12, 14, 33, 32]
    assert cut(one, 8) == [(0,), (1,)]
    assert cut(one, 2) == [(0,), (1,)]  # halved between rows only


@pytest.mark.parametrize("flat", [True, False], ids=["flat", "padded"])
def test_a_batch_without_rows_has_no_sequence(flat):
    batch = collate([], (), 50, 6, flat=flat, pad_id=PAD).tensors()
    assert (batch.sequences, len(batch.owner), len(batch.ends), len(batch.extra("mark"))) == (0, 0, 0, 0)


@pytest.mark.parametrize("flat", [True, False], ids=["flat", "padded"])
def test_a_sequence_ends_at_its_last_trained_token_or_where_nothing_is_trained_at_its_last(flat):
    tail = sequence(5, 20)
    tail.labels[4] = IGNORE
    batch = collate([tail, sequence(2, 30), sequence(3, 40)], (0, 1, 2), 50, 6, flat=flat, pad_id=PAD).tensors()
    assert batch.input_ids.flatten()[batch.ends].tolist() == [23, 31, 42]
