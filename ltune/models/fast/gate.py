"""The gated activation of a feed-forward layer (https://arxiv.org/abs/2002.05202), and its gradient.

h = act(g) u      act: silu, or gelu in the tanh form;  g, u: first and second half of gate_up
"""

import torch
from torch import Tensor
from torch.nn import functional

from ltune.models.fast.launch import has_triton, launch, tl, triton
from ltune.models.fast.room import laid_out, roomy

BLOCK = 1024


def gated(gate_up: Tensor, gelu: bool, room: bool = False) -> Tensor:
    """(T, 2 F), its rows dense, to (T, F), with room behind each row where that is asked for."""
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    if not has_triton(gate_up):
        g, u = gate_up.float().chunk(2, -1)
        h = ((functional.gelu(g, approximate="tanh") if gelu else functional.silu(g)) * u).to(gate_up.dtype)
        return roomy(tokens, width, h).copy_(h) if room else h
    h = laid_out(tokens, width, gate_up, room)
    launch(_gated, (tokens, -(-width // BLOCK)), gate_up, h, width, gate_up.stride(0), h.stride(0), gelu, BLOCK, num_warps=4)
    return h


def gated_backward(dh: Tensor, gate_up: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    """The gradient of gate_up (T, 2 F), written over gate_up itself on a GPU; and h (T, F) again, written over ``dh`` there."""
    tokens, width = dh.shape
    if not has_triton(dh):
        with torch.enable_grad():
            leaf = gate_up.detach().requires_grad_()
            h = gated(leaf, gelu)
        (gradient,) = torch.autograd.grad(h, leaf, dh)
        return gradient, h.detach()
    launch(_gated_backward, (tokens, -(-width // BLOCK)), dh, gate_up, width, gate_up.stride(0), gelu, BLOCK, num_warps=4)
    return gate_up, dh


@triton.jit
def activation(g, GELU: tl.constexpr):
    """act(g) and its derivative."""
    if GELU:
        inner = 0.7978845608028654 * (g + 0.044715 * g * g * g)
        t = 2.0 / (1.0 + tl.exp(-2.0 * inner)) - 1.0  # tanh
        value = 0.5 * g * (1.0 + t)
        slope = 0.5 * (1.0 + t) + 0.5 * g * (1.0 - t * t) * 0.7978845608028654 * (1.0 + 3.0 * 0.044715 * g * g)
    else:
        sigmoid = 1.0 / (1.0 + tl.exp(-g))
        value = g * sigmoid
        slope = sigmoid * (1.0 + g * (1.0 - sigmoid))
    return value, slope


@triton.jit
def _gated(gate_up, h, width, stride, stride_h, GELU: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    g = tl.load(gate_up + token * stride + column, mask=mask, other=0.0).to(tl.float32)
    u = tl.load(gate_up + token * stride + width + column, mask=mask, other=0.0).to(tl.float32)
    value, _ = activation(g, GELU)
    tl.store(h + token * stride_h + column, (value * u).to(h.dtype.element_ty), mask=mask)


@triton.jit
def _gated_backward(dh, gate_up, width, stride, GELU: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    first = gate_up + token * stride + column
    g = tl.load(first, mask=mask, other=0.0).to(tl.float32)
    u = tl.load(first + width, mask=mask, other=0.0).to(tl.float32)
    d = tl.load(dh + token * width + column, mask=mask, other=0.0).to(tl.float32)
    value, slope = activation(g, GELU)
    tl.store(first, (d * u * slope).to(gate_up.dtype.element_ty), mask=mask)
    tl.store(first + width, (d * value).to(gate_up.dtype.element_ty), mask=mask)
    tl.store(dh + token * width + column, (value * u).to(dh.dtype.element_ty), mask=mask)
