"""What lent tokens (grouped_attention.py) get of the rows that borrow them: the gradients of their keys and values.

A program takes a tile of the keys that a row borrows and goes over all of the row's queries; the sums of a lent token are then added up
in the order of its borrowers, by one program: no atomics, the same bits each time.
"""

from typing import Any

import torch
from torch import Tensor

from ltune.models.fast.launch import launch, tl, triton
from ltune.models.fast.rotary import Turn
from ltune.models.fast.tiles import ALL, LOG2E, Lent, Rows, Sizes, load, queries_read, shape_of, store, turned_back

FEW = 16  # tokens that a row borrows, such as a template's first
# With one stage the compiled kernel read where it may not (an H200, Triton of torch 2.11).
SIZES_FEW = (Sizes(64, FEW, 4, 2), Sizes(64, FEW, 4, 2))
SIZES_MANY = (Sizes(64, 32, 4, 3), Sizes(64, 16, 4, 2))
TOGETHER = 16  # borrowers whose sums are added up at once


def lent_at_once(rows: Rows, shape: dict[str, Any]) -> int:
    """Lent keys that a program of this shape looks at together; 0: none are lent."""
    return 0 if rows.lent is None else FEW if _few_each(rows.lent, len(rows.starts)) else shape["KEYS"]


def _few_each(lent: Lent, borders: int) -> bool:
    """Whether rows borrow few tokens each, in the mean of as many as have these borders."""
    return lent.most <= FEW * borders


