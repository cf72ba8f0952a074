"""What fits, what goes first, and what is never cut."""

import pytest

from ltune.data.truncation import left, length, llamafactory, share

BOS = 1


def turns(*sizes):
    """Turns of (prompt, answer) sizes with ids that tell where they come from; the first prompt begins with BOS."""
    made = [([100 * n + i for i in range(p)], [100 * n + 50 + i for i in range(a)]) for n, (p, a) in enumerate(sizes, 1)]
    made[0][0][0] = BOS
    return made


def test_left_leaves_what_fits():
    row = turns((3, 2), (4, 2))
    assert left(row, 11, BOS) == row


def test_left_removes_whole_oldest_turns_and_keeps_the_begin_token():
    row = turns((3, 2), (4, 2), (3, 1))
    assert left(row, 13, BOS) == [([BOS, 200, 201, 202, 203], [250, 251]), ([300, 301, 302], [350])]
    assert left(row, 10, BOS) == [([BOS, 300, 301, 302], [350])]
    assert left(row, 10, None) == [([200, 201, 202, 203], [250, 251]), ([300, 301, 302], [350])]


def test_left_then_cuts_the_prompts_beginning_never_the_answer():
    row = turns((9, 3), (6, 3))
    assert left(row, 6, BOS) == [([BOS, 204, 205], [250, 251, 252])]
    assert left(row, 6, None) == [([203, 204, 205], [250, 251, 252])]
    assert left(row, 4, BOS) == [([BOS], [250, 251, 252])]
    assert left(row, 4, None) == [([205], [250, 251, 252])]


def test_left_drops_the_row_where_the_answer_does_not_fit():
    assert left(turns((2, 4)), 4, BOS) is None
    assert left(turns((2, 4)), 3, None) is None


@pytest.mark.parametrize(
    ("prompt", "answer", "budget", "kept"),
    [(5, 5, 100, (5, 5)), (100, 4, 10, (6, 4)), (4, 100, 10, (4, 6)), (30, 10, 20, (15, 5)), (10, 10, 10, (5, 5)), (7, 11, 10, (4, 6))],
)
def test_llamafactory_shares_the_budget(prompt, answer, budget, kept):
    assert share(prompt, answer, budget) == kept


def test_llamafactory_goes_turn_by_turn_on_what_is_left():
    row = turns((3, 2), (4, 4), (3, 1))
    assert llamafactory(row, 9, last_first=False) == [row[0], ([200, 201], [250, 251])]
    assert llamafactory(row, 9, last_first=True) == [([200, 201, 202], [250, 251]), row[2]]
    assert llamafactory(row, 5, last_first=False) == [row[0]]
    assert length(llamafactory(row, 13, last_first=False)) == 13
