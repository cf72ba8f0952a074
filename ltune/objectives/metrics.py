"""Metrics as shares: what micro-batches and ranks each give of a step's values, added up on the device and read when they are logged."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mean:
    """A metric that is an average over some of the rows or tokens only, of which a micro-batch, or a whole step, may have none."""

    sum: Tensor  # ()
    count: Tensor  # ()


Metrics = Mapping[str, Tensor | Mean]


def parts_of(metrics: Metrics, weight: float = 1.0) -> Tensor:
    """(2, metrics) float64: the sums, and what they are to be divided by, which is NaN for a plain share.

    Args:
        metrics: Of a micro-batch.
        weight: That plain shares are multiplied by.
    """
    pairs = [torch.stack(_pair(value, weight)) for value in metrics.values()]
    return torch.stack(pairs, 1)


def _pair(value: Tensor | Mean, weight: float) -> tuple[Tensor, Tensor]:
    if isinstance(value, Mean):
        return value.sum.detach().double(), value.count.detach().double()
    value = value.detach().double()
    return value * weight, torch.full_like(value, math.nan)


def values_of(names: Iterable[str], sums: Tensor, weight: float = 1.0) -> dict[str, float]:
    """The values by name, of sums of ``parts_of``; an average over nothing is left out. Waits for the device.

    Args:
        names: In the order of the columns.
        sums: (2, metrics).
        weight: That plain shares are divided by.
    """
    columns = zip(names, *sums.tolist(), strict=True)
    return {name: total / (weight if math.isnan(count) else count) for name, total, count in columns if count}
