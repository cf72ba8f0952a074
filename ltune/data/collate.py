"""Rows to a batch: laid end to end (flat), or one under the other with padding (padded). Both give the same loss to rounding.

Arrays stay NumPy until they reach the training process: tensors from a worker would travel through shared files that a killed run
leaves behind.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from ltune.data.rows import IGNORE, Sequence
from ltune.data.sampler import MicroBatch

LaidOut = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]  # input_ids, position_ids, labels, attention_mask


@dataclass
class Batch:
    """One micro-batch. T tokens in all, B rows, L the longest row, N trained tokens."""

    input_ids: Any  # (1, T) flat, (B, L) padded
    position_ids: Any  # the same shape; restarts at 0 with each row
    attention_mask: Any  # None flat, (B, L) padded
    predict_at: Any  # (N,): where, in the flattened input, the token before a trained one stands
    targets: Any  # (N,): the trained tokens
    tokens: int  # without padding
    window_tokens: int  # trained tokens in the whole optimizer step: all micro-batches, all ranks
    rows: tuple[int, ...]
    position: tuple[int, int, int] | None  # (epoch, window, micro-batch); None outside training

    @property
    def flat(self) -> bool:
        """Whether the rows lie end to end."""
        return self.attention_mask is None

    def tensors(self) -> "Batch":
        """The same with torch tensors that share the arrays' memory."""
        return self._map(lambda value: torch.from_numpy(value) if isinstance(value, np.ndarray) else value)

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """The same on ``device``; Lightning calls this."""
        return self._map(lambda value: value.to(device, non_blocking=non_blocking) if isinstance(value, torch.Tensor) else value)

    def _map(self, change: Callable[[Any], Any]) -> "Batch":
        return replace(self, **{field.name: change(getattr(self, field.name)) for field in fields(self)})


def collate(sequences: list[Sequence], plan: MicroBatch, *, flat: bool, pad_id: int) -> Batch:
    """Lay the sequences out as the plan's batch."""
    # A rank without rows in a short window still takes part in the step: one token, nothing trained.
    shown = sequences or [Sequence(np.array([pad_id], np.int32), np.array([IGNORE], np.int32))]
    lengths = [len(sequence.input_ids) for sequence in shown]
    lay = _flat if flat else _padded
    input_ids, position_ids, labels, mask = lay(shown, lengths, pad_id)
    trained = labels != IGNORE
    trained[:, 0] = False  # nothing stands before it
    predict_at = np.flatnonzero(trained) - 1
    targets = labels[trained]
    tokens = sum(lengths) if sequences else 0
    return Batch(input_ids, position_ids, mask, predict_at, targets, tokens, plan.window_tokens, plan.rows, plan.position)


def _flat(sequences: list[Sequence], lengths: list[int], pad_id: int) -> LaidOut:
    input_ids = np.concatenate([sequence.input_ids for sequence in sequences]).astype(np.int64)[None]  # (1, T)
    position_ids = np.concatenate([np.arange(length) for length in lengths])[None]
    labels = np.concatenate([sequence.labels for sequence in sequences]).astype(np.int64)[None]
    return input_ids, position_ids, labels, None


def _padded(sequences: list[Sequence], lengths: list[int], pad_id: int) -> LaidOut:
    shape = (len(sequences), max(lengths))
    input_ids = np.full(shape, pad_id, np.int64)  # (B, L)
    labels = np.full(shape, IGNORE, np.int64)
    mask = np.zeros(shape, np.int64)
    for row, (sequence, length) in enumerate(zip(sequences, lengths, strict=True)):
        input_ids[row, :length] = sequence.input_ids
        labels[row, :length] = sequence.labels
        mask[row, :length] = 1
    position_ids = np.broadcast_to(np.arange(shape[1]), shape).copy()
    return input_ids, position_ids, labels, mask
