"""Which rows go into which optimizer step, as a pure function of (seed, epoch).

A *window* is the rows of one optimizer step over all ranks. Its rows are fixed by the order alone, so batch 8, batch 1 x accumulate 8 and
2 ranks x 4 take the same rows in the same step. How a rank divides its share into micro-batches changes memory and speed, not the step.
It knows nothing of tokens but their counts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Sampler


@dataclass(frozen=True)
class MicroBatch:
    """Rows that one rank evaluates at once."""

    rows: tuple[int, ...]
    window_tokens: float  # trained tokens in all of them, all ranks, each by its weight
    window_rows: int  # how many they are


@dataclass(frozen=True)
class Window:
    """The rows that one rank trains on in one optimizer step, divided into micro-batches."""

    micro_batches: tuple[tuple[int, ...], ...]  # none where a short window leaves a rank without work
    tokens: float  # trained tokens in the whole window, all ranks, each by its weight
    rows: int  # in the whole window, all ranks
    position: tuple[int, int]  # (epoch, window)


def epoch_order(rows: int, seed: int, epoch: int) -> list[int]:
    """The order of rows in an epoch: a permutation of range(rows)."""
    generator = torch.Generator().manual_seed(seed + epoch)
    return torch.randperm(rows, generator=generator, device="cpu").tolist()  # wherever Lightning would have tensors made just now


class WindowSampler(Sampler[Window]):
    """Yields one epoch's windows of one rank at each iteration, epoch after epoch.

    Args:
        trained: Trained tokens of each row, each by its weight, (rows,).
        seed: Of the order.
        batch_size: Rows in a micro-batch.
        accumulate: Micro-batches of a rank in a window.
        rank: This process.
        world_size: Processes.
        start: (epoch, window) that the first iteration begins with.
        micro_batches: Rows of each micro-batch, where they were packed by their tokens; each epoch takes them in another order. None:
            ``batch_size`` rows in the epoch's order.
        repeats: How often each window comes, as a window of its own number each time.
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
        micro_batches: list[tuple[int, ...]] | None = None,
        repeats: int = 1,
    ) -> None:
        self.trained = trained
        self.seed = seed
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.rank = rank
        self.world_size = world_size
        self.next_start = start
        self.packed = micro_batches
        self.repeats = repeats

    def __len__(self) -> int:
        """Windows, that is optimizer steps, in a whole epoch."""
        count = len(self.packed) if self.packed is not None else -(-len(self.trained) // self.batch_size)
        return -(-count // (self.accumulate * self.world_size)) * self.repeats

    def __iter__(self) -> Iterator[Window]:
        epoch, window = self.next_start
        self.next_start = (epoch + 1, 0)
        micro_batches = self.micro_batches(epoch)
        for number in range(window, len(self)):
            yield self.window(micro_batches, epoch, number)

    def window(self, micro_batches: list[tuple[int, ...]], epoch: int, number: int) -> Window:
        """One of an epoch's, of whose ``micro_batches``."""
        size = self.accumulate * self.world_size
        first = number // self.repeats * size
        return self.deal(micro_batches[first : first + size], (epoch, number))

    def heaviest(self, lengths: np.ndarray) -> tuple[Window, np.ndarray]:
        """What a rank computes in a step of the first epoch that has the most tokens, the same on all ranks; and the tokens of each rank in
        each step of that epoch, (steps, ranks).

        Args:
            lengths: Tokens of each row, (rows,).
        """
        micro_batches, size = self.micro_batches(0), self.accumulate * self.world_size
        begins = np.cumsum([0, *map(len, micro_batches[:-1])])
        tokens = np.add.reduceat(lengths[np.concatenate(micro_batches)], begins)  # of each micro-batch
        shares = np.pad(tokens, (0, -len(tokens) % size)).reshape(-1, self.accumulate, self.world_size).sum(1)
        number, rank = divmod(int(shares.argmax()), self.world_size)
        return self.deal(micro_batches[number * size : (number + 1) * size], (0, number * self.repeats), rank), shares

    def micro_batches(self, epoch: int) -> list[tuple[int, ...]]:
        """All micro-batches of an epoch, over all ranks, in their order."""
        if self.packed is not None:
            return [self.packed[number] for number in epoch_order(len(self.packed), self.seed, epoch)]
        order = epoch_order(len(self.trained), self.seed, epoch)
        return [tuple(order[begin : begin + self.batch_size]) for begin in range(0, len(order), self.batch_size)]

    def deal(self, micro_batches: list[tuple[int, ...]], position: tuple[int, int], rank: int | None = None) -> Window:
        """A rank's share of a window, this one's if none is named; micro-batch j goes to rank j modulo the number of ranks."""
        tokens = sum(self.trained[list(rows)].sum().item() for rows in micro_batches)
        rows = sum(map(len, micro_batches))
        return Window(tuple(micro_batches[self.rank if rank is None else rank :: self.world_size]), tokens, rows, position)


class InOrder(Sampler[MicroBatch]):
    """The rows once, in file order, dealt to the ranks; every rank gets as many micro-batches.

    Args:
        trained: Trained tokens of each row, each by its weight, (rows,).
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
            yield MicroBatch(rows, self.trained.sum().item(), len(self.trained))
