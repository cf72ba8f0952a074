"""CUDA graphs of the layers' forward and backward: a short step is launched at once instead of kernel by kernel.

Tokens are padded to a multiple of ``BUCKET`` with a row of their own, whether a graph is replayed or not, so that both give the same
bits. A size is run kernel by kernel the first time, which loads what capturing needs, and captured the second time. All graphs share
their memory: between a forward and its backward no other may run, which ``busy`` tells. The first graph is proved against plain
launches; where it gives other bits, or cannot be captured, none is used.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ltune.models.fast.projection import Gradients
from ltune.models.fast.tiles import SHORT_ROWS, Lent, Rows

BUCKET = 64  # tokens, of a step that is captured
STEP = 32  # tokens, of others: with fewer shapes, the libraries' kernels are found and loaded once, and memory is used again as it is
ROWS = 8  # rows are padded to a multiple, with empty ones
LENT = 256  # room for borrowed tokens is made by this many
SHORT = 4096  # tokens; a longer step keeps the GPU busy for longer than its launches take

log = logging.getLogger(__name__)


class Size(NamedTuple):
    """What steps that share a graph have in common."""

    tokens: int
    borders: int  # between rows
    lent: int  # borrowed tokens that there is room for; 0: nothing is lent
    longest: int  # tokens of a row, or more; it tells how attention's kernels are cut up


def padded(input_ids: Tensor, position_ids: Tensor, rows: Rows, step: int) -> tuple[Size, dict[str, Tensor]]:
    """The size that a batch is run at, a multiple of ``step`` tokens, and its inputs filled up to that."""
    tokens, borders = len(input_ids), len(rows.starts)
    lent = _up(rows.lent.most, LENT) if rows.lent else 0
    most = _up(tokens, step)
    size = Size(most, _up(borders, ROWS) + 1, lent, SHORT_ROWS if rows.longest <= SHORT_ROWS else most)  # a border more: a row fills up
    more, further = (0, size.tokens - tokens), (0, size.borders - borders)
    filled = {
        "input_ids": functional.pad(input_ids, more),
        "position_ids": functional.pad(position_ids, more),
        "starts": functional.pad(rows.starts, further, value=size.tokens),
    }
    if rows.lent:
        filled |= {
            "lenders": functional.pad(rows.lent.lenders, further),
            "borrowed": functional.pad(rows.lent.borrowed, further, value=rows.lent.most),
            "borrowers": functional.pad(rows.lent.borrowers, further),
        }
    return size, filled


def rows_of(size: Size, inputs: dict[str, Tensor], before: Rows | None = None) -> Rows:
    """Of a batch that was filled up; ``before``: its rows, where the host is to know them."""
    lent = Lent(inputs["lenders"], inputs["borrowed"], inputs["borrowers"], size.lent) if size.lent else None
    lengths, loans = (before.lengths, before.loans) if before else ((), ())
    more = size.tokens - sum(lengths)
    return Rows(inputs["starts"], size.longest, lent, (*lengths, more) if lengths and more else lengths, loans)


def _up(count: int, step: int) -> int:
    return -(-count // step) * step


@dataclass
class Captured:
    """The two graphs of a size, and the tensors that they read and write."""

    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]
    y: Tensor
    dy: Tensor


class TrainingGraphs:
    """Graphs by size.

    Args:
        forward: (size, inputs) to y (T, H) and what the backward wants.
        backward: (dy, that) to the gradients of the parameters.
    """

    def __init__(
        self, forward: Callable[[Size, dict[str, Tensor]], tuple[Tensor, Any]], backward: Callable[[Tensor, Any], Gradients]
    ) -> None:
        self._forward, self._backward = forward, backward
        self.seen: set[Size] = set()
        self.captured: dict[Size, Captured] = {}
        self.pool: Any = None
        self.busy = False
        self.off = False
        self.gradients: Tensor | None = None  # of all parameters, end to end; every graph writes them here
        self.shapes: list[torch.Size | None] = []  # of each parameter's gradient

    def ready(self, size: Size, inputs: dict[str, Tensor]) -> bool:
        """Whether this size is to be replayed; it is captured when it comes the second time."""
        if self.busy or self.off:
            return False
        if size not in self.seen:
            self.seen.add(size)
            return False
        if size not in self.captured:
            self._add(size, inputs)
        return not self.off

    def _add(self, size: Size, inputs: dict[str, Tensor]) -> None:
        try:
            # First, so that its activations are gone before those of the graph come
            expected = None if self.captured else self._plainly(size, inputs)
            self.captured[size] = self._capture(size, inputs)
            same = expected is None or self._gives(size, inputs, *expected)
            problem = None if same else "a graph gives other bits than plain launches"
        except RuntimeError as error:
            problem = str(error).splitlines()[0]
        if problem is not None:
            log.warning("CUDA graphs are not used: %s", problem)
            self.clear()
            self.off = True

    def _plainly(self, size: Size, inputs: dict[str, Tensor]) -> tuple[Tensor, Gradients]:
        """y, and the gradients where y itself is the upstream one."""
        y, kept = self._forward(size, inputs)
        return y, self._backward(y, kept)

    def _gives(self, size: Size, inputs: dict[str, Tensor], y: Tensor, gradients: Gradients) -> bool:
        if not torch.equal(self.forward(size, inputs), y):
            self.busy = False
            return False
        pairs = zip(self.backward(size, y), gradients, strict=True)
        return all(
            found is not None and wanted is not None and torch.equal(found, wanted) for found, wanted in pairs if found is not wanted
        )

    def clear(self) -> None:
        """Give the memory back."""
        self.captured.clear()
        self.seen.clear()
        self.pool, self.busy, self.gradients = None, False, None

    def forward(self, size: Size, inputs: dict[str, Tensor]) -> Tensor:
        """y (T, H); overwritten by the next forward."""
        captured = self.captured[size]
        for name, value in inputs.items():
            captured.inputs[name].copy_(value, non_blocking=True)
        captured.forward.replay()
        self.busy = True
        return captured.y

    def backward(self, size: Size, dy: Tensor) -> Gradients:
        """The parameters' gradients."""
        captured = self.captured[size]
        captured.dy[: len(dy)].copy_(dy)
        captured.dy[len(dy) :].zero_()
        captured.backward.replay()
        self.busy = False
        assert self.gradients is not None
        # The next replay writes over them, and gradients may still be added up
        parts = iter(self.gradients.clone().split([shape.numel() for shape in self.shapes if shape is not None]))
        return [None if shape is None else next(parts).view(shape) for shape in self.shapes]

    def _capture(self, size: Size, inputs: dict[str, Tensor]) -> Captured:
        static = {name: value.clone() for name, value in inputs.items()}
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(forward, pool=self.pool, capture_error_mode="thread_local"):
            y, kept = self._forward(size, static)
        self.pool = self.pool or forward.pool()
        dy = torch.zeros_like(y)
        with torch.cuda.graph(backward, pool=self.pool, capture_error_mode="thread_local"):
            gradients = self._backward(dy, kept)
            present = [gradient.flatten() for gradient in gradients if gradient is not None]
            if self.gradients is None:
                self.gradients = torch.cat(present)
            else:
                torch.cat(present, out=self.gradients)
        self.shapes = [None if gradient is None else gradient.shape for gradient in gradients]
        return Captured(forward, backward, static, y, dy)
