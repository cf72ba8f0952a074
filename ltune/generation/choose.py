"""The next token of each row from its logits: the likeliest, or drawn with the row's own random numbers.

    p = softmax(l / temperature) over the tokens that are left;  the first token whose cumulated p reaches (1 - u) sum p,  u in [0, 1)

A row's numbers depend on its seed alone, so its answer does not depend on the rows beside it. This file knows no model.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ltune.generation.sampling import Sampling

AT_ONCE = 2**25  # probabilities; sorting needs several times their memory


def uniforms(seed: Sequence[int], count: int) -> list[float]:
    """A row's random numbers in [0, 1), one for each token of its answer."""
    return np.random.default_rng(list(seed)).random(count, dtype=np.float32).tolist()


def chosen(logits: Tensor, sampling: Sampling, numbers: Sequence[float]) -> list[int]:
    """A token for each row.

    Args:
        logits: (n, V) float32.
        sampling: How.
        numbers: n numbers in [0, 1); not read by a greedy choice.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1).tolist()
    rows = max(1, AT_ONCE // logits.shape[1])
    u = torch.tensor(numbers, dtype=torch.float32, device=logits.device)[:, None]  # (n, 1)
    return [token for part, own in zip(logits.split(rows), u.split(rows), strict=True) for token in _drawn(part, sampling, own).tolist()]


def _drawn(logits: Tensor, sampling: Sampling, u: Tensor) -> Tensor:
    """(n,) tokens."""
    scores, ids = logits / sampling.temperature, None
    if sampling.top_k:
        scores, ids = scores.topk(min(sampling.top_k, scores.shape[1]))
    elif sampling.top_p < 1:
        scores, ids = scores.sort(descending=True)
    p = scores.softmax(-1)
    reached = p.cumsum(-1)
    if sampling.top_p < 1:  # a token stays if those before it do not reach top_p
        reached = p.masked_fill(reached - p >= sampling.top_p, 0.0).cumsum(-1)
    place = torch.searchsorted(reached, (1 - u) * reached[:, -1:])
    return (place if ids is None else ids.gather(1, place))[:, 0]


class Repeated:
    """Makes tokens less likely that a row already has, as its prompt or its answer (https://arxiv.org/abs/1909.05858).

    Args:
        slots: Rows at once; each stands in a slot.
        penalty: What positive logits are divided by, and negative ones multiplied with.
    """

    def __init__(self, slots: int, penalty: float) -> None:
        self.slots, self.penalty = slots, penalty
        self.seen: Tensor | None = None  # (slots, V)

    def begin(self, slots: Sequence[int], prompts: Sequence[Sequence[int]], logits: Tensor) -> None:
        """New rows in these slots.

        Args:
            slots: Numbers.
            prompts: What the rows have so far.
            logits: Of any row, for their size.
        """
        if self.seen is None:
            self.seen = torch.zeros(self.slots, logits.shape[1], dtype=torch.bool, device=logits.device)
        self.seen[list(slots)] = False
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        rows = torch.tensor(slots).repeat_interleave(lengths)
        self._see(rows, torch.tensor([token for prompt in prompts for token in prompt]))

    def add(self, slots: Sequence[int], tokens: Sequence[int]) -> None:
        """One more token in each of these slots."""
        self._see(torch.tensor(slots), torch.tensor(tokens))

    def penalized(self, slots: Sequence[int], logits: Tensor) -> Tensor:
        """The logits (n, V) of these slots' rows."""
        assert self.seen is not None
        lower = torch.where(logits < 0, logits * self.penalty, logits / self.penalty)
        return torch.where(self.seen[torch.tensor(slots, device=logits.device)], lower, logits)

    def _see(self, rows: Tensor, tokens: Tensor) -> None:
        assert self.seen is not None
        self.seen[rows.to(self.seen.device), tokens.to(self.seen.device)] = True
