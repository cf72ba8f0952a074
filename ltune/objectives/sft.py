"""Supervised fine-tuning: cross-entropy on the tokens that the masking marks as trained."""

from typing import ClassVar

from torch import Tensor

from ltune.data.collate import Batch
from ltune.data.rows import Chat, Row
from ltune.objectives.base import Loss, Objective
from ltune.objectives.policy import Policy


class SFT(Objective):
    """Supervised fine-tuning on conversations (https://arxiv.org/abs/2203.02155, step 1)."""

    rows: ClassVar[type[Row]] = Chat

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        """Sum of -log p(token | what stands before it) / trained tokens in the whole optimizer step."""
        return Loss(policy.token_losses(batch).sum() / batch.window_tokens, {})

    def counted(self, batch: Batch) -> tuple[int, int]:
        """The loss is one per trained token."""
        return len(batch.targets), batch.window_tokens

    def derived(self, loss: Tensor) -> dict[str, Tensor]:
        """The perplexity."""
        return {"perplexity": loss.exp()}
