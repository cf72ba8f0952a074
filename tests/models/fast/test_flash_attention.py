"""Which rows go to FlashAttention-4; what these come to is tested on a GPU."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ltune.models.fast import attention, flash_attention
from ltune.models.fast.flash_attention import LONG, are_long, attend_by_flash, attend_by_flash_backward
from ltune.models.fast.rotary import Turn
from ltune.models.fast.tiles import Lent, Rows


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


class ByFormula:
    """What is called of the package, with a head of keys for each of queries: rows end to end, causal, or all queries with all keys."""

    @staticmethod
    def probabilities(q, k, lse, scale, starts=None):
        scores = scale * torch.einsum("qhd,khd->hqk", q, k)
        if starts is not None:
            row = torch.bucketize(torch.arange(len(q)), starts[1:], right=True)
            scores = scores.masked_fill((row[:, None] != row) | torch.ones(len(q), len(q), dtype=torch.bool).triu(1), -torch.inf)
        lse = scores.logsumexp(-1) if lse is None else lse
        return (scores - lse[..., None]).exp(), lse

    @classmethod
    def _flash_attn_fwd(cls, q, k, v, out=None, lse=None, softmax_scale=None, cu_seqlens_q=None, **_):
        whole = cu_seqlens_q is not None
        p, found = cls.probabilities(*((q, k) if whole else (q[0], k[0])), None, softmax_scale, cu_seqlens_q)
        o = torch.einsum("hqk,khd->qhd", p, v if whole else v[0])
        if not whole:
            return o[None], found[None]
        return out.copy_(o), lse.copy_(found)

    @classmethod
    def _flash_attn_bwd(cls, q, k, v, o, do, lse, dq=None, dk=None, dv=None, softmax_scale=None, cu_seqlens_q=None, **_):
        if cu_seqlens_q is None:
            q, k, v, o, do, lse = (one[0] for one in (q, k, v, o, do, lse))
        p, _ = cls.probabilities(q, k, lse, softmax_scale, cu_seqlens_q)
        ds = softmax_scale * p * (torch.einsum("qhd,khd->hqk", do, v) - (do * o).sum(-1).T[..., None])
        found = [torch.einsum(f"h{a},{b}->{c}", x, y) for a, b, c, x, y in (
            ("qk", "khd", "qhd", ds, k), ("qk", "qhd", "khd", ds, q), ("qk", "qhd", "khd", p, do),
        )]  # fmt: skip
        if cu_seqlens_q is None:
            return [one[None] for one in found]
        return [place.copy_(one) for place, one in zip((dq, dk, dv), found, strict=True)]


def test_rows_that_borrow_come_to_what_the_formula_gives(monkeypatch):
    monkeypatch.setattr(flash_attention, "_package", lambda: ByFormula)
    torch.manual_seed(0)
    lengths, loans = (7, 3, 4, 5, 6, 2, 3), ((0, 7, 14), (19, 25, 30))  # between them a row that has nothing to do with either
    ints = lambda *values: torch.tensor(values, dtype=torch.int32)  # noqa: E731
    lent = Lent(ints(0, 0, 0, 0, 0, 19, 19, 0), ints(0, 0, 7, 14, 14, 14, 20, 26), ints(0, 2, 0, 0, 0, 2, 0, 0), 26)
    starts = ints(0, *lengths).cumsum(0).to(torch.int32)
    rows, tokens, heads, width = Rows(starts, 12, lent, lengths, loans), sum(lengths), 3, 8
    qkv, do = torch.randn(tokens, 3 * heads, width), torch.randn(tokens, heads, width)
    split, angle = qkv.split(heads, 1), torch.rand(tokens, width // 2)
    turn = Turn(angle.cos(), angle.sin())
    o, lse = attend_by_flash(*split, rows, 0.3, None, False)
    out = torch.empty(tokens, 3 * heads * width)
    attend_by_flash_backward(do, *split, o, lse, rows, 0.3, None, turn, out)
    exact = attention.attend(*split, rows, 0.3, None)
    expected = attention.attend_backward(do, *split, exact, rows, 0.3, None, turn)
    torch.testing.assert_close((o, lse), exact[:2])
    torch.testing.assert_close(out, expected)
