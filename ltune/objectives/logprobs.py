"""From trained tokens to the sequences that they belong to."""

import torch
from torch import Tensor

from ltune.data.collate import Batch


def by_sequence(values: Tensor, batch: Batch) -> Tensor:
    """Sums over each sequence's trained tokens: (S,) float32 of (N,)."""
    return torch.zeros(batch.sequences, dtype=torch.float32, device=values.device).index_add(0, batch.owner, values.float())


def sequence_logps(losses: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """log p(answer | prompt) of each sequence, (S,), and how many tokens the answer has, (S,); of token losses (N,)."""
    return -by_sequence(losses, batch), by_sequence(torch.ones_like(losses), batch).detach()
