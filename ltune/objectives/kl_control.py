"""How much a divergence from the reference costs in PPO's rewards: always the same, or as much as keeps it near a target."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ltune.errors import UsageError


class KLControl(ABC):
    """Base: ``coefficient`` times log p - log p_ref is taken off each token's reward."""

    coefficient: float

    @abstractmethod
    def update(self, kl: float, answers: int) -> None:
        """After a rollout of so many answers, whose mean divergence was ``kl`` nats an answer."""

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {"coefficient": torch.tensor(self.coefficient, dtype=torch.float64)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Of a checkpoint."""
        self.coefficient = float(state["coefficient"])


class FixedKL(KLControl):
    """Always the same.

    Args:
        coefficient: Reward taken off for each nat; 0: there is no reference.
    """

    def __init__(self, coefficient: float = 0.2) -> None:
        if coefficient < 0:
            raise UsageError(f"FixedKL: coefficient is 0 or more, got {coefficient}")
        self.coefficient = coefficient

    def update(self, kl: float, answers: int) -> None:
        """Nothing changes."""

    def restore(self, state: dict[str, Tensor]) -> None:
        """The configuration's holds."""


class AdaptiveKL(KLControl):
    """More where the divergence is above its target, less where it is below (https://arxiv.org/abs/1909.08593, section 2.2).

        coefficient <- coefficient (1 + clip(KL / target - 1, -0.2, 0.2) answers / horizon)

    Args:
        initial: Coefficient to begin with.
        target: Nats an answer.
        horizon: Answers over which it may change by a fifth.
    """

    def __init__(self, initial: float = 0.2, target: float = 6.0, horizon: int = 10_000) -> None:
        if not (initial > 0 and target > 0 and horizon > 0):
            raise UsageError(f"AdaptiveKL: initial, target and horizon are above 0, got {initial}, {target} and {horizon}")
        self.coefficient, self.target, self.horizon = initial, target, horizon

    def update(self, kl: float, answers: int) -> None:
        """A step towards the target."""
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coefficient *= 1 + error * answers / self.horizon


class RunningScale:
    """Mean and standard deviation of all scores so far, for scores of unknown scale (Chan et al.'s way of joining two samples)."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0.0, 0.0, 0.0  # squares: of the differences from the mean, added up

    def normalized(self, scores: Tensor) -> Tensor:
        """The scores (S,) less the mean over the standard deviation, themselves counted in."""
        known = scores[~scores.isnan()].double()
        if len(known):
            difference, total = float(known.mean()) - self.mean, self.count + len(known)
            self.squares += float((known - known.mean()).square().sum()) + difference**2 * self.count * len(known) / total
            self.mean += difference * len(known) / total
            self.count = total
        spread = (self.squares / max(self.count - 1, 1.0)) ** 0.5
        return (scores - self.mean) / (spread + torch.finfo(scores.dtype).eps) if spread > 0 else scores - self.mean

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {"moments": torch.tensor([self.count, self.mean, self.squares], dtype=torch.float64)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Of a checkpoint."""
        self.count, self.mean, self.squares = state["moments"].tolist()
