"""Binary classifier optimization: good answers above, bad ones below the average reward so far."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ltune.data.collate import Batch, Step
from ltune.data.rows import Rated, Row
from ltune.errors import UsageError
from ltune.objectives.base import Actor, Loss
from ltune.objectives.logprobs import sequence_logps
from ltune.objectives.policy import Policy
from ltune.objectives.rated import told
from ltune.objectives.reference import AdapterOff, Reference, Referenced


class BCO(Referenced):
    """Binary classifier optimization (https://arxiv.org/abs/2404.04656, eq. 10), with the reward shift of its section 4.2.

    The shift is the average of the rewards' means over good and over bad answers, of all steps before: so it does not depend on how the
    step is cut up. It goes into the checkpoints.

    Args:
        beta: How strongly the policy is held to the reference.
        good_weight: Weight of good answers.
        bad_weight: Weight of bad answers.
        reference: AdapterOff; OtherAdapter; OtherModel. Each can cache its log-probabilities.
    """

    rows: ClassVar[type[Row]] = Rated

    def __init__(
        self,
        beta: float = 0.1,
        good_weight: float = 1.0,
        bad_weight: float = 1.0,
        reference: Reference = AdapterOff(),  # noqa: B008 (jsonargparse shows it)
    ) -> None:
        if beta <= 0:
            raise UsageError(f"objective.beta is above 0, got {beta}")
        self.beta, self.good_weight, self.bad_weight, self.reference = beta, good_weight, bad_weight, reference
        self.sums = torch.zeros(2, 2, dtype=torch.float64)  # of the rewards of bad and of good answers so far, and how many they are
        self.pending: Tensor | None = None  # the same of the step under way, this rank's

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        """Sum over answers of weight times the classifier's loss / rows in the whole optimizer step."""
        reference = sequence_logps(self.reference.token_losses(policy, batch), batch)  # (S,)
        logps = sequence_logps(policy.token_losses(batch), batch)
        rewards, good = self.beta * (logps - reference), batch.extra("good")
        shift = (self.sums[0] / self.sums[1].clamp(min=1)).mean().float()
        weights = good * self.good_weight + (1 - good) * self.bad_weight
        each = weights * bco(rewards, good > 0, shift)
        if torch.is_grad_enabled():
            self._note(rewards.detach().double(), good.double())
        return Loss(each.sum() / batch.window_rows, told(rewards, logps, good) | {"shift": shift * len(batch.rows) / batch.window_rows})

    def collect(self, step: Step, actor: Actor) -> Step:
        """The rows, and nothing of a step that was not taken."""
        self.sums = self.sums.to(actor.device)
        self.pending = None
        return super().collect(step, actor)

    def _note(self, rewards: Tensor, good: Tensor) -> None:
        marks = torch.stack([1 - good, good])  # (2, S)
        sums = torch.stack([(marks * rewards).sum(1), marks.sum(1)])
        self.pending = sums if self.pending is None else self.pending + sums

    def stepped(self, add_ranks: Callable[[Tensor], Tensor]) -> None:
        """The step's rewards belong to those before from now on."""
        if self.pending is not None:
            self.sums = self.sums + add_ranks(self.pending)
            self.pending = None

    def state_dict(self) -> dict[str, Any]:
        """The sums so far."""
        return {"sums": self.sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with them."""
        self.sums = state["sums"] if state else torch.zeros_like(self.sums)


def bco(rewards: Tensor, good: Tensor, shift: Tensor) -> Tensor:
    """-log s(r - shift) of good answers, -log s(shift - r) of bad ones; (S,)."""
    sign = torch.where(good, 1.0, -1.0)
    return -F.logsigmoid(sign * (rewards - shift))
