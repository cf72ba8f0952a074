"""SimPO: the log-probability per token is the reward, and the chosen answer's should lead by a margin."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from ltune.data.collate import Batch
from ltune.data.rows import Pair, Row
from ltune.errors import UsageError
from ltune.objectives.base import Loss, Objective
from ltune.objectives.pairs import Pairs, told
from ltune.objectives.policy import Policy
from ltune.objectives.preference_losses import within


class SimPO(Objective):
    """Simple preference optimization (https://arxiv.org/abs/2405.14734, eq. 6). No reference.

    Args:
        beta: Of the rewards. The paper's is 2 to 10; 0.1 is LLaMA-Factory's.
        gamma: The margin.
        label_smoothing: Share of pairs that are thought to be the wrong way round.
        sft_weight: Adds so much of minus the chosen answer's log-probability per token.
    """

    rows: ClassVar[type[Row]] = Pair

    def __init__(self, beta: float = 2.0, gamma: float = 0.5, label_smoothing: float = 0.0, sft_weight: float = 0.0) -> None:
        if beta <= 0:
            raise UsageError(f"objective.beta is above 0, got {beta}")
        self.beta, self.gamma, self.sft_weight = beta, gamma, sft_weight
        self.smoothing = within("label_smoothing", label_smoothing, least=0.0)

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        """Sum over pairs of the loss / pairs in the whole optimizer step."""
        pairs = Pairs.of(policy.token_losses(batch), None, batch)
        each = simpo(pairs.chosen_mean, pairs.rejected_mean, self.beta, self.gamma, self.smoothing) - self.sft_weight * pairs.chosen_mean
        rewards = self.beta * pairs.chosen_mean, self.beta * pairs.rejected_mean
        return Loss(each.sum() / batch.window_rows, told(*rewards, pairs.chosen_mean, pairs.rejected_mean, batch))


def simpo(chosen: Tensor, rejected: Tensor, beta: float, gamma: float, smoothing: float = 0.0) -> Tensor:
    """-log s(beta (chosen - rejected) - gamma) of log-probabilities per token, (P,)."""
    logits = beta * (chosen - rejected) - gamma
    return -F.logsigmoid(logits) * (1 - smoothing) - F.logsigmoid(-logits) * smoothing
