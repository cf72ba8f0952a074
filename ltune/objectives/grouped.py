"""What GRPO and RLOO have in common: several answers to each prompt, each judged by the others, and a step that is clipped."""

from torch import Tensor

from ltune.data.collate import Batch
from ltune.errors import UsageError
from ltune.generation.sampling import Sampling
from ltune.objectives.clipping import Clipped
from ltune.objectives.policy import Policy
from ltune.objectives.reference import Reference
from ltune.objectives.reinforcement import Reinforcement
from ltune.objectives.rewards import RewardFunction


class Grouped(Reinforcement):
    """Base of GRPO, RLOO.

    Args:
        rewards: Reward functions; their weighted sum is the reward.
        sampling: How the policy answers.
        group: Answers to each prompt; at least 2.
        iterations: How often a rollout is gone through.
        mini_batches: Optimizer steps each time.
        clip: How far p / p_old may fall below 1 before it teaches nothing more.
        clip_high: And rise above; None: as far.
        kl: Weight of the divergence from the reference; 0: there is no reference.
        reference: What the divergence is from; None: the model without its adapter.
    """

    def __init__(
        self,
        rewards: list[RewardFunction],
        sampling: Sampling,
        group: int,
        iterations: int,
        mini_batches: int,
        clip: float,
        clip_high: float | None,
        kl: float,
        reference: Reference | None,
    ) -> None:
        super().__init__(rewards, sampling, group, iterations, mini_batches, reference)
        if group < 2:
            raise UsageError(f"{type(self).__name__}: answers is 2 or more, got {group}: one alone has no other to be better than")
        self.clip, self.clip_high, self.kl = clip, clip if clip_high is None else clip_high, kl

    @property
    def refers(self) -> bool:
        """Where it has a weight."""
        return self.kl != 0

    @property
    def has_old(self) -> bool:
        """Whether log p_old is read: the policy will have moved on before the last step on a rollout. Else it is log p."""
        return self.repeats > 1

    def read(self, policy: Policy, batch: Batch) -> dict[str, Tensor]:
        """Log-probabilities of the policy and of the reference, as far as they are needed."""
        found = {"old": -policy.token_losses(batch, temperature=self.temperature)} if self.has_old else {}
        return found | ({"reference": -self.reference.compute(policy, batch, self.temperature)} if self.refers else {})

    @property
    def numbers(self) -> tuple[list[str], list[str]]:
        """What ``judge`` and ``read`` give."""
        return ["advantages"], [*(["old"] if self.has_old else []), *(["reference"] if self.refers else [])]

    def told_of(self, clipped: Clipped, whole: float, logps: Tensor, batch: Batch) -> dict[str, Tensor]:
        """How many of the ``whole`` step's ratios were clipped, and the entropy, under TRL's names."""
        which = {"low": clipped.low, "high": clipped.high, "region": clipped.low | clipped.high}
        ratios = {f"clip_ratio/{name}_mean": one.sum() / whole for name, one in which.items()}
        return ratios | {"entropy": -logps.sum() / batch.window_tokens}
