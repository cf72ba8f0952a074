"""Rows of numbers with room for more behind each, so that a low-rank product can join a large one (joined.py).

What is passed around is the view without the room; it is told by the distance of its rows.
"""

import torch
from torch import Tensor

ROOM = 64  # numbers; with fewer, rows would begin where the products read them more slowly (measured)


def roomy(rows: int, width: int, like: Tensor) -> Tensor:
    """(rows, width), not yet written, with room."""
    return torch.empty(rows, width + ROOM, dtype=like.dtype, device=like.device)[:, :width]


def laid_out(rows: int, width: int, like: Tensor, with_room: bool) -> Tensor:
    """(rows, width), not yet written, with room where that is asked for."""
    return roomy(rows, width, like) if with_room else like.new_empty(rows, width)


def has_room(x: Tensor) -> bool:
    """Whether there is room behind the rows of x."""
    if x.dim() != 2 or x.stride() != (x.shape[1] + ROOM, 1):
        return False
    return (x.storage_offset() + len(x) * x.stride(0)) * x.element_size() <= x.untyped_storage().nbytes()


def whole(x: Tensor) -> Tensor:
    """(rows, width + ROOM): x (rows, width) and its room."""
    return x.as_strided((len(x), x.stride(0)), x.stride())


def room(x: Tensor) -> Tensor:
    """(rows, ROOM)."""
    return whole(x)[:, x.shape[1] :]
