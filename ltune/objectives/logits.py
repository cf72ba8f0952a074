"""Logits of the next token before each trained one, some positions at a time, so that they never stand in memory as a whole."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ltune.data.collate import Batch
from ltune.objectives.policy import Policy

BYTES = 2**27  # of one model's logits at once, in float32


class States(NamedTuple):
    """What a model's head reads before the trained tokens, and the head."""

    hidden: Tensor  # (N, H); where the head is more than a product, (N, V): the logits themselves
    head: Callable[[Tensor], Tensor]  # (n, H) to (n, V)
    width: int  # V

    @classmethod
    def of(cls, policy: Policy, batch: Batch) -> "States":
        """Of the policy on a batch."""
        if policy.has_plain_head:
            return cls(policy.hidden(batch), policy.head, policy.vocabulary)
        logits = policy.logits(batch)
        return cls(logits, _itself, logits.shape[-1])


def in_parts(function: Callable[..., Tensor], width: int, *positions: Tensor) -> Tensor:
    """``function`` of so many positions at once as make BYTES of logits, its results end to end; the backward computes them again.

    Args:
        function: Of parts (n, ...) of each of ``positions`` to (n, ...).
        width: V.
        positions: (N, ...) each; N may be 0.
    """
    size = max(1, BYTES // (4 * width))
    parts = zip(*(one.split(size) for one in positions), strict=True)
    return torch.cat([checkpoint(function, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])


def _itself(logits: Tensor) -> Tensor:
    return logits
