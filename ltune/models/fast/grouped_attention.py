"""Attention's kernels for rows that lie end to end, with the same bits each time.

A program takes a tile of a row's tokens for one key head, and all query heads that share this key head: ``packed`` queries, which are
tokens x heads of the group. So keys and values are read once for a group, their gradients are added up over it inside a program, without
atomics, and tiles are small: little of them lies beyond a short row's end or above its diagonal. With s = scale q k^T in base 2
(https://arxiv.org/abs/2307.08691):

    o = p v,  p = exp(s - lse);     dv = p^T do,  ds = p (do v^T - delta),  dq = scale ds k,  dk = scale ds^T q,  delta = sum(do o)

A row may see the tokens of another as if they stood before its own (``Lent``); what these get of each such row is computed apart and
then added up in the rows' order (lent_attention.py).
"""

from functools import partial

import torch
from torch import Tensor

from ltune.errors import UsageError
from ltune.models.fast.launch import aside, launch, tl, triton
from ltune.models.fast.lent_attention import add_up, borrowers_backward, lent_at_once
from ltune.models.fast.room import ROOM, laid_out
from ltune.models.fast.rotary import Turn, rotate
from ltune.models.fast.tiles import (
    ALL,
    LOG2E,
    Rows,
    Sizes,
    fitting,
    load,
    queries_of,
    queries_read,
    shape_of,
    store,
    tile_at,
    turned_back,
)

# For heads of up to 128 dimensions, among short rows the quickest of seven on an H200 (rows of 40 to 400 tokens), among others of five
# (2,048 to 32,768 tokens); for heads of up to 256. As compiled for such a card they spill few registers or none, and leave room for two or
# three programs beside each other on a processor up to 128 dimensions; for cards with 99 KiB of shared memory they want at most 96.
FORWARD = (Sizes(64, 32, 4, 3), Sizes(64, 64, 4, 3), Sizes(64, 32, 4, 2))
QUERIES = (Sizes(64, 32, 4, 2), Sizes(64, 64, 4, 2), Sizes(64, 32, 4, 1))  # the gradient of q
KEYS = (Sizes(32, 64, 4, 3), Sizes(32, 64, 4, 3), Sizes(32, 32, 4, 1))  # those of k and v
WIDEST = 256


