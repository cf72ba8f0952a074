"""Rows of numbers filled up to a multiple, so that shapes come back: for a product of yet another shape the library looks for a kernel, and
loads it, which takes milliseconds."""

from torch import Tensor
from torch.nn import functional

STEP = 128


def filled(x: Tensor) -> Tensor:
    """(n, H) with zeros below, n a multiple of STEP."""
    return functional.pad(x, (0, 0, 0, -len(x) % STEP))
