"""The low-rank parts of projections in the dtype of the products, copied from the trained float32 values after each optimizer step.

Projections of the same shape, as all layers have them, share one tensor, so that a few copies serve a model of any depth. Where
dequantized weights are held, A and B lie beside them (joined.py).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ltune.models.fast import dropout, lowrank_backward
from ltune.models.fast.dropout import Mask
from ltune.models.fast.joined import Joined
from ltune.models.fast.room import ROOM, has_room, room

if TYPE_CHECKING:
    from ltune.models.fast.projection import Projection


@dataclass
class LowRank:
    """A and B of the layers of a projection, side by side, as they are and times their scales. R is 0 where there is nothing."""

    a: Tensor  # (R, in)
    b: Tensor  # (out, R), block-diagonal
    scaled_a: Tensor
    scaled_b: Tensor
    joined: Joined | None = None  # with the weights, whose tensor A and B are part of
    left_out: bool = False  # for the time being; never in a pass that has a backward
    frozen: bool = False  # another adapter's, which is only asked

    @classmethod
    def empty(cls, projection: "Projection", dtype: torch.dtype) -> "LowRank":
        """Of no rank, until ``share_storage``."""
        base = projection.bases[0]
        a = torch.zeros(0, base.in_features, dtype=dtype, device=base.weight.device)
        b = torch.zeros(sum(projection.sizes), 0, dtype=dtype, device=base.weight.device)
        return cls(a, b, a, b)

    @property
    def ranks(self) -> int:
        """R, of all layers together."""
        return self.a.shape[0]

    def joining(self, x: Tensor) -> Joined | None:
        """The weights with which the product of x (T, in), or of dy (T, out), is computed too: there is room behind it for z, or dz."""
        return self.joined if has_room(x) else None

    def down(self, x: Tensor, mask: Mask | None = None) -> Tensor | None:
        """z (T, R) of x (T, in), in its room where they join."""
        joined = self.joining(x)
        if not self.ranks:
            return None
        if self.left_out:
            if joined:
                room(x).zero_()
            return None
        if mask:
            z = room(x) if joined else x.new_empty(len(x), self.ranks)
            dropout.down(x, self.scaled_a, mask, z)
            return z[:, : self.ranks]
        return joined.down(x)[:, : self.ranks] if joined else torch.mm(x, self.scaled_a.mT)

    def backward(self, dy: Tensor, z: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """dz (T, R) of dy (T, out), in its room where they join; and dB (out, R) float32."""
        if z is None:
            return None, None
        joined = self.joining(dy)
        if lowrank_backward.serves(dy, self.ranks):
            dz = room(dy) if joined else dy.new_empty(len(dy), self.ranks)
            db = lowrank_backward.low_rank_backward(dy, z, self.scaled_b, dz)
        else:
            dz = joined.down_backward(dy) if joined else torch.mm(dy, self.scaled_b)
            db = summed_product(dy.mT, z)
        return dz[:, : self.ranks], db

    def up(self, z: Tensor) -> Tensor:
        """z B^T (T, out)."""
        return torch.mm(z, self.b.mT)


def summed_product(left: Tensor, right: Tensor) -> Tensor:
    """In float32, which gradients are summed in."""
    if left.is_cuda and left.dtype is not torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).float()


@dataclass(frozen=True)
class Copy:
    """Trained values of many layers, and where they go."""

    masters: list[Tensor]
    plain: Tensor  # (layers, ...)
    scaled: Tensor
    scale: float


def share_storage(projections: list["Projection"], dtype: torch.dtype, joined: bool = False) -> list[Copy]:
    """Give projections of the same shape their places in common tensors; the copies that fill these.

    Args:
        projections: Of all layers.
        dtype: Of the products.
        joined: Whether quantized weights will be held, and there is to be a place for them beside their low-rank parts.
    """
    alike: dict[tuple, list[Projection]] = {}
    for projection in projections:
        ranks = tuple((part[0].shape[0], part[2]) if part else None for part in projection.low_rank)
        if any(ranks):
            key = (tuple(projection.sizes), projection.bases[0].in_features, ranks, projection.quantized, projection.bases[0].weight.device)
            alike.setdefault(key, []).append(projection)
    return [copy for group in alike.values() for copy in _stacked(group, dtype, joined)]


def _stacked(group: list["Projection"], dtype: torch.dtype, joined: bool) -> list[Copy]:
    first = group[0]
    rank = sum(part[0].shape[0] for part in first.low_rank if part)
    place = _joined if joined and first.quantized and rank <= ROOM else _apart
    a, b, scaled_a, scaled_b = place(group, rank, dtype)
    copies: list[Copy] = []
    row = out = 0
    for index, (part, size) in enumerate(zip(first.low_rank, first.sizes, strict=True)):
        if part:
            rows, columns = slice(row, row + part[0].shape[0]), slice(out, out + size)
            parts = [projection.low_rank[index] for projection in group]
            copies.append(Copy([one[0] for one in parts if one], a[:, rows], scaled_a[:, rows], part[2]))
            copies.append(Copy([one[1] for one in parts if one], b[:, columns, rows], scaled_b[:, columns, rows], part[2]))
            row = rows.stop
        out += size
    return copies


Places = tuple[Tensor, Tensor, Tensor, Tensor]  # A, B, and both scaled; each (layers, ...)


def _apart(group: list["Projection"], rank: int, dtype: torch.dtype) -> Places:
    layers, inputs, outputs, device = _sizes(group)
    a, scaled_a = torch.zeros(2, layers, rank, inputs, dtype=dtype, device=device)
    b, scaled_b = torch.zeros(2, layers, outputs, rank, dtype=dtype, device=device)
    for number, projection in enumerate(group):
        projection.low = LowRank(a[number], b[number], scaled_a[number], scaled_b[number])
    return a, b, scaled_a, scaled_b


def _joined(group: list["Projection"], rank: int, dtype: torch.dtype) -> Places:
    layers, inputs, outputs, device = _sizes(group)
    both = torch.zeros(layers, outputs + ROOM, inputs + ROOM, dtype=dtype, device=device)
    filled_a = torch.zeros(layers, ROOM, inputs, dtype=dtype, device=device)
    filled_b = torch.zeros(layers, outputs, ROOM, dtype=dtype, device=device)
    a, b = both[:, outputs : outputs + rank, :inputs], both[:, :outputs, inputs : inputs + rank]
    scaled_a, scaled_b = filled_a[:, :rank], filled_b[..., :rank]
    for number, projection in enumerate(group):
        joined = Joined(both[number], filled_a[number], filled_b[number])
        projection.low = LowRank(a[number], b[number], scaled_a[number], scaled_b[number], joined)
    return a, b, scaled_a, scaled_b


def _sizes(group: list["Projection"]) -> tuple[int, int, int, torch.device]:
    """Layers, inputs, outputs, and where they are."""
    base = group[0].bases[0]
    return len(group), base.in_features, sum(group[0].sizes), base.weight.device


def frozen_low_rank(projection: "Projection", name: str, dtype: torch.dtype) -> LowRank:
    """Of an adapter that is not trained; layers that it does not adapt have no rank."""
    device, low = projection.bases[0].weight.device, LowRank.empty(projection, dtype)
    rows: list[Tensor] = []
    columns: list[Tensor] = []
    scales: list[Tensor] = []
    layer: Any  # PEFT's
    for layer, begin, size in zip(projection.layers, _begins(projection.sizes), projection.sizes, strict=True):
        if name in getattr(layer, "lora_A", ()):
            a, b = layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach()
            column = torch.zeros(sum(projection.sizes), len(a), dtype=dtype, device=device)
            column[begin : begin + size] = b.to(dtype)
            rows.append(a.to(dtype))
            columns.append(column)
            scales.append(torch.full((len(a),), float(layer.scaling[name]), device=device))
    if not rows:
        return low
    a, b, scale = torch.cat(rows), torch.cat(columns, 1), torch.cat(scales)
    return LowRank(a, b, (a.float() * scale[:, None]).to(dtype), (b.float() * scale).to(dtype), frozen=True)


def _begins(sizes: list[int]) -> list[int]:
    return [sum(sizes[:number]) for number in range(len(sizes))]


def refresh(copies: list[Copy]) -> None:
    """Copy the trained values."""
    for copy in copies:
        values = torch.stack([master.detach() for master in copy.masters])
        copy.plain.copy_(values)
        torch.mul(values, copy.scale, out=copy.scaled)  # rounded once
