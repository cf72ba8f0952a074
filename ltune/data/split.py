"""Which prepared rows train and which validate, how data sets are mixed, and batches read out of them."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from ltune.data.collate import Step
from ltune.data.mixing import Mix
from ltune.data.prepared import Prepared
from ltune.data.rows import Sequence
from ltune.data.sampler import MicroBatch, Window
from ltune.errors import UsageError


@dataclass(frozen=True)
class Split:
    """Some rows of the prepared ones, in file order or in a mix's."""

    prepared: Prepared
    indices: np.ndarray  # (rows,) int64
    trained: np.ndarray  # (rows,): trained tokens of each, by their weights

    @classmethod
    def whole(cls, prepared: Prepared) -> "Split":
        """All rows."""
        return cls(prepared, np.arange(len(prepared)), prepared.counted)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, row: int) -> tuple[Sequence, ...]:
        return self.prepared[int(self.indices[row])]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row; (rows,)."""
        return np.asarray(self.prepared.lengths)[self.indices]

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
    trained = prepared.counted
    val, train = np.sort(drawn[:held_out]), np.sort(drawn[held_out:])
    return Split(prepared, train, trained[train]), Split(prepared, val, trained[val])


def by_dataset(rows: Split) -> dict[str, Split]:
    """The rows of each data set, in the order of the data sets; ``rows`` are in file order."""
    parts: dict[str, Split] = {}
    end = 0
    for dataset in rows.prepared.report["datasets"]:
        begin, end = end, end + dataset["rows"]
        chosen = slice(*np.searchsorted(rows.indices, (begin, end)))
        name = next(name for number in range(1, len(parts) + 2) if (name := _numbered(dataset["name"], number)) not in parts)
        parts[name] = Split(rows.prepared, rows.indices[chosen], rows.trained[chosen])
    return parts


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name} {number}"


def short_names(names: list[str]) -> list[str]:
    """The names without the folders before them, where they still differ then."""
    short = [name.rstrip("/").rpartition("/")[2] for name in names]
    return short if len(set(short)) == len(short) else names


def mixed(rows: Split, mix: Mix, weights: list[float], seed: int) -> Split:
    """The rows as one epoch has them; validation rows are held out before, so that none of them is trained on."""
    parts = by_dataset(rows)
    if empty := next((name for name, part in parts.items() if not len(part)), None):
        raise UsageError(f"data set {empty}: all its rows are held out for validation; none is left to train on.\nLower  data.val_size")
    positions = mix.positions([len(part) for part in parts.values()], weights, seed)
    if not len(positions):
        raise UsageError("data.mix: no row is left to train on; raise the data sets' weights.")
    return Split(rows.prepared, rows.indices[positions], rows.trained[positions])


class Batches(TorchDataset):
    """A sampler's plan in, its rows out: what a step trains on, or what is evaluated at once.

    Args:
        rows: Where the plan's row numbers point to.
        flat: Rows end to end; otherwise padded.
        pad_id: Token for padding.
    """

    def __init__(self, rows: Split, *, flat: bool, pad_id: int) -> None:
        self.rows = rows
        self.flat = flat
        self.pad_id = pad_id

    def __getitem__(self, plan: MicroBatch | Window) -> Step:
        if isinstance(plan, MicroBatch):
            sequences = {row: self.rows[row] for row in plan.rows}
            return Step((plan.rows,), sequences, plan.window_tokens, plan.window_rows, None, self.flat, self.pad_id)
        sequences = {row: self.rows[row] for rows in plan.micro_batches for row in rows}
        return Step(plan.micro_batches, sequences, plan.tokens, plan.rows, plan.position, self.flat, self.pad_id)

    def loader(self, sampler: Sampler, *, workers: int, seed: int) -> DataLoader:
        """A loader of what the sampler plans; without a generator of its own, each iteration would draw from the global random numbers."""
        own = torch.Generator().manual_seed(seed)
        return DataLoader(self, sampler=sampler, batch_size=None, collate_fn=_unchanged, num_workers=workers, generator=own)


def _unchanged(step):
    return step
