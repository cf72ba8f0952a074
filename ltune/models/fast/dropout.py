"""Dropout on what low-rank parts read (PEFT's ``lora_dropout``). No mask is stored: whether a number is kept is drawn from its place, anew
wherever it is asked.

    z = sum_i (m_i x) (sA_i)^T,   dA = sum_i dz_i^T (m_i x),   dx += sum_i m_i (dz_i A_i)      m: 1 / (1 - p) where kept, else 0

Layers side by side have masks of their own: i counts those that are adapted. A number's 16 random bits are a part of Philox-4x32-7's
(https://www.thesalmons.org/john/random123/papers/random123sc11.pdf) for its token, its column, and the projection's layer.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ltune.models.fast.launch import has_triton, launch, on_gpu, once, shares, tile_of, tl, triton
from ltune.models.fast.parts import add_parts

MOST = 256  # ranks
LAYERS = 4  # side by side, at most
TOGETHER = 8  # columns that share a draw of 128 bits
LOW, BITS = 0xFFFFFFFF, 16


@dataclass(frozen=True)
class Draw:
    """What a pass over a batch draws its masks from."""

    seed: Tensor  # (1,) int64, not negative
    first: int = 0  # place of the first token

    def behind(self, tokens: int) -> "Draw":
        """For what comes after so many tokens."""
        return replace(self, first=self.first + tokens)


@dataclass(frozen=True)
class Mask:
    """A projection's masks in a pass."""

    draw: Draw
    number: int  # of the projection, in the model
    rate: float  # p
    owners: Tensor  # (R,) int32: of each rank, its layer among those side by side that are adapted
    layers: int  # that are

    @property
    def bound(self) -> int:
        """Numbers whose bits are less than it are dropped; never all of them."""
        return min(round(self.rate * 2**BITS), 2**BITS - 1)

    @property
    def scale(self) -> float:
        """Of those that are kept."""
        return 2**BITS / (2**BITS - self.bound)

    def of(self, layer: int, tokens: int, width: int) -> Tensor:
        """m (tokens, width)."""
        device = self.owners.device
        blocks = torch.arange(-(-width // TOGETHER), device=device)
        places = torch.arange(self.draw.first, self.draw.first + tokens, device=device)
        words = philox(self.draw.seed, blocks[None], places[:, None], torch.tensor(self.number * LAYERS + layer, device=device))
        halves = torch.stack([words & 2**BITS - 1, words >> BITS], -1).flatten(1)[:, :width]
        return (halves >= self.bound) * self.scale


def philox(seed: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """Four words of 32 bits for each counter (first, second, third, 0), in the kernels' order: (..., 4) int64."""
    zero = torch.zeros_like(first + second)
    c0, c1, c2, c3 = first + zero, second + zero, third + zero, zero
    k0, k1 = seed & LOW, seed >> 32 & LOW
    for _ in range(7):
        one, other = 0xD2511F53 * c0, 0xCD9E8D57 * c2  # beyond 63 bits the sign is wrong, and the bits are right
        c0, c2 = (other >> 32 & LOW) ^ c1 ^ k0, (one >> 32 & LOW) ^ c3 ^ k1
        c1, c3 = other & LOW, one & LOW
        k0, k1 = k0 + 0x9E3779B9 & LOW, k1 + 0xBB67AE85 & LOW
    return torch.stack([c0, c2, c1, c3], -1)


# -- the products ---------------------------------------------------------------------------------------------------------------------


def down(x: Tensor, a: Tensor, mask: Mask, z: Tensor) -> None:
    """z (T, R or more) is written: the product, then zeros.

    Args:
        x: (T, in), its rows dense, as are those of all others.
        a: (R, in), times its scale.
    """
    (tokens, width), ranks = x.shape, len(a)
    if not has_triton(x):
        z.zero_()
        for layer in range(mask.layers):
            own = mask.owners == layer
            z[:, :ranks][:, own] = (x * mask.of(layer, tokens, width).to(x.dtype)) @ a[own].mT
        return
    sizes = _sizes(DOWN, ranks)
    blocks = -(-tokens // sizes.tokens)
    share, count = shares(width, sizes.columns, blocks, sizes.programs)
    parts = torch.empty(count, tokens, ranks, dtype=torch.float32, device=x.device)
    launch(
        _dropped_down, (blocks, count),
        x, a, mask.owners, mask.draw.seed, parts, tokens, width, share, x.stride(0), a.stride(0), ranks, *_drawn(mask),
        mask.layers, _halves(x), tile_of(ranks), sizes.columns, sizes.tokens, num_warps=sizes.warps, num_stages=sizes.stages,
    )  # fmt: skip
    add_parts(parts, z)


def gradient(dz: Tensor, x: Tensor, mask: Mask) -> Tensor:
    """dA (R, in) float32, of dz (T, R) and x (T, in); their rows are dense."""
    (tokens, width), ranks = x.shape, dz.shape[1]
    if not has_triton(x):
        da = torch.empty(ranks, width, dtype=torch.float32, device=x.device)
        for layer in range(mask.layers):
            own = mask.owners == layer
            da[own] = (dz[:, own].mT @ (x * mask.of(layer, tokens, width).to(x.dtype))).float()
        return da
    sizes = _sizes(GRADIENT, ranks)
    blocks = -(-width // sizes.columns)
    share, count = shares(tokens, sizes.tokens, blocks, sizes.programs)
    da = torch.empty(count, ranks, width, dtype=torch.float32, device=x.device)
    launch(
        _dropped_gradient, (blocks, count),
        x, dz, mask.owners, mask.draw.seed, da, tokens, width, share, x.stride(0), dz.stride(0), ranks, *_drawn(mask),
        mask.layers, _halves(x), tile_of(ranks), sizes.columns, sizes.tokens, num_warps=sizes.warps, num_stages=sizes.stages,
    )  # fmt: skip
    return da.sum(0) if count > 1 else da[0]


def add_up(dx: Tensor, dz: Tensor, a: Tensor, mask: Mask) -> Tensor:
    """dx (T, in) with what comes through dz (T, R) and a (R, in), in place; their rows are dense."""
    (tokens, width), ranks = dx.shape, dz.shape[1]
    if not has_triton(dx):
        for layer in range(mask.layers):
            own = mask.owners == layer
            dx += (dz[:, own] @ a[own]) * mask.of(layer, tokens, width).to(dx.dtype)
        return dx
    sizes = _sizes(UP, ranks)
    launch(
        _dropped_add, (-(-tokens // sizes.tokens), -(-width // sizes.columns)),
        dx, dz, a, mask.owners, mask.draw.seed, tokens, width, dx.stride(0), dz.stride(0), a.stride(0), ranks, *_drawn(mask),
        mask.layers, tile_of(ranks), sizes.columns, sizes.tokens, num_warps=sizes.warps, num_stages=sizes.stages,
    )  # fmt: skip
    return dx


class Sizes(NamedTuple):
    """How a kernel is cut up."""

    columns: int  # at once
    tokens: int  # at once
    warps: int
    stages: int
    programs: int = 0  # about as many


# The quickest of eight to ten each on an H200, with 7,744 and 1,216 tokens, one to three layers of rank 8 side by side
DOWN, GRADIENT, UP = Sizes(64, 16, 4, 3, 1600), Sizes(64, 16, 4, 3, 1600), Sizes(128, 32, 4, 1)


def _sizes(sizes: Sizes, ranks: int) -> Sizes:
    """Tiles with many ranks have fewer columns, so that they fit."""
    return sizes if ranks <= 64 else sizes._replace(columns=32)


def _halves(x: Tensor) -> bool:
    """Whether the compiled kernels are for 16 bits."""
    return on_gpu(x) and x.element_size() == 2


def _drawn(mask: Mask) -> tuple[int, int, int, float]:
    return mask.draw.first, mask.number * LAYERS, mask.bound, mask.scale


# -- kernels --------------------------------------------------------------------------------------------------------------------------


@triton.jit
def _kept(seed, layer, token, begin, bound, TOKENS: tl.constexpr, COLUMNS: tl.constexpr):
    """(TOKENS, COLUMNS): which are, from the column ``begin`` on."""
    zero = tl.zeros((TOKENS, COLUMNS // 8), tl.int32)
    block = begin // 8 + tl.arange(0, COLUMNS // 8)
    a, b, c, d = tl.philox(seed, zero + block[None, :], zero + token[:, None], zero + layer, zero, 7)
    words = tl.reshape(tl.join(tl.join(a, b), tl.join(c, d)), (TOKENS, COLUMNS // 2))
    halves = tl.reshape(tl.join(words & 0xFFFF, words >> 16), (TOKENS, COLUMNS))
    return halves.to(tl.int32) >= bound


@triton.jit(do_not_specialize=["tokens", "share", "first", "number", "bound"])  # they change with every batch, or projection
def _dropped_down(
    x, a, owners, seed, of_z, tokens, width, share, stride, stride_a, ranks, first, number, bound, scale,
    LAYERS: tl.constexpr, COMPILED: tl.constexpr, RANKS: tl.constexpr, COLUMNS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    begin = tl.multiple_of(tl.program_id(1) * share, COLUMNS)  # said, so that several columns are read at once
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    column = tl.arange(0, COLUMNS)
    rank = tl.arange(0, RANKS)
    inside, has = token < tokens, rank < ranks
    owner = tl.load(owners + rank, mask=has, other=-1)
    key = tl.load(seed)
    total = tl.zeros((TOKENS, RANKS), dtype=tl.float32)
    for at in range(begin, tl.minimum(begin + share, width), COLUMNS):
        known = at + column < width
        value = tl.load(x + token.to(tl.int64)[:, None] * stride + (at + column)[None, :], mask=inside[:, None] & known[None, :], other=0.0)
        low = tl.load(a + rank[None, :] * stride_a + (at + column)[:, None], mask=known[:, None] & has[None, :], other=0.0)
        for layer in tl.static_range(LAYERS):
            read = tl.where(_kept(key, number + layer, first + token, at, bound, TOKENS, COLUMNS), value, 0.0).to(value.dtype)
            if COMPILED:
                read = once(read)
            own = tl.where((owner == layer)[None, :], low, 0.0).to(low.dtype) if LAYERS > 1 else low
            total = tl.dot(read, own, total, input_precision="ieee")
    to = of_z + (tl.program_id(1).to(tl.int64) * tokens + token[:, None]) * ranks + rank[None, :]
    tl.store(to, total * scale, mask=inside[:, None] & has[None, :])


@triton.jit(do_not_specialize=["tokens", "share", "first", "number", "bound"])
def _dropped_gradient(
    x, dz, owners, seed, da, tokens, width, share, stride, stride_dz, ranks, first, number, bound, scale,
    LAYERS: tl.constexpr, COMPILED: tl.constexpr, RANKS: tl.constexpr, COLUMNS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    begin = tl.program_id(1) * share
    at = tl.program_id(0) * COLUMNS
    column = at + tl.arange(0, COLUMNS)
    rank = tl.arange(0, RANKS)
    known, has = column < width, rank < ranks
    owner = tl.load(owners + rank, mask=has, other=-1)
    key = tl.load(seed)
    total = tl.zeros((COLUMNS, RANKS), dtype=tl.float32)
    for block in range(begin, tl.minimum(begin + share, tokens), TOKENS):
        token = block + tl.arange(0, TOKENS)
        inside = token < tokens
        value = tl.load(x + token.to(tl.int64)[:, None] * stride + column[None, :], mask=inside[:, None] & known[None, :], other=0.0)
        d = tl.load(dz + token.to(tl.int64)[:, None] * stride_dz + rank[None, :], mask=inside[:, None] & has[None, :], other=0.0)
        for layer in tl.static_range(LAYERS):
            read = tl.where(_kept(key, number + layer, first + token, at, bound, TOKENS, COLUMNS), value, 0.0).to(value.dtype)
            if COMPILED:
                read = once(read)
            own = tl.where((owner == layer)[None, :], d, 0.0).to(d.dtype) if LAYERS > 1 else d
            total = tl.dot(tl.trans(read), own, total, input_precision="ieee")
    to = da + (tl.program_id(1).to(tl.int64) * ranks + rank[None, :]) * width + column[:, None]
    tl.store(to, total * scale, mask=known[:, None] & has[None, :])


@triton.jit(do_not_specialize=["tokens", "first", "number", "bound"])
def _dropped_add(
    dx, dz, a, owners, seed, tokens, width, stride, stride_dz, stride_a, ranks, first, number, bound, scale,
    LAYERS: tl.constexpr, RANKS: tl.constexpr, COLUMNS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    at = tl.program_id(1) * COLUMNS
    column = at + tl.arange(0, COLUMNS)
    rank = tl.arange(0, RANKS)
    inside, known, has = token < tokens, column < width, rank < ranks
    owner = tl.load(owners + rank, mask=has, other=-1)
    key = tl.load(seed)
    d = tl.load(dz + token.to(tl.int64)[:, None] * stride_dz + rank[None, :], mask=inside[:, None] & has[None, :], other=0.0)
    low = tl.load(a + rank[:, None] * stride_a + column[None, :], mask=has[:, None] & known[None, :], other=0.0)
    to = dx + token.to(tl.int64)[:, None] * stride + column[None, :]
    mask = inside[:, None] & known[None, :]
    total = tl.load(to, mask=mask, other=0.0).to(tl.float32)
    for layer in tl.static_range(LAYERS):
        own = tl.where((owner == layer)[None, :], d, 0.0).to(d.dtype) if LAYERS > 1 else d
        through = tl.dot(own, low, input_precision="ieee") * scale
        total += tl.where(_kept(key, number + layer, first + token, at, bound, TOKENS, COLUMNS), through, 0.0)
    tl.store(to, total.to(dx.dtype.element_ty), mask=mask)
