"""RLOO: REINFORCE with the mean of a prompt's other answers as baseline (https://arxiv.org/abs/2402.14740)."""

import torch
from torch import Tensor

from ltune.data.collate import Batch
from ltune.generation.sampling import Sampling
from ltune.objectives.advantages import TINY, leave_one_out
from ltune.objectives.base import Loss
from ltune.objectives.clipping import policy_loss
from ltune.objectives.grouped import Grouped
from ltune.objectives.logprobs import by_sequence
from ltune.objectives.policy import Policy
from ltune.objectives.reference import Reference
from ltune.objectives.rewards import RewardFunction
from ltune.objectives.rollout import Rollout


class RLOO(Grouped):
    """REINFORCE leave-one-out; an answer is one action.

        A_i = R_i - mean of the other R of its group,   R = reward - kl sum_t (log p_old - log p_ref),   r = p(answer) / p_old(answer)
        loss = - min(r A, clip(r, 1 - clip, 1 + clip_high) A),  averaged over answers

    Args:
        rewards: Reward functions; their weighted sum is the reward.
        answers: To each prompt; at least 2.
        sampling: How the policy answers; max_new_tokens is the longest answer.
        iterations: How often a rollout is gone through.
        mini_batches: Optimizer steps each time.
        clip: How far r may fall below 1 before it teaches nothing more.
        clip_high: And rise above; null: as far.
        kl: What a nat of divergence from the reference takes off the reward; 0: there is no reference.
        whiten: Advantages of a rollout get mean 0 and standard deviation 1.
        reference: What the divergence is from; null: the model without its adapter.
    """

    def __init__(
        self,
        rewards: list[RewardFunction],
        answers: int = 4,
        sampling: Sampling = Sampling(temperature=1.0),  # noqa: B008
        iterations: int = 1,
        mini_batches: int = 1,
        clip: float = 0.2,
        clip_high: float | None = None,
        kl: float = 0.05,
        whiten: bool = False,
        reference: Reference | None = None,
    ) -> None:
        super().__init__(rewards, sampling, answers, iterations, mini_batches, clip, clip_high, kl, reference)
        self.whiten = whiten

    @property
    def has_old(self) -> bool:
        """Also for the divergence, which is a part of the reward."""
        return super().has_old or self.refers

    def judge(self, rollout: Rollout) -> dict[str, float]:
        """Advantages: (S,)."""
        kl = rollout.kl() if self.kl else torch.zeros(len(rollout))
        advantages = leave_one_out(rollout.rewards - self.kl * kl, self.group)
        if self.whiten:
            advantages = (advantages - advantages.mean()) / (advantages.std() + TINY)
        rollout.of_answers["advantages"] = advantages
        return {"kl": float(kl.sum() / rollout.answered.sum())}

    def shares(self, rollout: Rollout, numbers: Tensor) -> Tensor:
        """1 / answers."""
        return torch.full((len(numbers),), 1 / len(numbers))

    def trained(self, policy: Policy, batch: Batch) -> Loss:
        """The formula."""
        logps = -policy.token_losses(batch, temperature=self.temperature)  # (N,)
        old = batch.extra("old") if self.has_old else logps.detach()
        clipped = policy_loss(by_sequence(logps - old, batch), batch.extra("advantages"), self.clip, self.clip_high)  # (S,)
        return Loss((clipped.loss * batch.extra("share")).sum(), self.told_of(clipped, batch.window_rows, logps, batch))
