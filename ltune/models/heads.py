"""Heads beside a causal model's own: a number for each position that is read. Trained in float32, saved beside the adapter."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ltune.errors import UsageError

WEIGHTS, SIZE = "value_head.safetensors", "value_head.json"


class ValueHead(nn.Module):
    """v = w h + b.

    Args:
        hidden_size: H.
        bias: Whether there is a b.
    """

    def __init__(self, hidden_size: int, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1, bias=bias, dtype=torch.float32)  # whatever the model is loaded in
        nn.init.normal_(self.linear.weight, std=1 / (hidden_size + 1) ** 0.5)
        if bias:
            nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """(N,) float32 of (N, H)."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.linear(hidden.float())[:, 0]

    def save(self, folder: Path) -> None:
        """Weights and size."""
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}, folder / WEIGHTS)
        (folder / SIZE).write_text(json.dumps({"hidden_size": self.linear.in_features}) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "ValueHead":
        """What ``save`` wrote, or LLaMA-Factory.

        Raises:
            UsageError: There is none.
        """
        if not (folder / WEIGHTS).is_file():
            raise UsageError(f"{folder} has no {WEIGHTS}: it is not the result of a reward model's training.")
        tensors = {name.replace("v_head.summary.", "linear."): tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()}
        head = cls(tensors["linear.weight"].shape[1], bias="linear.bias" in tensors)
        head.load_state_dict(tensors)
        return head
