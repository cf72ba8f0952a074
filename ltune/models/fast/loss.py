"""The head and the cross-entropy at trained positions, some positions at a time, so that logits never stand in memory as a whole.

    loss_n = log sum_v exp(l_nv) - sum_v q_nv l_nv,   l = h W^T;     d loss_n / d h_n = (softmax(l_n) - q_n) W

q is onehot(target); with label smoothing (https://arxiv.org/abs/1512.00567) it is (1 - smoothing) onehot(target) + smoothing / V.

Where the head is frozen, the gradient of each loss is computed with the loss and scaled by what comes from above, which saves the
logits' second computation.
"""

from typing import Any

import torch
from torch import Tensor

from ltune.models.fast.filled import filled
from ltune.models.fast.launch import has_triton, launch, tl, triton

BYTES = 2**29  # of logits at once; with fewer positions the products are slower
BLOCK = 8192


class HeadLoss(torch.autograd.Function):
    """Cross-entropy of each position under the head."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int | None, training: bool, smoothing: float = 0.0
    ) -> Tensor:
        """(N,) float32.

        Args:
            hidden: (N, H).
            weight: (V, H), in the dtype of ``hidden`` or another.
            targets: (N,).
            chunk: Positions at once; None: as many as make BYTES of logits.
            training: Whether a gradient will be asked for.
            smoothing: Share of the target that is spread over all tokens, 0 to below 1.
        """
        losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        frozen = not ctx.needs_input_grad[1]
        gradient = torch.empty_like(hidden) if training and frozen else None
        used = weight.detach().to(hidden.dtype)
        for part in _parts(len(targets), used, chunk):
            count = len(targets[part])
            logits = filled(hidden[part]) @ used.mT  # (n, V)
            losses[part] = cross_entropy_(logits[:count], targets[part], gradient is not None, smoothing)
            if gradient is not None:
                gradient[part] = (logits @ used)[:count]
        if training:
            ctx.save_for_backward(*([gradient] if frozen else [hidden, weight, targets]))
            ctx.chunk, ctx.smoothing = chunk, smoothing
        return losses

    @staticmethod
    def backward(ctx: Any, dlosses: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if not ctx.needs_input_grad[1]:
            (gradient,) = ctx.saved_tensors
            return gradient * dlosses[:, None].to(gradient.dtype), None, None, None, None, None
        hidden, weight, targets = ctx.saved_tensors
        used = weight.detach().to(hidden.dtype)
        dhidden, dweight = torch.empty_like(hidden), torch.zeros_like(weight, dtype=torch.float32)
        for part in _parts(len(targets), used, ctx.chunk):
            logits = hidden[part] @ used.mT
            cross_entropy_(logits, targets[part], True, ctx.smoothing)
            logits *= dlosses[part, None].to(logits.dtype)
            dhidden[part] = logits @ used
            dweight += _float_product(logits.mT, hidden[part])
        return dhidden, dweight.to(weight.dtype), None, None, None, None


def _float_product(left: Tensor, right: Tensor) -> Tensor:
    if left.is_cuda and left.dtype is not torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).float()


def _parts(count: int, weight: Tensor, chunk: int | None) -> list[slice]:
    size = chunk or max(128, BYTES // (len(weight) * weight.element_size()) // 128 * 128)
    return [slice(begin, min(begin + size, count)) for begin in range(0, count, size)]


def cross_entropy_(logits: Tensor, targets: Tensor, with_gradient: bool, smoothing: float = 0.0) -> Tensor:
    """The losses, (n,) float32; with_gradient: softmax less q is written over the logits (n, V)."""
    if not has_triton(logits):
        full = logits.float()
        lse = full.logsumexp(-1)
        losses = lse - (1 - smoothing) * full.gather(-1, targets[:, None])[:, 0]
        if smoothing:
            losses -= smoothing * full.mean(-1)
        if with_gradient:
            full = (full - lse[:, None]).exp() - smoothing / full.shape[1]
            full[torch.arange(len(targets), device=targets.device), targets] -= 1.0 - smoothing
            logits.copy_(full)
        return losses
    losses = torch.empty(len(targets), dtype=torch.float32, device=logits.device)
    options = {"SMOOTHED": smoothing > 0, "GRADIENT": with_gradient, "BLOCK": BLOCK, "num_warps": 16}
    launch(_cross_entropy, (len(targets),), logits, targets, losses, logits.shape[1], smoothing, **options)
    return losses


@triton.jit
def _cross_entropy(logits, targets, losses, size, smoothing, SMOOTHED: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    first = logits + row * size
    largest = -float("inf")
    total = 0.0
    mean = 0.0
    for begin in range(0, size, BLOCK):
        column = begin + tl.arange(0, BLOCK)
        value = tl.load(first + column, mask=column < size, other=-float("inf")).to(tl.float32)
        top = tl.maximum(largest, tl.max(value, 0))
        total = total * tl.exp(largest - top) + tl.sum(tl.exp(value - top), 0)
        largest = top
        if SMOOTHED:
            mean += tl.sum(tl.where(column < size, value, 0.0) / size, 0)
    lse = largest + tl.log(total)
    wanted = tl.load(first + target).to(tl.float32)
    if SMOOTHED:
        wanted = (1.0 - smoothing) * wanted + smoothing * mean
    tl.store(losses + row, lse - wanted)
    if GRADIENT:
        tl.debug_barrier()  # the target's logit is read before it is written over
        for begin in range(0, size, BLOCK):
            column = begin + tl.arange(0, BLOCK)
            value = tl.load(first + column, mask=column < size, other=-float("inf")).to(tl.float32)
            if SMOOTHED:
                p = tl.exp(value - lse) - tl.where(column == target, 1.0 - smoothing, 0.0) - smoothing / size
            else:
                p = tl.exp(value - lse) - tl.where(column == target, 1.0, 0.0)
            tl.store(first + column, p.to(logits.dtype.element_ty), mask=column < size)
