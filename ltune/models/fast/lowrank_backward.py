"""What the low-rank part wants of the upstream gradient, in one pass over it: the gradient of z, and that of B.

    dz = dy (sB),  dB = dy^T z

A program takes some columns and goes over a share of the tokens, so that its part of dB stays in registers. Each column block writes what
it adds to dz, and each share what it adds to dB; these are added up afterwards, always in the same order.
"""

import torch
from torch import Tensor

from ltune.models.fast.launch import has_triton, launch, on_gpu, shares, tile_of, tl, triton
from ltune.models.fast.parts import add_parts

MOST = 64  # ranks
WORTH = 2**26  # numbers of dy; below, two products are as quick (measured on an H200)
COLUMNS, WARPS = 256, 8
# By the ranks, filled up: tokens at once, and stages. The first is the quickest of twelve on an H200 kept hot by large products. They are
# for Hopper, whose 227 KiB of shared memory they fill (tests/models/fast/test_kernels.py); other cards take two products.
SIZES = {16: (128, 3), 32: (128, 2), 64: (64, 3)}
PROGRAMS = 200  # about as many


def serves(dy: Tensor, ranks: int) -> bool:
    """Whether it is possible, and worth it."""
    if not has_triton(dy) or dy.numel() < WORTH or not 0 < ranks <= MOST:
        return False
    return not on_gpu(dy) or (dy.dtype is not torch.float32 and torch.cuda.get_device_capability(dy.device if dy.is_cuda else None)[0] == 9)


def low_rank_backward(dy: Tensor, z: Tensor, b: Tensor, dz: Tensor) -> Tensor:
    """dB (out, R) float32; dz is written.

    Args:
        dy: (T, out), its rows dense, as are those of all others.
        z: (T, R).
        b: (out, R), times its scale.
        dz: (T, R or more): dy b, then zeros.
    """
    (tokens, width), ranks = dy.shape, z.shape[1]
    padded = tile_of(ranks)
    at_once, stages = SIZES[padded]
    blocks = -(-width // COLUMNS)
    share, count = shares(tokens, at_once, blocks, PROGRAMS)
    of_dz = torch.empty(blocks, tokens, ranks, dtype=torch.float32, device=dy.device)
    db = torch.empty(count, width, ranks, dtype=torch.float32, device=dy.device)
    launch(
        _low_rank_backward, (blocks, count),
        dy, z, b, of_dz, db, tokens, width, share, dy.stride(0), z.stride(0), b.stride(0), ranks,
        padded, COLUMNS, at_once, num_warps=WARPS, num_stages=stages,
    )  # fmt: skip
    add_parts(of_dz, dz)
    return db.sum(0) if count > 1 else db[0]


@triton.jit(do_not_specialize=["tokens", "share"])  # they change with every batch
def _low_rank_backward(
    dy, z, b, of_dz, db, tokens, width, share, stride, stride_z, stride_b, ranks,
    RANKS: tl.constexpr, COLUMNS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    begin = tl.program_id(1) * share
    place = tl.arange(0, TOKENS)
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    rank = tl.arange(0, RANKS)
    known, has = column < width, rank < ranks
    up = tl.load(b + column[:, None] * stride_b + rank[None, :], mask=known[:, None] & has[None, :], other=0.0)
    total = tl.zeros((COLUMNS, RANKS), dtype=tl.float32)
    for first in range(begin, tl.minimum(begin + share, tokens), TOKENS):
        token = (first + place).to(tl.int64)[:, None]
        inside = (first + place < tokens)[:, None]
        d = tl.load(dy + token * stride + column[None, :], mask=inside & known[None, :], other=0.0)
        down = tl.load(z + token * stride_z + rank[None, :], mask=inside & has[None, :], other=0.0)
        total = tl.dot(tl.trans(d), down, total, input_precision="ieee")
        to = of_dz + (block.to(tl.int64) * tokens + token) * ranks + rank[None, :]
        tl.store(to, tl.dot(d, up, input_precision="ieee"), mask=inside & has[None, :])
    to = db + (tl.program_id(1).to(tl.int64) * width + column[:, None]) * ranks + rank[None, :]
    tl.store(to, total, mask=known[:, None] & has[None, :])
