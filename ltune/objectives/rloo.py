"""RLOO: REINFORCE with the mean of a prompt's other answers as baseline (https://arxiv.org/abs/2402.14740)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ltune.data.collate import Batch
from ltune.errors import UsageError
from ltune.generation.sampling import Sampling
from ltune.objectives.advantages import TINY, leave_one_out
from ltune.objectives.base import Loss
from ltune.objectives.clipping import policy_loss
from ltune.objectives.logprobs import by_sequence
from ltune.objectives.policy import Policy
from ltune.objectives.reference import AdapterOff, Reference
from ltune.objectives.reinforcement import Reinforcement
from ltune.objectives.rewards import RewardFunction
from ltune.objectives.rollout import Rollout


class RLOO(Reinforcement):
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
        super().__init__(rewards, sampling, answers, iterations, mini_batches)
        if answers < 2:
            raise UsageError(f"RLOO: answers is 2 or more, got {answers}: one alone has no other to be better than")
        self.clip, self.clip_high, self.kl, self.whiten = clip, clip if clip_high is None else clip_high, kl, whiten
        self.reference = reference or AdapterOff()

    def extend(self, model: nn.Module, load: Callable[..., Policy]) -> None:
        """The reference, where it counts."""
        super().extend(model, load)
        if self.kl:
            self.reference.extend(model, load)

    def read(self, policy: Policy, batch: Batch) -> dict[str, Tensor]:
        """Log-probabilities, those of the reference where it counts."""
        found = {} if self.repeats == 1 and not self.kl else {"old": -policy.token_losses(batch, temperature=self.temperature)}
        return found | ({"reference": -self.reference.compute(policy, batch, self.temperature)} if self.kl else {})

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
        old = batch.extra("old") if self._has_old else logps.detach()
        clipped = policy_loss(by_sequence(logps - old, batch), batch.extra("advantages"), self.clip, self.clip_high)  # (S,)
        which = {"low": clipped.low, "high": clipped.high, "region": clipped.low | clipped.high}
        metrics = {f"clip_ratio/{name}_mean": one.sum() / batch.window_rows for name, one in which.items()}
        return Loss((clipped.loss * batch.extra("share")).sum(), {**metrics, "entropy": -logps.sum() / batch.window_tokens})

    @property
    def _has_old(self) -> bool:
        return self.repeats > 1 or self.kl != 0

    @property
    def numbers(self) -> tuple[list[str], list[str]]:
        """What ``judge`` and ``read`` give."""
        return ["advantages"], [*(["old"] if self._has_old else []), *(["reference"] if self.kl else [])]
