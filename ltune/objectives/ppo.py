"""PPO: each token judged by a value head that learns what is to be expected (https://arxiv.org/abs/1707.06347, 2203.02155)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltune.data.collate import Batch
from ltune.generation.sampling import Sampling
from ltune.models.heads import ValueHead
from ltune.objectives.advantages import generalized_advantages, sums, whitened
from ltune.objectives.base import Loss
from ltune.objectives.clipping import k1, policy_loss, value_loss
from ltune.objectives.kl_control import AdaptiveKL, KLControl, RunningScale
from ltune.objectives.policy import Policy
from ltune.objectives.reference import Reference
from ltune.objectives.reinforcement import Reinforcement
from ltune.objectives.rewards import RewardFunction
from ltune.objectives.rollout import Rollout


class PPO(Reinforcement):
    """Proximal policy optimization. The value head reads what the model's own head reads, and both train the same adapter.

        r_t = - beta (log p_old - log p_ref)_t, and the answer's reward at its last token;   A by GAE, whitened;   R = A + V_old
        loss = - min(r A, clip(r, 1 - clip, 1 + clip) A) + value_weight / 2 max((V - R)^2, (clip(V, V_old -+ value_clip) - R)^2)

    both averaged over the tokens of a step, r = p / p_old.

    Args:
        rewards: Reward functions, a reward model among them; their weighted sum is the reward.
        answers: To each prompt.
        sampling: How the policy answers; max_new_tokens is the longest answer.
        iterations: How often a rollout is gone through.
        mini_batches: Optimizer steps each time.
        clip: How far r may be from 1 before it teaches nothing more.
        value_clip: How far a value may move in a step.
        value_weight: Of the value loss.
        gamma: How much a later reward counts.
        decay: GAE's lambda.
        kl: What a divergence from the reference costs: AdaptiveKL, FixedKL.
        whiten_rewards: Tokens' rewards of a rollout get standard deviation 1.
        normalize_scores: Rewards of answers get the mean 0 and standard deviation 1 of all so far, before the divergence is taken off.
        clip_scores: Rewards of answers, after that, are at most this far from 0; null: as far as they are.
        no_end_penalty: Taken off the reward of an answer that did not come to its end.
        value_head: Folder of a head to begin with, an earlier run's or a reward model's; null: a new one.
        reference: What the divergence is from; null: the model without its adapter.
    """

    def __init__(
        self,
        rewards: list[RewardFunction],
        answers: int = 1,
        sampling: Sampling = Sampling(temperature=1.0),  # noqa: B008
        iterations: int = 4,
        mini_batches: int = 1,
        clip: float = 0.2,
        value_clip: float = 0.2,
        value_weight: float = 0.1,
        gamma: float = 1.0,
        decay: float = 0.95,
        kl: KLControl = AdaptiveKL(),  # noqa: B008
        whiten_rewards: bool = False,
        normalize_scores: bool = False,
        clip_scores: float | None = None,
        no_end_penalty: float = 0.0,
        value_head: str | None = None,
        reference: Reference | None = None,
    ) -> None:
        super().__init__(rewards, sampling, answers, iterations, mini_batches, reference)
        self.clip, self.value_clip, self.value_weight, self.gamma, self.decay = clip, value_clip, value_weight, gamma, decay
        self.kl, self.whiten_rewards, self.no_end_penalty = kl, whiten_rewards, no_end_penalty
        self.scale, self.clip_scores = RunningScale() if normalize_scores else None, clip_scores
        self.value_head = value_head
        self.head: ValueHead

    @property
    def refers(self) -> bool:
        """Where a divergence costs something."""
        return self.kl.coefficient != 0

    def extend(self, model: Any, load: Callable[..., Policy]) -> None:
        """The value head becomes a part of the model."""
        super().extend(model, load)
        size = model.config.get_text_config().hidden_size
        head = ValueHead.load(Path(self.value_head)) if self.value_head else ValueHead(size)
        self.head = model.value_head = head.to(next(model.parameters()).device)

    def save(self, folder: Path) -> None:
        """The value head, beside the adapter."""
        self.head.save(folder)

    def read(self, policy: Policy, batch: Batch) -> dict[str, Tensor]:
        """Log-probabilities and values, and the reference's log-probabilities."""
        losses, hidden = policy.losses_and_hidden(batch, self.temperature)
        reference = -self.reference.compute(policy, batch, self.temperature) if self.refers else -losses
        return {"old": -losses, "values": self.head(hidden), "reference": reference}

    def judge(self, rollout: Rollout) -> dict[str, float]:
        """Advantages and returns: (N,)."""
        of, lengths, beta = rollout.of_tokens, rollout.answered, self.kl.coefficient
        scores = rollout.rewards.nan_to_num(0.0) - self.no_end_penalty * (~rollout.ended).float()
        scores = self.scale.normalized(scores) if self.scale else scores
        scores = scores.clamp(-self.clip_scores, self.clip_scores) if self.clip_scores is not None else scores
        divergence = k1(of["old"], of.pop("reference"))
        rewards = -beta * divergence
        rewards[lengths.cumsum(0) - 1] += scores
        rewards = whitened(rewards, keep_mean=True) if self.whiten_rewards else rewards
        advantages = generalized_advantages(rewards, of["values"], lengths, self.gamma, self.decay)
        of["advantages"], of["returns"] = whitened(advantages), advantages + of["values"]
        kl = sums(divergence, lengths).mean()
        self.kl.update(float(kl), len(rollout))
        return {
            "objective/kl": float(kl),
            "objective/kl_coefficient": beta,
            "objective/scores": float(scores.mean()),
            "objective/non_score_reward": float(-beta * kl),
            "objective/rlhf_reward": float(scores.mean() - beta * kl),
            "objective/entropy": float(sums(-of["old"], lengths).mean()),
        }

    def shares(self, rollout: Rollout, numbers: Tensor) -> Tensor:
        """1 / tokens."""
        return torch.full((len(numbers),), 1 / float(rollout.answered[numbers].sum()))

    def trained(self, policy: Policy, batch: Batch) -> Loss:
        """The formula."""
        losses, hidden = policy.losses_and_hidden(batch, self.temperature)
        log_ratios, share = -losses - batch.extra("old"), batch.extra("share")[batch.owner]  # (N,)
        clipped = policy_loss(log_ratios, batch.extra("advantages"), self.clip, self.clip)
        value, value_clipped = value_loss(self.head(hidden), batch.extra("values"), batch.extra("returns"), self.value_clip)
        told = {
            "loss/policy_avg": clipped.loss,
            "loss/value_avg": value,
            "policy/clipfrac_avg": (clipped.low | clipped.high).float(),
            "policy/approxkl_avg": 0.5 * log_ratios.square(),
            "val/clipfrac_avg": value_clipped.float(),
            "val/ratio": log_ratios.exp(),
        }
        metrics = {name: (one.detach() * share).sum() for name, one in told.items()}
        return Loss(((clipped.loss + self.value_weight * value) * share).sum(), metrics)

    @property
    def numbers(self) -> tuple[list[str], list[str]]:
        """What ``judge`` and ``read`` give."""
        return [], ["old", "values", "advantages", "returns"]

    def state_dict(self) -> dict[str, Any]:
        """The rollout, the divergence's price, and the scores' moments."""
        scale = {"scale": self.scale.state()} if self.scale else {}
        return super().state_dict() | {"kl": self.kl.state()} | scale

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Of a checkpoint."""
        super().load_state_dict(state)
        if "kl" in state:
            self.kl.restore(state["kl"])
        if self.scale and "scale" in state:
            self.scale.restore(state["scale"])
