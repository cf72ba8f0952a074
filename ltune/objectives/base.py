"""What every objective is: a function from the policy and a batch to a loss.

It refuses to know the optimizer, the trainer and the devices.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from torch import Tensor

from ltune.data.collate import Batch
from ltune.data.rows import Row
from ltune.objectives.policy import Policy


class Loss(NamedTuple):
    """A micro-batch's share of the step's loss, and what else is worth logging."""

    loss: Tensor  # (): adding it up over the micro-batches and ranks of an optimizer step gives the step's loss
    metrics: dict[str, Tensor]


class Objective(ABC):
    """Base of the methods; the constructor holds the knobs, the call the data."""

    rows: ClassVar[type[Row]]  # what the data module must give

    @abstractmethod
    def loss(self, policy: Policy, batch: Batch) -> Loss:
        """The loss of one micro-batch."""
