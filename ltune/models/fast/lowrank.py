"""The low-rank parts of projections in the dtype of the products, copied from the trained float32 values after each optimizer step.

Projections of the same shape, as all layers have them, share one tensor, so that a few copies serve a model of any depth.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ltune.models.fast.projection import Projection


@dataclass
class LowRank:
    """A and B of the layers of a projection, side by side, as they are and times their scales. R is 0 where there is nothing."""

    a: Tensor  # (R, in)
    b: Tensor  # (out, R), block-diagonal
    scaled_a: Tensor
    scaled_b: Tensor
    left_out: bool = False  # for the time being; never in a pass that has a backward

    @classmethod
    def empty(cls, projection: "Projection", dtype: torch.dtype) -> "LowRank":
        """Of no rank, until ``share_storage``."""
        base = projection.bases[0]
        a = torch.zeros(0, base.in_features, dtype=dtype, device=base.weight.device)
        b = torch.zeros(sum(projection.sizes), 0, dtype=dtype, device=base.weight.device)
        return cls(a, b, a, b)

    def down(self, x: Tensor) -> Tensor | None:
        """z (T, R) of x (T, in)."""
        return torch.mm(x, self.scaled_a.mT) if self.a.shape[0] and not self.left_out else None

    def up_backward(self, dy: Tensor) -> Tensor | None:
        """dz (T, R) of dy (T, out)."""
        return torch.mm(dy, self.scaled_b) if self.a.shape[0] else None


@dataclass(frozen=True)
class Copy:
    """Trained values of many layers, and where they go."""

    masters: list[Tensor]
    plain: Tensor  # (layers, ...)
    scaled: Tensor
    scale: float


def share_storage(projections: list["Projection"], dtype: torch.dtype) -> list[Copy]:
    """Give projections of the same shape their places in common tensors; the copies that fill these."""
    alike: dict[tuple, list[Projection]] = {}
    for projection in projections:
        ranks = tuple((part[0].shape[0], part[2]) if part else None for part in projection.low_rank)
        if any(ranks):
            key = (tuple(projection.sizes), projection.bases[0].in_features, ranks, projection.bases[0].weight.device)
            alike.setdefault(key, []).append(projection)
    return [copy for group in alike.values() for copy in _stacked(group, dtype)]


def _stacked(group: list["Projection"], dtype: torch.dtype) -> list[Copy]:
    first = group[0]
    device, layers = first.bases[0].weight.device, len(group)
    rank = sum(part[0].shape[0] for part in first.low_rank if part)
    a, scaled_a = torch.zeros(2, layers, rank, first.bases[0].in_features, dtype=dtype, device=device)
    b, scaled_b = torch.zeros(2, layers, sum(first.sizes), rank, dtype=dtype, device=device)
    for number, projection in enumerate(group):
        projection.low = LowRank(a[number], b[number], scaled_a[number], scaled_b[number])
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
    return LowRank(a, b, (a.float() * scale[:, None]).to(dtype), (b.float() * scale).to(dtype))


def _begins(sizes: list[int]) -> list[int]:
    return [sum(sizes[:number]) for number in range(len(sizes))]


def refresh(copies: list[Copy]) -> None:
    """Copy the trained values."""
    for copy in copies:
        values = torch.stack([master.detach() for master in copy.masters])
        copy.plain.copy_(values)
        copy.scaled.copy_(values if copy.scale == 1.0 else values.mul_(copy.scale))
