"""From trained tokens to the sequences that they belong to."""

import torch
from torch import Tensor

from ltune.data.collate import Batch


def by_sequence(values: Tensor, batch: Batch) -> Tensor:
    """Sums over each sequence's trained tokens: (S,) float32 of (N,). Not with index_add: on a GPU that adds in any order."""
    own = batch.owner == torch.arange(batch.sequences, device=values.device)[:, None]  # (S, N)
    return torch.where(own, values.float(), 0.0).sum(1)


def token_counts(batch: Batch) -> Tensor:
    """Trained tokens of each sequence, (S,) float32."""
    return by_sequence(torch.ones_like(batch.targets, dtype=torch.float32), batch)


def sequence_logps(losses: Tensor, batch: Batch) -> Tensor:
    """log p(answer | prompt) of each sequence, (S,); of token losses (N,)."""
    return -by_sequence(losses, batch)


def shared_weights(batch: Batch, alpha: float) -> Tensor:
    """LD-DPO's weights of the tokens, (N,): 1 as far as both answers of a pair have one, ``alpha`` in the longer one's rest
    (https://arxiv.org/abs/2409.06411, eq. 9)."""
    lengths = token_counts(batch)  # (S,)
    first = lengths.cumsum(0) - lengths
    shared = lengths.view(batch.sequences // 2, 2).amin(1).repeat_interleave(2)
    place = torch.arange(len(batch.targets), device=lengths.device) - first[batch.owner]
    return 1 - (1 - alpha) * (place >= shared[batch.owner]).float()
