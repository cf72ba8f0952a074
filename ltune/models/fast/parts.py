"""The sum of what several programs computed of the same thing, always in the same order."""

from torch import Tensor

from ltune.models.fast.launch import launch, power_of_two, tile_of, tl, triton

TOKENS, PARTS = 4, 64  # at once


def add_parts(parts: Tensor, out: Tensor, also: Tensor | None = None) -> None:
    """Write the sum.

    Args:
        parts: (programs, T, r) float32, dense.
        out: (T, r or more), its rows dense: the sum, then zeros.
        also: Another such place.
    """
    programs, tokens, ranks = parts.shape
    second = out if also is None else also
    columns = power_of_two(max(out.shape[1], second.shape[1]))
    at_once = min(PARTS, power_of_two(programs))
    launch(
        _add, (-(-tokens // TOKENS),),
        parts, out, second, tokens, ranks, out.shape[1], out.stride(0), second.shape[1], second.stride(0), programs,
        tile_of(ranks), columns, at_once, TOKENS, also is not None,
    )  # fmt: skip


@triton.jit(do_not_specialize=["tokens", "programs"])
def _add(
    parts, out, also, tokens, ranks, columns, stride, columns_also, stride_also, programs,
    RANKS: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr, TOKENS: tl.constexpr, ALSO: tl.constexpr,
):  # fmt: skip
    begin = tl.program_id(0).to(tl.int64) * TOKENS
    number = tl.arange(0, TOKENS * RANKS)
    token, rank = begin + number // RANKS, number % RANKS
    known = (token < tokens) & (rank < ranks)
    part = tl.arange(0, PARTS)
    total = tl.zeros((PARTS, TOKENS * RANKS), dtype=tl.float32)
    for first in range(0, programs, PARTS):
        at = parts + ((first + part).to(tl.int64) * tokens)[:, None] * ranks + (token * ranks + rank)[None, :]
        total += tl.load(at, mask=(first + part < programs)[:, None] & known[None, :], other=0.0)
    value = tl.sum(total, 0).to(out.dtype.element_ty)
    tl.store(out + token * stride + rank, value, mask=known)
    number = tl.arange(0, TOKENS * COLUMNS)
    token_, column = begin + number // COLUMNS, number % COLUMNS
    nothing = tl.zeros((TOKENS * COLUMNS,), dtype=out.dtype.element_ty)
    rest = (token_ < tokens) & (column >= ranks)
    tl.store(out + token_ * stride + column, nothing, mask=rest & (column < columns))
    if ALSO:
        tl.store(also + token * stride_also + rank, value, mask=known)
        tl.store(also + token_ * stride_also + column, nothing, mask=rest & (column < columns_also))
