"""Kahneman-Tversky optimization: good answers up, bad ones down, as seen from where the policy stands already."""

from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ltune.data.collate import Batch, Step
from ltune.data.rows import Mismatched, Row, Sequence
from ltune.errors import UsageError
from ltune.objectives.base import Actor, Loss
from ltune.objectives.logprobs import sequence_logps
from ltune.objectives.metrics import Mean
from ltune.objectives.policy import Policy
from ltune.objectives.rated import told
from ltune.objectives.reference import AdapterOff, Reference, Referenced


class KTO(Referenced):
    """Kahneman-Tversky optimization (https://arxiv.org/abs/2402.01306, eq. 8).

    The divergence from the reference is estimated on the micro-batch as it is configured (data.batch_size), by each row's question with the
    answer of the row before it; it is at least 0 and has no gradient. A data.batch_size of 1 makes a poor estimate.

    Args:
        beta: How strongly the policy is held to the reference.
        good_weight: Weight of good answers.
        bad_weight: Weight of bad answers.
        divergence: Whether it is estimated; false: it counts as 0 (TRL's apo_zero_unpaired, https://arxiv.org/abs/2408.06266).
        reference: AdapterOff; OtherAdapter; OtherModel. Each can cache its log-probabilities.
    """

    rows: ClassVar[type[Row]] = Mismatched

    def __init__(
        self,
        beta: float = 0.1,
        good_weight: float = 1.0,
        bad_weight: float = 1.0,
        divergence: bool = True,
        reference: Reference = AdapterOff(),  # noqa: B008 (jsonargparse shows it)
    ) -> None:
        if beta <= 0:
            raise UsageError(f"objective.beta is above 0, got {beta}")
        self.beta, self.good_weight, self.bad_weight, self.divergence, self.reference = beta, good_weight, bad_weight, divergence, reference

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        """Sum over answers of weight (1 - value) / rows in the whole optimizer step."""
        reference = sequence_logps(self.reference.token_losses(policy, batch), batch)  # (S,)
        logps = sequence_logps(policy.token_losses(batch), batch)
        good, divergence = batch.extra("good"), batch.extra("divergence")
        weights = good * self.good_weight + (1 - good) * self.bad_weight
        each = weights * kto(logps - reference, good > 0, divergence, self.beta)
        estimate = Mean(divergence.sum(), torch.ones_like(divergence).sum())
        metrics = told(self.beta * (logps - reference), logps, good) | {"kl": estimate}
        return Loss(each.sum() / batch.window_rows, metrics)

    def collect(self, step: Step, actor: Actor) -> Step:
        """The rows' own answers, each with the divergence of its micro-batch."""
        step = super().collect(step, actor)
        ratios = self._mismatched_ratios(step, actor) if self.divergence else dict.fromkeys(step.rows, 0.0)
        sequences: dict[int, tuple[Sequence, ...]] = {}
        for rows in step.micro_batches:
            divergence = np.array(max(0.0, sum(ratios[row] for row in rows) / max(len(rows), 1)), np.float32)
            for row in rows:
                answer = step.sequences[row][0]
                sequences[row] = (replace(answer, extras={**answer.extras, "divergence": divergence}),)
        return replace(step, sequences=sequences)

    def _mismatched_ratios(self, step: Step, actor: Actor) -> dict[int, float]:
        """log p / p_reference of the other rows' answers."""
        others = replace(step, sequences={row: parts[1:] for row, parts in step.sequences.items()})
        rows: list[int] = []
        found: list[Tensor] = []
        for batch in actor.batches(others):
            reference = self.reference.token_losses(actor.policy, batch)
            found.append(sequence_logps(actor.policy.token_losses(batch) - reference, batch))
            rows += batch.rows
        return dict(zip(rows, torch.cat(found).tolist(), strict=True))


def kto(ratios: Tensor, good: Tensor, divergence: Tensor, beta: float) -> Tensor:
    """1 - s(beta (r - z)) of good answers, 1 - s(beta (z - r)) of bad ones; all (S,)."""
    sign = torch.where(good, 1.0, -1.0)
    return 1 - torch.sigmoid(beta * sign * (ratios - divergence))
