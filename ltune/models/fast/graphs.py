"""A step of many small kernels, recorded once per number of rows as a CUDA graph and replayed with one launch.

Rows are filled up to one of a few sizes. A size is computed plainly the first time, which loads what the recording needs, recorded the
second, and replayed from then on; a size that comes up once is never recorded.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)


class Graphs:
    """The recorded steps.

    Args:
        compute: A step: from (values, n) integers to a tensor whose first dimension is n.
        filler: The values of a row that only fills up.
        most: No step has more rows.
        device: The GPU.
    """

    def __init__(self, compute: Callable[[Tensor], Tensor], filler: Sequence[int], most: int, device: torch.device) -> None:
        self.compute, self.filler, self.most, self.device = compute, filler, most, device
        self.met: set[int] = set()
        self.recorded: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}  # the graph, what it reads and what it writes
        self.pool = torch.cuda.graph_pool_handle()
        self.broken = False

    def run(self, values: Sequence[Sequence[int]]) -> Tensor:
        """The step of these rows; the tensor is good until the next call."""
        count = len(values[0])
        size = min(rounded_up(count), self.most)
        rows = filled_up(values, self.filler, size)
        if size in self.met and size not in self.recorded and not self.broken:
            self._record(size, rows)
        if size not in self.recorded:
            self.met.add(size)
            return self.compute(rows.to(self.device))[:count]
        graph, read, written = self.recorded[size]
        read.copy_(rows)
        graph.replay()
        return written[:count]

    def _record(self, size: int, rows: Tensor) -> None:
        read, graph = rows.to(self.device), torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                written = self.compute(read)
        except RuntimeError as error:
            self.broken = True
            log.warning("generation goes on without CUDA graphs: %s", str(error).splitlines()[0][:200])
            return
        self.recorded[size] = graph, read, written


def filled_up(values: Sequence[Sequence[int]], filler: Sequence[int], size: int) -> Tensor:
    """(values, size), on the CPU."""
    rows = np.empty((len(values), size), dtype=np.int64)  # ten times as quick as torch.tensor with lists
    for row, line, fill in zip(rows, values, filler, strict=True):
        row[: len(line)], row[len(line) :] = line, fill
    return torch.from_numpy(rows)


def rounded_up(count: int) -> int:
    """A size that is at most a quarter larger: 1 to 8, then four between a power of two and the next."""
    step = max(1, 1 << (count - 1).bit_length() >> 3)
    return -(-count // step) * step