def attend_grouped(
    q: Tensor, k: Tensor, v: Tensor, rows: Rows, scale: float, window: int | None, room: bool = False
) -> tuple[Tensor, Tensor]:
    """o (T, H, D), and lse (H, T) float32.

    Args:
        q: (T, H, D); k and v: (T, K, D), H a multiple of K, D at most WIDEST. The last two dimensions are dense.
        rows: Where they lie, the first at 0. Rows may be empty.
        scale: Of the scores.
        window: A token sees itself and the ``window - 1`` before it; None: all before it.
        room: Whether there is to be room behind the rows of o.

    Raises:
        UsageError: A row is too long for numbers of 32 bits to tell its places.
    """
    tokens, heads, width = q.shape
    _require_places(rows.longest, q)
    o = laid_out(tokens, heads * width, q, room).view(q.shape)
    lse = torch.empty(heads, tokens, dtype=torch.float32, device=q.device)
    tile, shape = shape_of(heads // k.shape[1], width, fitting(FORWARD, width, rows.longest))
    tiles = rows.tiles(tile, tokens)
    launch(
        _forward, (len(tiles) * k.shape[1],),
        q, k, v, o, lse, tiles, q.stride(0), k.stride(0), v.stride(0), o.stride(0), tokens, k.shape[1], scale * LOG2E, window or ALL,
        lent_at_once(rows, shape), **shape,
    )  # fmt: skip
    return o, lse


def attend_grouped_backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    rows: Rows,
    scale: float,
    window: int | None,
    turn: Turn,
    out: Tensor,
) -> None:
    """The gradients of q, k and v side by side, those of q and k turned back.

    Args:
        do: (T, H, D).
        o: From the forward, as is lse; the rest is as it was there, the error too.
        turn: By how much q and k were rotated.
        out: (T, (H + 2 K) D), where they are written; its rows are dense.
    """
    tokens, heads, width = q.shape
    _require_places(rows.longest, q)
    do, key_heads, lent = do.contiguous(), k.shape[1], rows.lent
    gradients = out.view(tokens, -1, width)
    dq, dk, dv = gradients.split([heads, key_heads, key_heads], 1)
    delta = torch.empty_like(lse)  # written with dq, read for dk and dv
    strides = (q.stride(0), k.stride(0), v.stride(0), do.stride(0), o.stride(0), gradients.stride(0))
    rest = (turn.cos, turn.sin, *strides, tokens, key_heads, scale, scale * LOG2E, window or ALL, turn.half(width))
    tile, shape = shape_of(heads // key_heads, width, fitting(QUERIES, width, rows.longest))
    tiles = rows.tiles(tile, tokens)
    at = (len(tiles) * key_heads,)
    launch(_backward_queries, at, do, q, k, v, o, lse, delta, dq, tiles, *rest, lent_at_once(rows, shape), **shape)
    sizes = fitting(KEYS, width, rows.longest)
    _, shape = shape_of(heads // key_heads, width, sizes)
    tiles = rows.tiles(sizes.keys, tokens, longest_first=True)
    at = (len(tiles) * key_heads,)
    keys = partial(launch, _backward_keys, at, do, q, k, v, lse, delta, dk, dv, tiles, *rest, **shape)
    if lent is None:
        keys()
    else:
        with aside(q) as until_done:  # few programs, each of which takes long
            of_borrowers = borrowers_backward(do, q, k, v, lse, delta, rows.starts, lent, scale, window, turn)
        keys()
        until_done()
        add_up(dk, dv, *of_borrowers, lent)
    if not turn.half(width):
        rotate(gradients[:, : heads + key_heads], turn.cos, -turn.sin)


def _require_places(longest: int, q: Tensor) -> None:
    most = (2**31 - 1) // (q.stride(0) + ROOM)
    if longest > most:
        raise UsageError(f"a row of {longest:,} tokens: with this model's heads, attention serves up to {most:,}.\nLower data.max_length.")


# -- over a row -----------------------------------------------------------------------------------------------------------------------
# offset: how many tokens stand before the queries' own row, as they see it; the keys are a row's own (0) or the lent ones.


@triton.jit
def _outputs(
    queries, token, k, v, key_head, stride_k, stride_v, begin, end, limit, offset, window, scale2, top, total, out, LENT: tl.constexpr,
    KEYS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The highest scores so far, the sums of p and of p v, with the keys from ``begin`` to before ``end``."""
    for block in range(begin // KEYS * KEYS, end, KEYS):
        key = block + tl.arange(0, KEYS)
        keys = load(k, key, key * 0 + key_head, stride_k, key < limit, DIM, WIDTH)
        s = tl.where(_seen(token, key, limit, offset, window, LENT), tl.dot(queries, tl.trans(keys)) * scale2, -1e30)
        higher = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(p, 1)
        values = load(v, key, key * 0 + key_head, stride_v, key < limit, DIM, WIDTH)
        out = tl.dot(p.to(values.dtype), values, out * shrink[:, None])
        top = higher
    return top, total, out


@triton.jit
def _gradient_of_queries(
    queries, upstream, token, k, v, key_head, stride_k, stride_v, begin, end, limit, offset, window, scale2, norm, inner, gradient,
    LENT: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """ds k, added up over the keys from ``begin`` to before ``end``."""
    for block in range(begin // KEYS * KEYS, end, KEYS):
        key = block + tl.arange(0, KEYS)
        keys = load(k, key, key * 0 + key_head, stride_k, key < limit, DIM, WIDTH)
        values = load(v, key, key * 0 + key_head, stride_v, key < limit, DIM, WIDTH)
        s = tl.dot(queries, tl.trans(keys)) * scale2 - norm[:, None]
        p = tl.exp2(tl.where(_seen(token, key, limit, offset, window, LENT), s, -1e30))
        ds = p * (tl.dot(upstream, tl.trans(values)) - inner[:, None])
        gradient = tl.dot(ds.to(keys.dtype), keys, gradient)
    return gradient


@triton.jit
def _seen(token, key, limit, offset, window, LENT: tl.constexpr):
    back = token[:, None] + offset - key[None, :]  # how far back a key lies
    seen = (back >= 0) & (back < window)
    if LENT:  # beyond a row's own end lie only keys after all its queries
        seen = seen & (key < limit)[None, :]
    return seen


@triton.jit
def gradients_of_keys(
    do, q, lse, delta, keys, values, key, begin, length, first, end, offset, key_head, stride_q, stride_do, tokens, window, scale2,
    GROUP: tl.constexpr, PADDED: tl.constexpr, PACKED: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """ds^T q and p^T do, added up over the row's queries from ``first`` to before ``end``."""
    of_keys = tl.zeros((KEYS, WIDTH), tl.float32)
    of_values = tl.zeros((KEYS, WIDTH), tl.float32)
    for block in range(first, end, PACKED // PADDED):
        token, queries, upstream, norm, inner = queries_read(
            do, q, lse, delta, begin, length, block, key_head, stride_q, stride_do, tokens, GROUP, PADDED, PACKED, DIM, WIDTH
        )  # fmt: skip
        back = token[None, :] + offset - key[:, None]
        s = tl.dot(keys, tl.trans(queries)) * scale2 - norm[None, :]
        p = tl.exp2(tl.where((back >= 0) & (back < window), s, -1e30))
        of_values = tl.dot(p.to(upstream.dtype), upstream, of_values)
        ds = p * (tl.dot(values, tl.trans(upstream)) - inner[None, :])
        of_keys = tl.dot(ds.to(queries.dtype), queries, of_keys)
    return of_keys, of_values


# -- kernels --------------------------------------------------------------------------------------------------------------------------
# Queries that do not exist are zeros in q and do, so that they add nothing; keys beyond a row's end lie after all its queries.


@triton.jit(do_not_specialize=["tokens"])  # they change with every batch
def _forward(
    q, k, v, o, lse, tiles, stride_q, stride_k, stride_v, stride_o, tokens, key_heads, scale2, window, LENT: tl.constexpr,
    GROUP: tl.constexpr, PADDED: tl.constexpr, PACKED: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    TILE: tl.constexpr = PACKED // PADDED
    begin, length, first, lender, count, key_head = tile_at(tiles, key_heads)
    if first >= length:
        return
    token, head, known = queries_of(first, length, key_head, GROUP, PADDED, PACKED)
    queries = load(q + begin * stride_q, token, head, stride_q, known, DIM, WIDTH)
    top = tl.full((PACKED,), -1e30, tl.float32)  # finite: a window may begin after a block of keys
    total = tl.zeros((PACKED,), tl.float32)
    out = tl.zeros((PACKED, WIDTH), tl.float32)
    if LENT:
        top, total, out = _outputs(
            queries, token, k + lender * stride_k, v + lender * stride_v, key_head, stride_k, stride_v,
            tl.maximum(first + count - window + 1, 0), count, count, count, window, scale2, top, total, out, True, LENT, DIM, WIDTH,
        )  # fmt: skip
    top, total, out = _outputs(
        queries, token, k + begin * stride_k, v + begin * stride_v, key_head, stride_k, stride_v,
        tl.maximum(first - window + 1, 0), tl.minimum(first + TILE, length), length, 0, window, scale2, top, total, out, False,
        KEYS, DIM, WIDTH,
    )  # fmt: skip
    store(o + begin * stride_o, out / total[:, None], token, head, stride_o, known, DIM, WIDTH)
    tl.store(lse + begin + head.to(tl.int64) * tokens + token, (top + tl.log2(total)) * 0.6931471805599453, mask=known)


@triton.jit(do_not_specialize=["tokens"])
def _backward_queries(
    do, q, k, v, o, lse, delta, dq, tiles, cos, sin, stride_q, stride_k, stride_v, stride_do, stride_o, stride_d,
    tokens, key_heads, scale, scale2, window, HALF: tl.constexpr, LENT: tl.constexpr,
    GROUP: tl.constexpr, PADDED: tl.constexpr, PACKED: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    TILE: tl.constexpr = PACKED // PADDED
    begin, length, first, lender, count, key_head = tile_at(tiles, key_heads)
    if first >= length:
        return
    token, head, known = queries_of(first, length, key_head, GROUP, PADDED, PACKED)
    queries = load(q + begin * stride_q, token, head, stride_q, known, DIM, WIDTH)
    upstream = load(do + begin * stride_do, token, head, stride_do, known, DIM, WIDTH)
    output = load(o + begin * stride_o, token, head, stride_o, known, DIM, WIDTH)
    inner = tl.sum(upstream.to(tl.float32) * output.to(tl.float32), 1)
    at = begin + head.to(tl.int64) * tokens + token
    tl.store(delta + at, inner, mask=known)
    norm = tl.load(lse + at, mask=known, other=0.0) * 1.4426950408889634
    gradient = tl.zeros((PACKED, WIDTH), tl.float32)
    if LENT:
        gradient = _gradient_of_queries(
            queries, upstream, token, k + lender * stride_k, v + lender * stride_v, key_head, stride_k, stride_v,
            tl.maximum(first + count - window + 1, 0), count, count, count, window, scale2, norm, inner, gradient, True, LENT, DIM, WIDTH,
        )  # fmt: skip
    gradient = _gradient_of_queries(
        queries, upstream, token, k + begin * stride_k, v + begin * stride_v, key_head, stride_k, stride_v,
        tl.maximum(first - window + 1, 0), tl.minimum(first + TILE, length), length, 0, window, scale2, norm, inner, gradient, False,
        KEYS, DIM, WIDTH,
    )  # fmt: skip
    gradient = turned_back(gradient * scale, begin + token, known, cos, sin, HALF)
    store(dq + begin * stride_d, gradient, token, head, stride_d, known, DIM, WIDTH)


@triton.jit(do_not_specialize=["tokens"])
def _backward_keys(
    do, q, k, v, lse, delta, dk, dv, tiles, cos, sin, stride_q, stride_k, stride_v, stride_do, stride_o, stride_d, tokens, key_heads,
    scale, scale2, window, HALF: tl.constexpr,
    GROUP: tl.constexpr, PADDED: tl.constexpr, PACKED: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    begin, length, first, lender, count, key_head = tile_at(tiles, key_heads)
    if first >= length:
        return
    key = first + tl.arange(0, KEYS)
    keys = load(k + begin * stride_k, key, key * 0 + key_head, stride_k, key < length, DIM, WIDTH)
    values = load(v + begin * stride_v, key, key * 0 + key_head, stride_v, key < length, DIM, WIDTH)
    of_keys, of_values = gradients_of_keys(
        do, q, lse, delta, keys, values, key, begin, length, first, tl.minimum(first + KEYS + window - 1, length), 0, key_head,
        stride_q, stride_do, tokens, window, scale2, GROUP, PADDED, PACKED, KEYS, DIM, WIDTH,
    )  # fmt: skip
    of_keys = turned_back(of_keys * scale, begin + key, key < length, cos, sin, HALF)
    store(dk + begin * stride_d, of_keys, key, key * 0 + key_head, stride_d, key < length, DIM, WIDTH)
    store(dv + begin * stride_d, of_values, key, key * 0 + key_head, stride_d, key < length, DIM, WIDTH)
