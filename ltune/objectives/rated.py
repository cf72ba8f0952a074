"""What is logged of rated answers under TRL's names: averages over the good ones and over the bad ones."""

from torch import Tensor

from ltune.objectives.metrics import Mean


def told(rewards: Tensor, logps: Tensor, good: Tensor) -> dict[str, Tensor | Mean]:
    """All (S,): rewards and log-probabilities of answers, and which of them are good (1 or 0)."""
    metrics: dict[str, Tensor | Mean] = {}
    for name, mark in (("chosen", good), ("rejected", 1 - good)):
        for what, values in (("rewards", rewards), ("logps", logps)):
            metrics[f"{what}/{name}"] = Mean((values.detach() * mark).sum(), mark.sum())
    return metrics
