"""RMSNorm (https://arxiv.org/abs/1910.07467) and its gradient, each in one pass over memory.

y = x r (offset + w),  r = 1 / sqrt(mean(x^2) + eps)      offset is 0, or 1 for models that store w - 1

The gradient wants x r, which is y / (offset + w) as well, so that x need not be kept where y is.
"""

import torch
from torch import Tensor

from ltune.models.fast.launch import has_triton, launch, power_of_two, tl, triton
from ltune.models.fast.room import roomy


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float, room: bool = False) -> tuple[Tensor, Tensor]:
    """The normalised input and r.

    Args:
        x: (..., H); the last dimension is dense, and one stride fits the others within each of at most two leading dimensions.
        weight: (H,).
        room: Whether there is to be room behind the rows of y; x is (T, H) then.

    Returns:
        y like x, dense but for that; r (..., ) float32.
    """
    if not has_triton(x):
        r = torch.rsqrt(x.float().square().mean(-1) + eps)
        return _placed((x.float() * r[..., None] * (offset + weight.float())).to(x.dtype), room), r
    y = _empty(x, room)
    r = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    heads = x.shape[1] if x.dim() == 3 else 1
    stride = x.stride(1) if x.dim() == 3 else 0
    width = x.shape[-1]
    block, warps = _sizes(width)
    launch(
        _norm, (r.numel(),), x, weight, y, r, x.stride(0), stride, _step(y), heads, width, eps, offset, block, num_warps=warps
    )  # fmt: skip
    return y, r


def rms_norm_backward(
    dy: Tensor,
    x: Tensor,
    r: Tensor,
    weight: Tensor,
    offset: float,
    add: Tensor | None = None,
    with_weight: bool = False,
    room: bool = False,
    from_output: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The gradient of x (plus ``add``), and of the weight if asked for.

    Args:
        dy: (..., H), dense, or (T, H) with room.
        x: As in the forward; or what the forward gave, like dy (``from_output``).
        r: From the forward.
        add: Like dy: the gradient that reaches x beside the norm.
        with_weight: Whether the weight's gradient is asked for.
        room: Whether there is to be room behind the rows of x's gradient.
        from_output: Whether ``x`` is y. No number of offset + weight may be 0.
    """
    if not has_triton(x):
        w = offset + weight.float()
        g, normed = dy.float() * w, x.float() / w if from_output else x.float() * r[..., None]
        dx = r[..., None] * (g - normed * (g * normed).mean(-1, keepdim=True))
        dx = dx if add is None else dx + add.float()
        dweight = (dy.float() * normed).reshape(-1, x.shape[-1]).sum(0) if with_weight else None
        return _placed(dx.to(x.dtype), room), dweight
    dx = _empty(x, room)
    heads = x.shape[1] if x.dim() == 3 else 1
    stride = x.stride(1) if x.dim() == 3 else 0
    width, rows = x.shape[-1], r.numel()
    block, warps = _sizes(width)
    strides = (x.stride(0), stride, _step(dy), _step(dy if add is None else add), _step(dx))
    # Rows of a program; each keeps its own part of the weight's gradient, added up afterwards
    share = -(-rows // 512) if with_weight else 1
    programs = -(-rows // share)
    parts = torch.empty(programs, width, dtype=torch.float32, device=x.device) if with_weight else dx
    launch(
        _norm_backward, (programs,),
        dy, x, r, weight, dx, add, parts, *strides, heads, width, offset, rows, share,
        add is not None, with_weight, from_output, block, num_warps=warps,
    )  # fmt: skip
    return dx, parts.sum(0) if with_weight else None


def _empty(x: Tensor, room: bool) -> Tensor:
    return roomy(len(x), x.shape[1], x) if room else torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _placed(x: Tensor, room: bool) -> Tensor:
    return _empty(x, True).copy_(x) if room else x


def _step(x: Tensor) -> int:
    """From row to row, heads of three dimensions being rows of their own."""
    return x.stride(-2)


def _sizes(width: int) -> tuple[int, int]:
    block = power_of_two(width)
    return block, max(1, min(16, block // 512))


@triton.jit
def _norm(x, weight, y, r, stride_row, stride_head, stride_y, heads, width, eps, offset, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < width
    start = (row // heads) * stride_row + (row % heads) * stride_head
    value = tl.load(x + start + column, mask=mask, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(value * value, 0) / width + eps)
    w = tl.load(weight + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + row * stride_y + column, (value * scale * (offset + w)).to(y.dtype.element_ty), mask=mask)
    tl.store(r + row, scale)


@triton.jit(do_not_specialize=["rows", "share"])  # they change with every batch
def _norm_backward(
    dy, x, r, weight, dx, add, parts, stride_row, stride_head, stride_dy, stride_add, stride_dx, heads, width, offset, rows, share,
    ADD: tl.constexpr, WEIGHT: tl.constexpr, OUTPUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < width
    w = offset + tl.load(weight + column, mask=mask, other=1.0).to(tl.float32)
    dw = tl.zeros((BLOCK,), dtype=tl.float32)
    for row in range(program * share, tl.minimum(program * share + share, rows)):
        start = (row // heads) * stride_row + (row % heads) * stride_head
        scale = tl.load(r + row)
        normed = tl.load(x + start + column, mask=mask, other=0.0).to(tl.float32)
        normed = normed / w if OUTPUT else normed * scale
        upstream = tl.load(dy + row * stride_dy + column, mask=mask, other=0.0).to(tl.float32)
        g = upstream * w
        value = scale * (g - normed * (tl.sum(g * normed, 0) / width))
        if ADD:
            value += tl.load(add + row * stride_add + column, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx + row * stride_dx + column, value.to(dx.dtype.element_ty), mask=mask)
        if WEIGHT:
            dw += upstream * normed
    if WEIGHT:
        tl.store(parts + program * width + column, dw, mask=mask)
