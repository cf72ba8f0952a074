"""Which rows go to FlashAttention-4; what these come to is tested on a GPU."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ltune.models.fast import flash_attention
from ltune.models.fast.flash_attention import LONG, are_long
from ltune.models.fast.tiles import Rows


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ((LONG,), True),
        ((LONG - 1,), False),
        ((LONG,) * 5, True),
        ((8192, *[300] * 20), True),
        ((2048, *[150] * 40), False),  # most of the work is that of short rows
        ((8192, 0, 5), False),
        ((), False),  # not known
    ],
)
def test_rows_are_long_where_most_of_the_work_is(lengths, expected):
    assert are_long(lengths) is expected


@given(st.lists(st.integers(1, 4 * LONG), min_size=1, max_size=9))
def test_long_rows_make_a_batch_long_and_short_ones_do_not(lengths):
    assert min(lengths) < LONG or are_long(tuple(lengths))
    assert max(lengths) >= LONG or not are_long(tuple(lengths))
    assert are_long(tuple(lengths)) == are_long(tuple(lengths * 3)) == are_long(tuple(reversed(lengths)))


def test_nothing_is_asked_of_it_without_a_gpu():
    q, rows = torch.empty(LONG, 4, 64, dtype=torch.bfloat16), Rows(torch.tensor([0, LONG], dtype=torch.int32), LONG, lengths=(LONG,))
    assert not flash_attention.serves(q, q, rows, None)
    if not torch.cuda.is_available():
        assert not flash_attention.installed()
