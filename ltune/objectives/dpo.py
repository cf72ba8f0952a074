"""Direct preference optimization: the policy's log-ratio to a reference is the reward, and the chosen answer's should be the higher one."""

from typing import ClassVar

from ltune.data.collate import Batch
from ltune.data.rows import Pair, Row
from ltune.errors import UsageError
from ltune.objectives.base import Loss
from ltune.objectives.pairs import Pairs, told
from ltune.objectives.policy import Policy
from ltune.objectives.preference_losses import PreferenceLoss, Sigmoid
from ltune.objectives.reference import AdapterOff, Reference, Referenced


class DPO(Referenced):
    """Direct preference optimization (https://arxiv.org/abs/2305.18290).

    Args:
        loss: Of a pair: Sigmoid (with label_smoothing, cDPO), Robust, Hinge, IPO, ExoPair, NCAPair, BCOPair, SPPOHard, AOT, AOTUnpaired,
            APOZero, APODown, DiscoPOP, SigmoidNorm.
        beta: How strongly the policy is held to the reference.
        sft_weight: Adds so much of minus the chosen answer's log-probability per token (https://arxiv.org/abs/2404.19733).
        ld_alpha: LD-DPO: weight of the longer answer's tokens beyond the shorter one's length (https://arxiv.org/abs/2409.06411);
            null: as all others.
        reference: AdapterOff; OtherAdapter; OtherModel. Each can cache its log-probabilities.
    """

    rows: ClassVar[type[Row]] = Pair

    def __init__(
        self,
        loss: PreferenceLoss = Sigmoid(),  # noqa: B008 (stateless; jsonargparse shows it)
        beta: float = 0.1,
        sft_weight: float = 0.0,
        ld_alpha: float | None = None,
        reference: Reference = AdapterOff(),  # noqa: B008
    ) -> None:
        if beta <= 0:
            raise UsageError(f"objective.beta is above 0, got {beta}")
        if ld_alpha is not None and not 0 <= ld_alpha <= 1:
            raise UsageError(f"objective.ld_alpha is between 0 and 1, or null, got {ld_alpha}")
        self.of_pairs, self.beta, self.sft_weight, self.ld_alpha, self.reference = loss, beta, sft_weight, ld_alpha, reference

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        """Sum over pairs of loss(beta, log-ratios) / pairs in the whole optimizer step."""
        reference = self.reference.token_losses(policy, batch)  # (N,)
        losses = policy.token_losses(batch)  # (N,)
        pairs = Pairs.of(losses, reference, batch, self.ld_alpha)
        each = self.of_pairs.of(pairs, self.beta)  # (P,)
        if self.sft_weight:
            each = each - self.sft_weight * Pairs.of(losses, None, batch).chosen_mean
        rewards = self.beta * pairs.chosen_ratio, self.beta * pairs.rejected_ratio
        return Loss(each.sum() / batch.window_rows, told(*rewards, pairs.chosen, pairs.rejected, batch))
