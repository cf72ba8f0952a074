"""Entropy-adaptive fine-tuning: a token that the model is sure of, and wrong about, pulls less (https://arxiv.org/abs/2601.02151)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ltune.data.collate import Batch
from ltune.data.rows import Chat, Row
from ltune.errors import UsageError
from ltune.objectives.base import Loss
from ltune.objectives.logits import States, in_parts
from ltune.objectives.policy import Policy
from ltune.objectives.sft import TokenLoss, checked_noise

LIKELIEST = 20  # tokens that the entropy is taken over
SCALE = 3.0  # about its maximum, log 20


class EAFT(TokenLoss):
    """Supervised fine-tuning with each token's loss weighed by the entropy of what the model expects there.

    Args:
        alpha: Exponent of the weight; 0: plain SFT.
        neftune_alpha: Noise on the embedded tokens in training, as SFT's.
    """

    rows: ClassVar[type[Row]] = Chat

    def __init__(self, alpha: float = 1.0, neftune_alpha: float = 0.0) -> None:
        if not alpha >= 0:
            raise UsageError(f"EAFT alpha: 0 or more, got {alpha}")
        self.alpha, self.neftune_alpha = alpha, checked_noise(neftune_alpha)
        self.any_order = not neftune_alpha  # noise is drawn for the tokens in their order

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        """(H_n / 3)^alpha -log p(token_n) over the trained tokens of the whole optimizer step; the weight has no gradient. Validation's is
        the plain cross-entropy."""
        if not policy.training:
            return Loss(self.mean(policy.token_losses(batch), batch), {})
        with policy.noise(batch, self.neftune_alpha):
            states = States.of(policy, batch)

        def weighed(read: Tensor, targets: Tensor) -> Tensor:
            logits = states.head(read).float()  # (n, V)
            weight = (entropy(logits.detach()) / SCALE) ** self.alpha
            losses = F.cross_entropy(logits, targets, reduction="none")
            return torch.stack([weight * losses, losses], 1)  # (n, 2)

        loss, losses = in_parts(weighed, states.width, states.hidden, batch.targets).unbind(1)
        return Loss(self.mean(loss, batch), {"cross_entropy": self.mean(losses.detach(), batch)})

    def derived(self, loss: Tensor) -> dict[str, Tensor]:
        """The perplexity."""
        return {"perplexity": loss.exp()}


def entropy(logits: Tensor) -> Tensor:
    """Of the likeliest tokens' distribution, (n,) of logits (n, V)."""
    log_p = logits.topk(min(LIKELIEST, logits.shape[-1]), -1).values.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)
