"""Contrastive preference optimization: DPO with a uniform reference, and the chosen answer's likelihood beside it."""

from typing import ClassVar

from ltune.data.collate import Batch
from ltune.data.rows import Pair, Row
from ltune.errors import UsageError
from ltune.objectives.base import Loss, Objective
from ltune.objectives.pairs import Pairs, told
from ltune.objectives.policy import Policy
from ltune.objectives.preference_losses import PreferenceLoss, Sigmoid


class CPO(Objective):
    """Contrastive preference optimization (https://arxiv.org/abs/2401.08417, eq. 5 to 7). No reference.

    Args:
        loss: Of a pair: Sigmoid, Hinge, IPO or another of DPO's.
        beta: Of the margin.
        sft_weight: Weight of minus the chosen answer's log-probability per token (TRL's cpo_alpha).
    """

    rows: ClassVar[type[Row]] = Pair

    def __init__(self, loss: PreferenceLoss = Sigmoid(), beta: float = 0.1, sft_weight: float = 1.0) -> None:  # noqa: B008
        if beta <= 0:
            raise UsageError(f"objective.beta is above 0, got {beta}")
        self.of_pairs, self.beta, self.sft_weight = loss, beta, sft_weight

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        """Sum over pairs of loss(beta, log p) - sft_weight log p(chosen) / |chosen|, / pairs in the whole optimizer step."""
        pairs = Pairs.of(policy.token_losses(batch), None, batch)
        each = self.of_pairs.of(pairs, self.beta) - self.sft_weight * pairs.chosen_mean  # (P,)
        rewards = self.beta * pairs.chosen, self.beta * pairs.rejected
        metrics = told(*rewards, pairs.chosen, pairs.rejected, batch)
        return Loss(each.sum() / batch.window_rows, metrics | {"nll_loss": -pairs.chosen_mean.detach().sum() / batch.window_rows})
