"""ORPO: the chosen answer's likelihood, and the odds of choosing it over the rejected one."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ltune.data.collate import Batch
from ltune.data.rows import Pair, Row
from ltune.objectives.base import Loss, Objective
from ltune.objectives.pairs import Pairs, told
from ltune.objectives.policy import Policy

LARGEST = -1e-7  # log-probability that still has odds in float32; those of a certain answer are infinite


class ORPO(Objective):
    """Odds ratio preference optimization (https://arxiv.org/abs/2403.07691, eq. 6 and 7). No reference.

    Args:
        beta: Weight of the odds ratio (the paper's lambda).
        sft_weight: Adds so much more of the first term, which has the weight 1 already.
    """

    rows: ClassVar[type[Row]] = Pair

    def __init__(self, beta: float = 0.1, sft_weight: float = 0.0) -> None:
        self.beta, self.sft_weight = beta, sft_weight

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        """Sum over pairs of -log p(chosen) / |chosen| - beta log s(log odds(chosen) / odds(rejected)), / pairs in the whole step."""
        pairs = Pairs.of(policy.token_losses(batch), None, batch)
        log_odds = log_odds_ratio(pairs.chosen_mean, pairs.rejected_mean)  # (P,)
        ratio = F.logsigmoid(log_odds)
        each = -(1 + self.sft_weight) * pairs.chosen_mean - self.beta * ratio
        rewards = self.beta * pairs.chosen_mean, self.beta * pairs.rejected_mean
        metrics = told(*rewards, pairs.chosen_mean, pairs.rejected_mean, batch)
        more = {"nll_loss": -pairs.chosen_mean, "log_odds_ratio": ratio, "log_odds_chosen": log_odds}
        return Loss(each.sum() / batch.window_rows, metrics | {name: v.detach().sum() / batch.window_rows for name, v in more.items()})


def log_odds_ratio(chosen: Tensor, rejected: Tensor) -> Tensor:
    """log of (p / (1 - p)) / (q / (1 - q)), where log p and log q are log-probabilities per token, (P,)."""
    chosen, rejected = chosen.clamp(max=LARGEST), rejected.clamp(max=LARGEST)
    return chosen - rejected - (torch.log(-torch.expm1(chosen)) - torch.log(-torch.expm1(rejected)))
