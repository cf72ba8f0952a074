"""Linear layers that read the same input, as one matrix product, with what is trained of them: low-rank parts beside it, or the weights.

    z = x (sA)^T,  y = x W^T + z B^T (+ b)            A: (R, in), B: (out, R), R the ranks of all layers together
    dz = dy (sB),  dx = dy W + dz A,  dA = dz^T x,  dB = dy^T z,  dW = dy^T x,  db = sum dy

with x masked where it meets A, if the adapter has dropout (dropout.py).

LoRA: https://arxiv.org/abs/2106.09685. The low-rank product is part of the large one where weights lie beside A and B (joined.py),
and elsewhere the start value that the large one adds to, so that y is written once. Layers side by side make B block-diagonal. A and B
are kept with and without their scale s, so that nothing has to be scaled on the way.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ltune.models.fast import dropout
from ltune.models.fast.dropout import Draw, Mask
from ltune.models.fast.lowrank import LowRank, summed_product
from ltune.models.fast.room import roomy

Gradients = list[Tensor | None]


class Projection:
    """One product for layers side by side.

    Args:
        layers: nn.Linear, bitsandbytes' Linear4bit, or one of PEFT's LoRA layers around such.
        dtype: Of the products.
    """

    number = 0  # in its model

    def __init__(self, layers: list[nn.Module], dtype: torch.dtype) -> None:
        self.layers = layers
        self.dtype = dtype
        self.bases: list[Any] = [getattr(layer, "base_layer", layer) for layer in layers]
        self.sizes = [base.out_features for base in self.bases]
        self.low_rank = [_low_rank(layer) for layer in layers]
        self.quantized = any(hasattr(base.weight, "quant_state") for base in self.bases)
        self.trains_weights = any(base.weight.requires_grad for base in self.bases)
        self.kept: Tensor | None = None  # W in the products' dtype, (out, in)
        self.bias = self._bias()
        self.low = LowRank.empty(self, dtype)
        self.working, self.masters = self._pairs()
        self.dropout = max(map(dropout_of, layers))  # a probability
        self.owners = self._owners()

    # -- weights --------------------------------------------------------------------------------------------------------------------

    def parameters(self) -> list[nn.Parameter]:
        """What is trained, in the order of ``backward``'s gradients."""
        found: list[nn.Parameter] = []
        for part, base in zip(self.low_rank, self.bases, strict=True):
            found += [part[0], part[1]] if part else []
            found += [parameter for parameter in (base.weight, base.bias) if parameter is not None and parameter.requires_grad]
        return found

    def keep_weights(self) -> None:
        """Hold W dense from now on. Quantized ones stay beside it; others become views of it, so that they cost nothing."""
        if self.kept is not None:
            return
        if len(self.bases) == 1 and not self.quantized and self.bases[0].weight.dtype is self.dtype:
            self.kept = self.bases[0].weight.detach()
            return
        if self.low.joined is not None:
            self.kept = self.low.joined.weight
            for base, rows in zip(self.bases, self.kept.split(self.sizes), strict=True):
                rows.copy_(_dequantized(base.weight, self.dtype))
            return
        self.kept = self._dense()
        if self.quantized:
            return
        for base, rows in zip(self.bases, self.kept.split(self.sizes), strict=True):
            if base.weight.dtype is self.dtype:
                base.weight.data = rows
            else:  # trained in float32: this is its working copy
                self.working.append(rows)
                self.masters.append(base.weight)

    @property
    def joined(self) -> bool:
        """Whether W lies beside what is trained, so that inputs and gradients had better have room (room.py)."""
        return self.low.joined is not None

    def drop_weights(self) -> None:
        """Dequantize for each product again, instead of holding them."""
        if self.quantized:
            self.kept = None

    def weight(self) -> Tensor:
        """W, (out, in)."""
        return self.kept if self.kept is not None else self._dense()

    def _dense(self) -> Tensor:
        parts = [_dequantized(base.weight, self.dtype) for base in self.bases]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _bias(self) -> Tensor | None:
        if all(base.bias is None for base in self.bases):
            return None
        zeros = (torch.zeros(base.out_features, dtype=self.dtype, device=base.weight.device) for base in self.bases)
        parts = [zero if base.bias is None else base.bias.detach().to(self.dtype) for base, zero in zip(self.bases, zeros, strict=True)]
        return torch.cat(parts)

    def _owners(self) -> Tensor:
        """Of each rank, its layer among those that are adapted."""
        ranks = [len(part[0]) for part in self.low_rank if part]
        owners = [layer for layer, count in enumerate(ranks) for _ in range(count)]
        return torch.tensor(owners, dtype=torch.int32, device=self.bases[0].weight.device)

    def _pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        """Views of the bias, and the trained tensors whose values they hold."""
        trained = [base.bias if base.bias is not None and base.bias.requires_grad else None for base in self.bases]
        if self.bias is None:
            return [], []
        pairs = [(view, bias) for view, bias in zip(self.bias.split(self.sizes), trained, strict=True) if bias is not None]
        return [view for view, _ in pairs], [bias for _, bias in pairs]

    # -- the products ---------------------------------------------------------------------------------------------------------------

    def mask(self, draw: Draw | None) -> Mask | None:
        """Of what the low-rank part reads in a pass; None where it reads all."""
        if draw is None or not self.dropout or self.low.frozen or not self.low.ranks:
            return None
        return Mask(draw, self.number, self.dropout, self.owners, sum(part is not None for part in self.low_rank))

    def forward(
        self,
        x: Tensor,
        weight: Tensor,
        add: Tensor | None = None,
        z: Tensor | None = None,
        in_place: bool = False,
        draw: Draw | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """y (T, out), plus ``add``; and z (T, R), which the backward wants. Without ``add`` y has room where x has.

        Args:
            x: (T, in), its rows dense.
            weight: What ``weight()`` gave.
            add: (T, out), such as the residual stream.
            z: Where it is there already, and in the room behind x too if there is one.
            in_place: Whether y may be written over ``add``.
            draw: Where numbers are dropped.
        """
        z = self.low.down(x, self.mask(draw)) if z is None else z
        if joined := self.low.joining(x):
            if add is None:
                y = joined.product(x, roomy(len(x), sum(self.sizes), x))
            else:
                y = joined.product_onto(x, add if in_place else add.clone())
            return y if self.bias is None else y.add_(self.bias), z
        start = self._start(x, z)
        # in place: out of place, torch would copy the start value first
        y = torch.mm(x, weight.mT) if start is None else start.addmm_(x, weight.mT)
        if self.bias is not None:
            y += self.bias
        if add is not None:  # last: what the low-rank part adds may be less than the residual stream is rounded by
            y += add
        return y, z

    def _start(self, x: Tensor, z: Tensor | None) -> Tensor | None:
        """What the large product is added to: the low-rank one. While that is left out it counts as zeros, so that a model with an adapter
        that does nothing yet and the same model without it round alike."""
        if z is not None:
            return self.low.up(z)
        return x.new_zeros(len(x), sum(self.sizes)) if self.low.left_out else None

    def backward(
        self, dy: Tensor, x: Tensor, z: Tensor | None, weight: Tensor, need_dx: bool = True, draw: Draw | None = None
    ) -> tuple[Tensor | None, Gradients]:
        """dx (T, in), or None; and the gradients of ``parameters()``."""
        dz, db = self.low.backward(dy, z)
        return self.input_backward(dy, dz, weight, draw) if need_dx else None, self.gradients(dy, x, dz, db, draw=draw)

    def input_backward(self, dy: Tensor, dz: Tensor | None, weight: Tensor, draw: Draw | None = None) -> Tensor:
        """dx (T, in)."""
        if dz is not None and (mask := self.mask(draw)):
            return dropout.add_up(dy @ weight, dz, self.low.a, mask)
        if joined := self.low.joining(dy):
            return joined.product_backward(dy)
        return dy @ weight if dz is None else torch.mm(dz, self.low.a).addmm_(dy, weight)

    def gradients(
        self,
        dy: Tensor,
        x: Tensor | None,
        dz: Tensor | None,
        db: Tensor | None,
        da: Tensor | None = None,
        draw: Draw | None = None,
    ) -> Gradients:
        """Of ``parameters()``.

        Args:
            dy: (T, out).
            x: (T, in); not needed where dA is given and no weights are trained.
            dz: (T, R), as is dB, from ``low.backward``.
            db: (out, R).
            da: (R, in), where it is there already.
            draw: As in the forward.
        """
        if da is None and dz is not None and x is not None:
            mask = self.mask(draw)
            da = dropout.gradient(dz, x, mask) if mask else summed_product(dz.mT, x)
        dw = summed_product(dy.mT, x) if self.trains_weights and x is not None else None
        found: Gradients = []
        row = out = 0
        for part, base in zip(self.low_rank, self.bases, strict=True):
            rows = slice(out, out + base.out_features)
            if part:
                assert da is not None
                assert db is not None
                ranks = slice(row, row + part[0].shape[0])
                found += [da[ranks], db[rows, ranks]]
                row = ranks.stop
            if base.weight.requires_grad:
                assert dw is not None
                found.append(dw[rows].to(base.weight.dtype))
            if base.bias is not None and base.bias.requires_grad:
                found.append(dy[:, rows].sum(0, dtype=torch.float32).to(base.bias.dtype))
            out = rows.stop
        return found


def _low_rank(layer: Any) -> tuple[nn.Parameter, nn.Parameter, float] | None:
    """A, B and their scale, where PEFT has put such beside the layer."""
    if not hasattr(layer, "lora_A"):
        return None
    (name,) = layer.active_adapters
    return layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.scaling[name])


def dropout_of(layer: Any) -> float:
    """Before A, where PEFT has put such beside the layer."""
    if not hasattr(layer, "lora_A"):
        return 0.0
    (name,) = layer.active_adapters
    return float(getattr(layer.lora_dropout[name], "p", 0.0))


def _dequantized(weight: Tensor, dtype: torch.dtype) -> Tensor:
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight.detach().to(dtype)
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.detach(), state).to(dtype)
