"""How much better an answer, or a token of it, was than could be expected. Pure functions; rewards and values in, advantages out.

S answers, G of them to each prompt, side by side; N tokens of answers, end to end.
"""

from typing import Literal

import torch
from torch import Tensor

Scale = Literal["group", "batch", "none"]

TINY = 1e-4  # beside a standard deviation that may be 0


def group_advantages(rewards: Tensor, group: int, scale: Scale = "group") -> Tensor:
    """GRPO (https://arxiv.org/abs/2402.03300):  A_i = (r_i - mean of its group) / (standard deviation + 1e-4).

    Where all rewards of a group are equal, its advantages are exactly 0: nothing is learned from it. Answers without a reward (NaN)
    count in no mean and get 0.

    Args:
        rewards: (S,).
        group: G.
        scale: group: the group's standard deviation; batch: all answers' (https://arxiv.org/abs/2508.08221); none: not divided, as in
            Dr. GRPO (https://arxiv.org/abs/2503.20783).
    """
    r = rewards.double().view(-1, group)  # (S / G, G)
    better = r - r.nanmean(1, keepdim=True)
    if scale == "group":
        better = better / (deviation(r)[:, None] + TINY)
    elif scale == "batch":
        better = better / (deviation(r.view(1, -1)) + TINY)
    return torch.where(all_equal(r)[:, None], 0.0, better).nan_to_num(0.0).view(-1).to(rewards.dtype)


def leave_one_out(rewards: Tensor, group: int) -> Tensor:
    """RLOO (https://arxiv.org/abs/2402.14740):  A_i = r_i - mean of the others' rewards in its group; (S,). NaN as in GRPO."""
    r = rewards.double().view(-1, group)
    count = (~r.isnan()).sum(1, keepdim=True)
    others = (r.nansum(1, keepdim=True) - r) / (count - 1)
    return torch.where(all_equal(r)[:, None], 0.0, r - others).nan_to_num(0.0).view(-1).to(rewards.dtype)


def all_equal(rewards: Tensor) -> Tensor:
    """Whether a group's rewards are the same, those that there are; (groups,) of (groups, G)."""
    return rewards.nan_to_num(float("-inf")).amax(1) <= rewards.nan_to_num(float("inf")).amin(1)


def deviation(rewards: Tensor) -> Tensor:
    """Of a sample, without NaN; 0 of fewer than two; (groups,) of (groups, G)."""
    count = (~rewards.isnan()).sum(1)
    squares = (rewards - rewards.nanmean(1, keepdim=True)).square().nansum(1)
    return (squares / (count - 1).clamp(min=1)).sqrt()


def generalized_advantages(rewards: Tensor, values: Tensor, lengths: Tensor, gamma: float, decay: float) -> Tensor:
    """GAE (https://arxiv.org/abs/1506.02438), from the last token back; (N,).

        delta_t = r_t + gamma V_t+1 - V_t,   A_t = delta_t + gamma lambda A_t+1,   both V and A being 0 after the last token

    The returns, which values are to become, are A + V.

    Args:
        rewards: (N,) of each token.
        values: (N,) what was expected from each token on.
        lengths: (S,) tokens of each answer.
        gamma: How much a later reward counts.
        decay: The paper's lambda: 0: one step ahead; 1: all that came.
    """
    at = in_rows(lengths)
    r, v = (laid_out(flat, at) for flat in (rewards, values))  # (S, L), 0 behind the last token
    advantages = torch.zeros_like(r)
    following = later = torch.zeros_like(r[:, 0])
    for t in reversed(range(r.shape[1])):
        following = r[:, t] + gamma * later - v[:, t] + gamma * decay * following
        advantages[:, t], later = following, v[:, t]
    return advantages[at]


def whitened(values: Tensor, keep_mean: bool = False) -> Tensor:
    """Mean 0 (or as it was) and standard deviation 1, (N,); of fewer than two, only the mean is taken off."""
    if not len(values):
        return values
    mean = values.mean()
    spread = values.var() if len(values) > 1 else torch.ones_like(mean)
    return (values - mean) * (spread + 1e-8).rsqrt() + (mean if keep_mean else 0.0)


def in_rows(lengths: Tensor) -> Tensor:
    """(S, L) true where an answer has a token."""
    return torch.arange(int(lengths.max()) if len(lengths) else 0) < lengths[:, None]


def laid_out(flat: Tensor, at: Tensor) -> Tensor:
    """(S, L) of (N,): an answer a line, zeros behind it."""
    return torch.zeros(at.shape, dtype=flat.dtype).masked_scatter_(at, flat)


def sums(flat: Tensor, lengths: Tensor) -> Tensor:
    """(S,): the sum over each answer's tokens."""
    owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    return torch.zeros(len(lengths), dtype=flat.dtype).index_add_(0, owner, flat)
