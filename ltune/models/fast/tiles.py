"""What attention's kernels work on: rows, a tile of a row's tokens, and the queries that are packed into it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ltune.models.fast.launch import power_of_two, tile_of, tl, triton

ALL = 2**30  # the window of a token that sees all before it
LOG2E = 1.4426950408889634
SHORT_ROWS = 1024  # tokens; batches with a longer row are cut up otherwise


class Lent(NamedTuple):
    """Rows whose tokens others see before their own; each such row stands right before those that borrow from it."""

    lenders: Tensor  # (rows + 1,) int32: of each row that borrows, where the lender begins
    borrowed: Tensor  # (rows + 1,) int32: how many tokens the rows before it borrow, and at the end all
    borrowers: Tensor  # (rows + 1,) int32: of the first row that borrows from a lender, how many do; 0 of the others
    most: int  # tokens that all rows borrow, or more: what room is made for


@dataclass(frozen=True)
class Rows:
    """Where rows lie in a flat batch of T tokens."""

    starts: Tensor  # (rows + 1,) int32: where each begins, and T
    longest: int  # tokens, lent ones included
    lent: Lent | None = None  # rows may see tokens of another before their own
    lengths: tuple[int, ...] = ()  # of each row, its own tokens, where the host is to know: then others' kernels may take the long ones
    loans: tuple[tuple[int, int, int], ...] = ()  # likewise, of each row that is lent: its place, that of the rows behind it, their end
    _made: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` gave for that key the first time: all layers ask for the same."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def tiles(self, tile: int, tokens: int, longest_first: bool = False) -> Tensor:
        """(n, 5) int32: of each tile of so many tokens where its row begins, that row's tokens, where in it the tile begins (not before its
        end if nothing is to do), where the row's lender begins, and how many tokens it borrows.

        Args:
            tile: Tokens.
            tokens: T; n follows from it, however long each row is, so that a captured graph serves other rows as well.
            longest_first: Those first that most of their row stands behind, else in the rows' order.
        """
        return self.once((tile, longest_first), lambda: self._cut(tile, tokens, longest_first))

    def _cut(self, tile: int, tokens: int, longest_first: bool) -> Tensor:
        lengths = self.starts.diff()
        counts = (lengths + (tile - 1)).div(tile, rounding_mode="floor")
        ends = counts.cumsum(0)
        number = torch.arange(tokens // tile + len(lengths), device=lengths.device)
        row = torch.searchsorted(ends, number, right=True).clamp_(max=len(lengths) - 1)
        first = (number - (ends - counts)[row]) * tile
        if longest_first:
            order = (lengths[row] - first).argsort(descending=True, stable=True)
            row, first = row[order], first[order]
        lenders, borrowed = (self.lent.lenders, self.lent.borrowed.diff()) if self.lent else (torch.zeros_like(lengths),) * 2
        return torch.stack([self.starts[row], lengths[row], first.to(torch.int32), lenders[row], borrowed[row]], 1)


class Sizes(NamedTuple):
    """How a kernel is cut up."""

    packed: int  # queries at once: tokens x heads of a group, heads counted up to a power of two
    keys: int  # at once
    warps: int
    stages: int


def fitting(sizes: tuple[Sizes, Sizes, Sizes], width: int, longest: int) -> Sizes:
    """Of those for short rows, for others, and for heads of more than 128 dimensions."""
    short, long, wide = sizes
    return wide if width > 128 else long if longest > SHORT_ROWS else short


def shape_of(group: int, width: int, sizes: Sizes) -> tuple[int, dict[str, Any]]:
    """Tokens of a tile, and what kernels are compiled for."""
    padded = power_of_two(group)
    packed = max(sizes.packed, padded)
    known = {"GROUP": group, "PADDED": padded, "PACKED": packed, "KEYS": sizes.keys, "DIM": width, "WIDTH": tile_of(width)}
    return packed // padded, known | {"num_warps": sizes.warps, "num_stages": sizes.stages}


@triton.jit
def tile_at(tiles, key_heads):
    """What ``Rows.tiles`` says of the program's tile, and its key head. Those of a tile are next to each other: they read side by side."""
    at = tiles + tl.program_id(0) // key_heads * 5
    begin, lender = tl.load(at).to(tl.int64), tl.load(at + 3).to(tl.int64)
    return begin, tl.load(at + 1), tl.load(at + 2), lender, tl.load(at + 4), tl.program_id(0) % key_heads


@triton.jit
def queries_of(first, length, head, GROUP: tl.constexpr, PADDED: tl.constexpr, PACKED: tl.constexpr):
    """Of each packed query: its token in the row, its head, and whether there is such a one."""
    index = tl.arange(0, PACKED)
    token, member = first + index // PADDED, index % PADDED
    return token, head * GROUP + member, (token < length) & (member < GROUP)


@triton.jit
def queries_read(
    do, q, lse, delta, begin, length, first, key_head, stride_q, stride_do, tokens,
    GROUP: tl.constexpr, PADDED: tl.constexpr, PACKED: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """For the gradients of what queries see: their tokens, themselves, their outputs' gradients, lse in base 2, and delta."""
    token, head, known = queries_of(first, length, key_head, GROUP, PADDED, PACKED)
    queries = load(q + begin * stride_q, token, head, stride_q, known, DIM, WIDTH)
    upstream = load(do + begin * stride_do, token, head, stride_do, known, DIM, WIDTH)
    at = begin + head.to(tl.int64) * tokens + token
    norm = tl.load(lse + at, mask=known, other=0.0) * 1.4426950408889634
    inner = tl.load(delta + at, mask=known, other=0.0)
    return token, queries, upstream, norm, inner


@triton.jit
def load(x, token, head, stride, known, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """(tokens, WIDTH) of x (T, heads, DIM), zeros where there is none."""
    column = tl.arange(0, WIDTH)
    at = token[:, None] * stride + (head * DIM)[:, None] + column[None, :]
    return tl.load(x + at, mask=known[:, None] & (column < DIM)[None, :], other=0.0)


@triton.jit
def turned_back(value, token, known, cos, sin, HALF: tl.constexpr):
    """Gradients (tokens, 2 HALF) of rotated heads as those of the heads before (rotary.py); as they are where HALF is 0."""
    if HALF:
        tokens: tl.constexpr = value.shape[0]
        a, b = tl.split(tl.permute(tl.reshape(value, (tokens, 2, HALF)), (0, 2, 1)))
        at = token[:, None] * HALF + tl.arange(0, HALF)[None, :]
        c = tl.load(cos + at, mask=known[:, None], other=0.0).to(tl.float32)
        s = tl.load(sin + at, mask=known[:, None], other=0.0).to(tl.float32)
        value = tl.reshape(tl.permute(tl.join(a * c + b * s, b * c - a * s), (0, 2, 1)), (tokens, 2 * HALF))
    return value


@triton.jit
def store(x, value, token, head, stride, known, DIM: tl.constexpr, WIDTH: tl.constexpr):
    column = tl.arange(0, WIDTH)
    at = token[:, None] * stride + (head * DIM)[:, None] + column[None, :]
    tl.store(x + at, value.to(x.dtype.element_ty), mask=known[:, None] & (column < DIM)[None, :])
