"""CUDA graphs of the layers' forward and backward: a short step is launched at once instead of kernel by kernel.

Tokens are padded to a multiple of ``BUCKET`` with a row of their own, whether a graph is replayed or not, so that both give the same
bits. A size is run kernel by kernel the first time, which loads what capturing needs, and captured the second time. All graphs share
their memory: between a forward and its backward no other may run, which ``busy`` tells.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ltune.models.fast.projection import Gradients

BUCKET = 64  # tokens
ROWS = 8  # rows are padded to a multiple, with empty ones
SHORT = 4096  # tokens; a longer step keeps the GPU busy for longer than its launches take

Key = tuple[int, int]  # tokens, row borders


def padded(input_ids: Tensor, position_ids: Tensor, starts: Tensor) -> tuple[Key, dict[str, Tensor]]:
    """The size that a batch is run at, and its inputs filled up to that."""
    tokens, borders = len(input_ids), len(starts)
    size = -(-tokens // BUCKET) * BUCKET
    rows = -(-borders // ROWS) * ROWS + 1  # at least one more border, for the row that fills up
    filled = {
        "input_ids": functional.pad(input_ids, (0, size - tokens)),
        "position_ids": functional.pad(position_ids, (0, size - tokens)),
        "starts": functional.pad(starts, (0, rows - borders), value=size),
    }
    return (size, rows), filled


@dataclass
class Captured:
    """The two graphs of a size, and the tensors that they read and write."""

    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]
    y: Tensor
    dy: Tensor
    gradients: Gradients


class TrainingGraphs:
    """Graphs by size.

    Args:
        forward: Inputs to y (T, H) and what the backward wants.
        backward: (dy, that) to the gradients of the parameters.
    """

    def __init__(self, forward: Callable[[dict[str, Tensor]], tuple[Tensor, Any]], backward: Callable[[Tensor, Any], Gradients]) -> None:
        self._forward, self._backward = forward, backward
        self.seen: set[Key] = set()
        self.captured: dict[Key, Captured] = {}
        self.pool: Any = None
        self.busy = False

    def ready(self, key: Key) -> bool:
        """Whether this size is to be replayed; it is captured when it comes the second time."""
        if self.busy:
            return False
        if key in self.seen:
            return True
        self.seen.add(key)
        return False

    def clear(self) -> None:
        """Give the memory back."""
        self.captured.clear()
        self.seen.clear()
        self.pool, self.busy = None, False

    def forward(self, key: Key, inputs: dict[str, Tensor]) -> Tensor:
        """y (T, H); overwritten by the next forward."""
        if key not in self.captured:
            self.captured[key] = self._capture(inputs)
        captured = self.captured[key]
        for name, value in inputs.items():
            captured.inputs[name].copy_(value, non_blocking=True)
        captured.forward.replay()
        self.busy = True
        return captured.y

    def backward(self, key: Key, dy: Tensor) -> Gradients:
        """The parameters' gradients."""
        captured = self.captured[key]
        captured.dy[: len(dy)].copy_(dy)
        captured.dy[len(dy) :].zero_()
        captured.backward.replay()
        self.busy = False
        # The next replay writes over them, and gradients may still be added up
        present = [gradient for gradient in captured.gradients if gradient is not None]
        copies = iter(torch.cat([gradient.flatten() for gradient in present]).split([gradient.numel() for gradient in present]))
        return [None if gradient is None else next(copies).view(gradient.shape) for gradient in captured.gradients]

    def _capture(self, inputs: dict[str, Tensor]) -> Captured:
        static = {name: value.clone() for name, value in inputs.items()}
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(forward, pool=self.pool, capture_error_mode="thread_local"):
            y, kept = self._forward(static)
        self.pool = self.pool or forward.pool()
        dy = torch.zeros_like(y)
        with torch.cuda.graph(backward, pool=self.pool, capture_error_mode="thread_local"):
            gradients = self._backward(dy, kept)
        return Captured(forward, backward, static, y, dy, gradients)
