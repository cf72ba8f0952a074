"""Attention's kernels for short rows, where FlashAttention's large tiles mostly lie beyond a row's end or above its diagonal.

A program takes a tile of a row's tokens for one key head, and all query heads that share this key head: ``packed`` queries, which are
tokens x heads of the group. So keys and values are read once for a group, and their gradients are added up over it inside a program:
no atomics, the same bits each time. With s = scale q k^T in base 2 (https://arxiv.org/abs/2307.08691):

    o = p v,  p = exp(s - lse);     dv = p^T do,  ds = p (do v^T - delta),  dq = scale ds k,  dk = scale ds^T q,  delta = sum(do o)
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ltune.models.fast.launch import tl, triton


class Sizes(NamedTuple):
    """How a kernel is cut up."""

    packed: int  # queries at once: tokens x heads of a group, heads counted up to a power of two
    keys: int  # at once
    warps: int
    stages: int


# For heads of up to 128 dimensions, the quickest of seven on an H200 (rows of 40 to 400 tokens), and of up to 256 (not measured). As
# compiled for such a card they spill few registers or none, leave room for two or three programs beside each other on a processor up to
# 128 dimensions, and want at most 96 KiB of shared memory.
FORWARD = (Sizes(64, 32, 4, 2), Sizes(64, 32, 4, 2))
QUERIES = (Sizes(64, 32, 4, 2), Sizes(64, 32, 4, 1))  # the gradient of q
KEYS = (Sizes(32, 64, 4, 2), Sizes(32, 32, 4, 1))  # those of k and v
WIDEST = 256
ALL = 2**30  # the window of a token that sees all before it

LOG2E = 1.4426950408889634


def attend_short(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, scale: float, window: int | None) -> tuple[Tensor, Tensor]:
    """o (T, H, D), and lse (H, T) float32.

    Args:
        q: (T, H, D); k and v: (T, K, D), H a multiple of K, D at most WIDEST. The last two dimensions are dense.
        starts: (rows + 1,) int32: where each row begins, the first at 0, and T. Rows may be empty.
        scale: Of the scores.
        window: A token sees itself and the ``window - 1`` before it; None: all before it.
    """
    tokens, heads, width = q.shape
    o = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(heads, tokens, dtype=torch.float32, device=q.device)
    group, sizes = heads // k.shape[1], FORWARD[width > 128]
    tile, shape = _shape(group, width, sizes)
    _forward[_grid(tokens, starts, tile, k)](
        q, k, v, o, lse, starts, q.stride(0), k.stride(0), v.stride(0), o.stride(0), tokens, len(starts) - 1, scale * LOG2E, window or ALL,
        **shape,
    )  # fmt: skip
    return o, lse


def attend_short_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, starts: Tensor, scale: float, window: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, dense.

    Args:
        do: (T, H, D), dense, like o.
        o: From the forward, as is lse; the rest is as it was there.
    """
    tokens, heads, width = q.shape
    do, group = do.contiguous(), heads // k.shape[1]
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    delta = torch.empty_like(lse)  # written with dq, read for dk and dv
    strides = (q.stride(0), k.stride(0), v.stride(0), do.stride(0), dk.stride(0))
    rest = (*strides, tokens, len(starts) - 1, scale, scale * LOG2E, window or ALL)
    tile, shape = _shape(group, width, QUERIES[width > 128])
    _backward_queries[_grid(tokens, starts, tile, k)](do, q, k, v, o, lse, delta, dq, starts, *rest, **shape)
    sizes = KEYS[width > 128]
    tile, shape = _shape(group, width, sizes)
    _backward_keys[_grid(tokens, starts, sizes.keys, k)](do, q, k, v, lse, delta, dk, dv, starts, *rest, **shape)
    return dq, dk, dv


def _shape(group: int, width: int, sizes: Sizes) -> tuple[int, dict[str, Any]]:
    """Tokens of a tile, and what kernels are compiled for."""
    padded = _up(group)
    packed = max(sizes.packed, padded)
    known = {"GROUP": group, "PADDED": padded, "PACKED": packed, "KEYS": sizes.keys, "DIM": width, "WIDTH": max(16, _up(width))}
    return packed // padded, known | {"num_warps": sizes.warps, "num_stages": sizes.stages}


def _grid(tokens: int, starts: Tensor, tile: int, k: Tensor) -> tuple[int, int]:
    """Enough tiles for all rows however long each is, so that a captured graph serves other rows as well; and the key heads."""
    return tokens // tile + len(starts) - 1, k.shape[1]


