"""The gate's gradient, and with it that of the low-rank part that reads h, in one pass over memory.

    dg, du, h  as in gate.py;     dA = dz^T h

A program takes some columns and goes over a share of the tokens, so that its sum stays in registers; the shares' sums are added up
afterwards, always in the same order. h is never written.
"""

import torch
from torch import Tensor

from ltune.models.fast.gate import activation
from ltune.models.fast.launch import has_triton, shares, tile_of, tl, triton

MOST = 64  # ranks
# The quickest of twenty on an H200 kept hot by large products, with 1,216 and with 7,904 tokens
COLUMNS, TOKENS, WARPS, STAGES = 64, 16, 4, 4
PROGRAMS = 1600  # about as many


def serves(like: Tensor, ranks: int) -> bool:
    """Whether a low-rank part of that rank is served."""
    return has_triton(like) and 0 < ranks <= MOST and not (like.is_cuda and like.dtype is torch.float32)


def gated_backward_low_rank(dh: Tensor, gate_up: Tensor, gelu: bool, dz: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of gate_up (T, 2 F), written over it, and dA (r, F) float32.

    Args:
        dh: (T, F), dense.
        gate_up: (T, 2 F), its rows dense.
        gelu: The activation, else silu.
        dz: (T, r), its rows dense; ``serves`` says which.
    """
    (tokens, width), ranks = dh.shape, dz.shape[1]
    blocks = -(-width // COLUMNS)
    share, count = shares(tokens, TOKENS, blocks, PROGRAMS)
    da = torch.empty(count, ranks, width, dtype=torch.float32, device=dh.device)
    _gated_backward_low_rank[(blocks, count)](
        dh, gate_up, dz, da, tokens, width, share, gate_up.stride(0), dz.stride(0), ranks,
        gelu, dh.is_cuda, tile_of(ranks), COLUMNS, TOKENS, num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    return gate_up, da.sum(0)


@triton.jit
def _once(x):
    """16-bit numbers as they are. The compiler would compute them again for the product, in the layout that it wants: it does not repeat
    what may have effects."""
    return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=2)


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
            h = _once(h)
        total = tl.dot(tl.trans(h), z, total, input_precision="ieee")
        to_gate_up += TOKENS * stride
        to_dh += TOKENS * width
        to_dz += TOKENS * stride_dz
    to = da + (tl.program_id(1).to(tl.int64) * ranks + rank[None, :]) * width + column[:, None]
    tl.store(to, total, mask=known[:, None] & (rank < ranks)[None, :])
