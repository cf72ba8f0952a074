"""What DPO and its relatives make of a pair: one class a formula, under TRL's names.

r_w = log p(chosen) / p_ref(chosen), r_l the same of the rejected answer, d = r_w - r_l, s the logistic function. Where there is no
reference (CPO), p_ref is 1.
"""

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from ltune.errors import UsageError
from ltune.objectives.pairs import Pairs


class PreferenceLoss(ABC):
    """The loss of each pair."""

    @abstractmethod
    def of(self, pairs: Pairs, beta: float) -> Tensor:
        """(P,)."""


class Sigmoid(PreferenceLoss):
    """DPO's own (https://arxiv.org/abs/2305.18290, eq. 7); with label smoothing, cDPO (https://ericmitchell.ai/cdpo.pdf).

    Args:
        label_smoothing: Share of pairs that are thought to be the wrong way round.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.smoothing = within("label_smoothing", label_smoothing, least=0.0)

    def of(self, pairs: Pairs, beta: float) -> Tensor:
        """-(1 - e) log s(beta d) - e log s(-beta d)."""
        return _smoothed(beta * pairs.margin, self.smoothing)


class SigmoidNorm(PreferenceLoss):
    """DPO's with the log-ratios divided by the answers' lengths."""

    def of(self, pairs: Pairs, beta: float) -> Tensor:
        """-log s(beta (r_w / |w| - r_l / |l|))."""
        return -F.logsigmoid(beta * _average_margin(pairs))


class Robust(PreferenceLoss):
    """Unbiased where a share of the pairs is the wrong way round (https://arxiv.org/abs/2403.00409, eq. 12).

    Args:
        label_smoothing: That share, below one half.
    """

    def __init__(self, label_smoothing: float = 0.1) -> None:
        self.smoothing = within("label_smoothing", label_smoothing, least=0.0)

    def of(self, pairs: Pairs, beta: float) -> Tensor:
        """(-(1 - e) log s(beta d) + e log s(-beta d)) / (1 - 2 e)."""
        logits, e = beta * pairs.margin, self.smoothing
        return (-(1 - e) * F.logsigmoid(logits) + e * F.logsigmoid(-logits)) / (1 - 2 * e)


class Hinge(PreferenceLoss):
    """A margin that suffices (https://arxiv.org/abs/2305.10425)."""

    def of(self, pairs: Pairs, beta: float) -> Tensor:
        """max(0, 1 - beta d)."""
        return torch.relu(1 - beta * pairs.margin)


class IPO(PreferenceLoss):
    """A margin to be met, not exceeded (https://arxiv.org/abs/2310.12036, eq. 17), of log-ratios per token."""

    def of(self, pairs: Pairs, beta: float) -> Tensor:
        """(r_w / |w| - r_l / |l| - 1 / (2 beta))^2."""
        return (_average_margin(pairs) - 1 / (2 * beta)) ** 2


class ExoPair(PreferenceLoss):
    """EXO: the reverse divergence (https://arxiv.org/abs/2402.00856, eq. 16).

    Args:
        label_smoothing: Above 0.
    """

    def __init__(self, label_smoothing: float = 1e-3) -> None:
        self.smoothing = within("label_smoothing", label_smoothing, least=1e-9)

    def of(self, pairs: Pairs, beta: float) -> Tensor:
        """s(beta d) (log s(beta d) - log(1 - e)) + s(-beta d) (log s(-beta d) - log e)."""
        logits, e = beta * pairs.margin, self.smoothing
        right = logits.sigmoid() * (F.logsigmoid(logits) - math.log1p(-e))
        return right + (-logits).sigmoid() * (F.logsigmoid(-logits) - math.log(e))


class NCAPair(PreferenceLoss):
    """NCA: each answer by itself, against noise (https://arxiv.org/abs/2402.05369)."""

    def of(self, pairs: Pairs, beta: float) -> Tensor:
        """-log s(beta r_w) - (log s(-beta r_w) + log s(-beta r_l)) / 2."""
        chosen, rejected = beta * pairs.chosen_ratio, beta * pairs.rejected_ratio
        return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


class BCOPair(PreferenceLoss):
    """A classifier of good and bad answers (https://arxiv.org/abs/2404.04656), without the reward shift of ``BCO``."""

    def of(self, pairs: Pairs, beta: float) -> Tensor:
        """-log s(beta r_w) - log s(-beta r_l)."""
        return -F.logsigmoid(beta * pairs.chosen_ratio) - F.logsigmoid(-beta * pairs.rejected_ratio)


class SPPOHard(PreferenceLoss):
    """Self-play with certain preferences (https://arxiv.org/abs/2405.00675, eq. 4.7)."""

    def of(self, pairs: Pairs, beta: float) -> Tensor:
        """(r_w - 1 / (2 beta))^2 + (r_l + 1 / (2 beta))^2."""
        return (pairs.chosen_ratio - 0.5 / beta) ** 2 + (pairs.rejected_ratio + 0.5 / beta) ** 2


class AOT(PreferenceLoss):
    """Alignment by optimal transport (https://arxiv.org/abs/2406.05882): the sorted margins of a micro-batch, policy's against
    reference's. The loss depends on which rows share a micro-batch.

    Args:
        label_smoothing: Share of pairs that are thought to be the wrong way round.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.smoothing = within("label_smoothing", label_smoothing, least=0.0)

    def of(self, pairs: Pairs, beta: float) -> Tensor:
        """-log s(beta (sorted(policy's margins) - sorted(reference's)))."""
        policy, reference = pairs.chosen - pairs.rejected, pairs.reference_chosen - pairs.reference_rejected
        return _smoothed(beta * (policy.sort().values - reference.sort().values), self.smoothing)


class AOTUnpaired(PreferenceLoss):
    """AOT with the chosen and the rejected answers sorted apart.

    Args:
        label_smoothing: Share of pairs that are thought to be the wrong way round.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.smoothing = within("label_smoothing", label_smoothing, least=0.0)

    def of(self, pairs: Pairs, beta: float) -> Tensor:
        """-log s(beta (sorted(r_w) - sorted(r_l)))."""
        return _smoothed(beta * (pairs.chosen_ratio.sort().values - pairs.rejected_ratio.sort().values), self.smoothing)


class APOZero(PreferenceLoss):
    """Anchored: chosen answers up, rejected ones down; for answers better than the model's (https://arxiv.org/abs/2408.06266, eq. 7)."""

    def of(self, pairs: Pairs, beta: float) -> Tensor:
        """1 - s(beta r_w) + s(beta r_l)."""
        return 1 - torch.sigmoid(beta * pairs.chosen_ratio) + torch.sigmoid(beta * pairs.rejected_ratio)


class APODown(PreferenceLoss):
    """Anchored: both down, rejected ones further; for answers worse than the model's (https://arxiv.org/abs/2408.06266, eq. 8)."""

    def of(self, pairs: Pairs, beta: float) -> Tensor:
        """s(beta r_w) + 1 - s(beta d)."""
        return torch.sigmoid(beta * pairs.chosen_ratio) + 1 - torch.sigmoid(beta * pairs.margin)


class DiscoPOP(PreferenceLoss):
    """Found by a language model (https://arxiv.org/abs/2406.08414, eq. 5).

    Args:
        tau: Temperature of the mixture.
    """

    def __init__(self, tau: float = 0.05) -> None:
        self.tau = tau

    def of(self, pairs: Pairs, beta: float) -> Tensor:
        """m exp(-beta d) - (1 - m) log s(beta d), m = s(beta d / tau)."""
        logits = beta * pairs.margin
        mixture = torch.sigmoid(logits / self.tau)
        return -F.logsigmoid(logits) * (1 - mixture) + torch.exp(-logits) * mixture


def within(name: str, value: float, least: float) -> float:
    """A label smoothing, checked."""
    if not least <= value < 0.5:
        raise UsageError(f"objective: {name} is at least {least:g} and below 0.5, got {value}")
    return value


def _smoothed(logits: Tensor, smoothing: float) -> Tensor:
    return -F.logsigmoid(logits) * (1 - smoothing) - F.logsigmoid(-logits) * smoothing


def _average_margin(pairs: Pairs) -> Tensor:
    return pairs.chosen_ratio / pairs.chosen_tokens - pairs.rejected_ratio / pairs.rejected_tokens