def _up(count: int) -> int:
    return 1 << (count - 1).bit_length()


# -- places ---------------------------------------------------------------------------------------------------------------------------


@triton.jit
def _tile(starts, rows, TILE: tl.constexpr):
    """Where the program's row begins, its tokens, and where in it the program's tile begins: not before its end if nothing is to do.

    Row i has the tiles from starts[i] // TILE + i on up to the next row's, which are as many as it needs or one more.
    """
    tile = tl.program_id(0)
    row = -1
    for first in range(0, rows, 64):
        some = first + tl.arange(0, 64)
        begins = tl.load(starts + some, mask=some < rows, other=0) // TILE + some
        row += tl.sum(((some < rows) & (begins <= tile)).to(tl.int32), 0)
    begin = tl.load(starts + row)
    length = tl.load(starts + row + 1) - begin
    return begin.to(tl.int64), length, (tile - begin // TILE - row) * TILE


@triton.jit
def _queries(first, length, head, GROUP: tl.constexpr, PADDED: tl.constexpr, PACKED: tl.constexpr):
    """Of each packed query: its token in the row, its head, and whether there is such a one."""
    index = tl.arange(0, PACKED)
    token, member = first + index // PADDED, index % PADDED
    return token, head * GROUP + member, (token < length) & (member < GROUP)


@triton.jit
def _load(x, token, head, stride, known, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """(tokens, WIDTH) of x (T, heads, DIM), zeros where there is none."""
    column = tl.arange(0, WIDTH)
    at = token[:, None] * stride + (head * DIM)[:, None] + column[None, :]
    return tl.load(x + at, mask=known[:, None] & (column < DIM)[None, :], other=0.0)


@triton.jit
def _store(x, value, token, head, stride, known, DIM: tl.constexpr, WIDTH: tl.constexpr):
    column = tl.arange(0, WIDTH)
    at = token[:, None] * stride + (head * DIM)[:, None] + column[None, :]
    tl.store(x + at, value.to(x.dtype.element_ty), mask=known[:, None] & (column < DIM)[None, :])


# -- kernels --------------------------------------------------------------------------------------------------------------------------
# Queries that do not exist are zeros in q and do, so that they add nothing; keys beyond a row's end lie after all its queries.


@triton.jit(do_not_specialize=["tokens", "rows"])  # they change with every batch
def _forward(
    q, k, v, o, lse, starts, stride_q, stride_k, stride_v, stride_o, tokens, rows, scale2, window,
    GROUP: tl.constexpr, PADDED: tl.constexpr, PACKED: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    TILE: tl.constexpr = PACKED // PADDED
    begin, length, first = _tile(starts, rows, TILE)
    if first >= length:
        return
    key_head = tl.program_id(1)
    token, head, known = _queries(first, length, key_head, GROUP, PADDED, PACKED)
    queries = _load(q + begin * stride_q, token, head, stride_q, known, DIM, WIDTH)
    k += begin * stride_k
    v += begin * stride_v
    top = tl.full((PACKED,), -1e30, tl.float32)  # finite: a window may begin after a block of keys
    total = tl.zeros((PACKED,), tl.float32)
    out = tl.zeros((PACKED, WIDTH), tl.float32)
    for block in range(tl.maximum(first - window + 1, 0) // KEYS * KEYS, tl.minimum(first + TILE, length), KEYS):
        key = block + tl.arange(0, KEYS)
        keys = _load(k, key, key * 0 + key_head, stride_k, key < length, DIM, WIDTH)
        back = token[:, None] - key[None, :]  # how far back a key lies
        s = tl.where((back >= 0) & (back < window), tl.dot(queries, tl.trans(keys)) * scale2, -1e30)
        higher = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(p, 1)
        values = _load(v, key, key * 0 + key_head, stride_v, key < length, DIM, WIDTH)
        out = tl.dot(p.to(values.dtype), values, out * shrink[:, None])
        top = higher
    _store(o + begin * stride_o, out / total[:, None], token, head, stride_o, known, DIM, WIDTH)
    tl.store(lse + begin + head.to(tl.int64) * tokens + token, (top + tl.log2(total)) * 0.6931471805599453, mask=known)


@triton.jit(do_not_specialize=["tokens", "rows"])
def _backward_queries(
    do, q, k, v, o, lse, delta, dq, starts, stride_q, stride_k, stride_v, stride_o, stride_dk, tokens, rows, scale, scale2, window,
    GROUP: tl.constexpr, PADDED: tl.constexpr, PACKED: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    TILE: tl.constexpr = PACKED // PADDED
    begin, length, first = _tile(starts, rows, TILE)
    if first >= length:
        return
    key_head = tl.program_id(1)
    token, head, known = _queries(first, length, key_head, GROUP, PADDED, PACKED)
    queries = _load(q + begin * stride_q, token, head, stride_q, known, DIM, WIDTH)
    upstream = _load(do + begin * stride_o, token, head, stride_o, known, DIM, WIDTH)
    output = _load(o + begin * stride_o, token, head, stride_o, known, DIM, WIDTH)
    inner = tl.sum(upstream.to(tl.float32) * output.to(tl.float32), 1)
    at = begin + head.to(tl.int64) * tokens + token
    tl.store(delta + at, inner, mask=known)
    norm = tl.load(lse + at, mask=known, other=0.0) * 1.4426950408889634
    k += begin * stride_k
    v += begin * stride_v
    gradient = tl.zeros((PACKED, WIDTH), tl.float32)
    for block in range(tl.maximum(first - window + 1, 0) // KEYS * KEYS, tl.minimum(first + TILE, length), KEYS):
        key = block + tl.arange(0, KEYS)
        keys = _load(k, key, key * 0 + key_head, stride_k, key < length, DIM, WIDTH)
        values = _load(v, key, key * 0 + key_head, stride_v, key < length, DIM, WIDTH)
        back = token[:, None] - key[None, :]
        s = tl.dot(queries, tl.trans(keys)) * scale2 - norm[:, None]
        p = tl.exp2(tl.where((back >= 0) & (back < window), s, -1e30))
        ds = p * (tl.dot(upstream, tl.trans(values)) - inner[:, None])
        gradient = tl.dot(ds.to(keys.dtype), keys, gradient)
    _store(dq + begin * stride_o, gradient * scale, token, head, stride_o, known, DIM, WIDTH)


@triton.jit(do_not_specialize=["tokens", "rows"])
def _backward_keys(
    do, q, k, v, lse, delta, dk, dv, starts, stride_q, stride_k, stride_v, stride_o, stride_dk, tokens, rows, scale, scale2, window,
    GROUP: tl.constexpr, PADDED: tl.constexpr, PACKED: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    TILE: tl.constexpr = PACKED // PADDED
    begin, length, first = _tile(starts, rows, KEYS)
    if first >= length:
        return
    key_head = tl.program_id(1)
    key = first + tl.arange(0, KEYS)
    keys = _load(k + begin * stride_k, key, key * 0 + key_head, stride_k, key < length, DIM, WIDTH)
    values = _load(v + begin * stride_v, key, key * 0 + key_head, stride_v, key < length, DIM, WIDTH)
    q += begin * stride_q
    do += begin * stride_o
    of_keys = tl.zeros((KEYS, WIDTH), tl.float32)
    of_values = tl.zeros((KEYS, WIDTH), tl.float32)
    for block in range(first, tl.minimum(first + KEYS + window - 1, length), TILE):
        token, head, known = _queries(block, length, key_head, GROUP, PADDED, PACKED)
        queries = _load(q, token, head, stride_q, known, DIM, WIDTH)
        upstream = _load(do, token, head, stride_o, known, DIM, WIDTH)
        at = begin + head.to(tl.int64) * tokens + token
        norm = tl.load(lse + at, mask=known, other=0.0) * 1.4426950408889634
        inner = tl.load(delta + at, mask=known, other=0.0)
        back = token[None, :] - key[:, None]
        s = tl.dot(keys, tl.trans(queries)) * scale2 - norm[None, :]
        p = tl.exp2(tl.where((back >= 0) & (back < window), s, -1e30))
        of_values = tl.dot(p.to(upstream.dtype), upstream, of_values)
        ds = p * (tl.dot(values, tl.trans(upstream)) - inner[None, :])
        of_keys = tl.dot(ds.to(queries.dtype), queries, of_keys)
    _store(dk + begin * stride_dk, of_keys * scale, key, key * 0 + key_head, stride_dk, key < length, DIM, WIDTH)
    _store(dv + begin * stride_dk, of_values, key, key * 0 + key_head, stride_dk, key < length, DIM, WIDTH)
