"""Losses that keep a policy near the one that answered (https://arxiv.org/abs/1707.06347). Pure functions of (N,) tensors."""

from typing import NamedTuple

import torch
from torch import Tensor


class Clipped(NamedTuple):
    """A loss, and where clipping took the gradient away."""

    loss: Tensor  # (N,)
    low: Tensor  # (N,) bool
    high: Tensor  # (N,) bool


def policy_loss(log_ratios: Tensor, advantages: Tensor, low: float, high: float) -> Clipped:
    """- min(r A, clip(r, 1 - low, 1 + high) A),  r = p / p_old;  a larger ``high`` is DAPO's (https://arxiv.org/abs/2503.14476)."""
    r = log_ratios.exp()
    loss = -torch.minimum(r * advantages, r.clamp(1 - low, 1 + high) * advantages)
    return Clipped(loss, (r < 1 - low) & (advantages < 0), (r > 1 + high) & (advantages > 0))


def value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """1/2 max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2), and where the clipped one is the larger."""
    plain = (values - returns).square()
    clipped = (values.clamp(old - clip, old + clip) - returns).square()
    return 0.5 * torch.maximum(plain, clipped), clipped > plain


def k1(logps: Tensor, reference: Tensor) -> Tensor:
    """log p - log p_ref: an estimate of KL(p || p_ref) from tokens that p drew; may be negative (http://joschu.net/blog/kl-approx.html)."""
    return logps - reference


def k3(logps: Tensor, reference: Tensor) -> Tensor:
    """p_ref / p - log(p_ref / p) - 1: the same with less variance, and never negative."""
    return (reference - logps).exp() - (reference - logps) - 1
