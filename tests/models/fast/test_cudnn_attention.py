"""Which rows go to cuDNN's kernels; what these come to is tested on a GPU."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from ltune.models.fast.cudnn_attention import LONG, _batched, serves, stretches
from ltune.models.fast.tiles import Rows

length = st.one_of(st.integers(0, 5), st.integers(LONG - 2, LONG + 2), st.integers(0, 4 * LONG))


def rows_of(lengths):
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return Rows(starts, max(lengths), lengths=tuple(lengths))


@given(st.lists(length, min_size=1, max_size=9))
def test_long_rows_stand_alone_and_others_between_them(lengths):
    tokens = torch.arange(sum(lengths))
    rows = []
    for at, others in stretches(rows_of(lengths)):
        here = tokens[at]
        own = [len(here)] if others is None else others.starts.diff().tolist()
        assert (others is None) is (own == [len(here)] and len(here) >= LONG)
        assert others is None or (others.starts[0], others.starts[-1], others.longest) == (0, len(here), max(own))
        assert sum(own) == len(here) > 0
        rows += [one.tolist() for one in here.split(own) if len(one)]
    assert rows == [one.tolist() for one in tokens.split(lengths) if len(one)]


def test_where_they_are_used():
    q = torch.empty(LONG, 8, 128, dtype=torch.bfloat16, device="meta")
    assert serves(q, rows_of([5, LONG, 7]), None)
    assert not serves(q, rows_of([5, LONG - 1]), None)
    assert not serves(q, rows_of([LONG]), 700)  # windows
    assert not serves(q.float(), rows_of([LONG]), None)
    assert not serves(torch.empty_like(q, device="cpu"), rows_of([LONG]), None)
    assert not serves(torch.empty(LONG, 8, 256, dtype=torch.bfloat16, device="meta"), rows_of([LONG]), None)


def test_rows_are_copied_only_to_be_filled_up():
    heads = torch.randn(100, 3, 8)
    assert _batched(heads, 100).data_ptr() == heads.data_ptr()
    longer = _batched(heads, 104)
    assert longer.shape == (1, 3, 104, 8)
    assert torch.equal(longer[0, :, :100].transpose(0, 1), heads)
    assert not longer[0, :, 100:].any()
