"""The gate, and with it what the low-rank part that reads h makes of it, in one pass over memory; and the gradients of both.

    h, dg, du  as in gate.py;     z = h (sA)^T,  dA = dz^T h

Forward, a program takes some tokens and goes over a share of the columns; backward, it takes some columns and goes over a share of the
tokens: so its sum stays in registers. The shares' sums are added up afterwards, always in the same order. Backward, h is never written.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ltune.models.fast.gate import activation
from ltune.models.fast.launch import has_triton, launch, on_gpu, once, shares, tile_of, tl, triton
from ltune.models.fast.parts import add_parts
from ltune.models.fast.room import laid_out, room

MOST = 64  # ranks


class Sizes(NamedTuple):
    """How a kernel is cut up."""

    columns: int  # at once
    tokens: int  # at once
    warps: int
    stages: int
    programs: int  # about as many


# The quickest of twenty on an H200 kept hot by large products, with 1,216 and with 7,904 tokens
FORWARD = Sizes(128, 16, 4, 4, 3200)
BACKWARD = Sizes(64, 16, 4, 4, 1600)


def serves(like: Tensor, ranks: int) -> bool:
    """Whether a low-rank part of that rank is served."""
    return has_triton(like) and 0 < ranks <= MOST and not (on_gpu(like) and like.dtype is torch.float32)


def gated_low_rank(gate_up: Tensor, gelu: bool, a: Tensor, with_room: bool = False) -> tuple[Tensor, Tensor]:
    """h (T, F) and z (T, r), dense.

    Args:
        gate_up: (T, 2 F), its rows dense.
        gelu: The activation, else silu.
        a: (r, F), times its scale, its rows dense; ``serves`` says which.
        with_room: Whether there is to be room behind the rows of h, with z in it too.
    """
    tokens, width, ranks = len(gate_up), gate_up.shape[1] // 2, a.shape[0]
    sizes = FORWARD
    blocks = -(-tokens // sizes.tokens)
    share, count = shares(width, sizes.columns, blocks, sizes.programs)
    h = laid_out(tokens, width, gate_up, with_room)
    z = gate_up.new_empty(tokens, ranks)
    parts = torch.empty(count, tokens, ranks, dtype=torch.float32, device=h.device)
    launch(
        _gated_low_rank, (blocks, count),
        gate_up, a, h, parts, tokens, width, share, gate_up.stride(0), h.stride(0), a.stride(0), ranks,
        gelu, on_gpu(h), tile_of(ranks), sizes.columns, sizes.tokens, num_warps=sizes.warps, num_stages=sizes.stages,
    )  # fmt: skip
    add_parts(parts, z, room(h) if with_room else None)
    return h, z


def gated_backward_low_rank(dh: Tensor, gate_up: Tensor, gelu: bool, dz: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of gate_up (T, 2 F), written over it, and dA (r, F) float32.

    Args:
        dh: (T, F), dense.
        gate_up: (T, 2 F), its rows dense.
        gelu: The activation, else silu.
        dz: (T, r), its rows dense; ``serves`` says which.
    """
    (tokens, width), ranks = dh.shape, dz.shape[1]
    sizes = BACKWARD
    blocks = -(-width // sizes.columns)
    share, count = shares(tokens, sizes.tokens, blocks, sizes.programs)
    da = torch.empty(count, ranks, width, dtype=torch.float32, device=dh.device)
    launch(
        _gated_backward_low_rank, (blocks, count),
        dh, gate_up, dz, da, tokens, width, share, gate_up.stride(0), dz.stride(0), ranks,
        gelu, on_gpu(dh), tile_of(ranks), sizes.columns, sizes.tokens, num_warps=sizes.warps, num_stages=sizes.stages,
    )  # fmt: skip
    return gate_up, da.sum(0)


@triton.jit(do_not_specialize=["tokens", "share"])  # they change with every batch
def _gated_low_rank(
    gate_up, a, h, of_z, tokens, width, share, stride, stride_h, stride_a, ranks,
    GELU: tl.constexpr, COMPILED: tl.constexpr, RANKS: tl.constexpr, COLUMNS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    begin = tl.multiple_of(tl.program_id(1) * share, COLUMNS)  # said, so that several columns are read at once
    place = tl.arange(0, TOKENS)
    column = tl.arange(0, COLUMNS)
    rank = tl.arange(0, RANKS)
    first = tl.program_id(0).to(tl.int64) * TOKENS
    inside, has = first + place < tokens, rank < ranks
    in_gate_up = place[:, None] * stride + column[None, :]
    in_h = place[:, None] * stride_h + column[None, :]
    in_a = rank[None, :] * stride_a + column[:, None]
    total = tl.zeros((TOKENS, RANKS), dtype=tl.float32)
    for at in range(begin, tl.minimum(begin + share, width), COLUMNS):
        known = at + column < width
        to_gate_up = gate_up + first * stride + at
        mask = inside[:, None] & known[None, :]
        g = tl.load(to_gate_up + in_gate_up, mask=mask, other=0.0).to(tl.float32)
        u = tl.load(to_gate_up + width + in_gate_up, mask=mask, other=0.0).to(tl.float32)
        down = tl.load(a + at + in_a, mask=known[:, None] & has[None, :], other=0.0)
        value, _ = activation(g, GELU)
        out = (value * u).to(h.dtype.element_ty)
        if COMPILED:
            out = once(out)
        tl.store(h + first * stride_h + at + in_h, out, mask=mask)
        total = tl.dot(out, down, total, input_precision="ieee")
    to = of_z + (tl.program_id(1).to(tl.int64) * tokens + first + place[:, None]) * ranks + rank[None, :]
    tl.store(to, total, mask=inside[:, None] & has[None, :])


@triton.jit(do_not_specialize=["tokens", "share"])  # they change with every batch
def _gated_backward_low_rank(
    dh, gate_up, dz, da, tokens, width, share, stride, stride_dz, ranks,
    GELU: tl.constexpr, COMPILED: tl.constexpr, RANKS: tl.constexpr, COLUMNS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    begin = tl.program_id(1) * share
    place = tl.arange(0, TOKENS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    rank = tl.arange(0, RANKS)
    known = column < width
    # within a tile 32 bits are enough, and stay the same from tile to tile
    to_gate_up = gate_up + begin.to(tl.int64) * stride + (place[:, None] * stride + column[None, :])
    to_dh = dh + begin.to(tl.int64) * width + (place[:, None] * width + column[None, :])
    to_dz = dz + begin.to(tl.int64) * stride_dz + (place[:, None] * stride_dz + rank[None, :])
    total = tl.zeros((COLUMNS, RANKS), dtype=tl.float32)
    for first in range(begin, tl.minimum(begin + share, tokens), TOKENS):
        inside = first + place < tokens
        mask = inside[:, None] & known[None, :]
        g = tl.load(to_gate_up, mask=mask, other=0.0).to(tl.float32)
        u = tl.load(to_gate_up + width, mask=mask, other=0.0).to(tl.float32)
        d = tl.load(to_dh, mask=mask, other=0.0).to(tl.float32)
        z = tl.load(to_dz, mask=inside[:, None] & (rank < ranks)[None, :], other=0.0)
        value, slope = activation(g, GELU)
        tl.store(to_gate_up, (d * u * slope).to(gate_up.dtype.element_ty), mask=mask)
        tl.store(to_gate_up + width, (d * value).to(gate_up.dtype.element_ty), mask=mask)
        h = (value * u).to(gate_up.dtype.element_ty)
        if COMPILED:
            h = once(h)
        total = tl.dot(tl.trans(h), z, total, input_precision="ieee")
        to_gate_up += TOKENS * stride
        to_dh += TOKENS * width
        to_dz += TOKENS * stride_dz
    to = da + (tl.program_id(1).to(tl.int64) * ranks + rank[None, :]) * width + column[:, None]
    tl.store(to, total, mask=known[:, None] & (rank < ranks)[None, :])
