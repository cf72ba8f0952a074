"""Learning-rate schedules: each a pure function of (step, total steps) that gives the factor on the learning rate.

Step counts from 0: the factor of step 0 is what the first optimizer step uses.
"""

import math
from abc import ABC, abstractmethod

from ltune.errors import UsageError


class Schedule(ABC):
    """Linear warm-up from 0, then what the subclass says.

    Args:
        warmup: Steps (a whole number) or share of all steps (below 1), rounded up.
    """

    def __init__(self, warmup: int | float = 0) -> None:
        if warmup < 0 or (warmup >= 1 and warmup != int(warmup)):
            raise UsageError(f"model.schedule: warmup is a whole number of steps or a share below 1, got {warmup}.")
        self.warmup = warmup

    def warmup_steps(self, total: int) -> int:
        """Warm-up in steps, of ``total``."""
        return int(self.warmup) if self.warmup >= 1 else math.ceil(self.warmup * total)

    def factor(self, step: int, total: int) -> float:
        """What the learning rate is multiplied with in ``step`` of ``total``."""
        warmup = self.warmup_steps(total)
        if step < warmup:
            return step / max(1, warmup)
        return self.after_warmup(step, warmup, total)

    @abstractmethod
    def after_warmup(self, step: int, warmup: int, total: int) -> float:
        """The factor once the warm-up is over."""


class Cosine(Schedule):
    """Half a cosine from 1 to 0 (https://arxiv.org/abs/1608.03983)."""

    def after_warmup(self, step: int, warmup: int, total: int) -> float:
        progress = (step - warmup) / max(1, total - warmup)
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


class Linear(Schedule):
    """A straight line from 1 to 0."""

    def after_warmup(self, step: int, warmup: int, total: int) -> float:
        return max(0.0, (total - step) / max(1, total - warmup))


class Constant(Schedule):
    """The same learning rate throughout, after the warm-up."""

    def after_warmup(self, step: int, warmup: int, total: int) -> float:
        return 1.0
