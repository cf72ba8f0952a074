"""GRPO: several answers to each prompt, each judged by how much better it is than the others (https://arxiv.org/abs/2402.03300)."""

from typing import Literal

import torch
from torch import Tensor

from ltune.data.collate import Batch
from ltune.generation.sampling import Sampling
from ltune.objectives.advantages import Scale, group_advantages
from ltune.objectives.base import Loss
from ltune.objectives.clipping import k3, policy_loss
from ltune.objectives.grouped import Grouped
from ltune.objectives.logprobs import by_sequence, token_counts
from ltune.objectives.policy import Policy
from ltune.objectives.reference import Reference
from ltune.objectives.rewards import RewardFunction
from ltune.objectives.rollout import Rollout


class GRPO(Grouped):
    """Group relative policy optimization.

        A_i = (r_i - mean of its group) / (its standard deviation + 1e-4),   r = p / p_old
        loss = - min(r A, clip(r, 1 - clip, 1 + clip_high) A) + kl r (p_ref / p - log(p_ref / p) - 1),  averaged over tokens

    Args:
        rewards: Reward functions; their weighted sum is the reward.
        answers: To each prompt; at least 2, as one has no other to be better than.
        sampling: How the policy answers; max_new_tokens is the longest answer.
        iterations: How often a rollout is gone through.
        mini_batches: Optimizer steps each time.
        clip: How far r may fall below 1 before it teaches nothing more.
        clip_high: And rise above; null: as far. DAPO (https://arxiv.org/abs/2503.14476) takes 0.28.
        kl: Weight of the divergence from the reference; 0: there is no reference.
        weigh_kl: Multiply the divergence with r, whose gradient is then unbiased (https://arxiv.org/abs/2512.02556), or not, as
            the paper has it.
        scale: What advantages are divided by: group, batch, none (Dr. GRPO).
        normalize: What the sum over tokens is divided by. tokens: all trained ones (DAPO); answers: each answer's, then their number (the
            paper); constant: the longest possible answer times their number (Dr. GRPO, https://arxiv.org/abs/2503.20783).
        level: Of r. token; answer: the geometric mean over the answer (GSPO, https://arxiv.org/abs/2507.18071).
        mask_truncated: Answers that did not come to their end are not trained on.
        reference: What the divergence is from; null: the model without its adapter.
    """

    def __init__(
        self,
        rewards: list[RewardFunction],
        answers: int = 8,
        sampling: Sampling = Sampling(temperature=1.0),  # noqa: B008
        iterations: int = 1,
        mini_batches: int = 1,
        clip: float = 0.2,
        clip_high: float | None = None,
        kl: float = 0.0,
        weigh_kl: bool = True,
        scale: Scale = "group",
        normalize: Literal["tokens", "answers", "constant"] = "tokens",
        level: Literal["token", "answer"] = "token",
        mask_truncated: bool = False,
        reference: Reference | None = None,
    ) -> None:
        super().__init__(rewards, sampling, answers, iterations, mini_batches, clip, clip_high, kl, reference)
        self.weigh_kl = weigh_kl
        self.scale, self.normalize, self.level, self.mask_truncated = scale, normalize, level, mask_truncated

    def judge(self, rollout: Rollout) -> dict[str, float]:
        """Advantages: (S,)."""
        rollout.of_answers["advantages"] = group_advantages(rollout.rewards, self.group, self.scale)
        return {}

    def shares(self, rollout: Rollout, numbers: Tensor) -> Tensor:
        """1 / tokens, 1 / (its tokens x answers), or 1 / (max_new_tokens x answers)."""
        kept = rollout.ended[numbers].float() if self.mask_truncated else torch.ones(len(numbers))
        tokens = rollout.answered[numbers]
        if self.normalize == "tokens":
            return kept / (tokens * kept).sum().clamp(min=1)
        return kept / len(numbers) / (tokens if self.normalize == "answers" else self.sampling.max_new_tokens)

    def trained(self, policy: Policy, batch: Batch) -> Loss:
        """The formula."""
        losses, owner = policy.token_losses(batch, temperature=self.temperature), batch.owner
        logps = -losses  # (N,)
        old = batch.extra("old") if self.has_old else logps.detach()
        log_ratios = logps - old
        if self.level == "answer":
            log_ratios = (by_sequence(log_ratios, batch) / token_counts(batch))[owner]
        clipped = policy_loss(log_ratios, batch.extra("advantages")[owner], self.clip, self.clip_high)
        loss, metrics = clipped.loss, self.told_of(clipped, batch.window_tokens, logps, batch)
        if self.kl:
            divergence = k3(logps, batch.extra("reference")) * (log_ratios.exp() if self.weigh_kl else 1.0)
            loss = loss + self.kl * divergence
            metrics["kl"] = divergence.sum() / batch.window_tokens
        return Loss((loss * batch.extra("share")[owner]).sum(), metrics)
