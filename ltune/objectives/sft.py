"""Supervised fine-tuning: cross-entropy on the tokens that the masking marks as trained."""

from typing import ClassVar

from torch import Tensor

from ltune.data.collate import Batch
from ltune.data.rows import Chat, Row
from ltune.errors import UsageError
from ltune.objectives.base import Loss, Objective
from ltune.objectives.policy import Policy


class TokenLoss(Objective):
    """Base of the methods whose loss is one per trained token, weighed by ``data.weights``."""

    def mean(self, values: Tensor, batch: Batch) -> Tensor:
        """This batch's share of sum_n w_n value_n / sum_n w_n over the trained tokens of the whole optimizer step. (), of (N,)."""
        weights = batch.weights
        return (values if weights is None else weights * values).sum() / batch.window_tokens

    def counted(self, batch: Batch) -> tuple[float, float]:
        """The trained tokens by their weights."""
        weights = batch.weights
        return len(batch.targets) if weights is None else float(weights.sum()), batch.window_tokens


class SFT(TokenLoss):
    """Supervised fine-tuning on conversations (https://arxiv.org/abs/2203.02155, step 1).

    Args:
        dft: Weigh each token's loss by its probability, so that what the model holds impossible pulls less
            (https://arxiv.org/abs/2508.05629).
        label_smoothing: Share of each target that is spread over all tokens, 0 to below 1 (https://arxiv.org/abs/1512.00567).
        neftune_alpha: Noise on the embedded tokens in training, 5 to 15; 0: none (https://arxiv.org/abs/2310.05914).
    """

    rows: ClassVar[type[Row]] = Chat

    def __init__(self, dft: bool = False, label_smoothing: float = 0.0, neftune_alpha: float = 0.0) -> None:
        if not 0 <= label_smoothing < 1:
            raise UsageError(f"label_smoothing: 0 to below 1, got {label_smoothing}")
        if dft and label_smoothing:
            raise UsageError("dft and label_smoothing are two answers to the same question: one target's probability.\nSet one of them.")
        self.dft, self.label_smoothing, self.neftune_alpha = dft, label_smoothing, checked_noise(neftune_alpha)
        self.any_order = not neftune_alpha  # noise is drawn for the tokens in their order

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        """Sum of -log p(token | what stands before it) / trained tokens in the whole optimizer step; in training, with what the options
        make of it."""
        if not policy.training:
            return Loss(self.mean(policy.token_losses(batch), batch), {})
        with policy.noise(batch, self.neftune_alpha):
            losses = policy.token_losses(batch, smoothing=self.label_smoothing)
        if not self.dft:
            return Loss(self.mean(losses, batch), {})
        return Loss(self.mean(dynamic(losses), batch), {"cross_entropy": self.mean(losses.detach(), batch)})

    def derived(self, loss: Tensor) -> dict[str, Tensor]:
        """The perplexity; validation's loss is the plain cross-entropy."""
        return {"perplexity": loss.exp()}


def checked_noise(alpha: float) -> float:
    """NEFTune's alpha.

    Raises:
        UsageError: It is no strength.
    """
    if not 0 <= alpha < float("inf"):
        raise UsageError(f"neftune_alpha: 0 or more, got {alpha}")
    return alpha


def dynamic(losses: Tensor) -> Tensor:
    """DFT's p l = exp(-l) l of token losses l (N,), p without gradient."""
    return (-losses.detach()).exp() * losses
