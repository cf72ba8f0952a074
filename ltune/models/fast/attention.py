"""Causal attention among the tokens of each row, for rows that lie end to end, and its gradient.

    o = softmax(scale q k^T) v,   lse = log sum exp (scale q k^T),   no token seeing another row's

On a GPU, long rows by FlashAttention-4 where it is installed (flash_attention.py), else by cuDNN (cudnn_attention.py), others by our own
kernels (grouped_attention.py); the formula elsewhere. All but cuDNN's gradient, and that of very long rows, give the same bits each time.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ltune.models.fast import cudnn_attention, flash_attention
from ltune.models.fast.cudnn_attention import attend_by_cudnn, attend_by_cudnn_backward
from ltune.models.fast.flash_attention import attend_by_flash, attend_by_flash_backward
from ltune.models.fast.grouped_attention import WIDEST, attend_grouped, attend_grouped_backward
from ltune.models.fast.launch import has_triton, on_gpu
from ltune.models.fast.room import laid_out
from ltune.models.fast.rotary import Turn, gather_rotated_back
from ltune.models.fast.tiles import Rows

Saved = tuple[Tensor, Tensor, Any]  # o (T, H, D), lse (H, T), and what cuDNN's kernels want back; None: they did nothing


def attend(q: Tensor, k: Tensor, v: Tensor, rows: Rows, scale: float, window: int | None, room: bool = False) -> Saved:
    """o (T, H, D) and what its gradient needs.

    Args:
        q: (T, H, D); k and v: (T, K, D), H a multiple of K. The last dimension is dense.
        rows: Of the batch.
        scale: Of the scores.
        window: A token sees itself and the ``window - 1`` before it; None: all before it.
        room: Whether there is to be room behind the rows of o; there may be none with a long row by itself, or by the formula.
    """
    if flash_attention.serves(q, k, rows, window):
        return *attend_by_flash(q, k, v, rows, scale, window, room), None
    if cudnn_attention.serves(q, rows, window):
        return attend_by_cudnn(q, k, v, rows, scale, room)
    if _has_kernels(q):
        return *attend_grouped(q, k, v, rows, scale, window, room), None
    return *_formula(q, k, v, rows, scale, window), None


def attend_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, saved: Saved, rows: Rows, scale: float, window: int | None, turn: Turn, room: bool = False
) -> Tensor:
    """The gradients of queries and keys as they were before they were rotated, and of the values, side by side: (T, (H + 2 K) D).

    Args:
        do: (T, H, D).
        saved: From the forward, as is the rest.
        turn: By how much q and k were rotated.
        room: Whether there is to be room behind the rows (room.py).
    """
    o, lse, rest = saved
    gradients = laid_out(len(q), (q.shape[1] + 2 * k.shape[1]) * q.shape[2], q, room)
    if flash_attention.serves(q, k, rows, window):
        attend_by_flash_backward(do, q, k, v, o, lse, rows, scale, window, turn, gradients)
    elif rest is not None and not torch.are_deterministic_algorithms_enabled():
        attend_by_cudnn_backward(do, q, k, v, saved, rows, scale, turn, gradients)
    elif _has_kernels(q):
        attend_grouped_backward(do, q, k, v, o, lse, rows, scale, window, turn, gradients)
    else:
        gather_rotated_back(*_formula_backward(do, q, k, v, o, lse, rows, scale, window), *turn, gradients)
    return gradients


def _has_kernels(q: Tensor) -> bool:
    """Whether our own serve it."""
    if not has_triton(q) or q.shape[-1] > WIDEST:
        return False
    # Triton's interpreter multiplies the bits of bfloat16 as if they were whole numbers
    return q.dtype is not (torch.float32 if on_gpu(q) else torch.bfloat16)


# -- the formula ----------------------------------------------------------------------------------------------------------------------


def _formula(q: Tensor, k: Tensor, v: Tensor, rows: Rows, scale: float, window: int | None) -> tuple[Tensor, Tensor]:
    o = torch.empty_like(q)
    lse = torch.empty(q.shape[1], q.shape[0], device=q.device)  # (H, T)
    for row, _, scores, _, values in _each(q, k, v, rows, scale, window):
        lse[:, row] = scores.logsumexp(-1)
        o[row] = (scores.softmax(-1) @ values).transpose(0, 1).to(q.dtype)
    return o, lse


def _formula_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, rows: Rows, scale: float, window: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    dq = torch.empty_like(q)
    dk, dv = (torch.zeros(x.shape, device=x.device) for x in (k, v))  # lent tokens get something of several rows
    groups = q.shape[1] // k.shape[1]
    for row, seen, scores, keys, values in _each(q, k, v, rows, scale, window):
        d, out = do[row].transpose(0, 1).float(), o[row].transpose(0, 1).float()  # (H, L, D)
        p = (scores - lse[:, row, None]).exp()  # (H, L, keys)
        ds = p * (d @ values.mT - (d * out).sum(-1, keepdim=True))
        dq[row] = (ds @ keys * scale).transpose(0, 1).to(q.dtype)
        per_head_k = ds.mT @ q[row].transpose(0, 1).float() * scale
        dk[seen] += per_head_k.unflatten(0, (-1, groups)).sum(1).transpose(0, 1)
        dv[seen] += (p.mT @ d).unflatten(0, (-1, groups)).sum(1).transpose(0, 1)
    return dq, dk.to(k.dtype), dv.to(v.dtype)


Seen = tuple[slice, Tensor, Tensor, Tensor, Tensor]


def _each(q: Tensor, k: Tensor, v: Tensor, rows: Rows, scale: float, window: int | None) -> Iterator[Seen]:
    """Of each row: its place, where the keys that it sees stand, masked scores (H, L, keys), and keys and values (H, keys, D) repeated
    for their queries."""
    groups = q.shape[1] // k.shape[1]
    for begin, end, lender, count in zip(*_borders(rows), strict=True):
        row = slice(begin, end)
        seen = torch.cat([torch.arange(lender, lender + count), torch.arange(begin, end)]).to(q.device)
        queries = q[row].transpose(0, 1).float()
        keys, values = (heads[seen].transpose(0, 1).float().repeat_interleave(groups, 0) for heads in (k, v))
        back = torch.arange(count, count + end - begin, device=q.device)[:, None] - torch.arange(len(seen), device=q.device)
        hidden = (back < 0) if window is None else (back < 0) | (back >= window)
        yield row, seen, (queries @ keys.mT * scale).masked_fill(hidden, -torch.inf), keys, values


def _borders(rows: Rows) -> tuple[list[int], list[int], list[int], list[int]]:
    """Of each row: where it begins and ends, where its lender begins, and how many tokens it borrows."""
    starts = rows.starts.tolist()
    if rows.lent is None:
        nothing = [0] * (len(starts) - 1)
        return starts[:-1], starts[1:], nothing, nothing
    return starts[:-1], starts[1:], rows.lent.lenders.tolist()[:-1], rows.lent.borrowed.diff().tolist()
