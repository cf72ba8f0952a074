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

LaidOut = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]  # input_ids, position_ids, labels, attention_mask


@dataclass
class Batch:
    """One micro-batch. T tokens in all, B rows, L the longest row, N trained tokens."""

    input_ids: Any  # (1, T) flat, (B, L) padded
    position_ids: Any  # the same shape; restarts at 0 with each row
    attention_mask: Any  # None flat, (B, L) padded
    predict_at: Any  # (N,): where, in the flattened input, the token before a trained one stands
    targets: Any  # (N,): the trained tokens
    starts: Any  # (B + 1,) int32: where each row begins, laid end to end, and where the last one ends
    longest: int  # tokens of the longest row
    tokens: int  # without padding
    window_tokens: int  # trained tokens in the whole optimizer step: all micro-batches, all ranks
    rows: tuple[int, ...]

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


@dataclass
class Step:
    """What one rank trains on in one optimizer step: rows, to be laid out in micro-batches right before they are needed."""

    micro_batches: tuple[tuple[int, ...], ...]
    sequences: dict[int, Sequence]  # of each row
    window_tokens: int  # trained tokens of all ranks
    position: tuple[int, int]  # (epoch, window)
    flat: bool
    pad_id: int

    @property
    def rows(self) -> tuple[int, ...]:
        """All of them."""
        return tuple(row for rows in self.micro_batches for row in rows)

    @property
    def tokens(self) -> int:
        """Without padding."""
        return sum(len(self.sequences[row]) for row in self.rows)

    def batches(self, most: int | None = None) -> list[Batch]:
        """The micro-batches; with ``most``, as few as there can be with at most that many tokens each (a longer row stands alone)."""
        parts = self.micro_batches if most is None else self._arranged(most)
        return [self._laid_out(rows) for rows in parts] or [self._laid_out(())]

    def _laid_out(self, rows: tuple[int, ...]) -> Batch:
        return collate([self.sequences[row] for row in rows], rows, self.window_tokens, flat=self.flat, pad_id=self.pad_id)

    def _arranged(self, most: int) -> list[tuple[int, ...]]:
        """Whole micro-batches side by side as long as they fit; one that does not fit alone is halved until its parts do."""
        parts: list[tuple[int, ...]] = []
        for rows in self.micro_batches:
            for part in self._halved(rows, most):
                if parts and self._size(parts[-1] + part) <= most:
                    parts[-1] += part
                else:
                    parts.append(part)
        return parts

    def _halved(self, rows: tuple[int, ...], most: int) -> list[tuple[int, ...]]:
        if len(rows) <= 1 or self._size(rows) <= most:
            return [rows]
        middle = len(rows) // 2
        return self._halved(rows[:middle], most) + self._halved(rows[middle:], most)

    def _size(self, rows: tuple[int, ...]) -> int:
        lengths = [len(self.sequences[row]) for row in rows]
        return sum(lengths) if self.flat else len(lengths) * max(lengths)

    def to(self, device: torch.device, non_blocking: bool = False) -> "Step":
        """Itself: each micro-batch goes to the device when its turn comes. Lightning calls this."""
        return self


def collate(sequences: list[Sequence], rows: tuple[int, ...], window_tokens: int, *, flat: bool, pad_id: int) -> Batch:
    """Lay the sequences out as one batch."""
    # A rank without rows in a short window still takes part in the step: one token, nothing trained.
    shown = sequences or [Sequence(np.array([pad_id], np.int32), np.array([IGNORE], np.int32))]
    lengths = [len(sequence.input_ids) for sequence in shown]
    lay = _flat if flat else _padded
    input_ids, position_ids, labels, mask = lay(shown, lengths, pad_id)
    trained = labels != IGNORE
    trained[:, 0] = False  # nothing stands before it
    predict_at = np.flatnonzero(trained) - 1
    targets = labels[trained]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    tokens = sum(lengths) if sequences else 0
    return Batch(input_ids, position_ids, mask, predict_at, targets, starts, max(lengths), tokens, window_tokens, rows)


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
