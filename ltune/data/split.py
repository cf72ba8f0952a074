"""Which prepared rows train and which validate, and micro-batches read out of them."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from ltune.data.collate import Batch, collate
from ltune.data.prepared import Prepared
from ltune.data.rows import Sequence
from ltune.data.sampler import MicroBatch
from ltune.errors import UsageError


@dataclass(frozen=True)
class Split:
    """Some rows of the prepared ones, in file order."""

    prepared: Prepared
    indices: np.ndarray  # (rows,) int64
    trained: np.ndarray  # (rows,) int64: trained tokens of each

    @classmethod
    def whole(cls, prepared: Prepared) -> "Split":
        """All rows."""
        return cls(prepared, np.arange(len(prepared)), np.asarray(prepared.trained))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, row: int) -> Sequence:
        return self.prepared[int(self.indices[row])]

    def place(self, row: int) -> str:
        """Where the row came from."""
        return self.prepared.place(int(self.indices[row]))


def split(prepared: Prepared, val_size: int | float, seed: int) -> tuple[Split, Split | None]:
    """Training and validation rows; ``val_size`` rows (1 or more) or that share (below 1) are drawn for validation by ``seed``."""
    if not val_size:
        return Split.whole(prepared), None
    held_out = math.ceil(val_size * len(prepared)) if val_size < 1 else int(val_size)
    if held_out >= len(prepared):
        raise UsageError(f"data.val_size: {val_size} would hold out {held_out} of {len(prepared)} rows; none would be left to train on.")
    drawn = torch.randperm(len(prepared), generator=torch.Generator().manual_seed(seed)).numpy()
    trained = np.asarray(prepared.trained)
    val, train = np.sort(drawn[:held_out]), np.sort(drawn[held_out:])
    return Split(prepared, train, trained[train]), Split(prepared, val, trained[val])


class MicroBatches(torch.utils.data.Dataset):
    """A sampler's plan in, a batch of arrays out.

    Args:
        rows: Where the plan's row numbers point to.
        flat: Rows end to end; otherwise padded.
        pad_id: Token for padding.
    """

    def __init__(self, rows: Split, *, flat: bool, pad_id: int) -> None:
        self.rows = rows
        self.flat = flat
        self.pad_id = pad_id

    def __getitem__(self, plan: MicroBatch) -> Batch:
        return collate([self.rows[row] for row in plan.rows], plan, flat=self.flat, pad_id=self.pad_id)
