"""How the rows of several data sets make one epoch: a list of positions made before training. Nothing is copied, and a run resumes exactly.

The order of an epoch is a permutation of that list. What a mix decides is which rows it holds, and how often.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence as Items
from typing import Literal

import numpy as np

from ltune.errors import UsageError


class Mix(ABC):
    """A way to put data sets together."""

    @abstractmethod
    def positions(self, sizes: Items[int], weights: Items[float], seed: int) -> np.ndarray:
        """Rows to train on, as positions in the data sets laid end to end: (rows,) int64.

        Args:
            sizes: Rows of each data set, 1 or more.
            weights: Of each data set.
            seed: Where the mix has none of its own.
        """


class Concatenate(Mix):
    """One data set after the other; a weight of 2 has a data set's rows twice, one of 0.5 a random half of them.

    Args:
        seed: Which rows a broken weight takes; null: seed_everything.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed

    def positions(self, sizes: Items[int], weights: Items[float], seed: int) -> np.ndarray:
        """Each data set's rows as often as its weight says."""
        random = np.random.default_rng(seed if self.seed is None else self.seed)
        offsets = np.cumsum([0, *sizes])
        return np.concatenate(
            [offset + _weighted(size, weight, random) for offset, size, weight in zip(offsets[:-1], sizes, weights, strict=True)]
        )


def _weighted(size: int, weight: float, random: np.random.Generator) -> np.ndarray:
    whole, rest = divmod(weight, 1)
    drawn = np.sort(random.permutation(size)[: round(rest * size)])
    return np.concatenate([np.tile(np.arange(size), int(whole)), drawn]).astype(np.int64)


class Interleave(Mix):
    """Rows of the data sets in turn, or drawn; the same rows as ``datasets.interleave_datasets`` and LLaMA-Factory take.

    Args:
        stop: under: when the first data set has run out; over: when the last has, the others begin anew; once: likewise, but no row twice.
        probabilities: Of each data set, to be drawn from; null: its weight's share, and in turn where all weights are 1.
        seed: Of the drawing; null: seed_everything.
    """

    def __init__(
        self, stop: Literal["under", "over", "once"] = "under", probabilities: list[float] | None = None, seed: int | None = None
    ) -> None:
        if probabilities is not None and (min(probabilities, default=0) <= 0 or abs(sum(probabilities) - 1) > 1e-6):
            raise UsageError(f"data.mix: probabilities are above 0 and add up to 1; got {probabilities}, which is {sum(probabilities):g}.")
        self.stop, self.probabilities, self.seed = stop, probabilities, seed

    def positions(self, sizes: Items[int], weights: Items[float], seed: int) -> np.ndarray:
        """Which data set each row comes from, then its next row."""
        probabilities = self._probabilities(weights)
        lengths = np.asarray(sizes, np.int64)
        if probabilities is None:
            turns = np.tile(np.arange(len(lengths)), lengths.min() if self.stop == "under" else lengths.max())
        else:
            turns = self._drawn(lengths, probabilities, np.random.default_rng(seed if self.seed is None else self.seed))
        number = np.empty_like(turns)  # how many rows of the same data set came before
        for dataset in range(len(lengths)):
            number[turns == dataset] = np.arange(np.count_nonzero(turns == dataset))
        kept = number < lengths[turns] if self.stop == "once" else np.ones(len(turns), bool)
        return (np.cumsum(lengths) - lengths)[turns[kept]] + number[kept] % lengths[turns[kept]]

    def _probabilities(self, weights: Items[float]) -> np.ndarray | None:
        weighted = any(weight != 1 for weight in weights)
        if self.probabilities is None:
            return np.asarray(weights) / sum(weights) if weighted else None
        if weighted:
            raise UsageError("data.mix: its probabilities and the data sets' weights say the same thing twice; keep one.")
        if len(self.probabilities) != len(weights):
            raise UsageError(f"data.mix: there are {len(self.probabilities)} probabilities for {len(weights)} data sets.")
        return np.asarray(self.probabilities)

    def _drawn(self, lengths: np.ndarray, probabilities: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Data sets as drawn, up to the row with which the first, or the last, has been gone through."""
        enough = np.any if self.stop == "under" else np.all
        blocks, counts = [], np.zeros(len(lengths), np.int64)
        while not enough(counts >= lengths):
            blocks.append(random.choice(len(lengths), size=1000, p=probabilities))  # in blocks as `datasets` draws them
            counts += np.bincount(blocks[-1], minlength=len(lengths))
        turns = np.concatenate(blocks)
        through = [np.flatnonzero(turns == dataset)[length - 1] for dataset, length in enumerate(lengths) if counts[dataset] >= length]
        return turns[: (min(through) if self.stop == "under" else max(through)) + 1]
