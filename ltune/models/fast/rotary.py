"""Rotary position embedding (https://arxiv.org/abs/2104.09864) on queries and keys, and back.

(a, b) -> (a cos - b sin, b cos + a sin)      a, b: first and second half of a head's rotated dimensions
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ltune.models.fast.launch import has_triton, launch, power_of_two, tile_of, tl, triton


class Turn(NamedTuple):
    """By how much queries and keys are rotated."""

    cos: Tensor  # (T, R / 2) of the first half of the R dimensions that are rotated, the second being alike; dense
    sin: Tensor

    def half(self, width: int) -> int:
        """Half a head's dimensions where attention's kernels turn its gradient back, else 0: all are rotated, and are a power of two."""
        half = self.cos.shape[1]
        return half if 2 * half == width == tile_of(width) else 0


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate in place.

    Args:
        heads: (T, heads, D), its last dimension dense.
        cos: (T, R / 2) of the first half, R <= D dimensions being rotated; dense.
        sin: Likewise.
    """
    half = cos.shape[1]
    if not has_triton(heads):
        heads[..., : 2 * half] = _turned(heads[..., : 2 * half], cos, sin)
        return
    tokens, count, width = heads.shape
    launch(
        _rotate, (tokens,),
        heads, cos, sin, heads.stride(0), heads.stride(1), count, half, power_of_two(count), power_of_two(half), num_warps=4,
    )  # fmt: skip


def gather_rotated_back(dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """The gradients of rotated queries and keys turned back and laid beside those of the values, into ``out``.

    Args:
        dq: (T, heads, D), dense in the last two dimensions, as are ``dk`` and ``dv`` (T, key heads, D).
        cos: (T, R / 2) of the first half, R <= D dimensions being rotated; dense, as is ``sin``.
        out: (T, heads of all three * D), its last dimension dense.
    """
    tokens, queries, width = dq.shape
    keys, half = dk.shape[1], cos.shape[1]
    if not has_triton(dq):
        turned = torch.cat([dq, dk], 1)
        turned[..., : 2 * half] = _turned(turned[..., : 2 * half], cos, -sin)
        out.copy_(torch.cat([turned, dv], 1).reshape(tokens, -1))
        return
    launch(
        _gather, (tokens,),
        dq, dk, dv, cos, sin, out, dq.stride(0), dk.stride(0), dv.stride(0), out.stride(0),
        queries, keys, half, width, power_of_two(queries + 2 * keys), power_of_two(half), power_of_two(width), 2 * half < width,
        num_warps=8,
    )  # fmt: skip


def _turned(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = heads.float().chunk(2, -1)
    cos, sin = cos.float()[:, None], sin.float()[:, None]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(heads.dtype)


@triton.jit
def _rotate(heads, cos, sin, stride_token, stride_head, count, half, HEADS: tl.constexpr, HALF: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS)[:, None]
    place = tl.arange(0, HALF)[None, :]
    mask = (head < count) & (place < half)
    c = tl.load(cos + token * half + place, mask=place < half, other=0.0).to(tl.float32)
    s = tl.load(sin + token * half + place, mask=place < half, other=0.0).to(tl.float32)
    first = heads + token * stride_token + head * stride_head + place
    a = tl.load(first, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(first + half, mask=mask, other=0.0).to(tl.float32)
    tl.store(first, (a * c - b * s).to(heads.dtype.element_ty), mask=mask)
    tl.store(first + half, (b * c + a * s).to(heads.dtype.element_ty), mask=mask)


@triton.jit
def _gather(
    dq, dk, dv, cos, sin, out, stride_q, stride_k, stride_v, stride_out, queries, keys, half, width,
    HEADS: tl.constexpr, HALF: tl.constexpr, WIDTH: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS)[:, None]
    place = tl.arange(0, HALF)[None, :]
    is_query = head < queries
    is_key = (head >= queries) & (head < queries + keys)
    is_value = (head >= queries + keys) & (head < queries + 2 * keys)
    inside = place < half
    # values are not turned: cos 1, sin 0
    c = tl.where(is_value, 1.0, tl.load(cos + token * half + place, mask=inside, other=0.0).to(tl.float32))
    s = tl.where(is_value, 0.0, tl.load(sin + token * half + place, mask=inside, other=0.0).to(tl.float32))
    q = dq + token * stride_q + head * width + place
    k = dk + token * stride_k + (head - queries) * width + place
    v = dv + token * stride_v + (head - queries - keys) * width + place
    a = tl.load(q, mask=is_query & inside, other=0.0).to(tl.float32)
    a += tl.load(k, mask=is_key & inside, other=0.0).to(tl.float32)
    a += tl.load(v, mask=is_value & inside, other=0.0).to(tl.float32)
    b = tl.load(q + half, mask=is_query & inside, other=0.0).to(tl.float32)
    b += tl.load(k + half, mask=is_key & inside, other=0.0).to(tl.float32)
    b += tl.load(v + half, mask=is_value & inside, other=0.0).to(tl.float32)
    to = out + token * stride_out + head * width + place
    known = (head < queries + 2 * keys) & inside
    tl.store(to, (a * c + b * s).to(out.dtype.element_ty), mask=known)
    tl.store(to + half, (b * c - a * s).to(out.dtype.element_ty), mask=known)
    if REST:  # dimensions that are not rotated
        column = tl.arange(0, WIDTH)[None, :]
        rest = (column >= 2 * half) & (column < width)
        value = tl.load(dq + token * stride_q + head * width + column, mask=is_query & rest, other=0.0)
        value += tl.load(dk + token * stride_k + (head - queries) * width + column, mask=is_key & rest, other=0.0)
        value += tl.load(dv + token * stride_v + (head - queries - keys) * width + column, mask=is_value & rest, other=0.0)
        tl.store(out + token * stride_out + head * width + column, value, mask=(head < queries + 2 * keys) & rest)
