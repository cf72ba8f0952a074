"""Rows to a batch: laid end to end (flat), or one under the other with padding (padded). Both give the same loss to rounding.

A row is one sequence, or several that stay together: a pair's chosen answer and its rejected one.

Arrays stay NumPy until they reach the training process: tensors from a worker would travel through shared files that a killed run
leaves behind.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltune.data.rows import IGNORE, Sequence
from ltune.data.sharing import Compact, compact

LaidOut = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]  # input_ids, position_ids, labels, attention_mask


@dataclass
class Batch:
    """One micro-batch. T tokens in all, S sequences, L the longest one, N trained tokens. ``shape[0]`` of a padded batch is S."""

    input_ids: Any  # (1, T) flat, (S, L) padded
    position_ids: Any  # the same shape; restarts at 0 with each sequence
    attention_mask: Any  # None flat, (S, L) padded
    predict_at: Any  # (N,): where, in the flattened input, the token before a trained one stands
    targets: Any  # (N,): the trained tokens
    starts: Any  # (S + 1,) int32: where each sequence begins, laid end to end, and where the last one ends
    lengths: tuple[int, ...]  # tokens of each sequence
    tokens: int  # without padding
    window_tokens: float  # trained tokens in the whole optimizer step, each by its weight: all micro-batches, all ranks
    window_rows: int  # rows in it
    rows: tuple[int, ...]
    sequences: int  # S; 0 where a rank has no row: then one token stands there that belongs to none
    extras: dict[str, Any]  # (S,) or (N,), float32: what the sequences bring along; see ``extra``
    compact: Compact | None = None  # the same for who computes nothing twice: see sharing.py

    @property
    def flat(self) -> bool:
        """Whether the rows lie end to end."""
        return self.attention_mask is None

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.lengths)

    @property
    def owner(self) -> Tensor:
        """(N,) int64: which sequence, 0 to S - 1, each trained token belongs to. Computed where the batch is."""
        if not self.flat:
            return torch.div(self.predict_at, self.input_ids.shape[1], rounding_mode="floor")
        return torch.bucketize(self.predict_at, self.starts[1:], right=True)

    @property
    def ends(self) -> Tensor:
        """(S,) int64: where, in the flattened input, each sequence's last trained token stands; its last token where none is trained."""
        if not self.sequences:
            return self.predict_at[:0]
        last = self.starts[1:].long() - 1
        if not self.flat:
            last += torch.arange(self.sequences, device=last.device) * self.input_ids.shape[1] - self.starts[:-1]
        trained = torch.full_like(last, -1).scatter_reduce(0, self.owner, self.predict_at + 1, "amax")
        return torch.where(trained < 0, last, trained)

    @property
    def weights(self) -> Any:
        """(N,): what each trained token counts; None: all the same."""
        return self.extras.get("weight")

    def extra(self, name: str) -> Tensor:
        """One of ``extras``; of a batch without rows, which has none, no number."""
        return self.extras[name] if self.sequences else torch.zeros(0, device=self.predict_at.device)

    def tensors(self, device: torch.device | str = "cpu", *, non_blocking: bool = False) -> "Batch":
        """The same with tensors on ``device``; on the CPU they share the arrays' memory."""

        def change(value: Any) -> Any:
            return torch.from_numpy(value).to(device, non_blocking=non_blocking) if isinstance(value, np.ndarray) else value

        extras = {name: change(value) for name, value in self.extras.items()}
        inner = self.compact and replace(self.compact, **_changed(self.compact, change))
        return replace(self, **_changed(self, change) | {"extras": extras, "compact": inner})


def _changed(record: Any, change: Callable[[Any], Any]) -> dict[str, Any]:
    return {field.name: change(getattr(record, field.name)) for field in fields(record)}


@dataclass
class Step:
    """What one rank trains on in one optimizer step, or evaluates at once: rows, to be laid out in micro-batches right before they are
    needed."""

    micro_batches: tuple[tuple[int, ...], ...]
    sequences: dict[int, tuple[Sequence, ...]]  # of each row
    window_tokens: float  # trained tokens of all ranks, each by its weight
    window_rows: int  # rows of all ranks
    position: tuple[int, int] | None  # (epoch, window) of training; None: these rows are evaluated
    flat: bool
    pad_id: int
    origins: Mapping[int, int] | None = None  # where these rows are not the data's own: which of those each came from

    @property
    def rows(self) -> tuple[int, ...]:
        """All of them."""
        return tuple(row for rows in self.micro_batches for row in rows)

    @property
    def tokens(self) -> int:
        """Without padding."""
        return sum(len(sequence) for row in self.rows for sequence in self.sequences[row])

    def batches(self, most: int | None = None, *, once: bool = True, any_order: bool = False) -> list[Batch]:
        """The micro-batches.

        Args:
            most: As few as there can be with at most that many tokens each (a longer row stands alone); None: as they are configured.
            once: Whether somebody may compute what sequences share once (``Batch.compact``).
            any_order: Whether the rows of a micro-batch may stand in another order: those side by side then that begin alike.
        """
        parts = self.micro_batches if most is None else self._arranged(most)
        return [self._laid_out(rows, once, any_order) for rows in parts] or [self._laid_out((), once)]

    def _laid_out(self, rows: tuple[int, ...], once: bool, any_order: bool = False) -> Batch:
        if any_order and once and self.flat:
            rows = tuple(sorted(rows, key=lambda row: np.asarray(self.sequences[row][0].input_ids, np.int32).tobytes()))
        sequences = [sequence for row in rows for sequence in self.sequences[row]]
        rows = rows if self.origins is None else tuple(self.origins[row] for row in rows)
        return collate(sequences, rows, self.window_tokens, self.window_rows, flat=self.flat, pad_id=self.pad_id, once=once)

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
        lengths = [len(sequence) for row in rows for sequence in self.sequences[row]]
        return sum(lengths) if self.flat else len(lengths) * max(lengths)


def collate(
    sequences: list[Sequence], rows: tuple[int, ...], window_tokens: float, window_rows: int, *, flat: bool, pad_id: int, once: bool = True
) -> Batch:
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
    starts = np.cumsum([0, *lengths], dtype=np.int32)
    tokens = sum(lengths) if sequences else 0
    places = predict_at, targets, starts, tuple(lengths), tokens
    computed = compact(input_ids[0], position_ids[0], starts, predict_at) if flat and once else None
    return Batch(input_ids, position_ids, mask, *places, window_tokens, window_rows, rows, len(sequences), _extras(sequences), computed)


def _extras(sequences: list[Sequence]) -> dict[str, np.ndarray]:
    """(S,) of the sequences' numbers, (N,) of their trained tokens'."""
    names = sequences[0].extras if sequences else ()
    return {name: np.concatenate([np.atleast_1d(one.extras[name]) for one in sequences]).astype(np.float32) for name in names}


def _flat(sequences: list[Sequence], lengths: list[int], pad_id: int) -> LaidOut:
    input_ids = np.concatenate([sequence.input_ids for sequence in sequences], dtype=np.int64)[None]  # (1, T)
    position_ids = np.concatenate([np.arange(length) for length in lengths])[None]
    labels = np.concatenate([sequence.labels for sequence in sequences], dtype=np.int64)[None]
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