def borrowers_backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    delta: Tensor,
    starts: Tensor,
    lent: Lent,
    scale: float,
    window: int | None,
    turn: Turn,
) -> tuple[Tensor, Tensor]:
    """What borrowed keys, turned back, and values get of each row that borrows them, one row after the other: (borrowed, K, D) float32.

    Args:
        do: (T, H, D), as q and o; k and v: (T, K, D).
        lse: (H, T) float32, from the forward, and delta, (H, T) float32, from the gradient of q.
        starts: As the rest, what the forward was given.
    """
    heads, width = q.shape[1:]
    of_keys, of_values = (torch.empty(lent.most, *k.shape[1:], dtype=torch.float32, device=k.device) for _ in range(2))
    sizes = (SIZES_FEW if _few_each(lent, len(starts)) else SIZES_MANY)[width > 128]
    _, shape = shape_of(heads // k.shape[1], width, sizes)
    launch(
        _borrowed_keys, (lent.most // sizes.keys + len(starts) - 1, k.shape[1]),
        do, q, k, v, lse, delta, of_keys, of_values, starts, lent.lenders, lent.borrowed, turn.cos, turn.sin,
        q.stride(0), k.stride(0), v.stride(0), do.stride(0), of_keys.stride(0), len(q), len(starts) - 1, scale, scale * LOG2E,
        window or ALL, turn.half(width), **shape,
    )  # fmt: skip
    return of_keys, of_values


def add_up(dk: Tensor, dv: Tensor, of_keys: Tensor, of_values: Tensor, lent: Lent) -> None:
    """Add what ``borrowers_backward`` gives to the gradients of lent keys and values, (T, K, D), in place."""
    rows, row = len(lent.lenders) - 1, dk.shape[1] * dk.shape[2]
    launch(
        _add_up, (lent.most + rows, -(-row // 256)),
        of_keys, of_values, dk, dv, lent.lenders, lent.borrowed, lent.borrowers, rows, row, dk.stride(0), TOGETHER, 256,
        num_warps=4,
    )  # fmt: skip


@triton.jit
def borrower_of(borrowed, rows, TILE: tl.constexpr):
    """The row that borrows what the program's tile has; how many tokens the rows before it borrow, how many it does, and where among these
    the tile begins: not before their end if nothing is to do.

    Row i has the tiles from borrowed[i] // TILE + i on up to the next row's, which are as many as it needs or one more.
    """
    tile = tl.program_id(0)
    row = -1
    for first in range(0, rows, 64):
        some = first + tl.arange(0, 64)
        begins = tl.load(borrowed + some, mask=some < rows, other=0) // TILE + some
        row += tl.sum(((some < rows) & (begins <= tile)).to(tl.int32), 0)
    before = tl.load(borrowed + row)
    count = tl.load(borrowed + row + 1) - before
    return row, before.to(tl.int64), count, (tile - before // TILE - row) * TILE


@triton.jit(do_not_specialize=["tokens", "rows"])
def _borrowed_keys(
    do, q, k, v, lse, delta, of_keys, of_values, starts, lenders, borrowed, cos, sin, stride_q, stride_k, stride_v, stride_o, stride_of,
    tokens, rows, scale, scale2, window, HALF: tl.constexpr,
    GROUP: tl.constexpr, PADDED: tl.constexpr, PACKED: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row, before, count, first = borrower_of(borrowed, rows, KEYS)
    if first >= count:
        return
    key_head = tl.program_id(1)
    key = first + tl.arange(0, KEYS)
    lender = tl.load(lenders + row).to(tl.int64)
    keys = load(k + lender * stride_k, key, key * 0 + key_head, stride_k, key < count, DIM, WIDTH)
    values = load(v + lender * stride_v, key, key * 0 + key_head, stride_v, key < count, DIM, WIDTH)
    begin = tl.load(starts + row).to(tl.int64)
    length = tl.load(starts + row + 1) - begin.to(tl.int32)
    # (WIDTH, keys), since there are few keys: large tiles are quick in their first dimension only
    dk = tl.zeros((WIDTH, KEYS), tl.float32)
    dv = tl.zeros((WIDTH, KEYS), tl.float32)
    for block in range(0, tl.minimum(first + KEYS + window - 1 - count, length), PACKED // PADDED):
        token, queries, upstream, norm, inner = queries_read(
            do, q, lse, delta, begin, length, block, key_head, stride_q, stride_o, tokens, GROUP, PADDED, PACKED, DIM, WIDTH
        )  # fmt: skip
        back = token[:, None] + count - key[None, :]
        s = tl.dot(queries, tl.trans(keys)) * scale2 - norm[:, None]
        p = tl.exp2(tl.where((back >= 0) & (back < window), s, -1e30))
        dv = tl.dot(tl.trans(upstream), p.to(upstream.dtype), dv)
        ds = p * (tl.dot(upstream, tl.trans(values)) - inner[:, None])
        dk = tl.dot(tl.trans(queries), ds.to(queries.dtype), dk)
    dv = tl.trans(dv)
    dk = turned_back(tl.trans(dk) * scale, lender + key, key < count, cos, sin, HALF)
    store(of_keys + before * stride_of, dk, key, key * 0 + key_head, stride_of, key < count, DIM, WIDTH)
    store(of_values + before * stride_of, dv, key, key * 0 + key_head, stride_of, key < count, DIM, WIDTH)


@triton.jit(do_not_specialize=["rows"])
def _add_up(of_keys, of_values, dk, dv, lenders, borrowed, borrowers, rows, width, stride, TOGETHER: tl.constexpr, BLOCK: tl.constexpr):
    """A program for each borrowed token and part of its numbers; those of a lender's first borrower do the work."""
    row, before, count, place = borrower_of(borrowed, rows, 1)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    known = column < width
    sharers = tl.load(borrowers + row)
    if (place >= count) | (sharers == 0):
        return
    to = (tl.load(lenders + row).to(tl.int64) + place) * stride + column
    sum_k = tl.load(dk + to, mask=known, other=0.0).to(tl.float32)
    sum_v = tl.load(dv + to, mask=known, other=0.0).to(tl.float32)
    for block in range(0, sharers, TOGETHER):
        number = block + tl.arange(0, TOGETHER)
        at = (before + number * count + place)[:, None] * width + column[None, :]
        some = (number < sharers)[:, None] & known[None, :]
        sum_k += tl.sum(tl.load(of_keys + at, mask=some, other=0.0), 0)
        sum_v += tl.sum(tl.load(of_values + at, mask=some, other=0.0), 0)
    tl.store(dk + to, sum_k.to(dk.dtype.element_ty), mask=known)
    tl.store(dv + to, sum_v.to(dv.dtype.element_ty), mask=known)
