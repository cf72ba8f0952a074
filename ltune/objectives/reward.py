"""A reward model: a number for each answer, higher for the chosen one; and such a model as others use it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ltune.data.collate import Batch
from ltune.data.rows import Pair, Row
from ltune.errors import UsageError
from ltune.models.heads import ValueHead
from ltune.models.quantize import Quantizer
from ltune.objectives.base import Beside, Loss, Objective
from ltune.objectives.policy import Policy


class Reward(Objective):
    """A reward model by pairwise comparison (https://arxiv.org/abs/2203.02155, eq. 1), read at each answer's last token.

    The head is saved beside the adapter; ``RewardModel`` loads both.

    Args:
        bias: Whether the head has one, as a value head does; false: as transformers' head for sequence classification.
        centre: Weight of (r_w + r_l)^2, which draws the rewards towards 0 (https://arxiv.org/abs/2312.09244); 0: they may drift.
    """

    rows: ClassVar[type[Row]] = Pair

    def __init__(self, bias: bool = True, centre: float = 0.0) -> None:
        self.bias, self.centre = bias, centre
        self.head: ValueHead

    def extend(self, model: Any, load: Callable[..., Policy]) -> None:
        """The head."""
        device = next(model.parameters()).device
        self.head = ValueHead(model.config.get_text_config().hidden_size, bias=self.bias).to(device)
        model.value_head = self.head

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        """Sum over pairs of the loss / pairs in the whole optimizer step."""
        rewards = self.head(policy.hidden(batch, batch.ends))  # (S,)
        chosen, rejected = rewards[0::2], rewards[1::2]
        each = pairwise(chosen, rejected, self.centre)
        values = {
            "accuracy": (chosen > rejected).float(),
            "margin": chosen - rejected,
            "mean_reward": (chosen + rejected) / 2,
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
        }
        return Loss(each.sum() / batch.window_rows, {name: value.detach().sum() / batch.window_rows for name, value in values.items()})

    def save(self, folder: Path) -> None:
        """value_head.safetensors."""
        self.head.save(folder)


def pairwise(chosen: Tensor, rejected: Tensor, centre: float = 0.0) -> Tensor:
    """-log s(r_w - r_l) + centre (r_w + r_l)^2, (P,)."""
    return -F.logsigmoid(chosen - rejected) + centre * (chosen + rejected) ** 2


class RewardModel:
    """What a run of ``Reward`` left, to score answers with.

    Args:
        folder: Its result: adapter and head, or the whole model and the head.
        model: The base model of an adapter; null: the one that the adapter names.
        quantize: How the base's weights are stored: NF4, FP4, Int8; null: in 16 or 32 bits.
    """

    def __init__(self, folder: str, model: str | None = None, quantize: Quantizer | None = None) -> None:
        self.folder, self.model, self.quantize = folder, model, quantize
        self.policy: Policy
        self.head: ValueHead

    def beside(self) -> Beside:
        """The model that is loaded.

        Raises:
            UsageError: The folder holds no such result.
        """
        folder = Path(self.folder)
        described = folder / "adapter_config.json"
        if described.is_file():
            base = self.model or json.loads(described.read_text(encoding="utf-8"))["base_model_name_or_path"]
            return Beside(base, None, self.quantize)
        if (folder / "config.json").is_file():
            return Beside(self.folder, None, self.quantize)
        raise UsageError(f"{folder} has neither adapter_config.json nor config.json: it is no result of a training run.")

    def load(self, load: Callable[..., Policy], device: torch.device) -> None:
        """From the disk; ``load`` is what ``Objective.extend`` is given.

        Raises:
            UsageError: The folder holds no such result.
        """
        self.head = ValueHead.load(Path(self.folder)).to(device).requires_grad_(False)
        base = self.beside().model
        self.policy = load(base, quantize=self.quantize, adapter=None if base == self.folder else self.folder)

    @torch.no_grad()
    def scores(self, batch: Batch) -> Tensor:
        """The reward of each sequence, read at its last trained token: (S,) float32."""
        return self.head(self.policy.hidden(batch, batch.ends))
