"""What is computed of a batch: every read token sees what it would see in its own sequence, and as little as can be is computed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltune.data.collate import Step, collate
from ltune.data.rows import IGNORE, Sequence


def batch_of(sequences):
    """Each given as its tokens and how many of them are the prompt."""
    made = []
    for tokens, prompt in sequences:
        ids = np.array(tokens, np.int32)
        made.append(Sequence(ids, np.where(np.arange(len(ids)) < prompt, IGNORE, ids).astype(np.int32)))
    return collate(made, tuple(range(len(made))), 1.0, len(made), flat=True, pad_id=0)


def seen(compact):
    """Of each read place, the tokens up to it, as they are looked up, and their positions."""
    starts, lenders, borrowed, _ = compact.places
    found = []
    for at in compact.predict_at:
        row = np.searchsorted(starts, at, side="right") - 1
        count = borrowed[row + 1] - borrowed[row]
        places = [*range(lenders[row], lenders[row] + count), *range(starts[row], at + 1)]
        found.append((compact.input_ids[places].tolist(), compact.position_ids[places].tolist()))
    return found


@st.composite
def batches(draw):
    roots = draw(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=3))
    sequences = []
    for _ in range(draw(st.integers(1, 9))):
        tokens = draw(st.sampled_from(roots))[: draw(st.integers(1, 12))] + draw(st.lists(st.integers(0, 3), max_size=6))
        sequences.append((tokens, draw(st.integers(0, len(tokens)))))
    return sequences


@settings(max_examples=300, deadline=None)
@given(batches())
def test_each_read_token_sees_what_stands_before_it(sequences):
    batch = batch_of(sequences)
    if batch.compact is None:
        return
    expected = []
    for at in batch.predict_at:
        begin = batch.starts[np.searchsorted(batch.starts, at, side="right") - 1]
        ids = batch.input_ids[0, begin : at + 1].tolist()
        expected.append((ids, list(range(len(ids)))))
    assert seen(batch.compact) == expected
    starts, lenders, borrowed, borrowers = batch.compact.places
    assert starts[-1] == len(batch.compact.input_ids) < batch.tokens
    assert borrowed[-1] == batch.compact.borrowed
    counts = np.diff(borrowed)
    assert borrowers.sum() == (counts > 0).sum()
    for row in np.flatnonzero(borrowers):  # the lender stands right before those that borrow from it
        assert starts[row - 1] == lenders[row]
        assert set(counts[row : row + borrowers[row]]) == {starts[row] - starts[row - 1]}
    first = np.flatnonzero(borrowers)
    assert batch.compact.loans == tuple(zip(lenders[first], starts[first], starts[first + borrowers[first]], strict=True))


def test_a_prompt_with_two_answers_is_computed_once():
    prompt = list(range(10, 30))
    compact = batch_of([([*prompt, 1, 2, 3], 20), ([*prompt, 4, 5], 20)]).compact
    # the prompt but for its last token, which is read; then that and the answers without their last tokens
    assert compact.input_ids.tolist() == [*prompt[:19], 29, 1, 2, 29, 4]
    assert compact.places.tolist() == [[0, 19, 22, 24], [0, 0, 0, 0], [0, 0, 19, 38], [0, 2, 0, 0]]
    assert compact.predict_at.tolist() == [19, 20, 21, 22, 23]
    assert compact.longest == 22


def test_pairs_share_their_prompts_rather_than_the_templates_beginning():
    batch = batch_of([([1, 2, prompt, prompt, prompt, prompt, answer, 9], 6) for prompt in (3, 4) for answer in (5, 6)])
    assert batch.compact.places[3].tolist() == [0, 2, 0, 0, 2, 0, 0]
    assert len(batch.compact.input_ids) == 2 * (5 + 2 * 2)


def test_a_beginning_that_all_share_is_lent_to_all():
    batch = batch_of([([1, 2, 3, 10 + number, 7, 8], 4) for number in range(6)])
    assert batch.compact.places[3].tolist() == [0, 6, *[0] * 6]
    assert len(batch.compact.input_ids) == 3 + 6 * 2


def test_a_few_tokens_are_not_worth_it():
    batch = batch_of([([1, *range(number, number + 400), 7], 300) for number in (10, 500)])
    assert batch.compact.borrowed == 0
    assert len(batch.compact.input_ids) == batch.tokens - 2


@pytest.mark.parametrize(
    ("shared", "own", "rows", "lends"),
    [
        (7000, 350, 2, True),  # a long prompt's two answers
        (32000, 500, 2, True),
        (300, 7900, 4, False),  # a system text before long rows
        (20, 7900, 4, False),
        (300, 1700, 4, True),
        (4000, 100, 20, True),
    ],
)
def test_among_long_rows_more_has_to_be_saved(shared, own, rows, lends):
    sequences = [([*range(shared), *range(10**6 * n, 10**6 * n + own)], shared + 1) for n in range(1, rows + 1)]
    batch = batch_of(sequences)
    assert (batch.compact.borrowed > 0) is lends
    assert sum(batch.compact.lengths) == len(batch.compact.input_ids) == batch.tokens - rows - (rows - 1) * shared * lends
    assert batch.compact.lengths == tuple(np.diff(batch.compact.places[0]))
    assert batch.lengths == (shared + own,) * rows


def test_nothing_that_follows_the_last_read_token_is_computed():
    ids = np.arange(10, 20).astype(np.int32)
    labels = np.full(10, IGNORE, np.int32)
    labels[3] = ids[3]
    compact = collate([Sequence(ids, labels)], (0,), 1.0, 1, flat=True, pad_id=0).compact
    assert compact.input_ids.tolist() == [10, 11, 12]


def test_where_nothing_is_trained_there_is_nothing_to_say():
    assert batch_of([([1, 2, 3], 3)]).compact is None
    assert collate([], (), 1.0, 0, flat=True, pad_id=0).compact is None


def step_of(rows):
    """Each row given as its sequences' tokens, whose last one is trained."""
    sequences = {
        number: tuple(Sequence(np.array(ids, np.int32), np.array([*[IGNORE] * (len(ids) - 1), ids[-1]], np.int32)) for ids in row)
        for number, row in enumerate(rows)
    }
    return Step((tuple(sequences),), sequences, 1.0, len(rows), position=(0, 0), flat=True, pad_id=0)


def test_rows_that_begin_alike_meet_where_the_order_is_free():
    one, other = list(range(100, 150)), list(range(200, 240))
    step = step_of([[(one, other)[number % 2] + [number, 7]] for number in range(6)])
    (as_given,), (free,) = step.batches(), step.batches(any_order=True)
    assert as_given.rows == (0, 1, 2, 3, 4, 5)
    assert as_given.compact is None or len(as_given.compact.input_ids) > 250
    assert sorted(free.rows) == [0, 1, 2, 3, 4, 5]
    assert len(free.compact.input_ids) == 50 + 40 + 6  # each text once, and the token of each row that is read


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=9), min_size=2, max_size=2), min_size=1, max_size=6))
def test_a_free_order_changes_the_order_alone(rows):
    (batch,) = step_of(rows).batches(any_order=True)
    starts = batch.starts.tolist()
    laid_out = [batch.input_ids[0, begin:end].tolist() for begin, end in zip(starts, starts[1:], strict=False)]
    assert laid_out == [ids for row in batch.rows for ids in rows[row]]  # a row's sequences stay together, and as they were
    assert sorted(batch.rows) == list(range(len(rows)))
