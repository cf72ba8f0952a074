"""A projection's weights in one tensor with its low-rank part, so that one product computes both.

    both  W  B        [x, z] [W, B]^T = x W^T + z B^T        [dy, dz] [W; A] = dy W + dz A
          A  -

z and dz lie in the room behind x and dy (room.py). The low-rank product as a start value that the large one adds to takes 2 to 4% longer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ltune.models.fast.room import ROOM, room, whole


@dataclass(frozen=True)
class Joined:
    """Of one projection; R <= ROOM."""

    both: Tensor  # (out + ROOM, in + ROOM), zeros where nothing is
    scaled_a: Tensor  # (ROOM, in): zeros below A
    scaled_b: Tensor  # (out, ROOM): zeros beside B

    @property
    def weight(self) -> Tensor:
        """W (out, in)."""
        return self.both[:-ROOM, :-ROOM]

    def down(self, x: Tensor) -> Tensor:
        """z (T, ROOM) of x (T, in), written behind it."""
        return torch.mm(x, self.scaled_a.mT, out=room(x))

    def down_backward(self, dy: Tensor) -> Tensor:
        """dz (T, ROOM) of dy (T, out), written behind it."""
        return torch.mm(dy, self.scaled_b, out=room(dy))

    def product(self, x: Tensor, y: Tensor) -> Tensor:
        """x W^T + z B^T, written to y (T, out), z being there."""
        return torch.mm(whole(x), self.both[:-ROOM].mT, out=y)

    def product_onto(self, x: Tensor, y: Tensor) -> Tensor:
        """The same, added to y in place."""
        return y.addmm_(whole(x), self.both[:-ROOM].mT)

    def product_backward(self, dy: Tensor) -> Tensor:
        """dy W + dz A (T, in), dz being there."""
        return torch.mm(whole(dy), self.both[:, :-ROOM])
