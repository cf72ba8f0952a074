"""Which rows go into which micro-batch, as a pure function of (seed, epoch).

A *window* is the rows of one optimizer step over all ranks. Its rows are fixed by the order alone, so batch 8, batch 1 x accumulate 8 and
2 ranks x 4 take the same rows in the same step. It knows nothing of tokens but their counts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Sampler


@dataclass(frozen=True)
class MicroBatch:
    """The rows that one rank puts through the model at once."""

    rows: tuple[int, ...]  # empty where a short window leaves a rank without work
    window_tokens: int  # trained tokens in the whole window, all micro-batches, all ranks
    position: tuple[int, int, int] | None  # (epoch, window, micro-batch of this rank); None outside training


def epoch_order(rows: int, seed: int, epoch: int) -> list[int]:
    """The order of rows in an epoch: a permutation of range(rows)."""
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed + epoch)).tolist()


class WindowSampler(Sampler[MicroBatch]):
    """Yields one epoch's micro-batches of one rank at each iteration, epoch after epoch.

    Args:
        trained: Trained tokens of each row, (rows,).
        seed: Of the order.
        batch_size: Rows in a micro-batch.
        accumulate: Micro-batches of a rank in a window.
        rank: This process.
        world_size: Processes.
        start: (epoch, window) that the first iteration begins with.
    """

    def __init__(
        self,
        trained: np.ndarray,
        *,
        seed: int,
        batch_size: int,
        accumulate: int,
        rank: int,
        world_size: int,
        start: tuple[int, int] = (0, 0),
    ) -> None:
        self.trained = trained
        self.seed = seed
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.rank = rank
        self.world_size = world_size
        self.next_start = start

    @property
    def window_rows(self) -> int:
        """Rows in a full window."""
        return self.batch_size * self.accumulate * self.world_size

    @property
    def windows(self) -> int:
        """Optimizer steps in an epoch."""
        return -(-len(self.trained) // self.window_rows)

    def __len__(self) -> int:
        """Micro-batches of this rank in a whole epoch; every rank has as many."""
        full, rest = divmod(len(self.trained), self.window_rows)
        return full * self.accumulate + -(-rest // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[MicroBatch]:
        epoch, window = self.next_start
        self.next_start = (epoch + 1, 0)
        order = epoch_order(len(self.trained), self.seed, epoch)
        for number in range(window, self.windows):
            rows = order[number * self.window_rows : (number + 1) * self.window_rows]
            yield from self._deal(rows, epoch, number)

    def _deal(self, rows: list[int], epoch: int, window: int) -> Iterator[MicroBatch]:
        """Micro-batch j of the window goes to rank j modulo the number of ranks."""
        tokens = int(self.trained[rows].sum())
        size, world = self.batch_size, self.world_size
        rounds = -(-len(rows) // (size * world))
        for turn in range(rounds):
            begin = (turn * world + self.rank) * size
            yield MicroBatch(tuple(rows[begin : begin + size]), tokens, (epoch, window, turn))


class InOrder(Sampler[MicroBatch]):
    """The rows once, in file order, dealt to the ranks; every rank gets as many micro-batches.

    Args:
        trained: Trained tokens of each row, (rows,).
        batch_size: Rows in a micro-batch.
        rank: This process.
        world_size: Processes.
    """

    def __init__(self, trained: np.ndarray, *, batch_size: int, rank: int, world_size: int) -> None:
        self.trained = trained
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return -(-len(self.trained) // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[MicroBatch]:
        for turn in range(len(self)):
            begin = (turn * self.world_size + self.rank) * self.batch_size
            rows = tuple(range(begin, min(begin + self.batch_size, len(self.trained))))
            yield MicroBatch(rows, int(self.trained.sum()), None)
