"""Rows of numbers filled up to a multiple, so that shapes come back: for a product of yet another shape the library looks for a kernel, and
loads it, which takes milliseconds; cuDNN plans its attention anew for a row of yet another length, which takes 160 (on an H200)."""

import torch
from torch import Tensor
from torch.nn import functional

from ltune.models.fast.tiles import Rows

STEP = 128
SHARE = 64  # of a long row's length: it is filled up by less than that part of it


def filled(x: Tensor) -> Tensor:
    """(n, H) with zeros below, n a multiple of STEP."""
    return functional.pad(x, (0, 0, 0, -len(x) % STEP)) if len(x) % STEP else x  # which would copy


def planned(length: int) -> int:
    """The next of SHARE lengths between two powers of two."""
    step = max(1, 2 ** ((length - 1).bit_length() - 1) // SHARE)
    return length + -length % step


def lengthened(input_ids: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor, Rows]:
    """Of one row with tokens behind its own, which do not change these: (T,) each, T as ``planned``."""
    longer = planned(len(input_ids))
    more = (0, longer - len(input_ids))
    starts = longer * torch.arange(2, dtype=torch.int32, device=input_ids.device)
    return functional.pad(input_ids, more), functional.pad(position_ids, more), Rows(starts, longer, lengths=(longer,))
