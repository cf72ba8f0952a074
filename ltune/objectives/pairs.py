"""Chosen and rejected answers of a batch, by their log-probabilities, and what is logged of them under TRL's names."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ltune.data.collate import Batch
from ltune.objectives.logprobs import sequence_logps, shared_weights, token_counts


@dataclass(frozen=True)
class Pairs:
    """P pairs: sums of the answers' log-probabilities, under the policy and under the reference; and their lengths. All (P,)."""

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    @classmethod
    def of(cls, losses: Tensor, reference: Tensor | None, batch: Batch, ld_alpha: float | None = None) -> "Pairs":
        """Of token losses (N,) of the policy and of the reference; None: there is none, and its log-probabilities count as 0.

        ``ld_alpha``: weight of the longer answer's tokens beyond the shorter one's length; None: as all others.
        """
        weights = 1.0 if ld_alpha is None else shared_weights(batch, ld_alpha)
        logps, tokens = sequence_logps(losses * weights, batch), token_counts(batch)
        before = torch.zeros_like(logps).detach() if reference is None else sequence_logps(reference * weights, batch)
        return cls(logps[0::2], logps[1::2], before[0::2], before[1::2], tokens[0::2], tokens[1::2])

    @property
    def chosen_ratio(self) -> Tensor:
        """log p(chosen) / p_reference(chosen)."""
        return self.chosen - self.reference_chosen

    @property
    def rejected_ratio(self) -> Tensor:
        """The same of the rejected answers."""
        return self.rejected - self.reference_rejected

    @property
    def margin(self) -> Tensor:
        """How much further the policy prefers the chosen answer than the reference does."""
        return self.chosen_ratio - self.rejected_ratio

    @property
    def chosen_mean(self) -> Tensor:
        """Log-probability of a chosen answer's token, on average."""
        return self.chosen / self.chosen_tokens

    @property
    def rejected_mean(self) -> Tensor:
        """The same of the rejected answers."""
        return self.rejected / self.rejected_tokens


def told(chosen_rewards: Tensor, rejected_rewards: Tensor, chosen_logps: Tensor, rejected_logps: Tensor, batch: Batch) -> dict[str, Tensor]:
    """The metrics of pairs, as shares of the window's average; all (P,)."""
    values = {
        "rewards/chosen": chosen_rewards,
        "rewards/rejected": rejected_rewards,
        "rewards/margins": chosen_rewards - rejected_rewards,
        "rewards/accuracies": (chosen_rewards > rejected_rewards).float(),
        "logps/chosen": chosen_logps,
        "logps/rejected": rejected_logps,
    }
    return {name: value.detach().sum() / batch.window_rows for name, value in values.items()}
