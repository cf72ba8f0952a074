"""The two halves of a decoder layer, each with its gradient written out.

    attention:     y = x + [norm] o(attend(rotate([norm] q(n), [norm] k(n)), v(n))),   n = norm(x)
    feed-forward:  y = x + [norm] down(act(gate(n)) up(n)),                            n = norm(x)

[norm]: where the model has one. ``Keep`` says what stays in memory from the forward to the backward; the rest is computed again.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor, nn

from ltune.models.fast import gate_lowrank
from ltune.models.fast.attention import attend, attend_backward
from ltune.models.fast.dropout import Draw
from ltune.models.fast.filled import filled
from ltune.models.fast.gate import gated, gated_backward
from ltune.models.fast.norm import rms_norm, rms_norm_backward
from ltune.models.fast.offload import Shelf
from ltune.models.fast.projection import Gradients, Projection
from ltune.models.fast.rotary import Turn, rotate
from ltune.models.fast.tiles import Rows


class Keep(IntEnum):
    """What a layer keeps for its backward, beside its halves' inputs; each level keeps less than the one before."""

    ALL = 0  # the normalised inputs (instead of the inputs, where norms are invertible), q, k, v, attention's output, gate and up
    ATTENTION = 1  # attention's output
    NOTHING = 2


@dataclass(frozen=True)
class Norm:
    """An RMSNorm's weight; offset is 1 where the model stores the weight less 1."""

    weight: nn.Parameter
    eps: float
    offset: float
    invertible: bool = False  # its weight is frozen and nowhere near 0, so that its output tells what its backward wants of the input

    def forward(self, x: Tensor, room: bool = False) -> tuple[Tensor, Tensor]:
        return rms_norm(x, self.weight, self.eps, self.offset, room)

    def backward(
        self, dy: Tensor, x: Tensor | None, r: Tensor, add: Tensor | None = None, room: bool = False, y: Tensor | None = None
    ) -> tuple[Tensor, Gradients]:
        """dx (plus ``add``), and the weight's gradient if it is trained. Without x it wants y, which an invertible norm gave."""
        known = y if x is None else x
        assert known is not None
        dx, dweight = rms_norm_backward(dy, known, r, self.weight, self.offset, add, self.weight.requires_grad, room, x is None)
        return dx, [] if dweight is None else [dweight.to(self.weight.dtype)]

    def parameters(self) -> list[nn.Parameter]:
        return [self.weight] if self.weight.requires_grad else []


@dataclass(frozen=True)
class Context:
    """What all layers of a forward share."""

    rows: Rows
    rotary: dict[str, Turn]  # of a kind of layer
    keep: Keep
    shelf: Shelf  # where inputs wait for the backward
    chunk: int | None = None  # tokens that the feed-forward half takes at once where it keeps nothing; None: all
    kept_layers: int = 0  # of the last layers, so many keep everything whatever ``keep`` says
    draw: Draw | None = None  # where low-rank parts' inputs are dropped


@dataclass
class AttentionHalf:
    """Norm, attention, residual."""

    norm: Norm
    qkv: Projection
    out: Projection
    heads: int
    key_heads: int
    width: int  # of a head
    scale: float
    window: int | None
    kind: str  # of its rotary embedding
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    after: Norm | None = None

    def parameters(self) -> list[nn.Parameter]:
        """In the order of the gradients."""
        norms = [one for one in (self.norm, self.q_norm, self.k_norm, self.after) if one]
        return [*self.qkv.parameters(), *self.out.parameters(), *(p for norm in norms for p in norm.parameters())]

    def inner(self, x: Tensor, context: Context) -> dict[str, Any]:
        """From the input to attention's own input."""
        n, r = self.norm.forward(x, self.qkv.joined)
        qkv, z = self.qkv.forward(n, self.qkv.weight(), draw=context.draw)
        found: dict[str, Any] = {"n": n, "r": r, "z": z, "qkv": qkv, "raw": None, "r_q": None, "r_k": None}
        heads = qkv.view(len(x), -1, self.width)
        if self.q_norm and self.k_norm:
            q, r_q = self.q_norm.forward(heads[:, : self.heads])
            k, r_k = self.k_norm.forward(heads[:, self.heads : self.heads + self.key_heads])
            found |= {"raw": qkv, "qkv": torch.cat([q, k, heads[:, self.heads + self.key_heads :]], 1), "r_q": r_q, "r_k": r_k}
            heads = found["qkv"]
        rotate(heads[:, : self.heads + self.key_heads], *context.rotary[self.kind])
        return found

    def attend(self, found: dict[str, Any], context: Context) -> Any:
        return attend(*self._split(found), context.rows, self.scale, self.window, self.out.joined)

    def _split(self, found: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        heads = found["qkv"].view(len(found["qkv"]), -1, self.width)
        return heads.split([self.heads, self.key_heads, self.key_heads], 1)

    def forward(self, x: Tensor, context: Context, at: Tensor | None = None, in_place: bool = False) -> tuple[Tensor, dict[str, Any]]:
        """y (T, H), or (N, H) where it is asked for at some places only, which may be written over x; and what there is to keep."""
        found = self.inner(x, context)
        found["attended"] = self.attend(found, context)
        o, stream = _chosen(found["attended"][0].reshape(len(x), -1), at), _chosen(x, at)
        if self.after is None:
            in_place = in_place or at is not None
            y, found["z_out"] = self.out.forward(o, self.out.weight(), add=stream, in_place=in_place, draw=context.draw)
            return y, found
        found["before"], found["z_out"] = self.out.forward(o, self.out.weight(), draw=context.draw)
        normed, found["r_after"] = self.after.forward(found["before"])
        return stream + normed, found

    def backward(
        self, dy: Tensor, x: Tensor | None, found: dict[str, Any], context: Context, need_dx: bool, at: Tensor | None = None
    ) -> tuple[Tensor | None, Gradients]:
        """dx, and the gradients of ``parameters()``; an invertible norm does without x."""
        tokens = len(found["n"])
        o = _chosen(found["attended"][0].reshape(tokens, -1), at)
        d = dy
        after: Gradients = []
        if self.after is not None:
            d, after = self.after.backward(dy, found["before"], found["r_after"])
        do, of_out = self.out.backward(d, o, found["z_out"], self.out.weight(), draw=context.draw)
        assert do is not None
        do, dy = _spread(do, at, tokens), _spread(dy, at, tokens)
        heads = (tokens, self.heads, self.width)
        dqkv = attend_backward(
            do.view(heads), *self._split(found), found["attended"], context.rows, self.scale, self.window,
            context.rotary[self.kind], self.qkv.joined,
        )  # fmt: skip
        inside: Gradients = []
        if self.q_norm and self.k_norm:
            inside = self._norms_backward(dqkv, found)
        need_dn = need_dx or self.norm.weight.requires_grad
        dn, of_qkv = self.qkv.backward(dqkv, found["n"], found["z"], self.qkv.weight(), need_dn, context.draw)
        dx, first = (None, []) if dn is None else self.norm.backward(dn, x, found["r"], dy, self.qkv.joined, found["n"])
        return dx, [*of_qkv, *of_out, *first, *inside, *after]

    def _norms_backward(self, dqkv: Tensor, found: dict[str, Any]) -> Gradients:
        """Through the norms of queries and keys, in place."""
        assert self.q_norm
        assert self.k_norm
        d, raw = (tensor.view(len(dqkv), -1, self.width) for tensor in (dqkv, found["raw"]))
        split = slice(0, self.heads), slice(self.heads, self.heads + self.key_heads)
        gradients: Gradients = []
        for norm, part, r in zip((self.q_norm, self.k_norm), split, (found["r_q"], found["r_k"]), strict=True):
            dx, dweight = norm.backward(d[:, part].contiguous(), raw[:, part], r)
            d[:, part] = dx
            gradients += dweight
        return gradients


@dataclass
class FeedForwardHalf:
    """Norm, gated feed-forward, residual."""

    norm: Norm
    gate_up: Projection
    down: Projection
    gelu: bool
    after: Norm | None = None

    def parameters(self) -> list[nn.Parameter]:
        """In the order of the gradients."""
        norms = [one for one in (self.norm, self.after) if one]
        return [*self.gate_up.parameters(), *self.down.parameters(), *(p for norm in norms for p in norm.parameters())]

    def inner(self, x: Tensor, weight: Tensor, draw: Draw | None) -> dict[str, Any]:
        """From the input to gate and up."""
        n, r = self.norm.forward(x, self.gate_up.joined)
        gate_up, z = self.gate_up.forward(n, weight, draw=draw)
        return {"n": n, "r": r, "z": z, "gate_up": gate_up}

    def forward(
        self, x: Tensor, weights: tuple[Tensor, Tensor], in_place: bool = False, draw: Draw | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """y (T, H), which may be written over x; and what there is to keep."""
        found = self.inner(x, weights[0], draw)
        h, z = self.gated(found["gate_up"], draw)
        if self.after is None:
            y, z = self.down.forward(h, weights[1], add=x, z=z, in_place=in_place, draw=draw)
        else:
            found["before"], z = self.down.forward(h, weights[1], z=z, draw=draw)
            normed, found["r_after"] = self.after.forward(found["before"])
            y = x + normed
        found["z_down"] = None if z is None else z.contiguous()  # not a part of h, which is not kept
        return y, found

    def gated(self, gate_up: Tensor, draw: Draw | None) -> tuple[Tensor, Tensor | None]:
        """h, and what down's low-rank part makes of it, where that comes with it."""
        low = self.down.low
        if not self.down.mask(draw) and gate_lowrank.serves(gate_up, low.ranks) and not low.left_out:
            return gate_lowrank.gated_low_rank(gate_up, self.gelu, low.scaled_a, self.down.joined)
        return gated(gate_up, self.gelu, self.down.joined), None

    def backward(
        self, dy: Tensor, x: Tensor | None, found: dict[str, Any], weights: tuple[Tensor, Tensor], draw: Draw | None = None
    ) -> tuple[Tensor, Gradients]:
        """dx, and the gradients of ``parameters()``; uses up gate_up. An invertible norm does without x."""
        d = dy
        after: Gradients = []
        if self.after is not None:
            d, after = self.after.backward(dy, found["before"], found["r_after"])
        dz, db = self.down.low.backward(d, found["z_down"])
        dh = self.down.input_backward(d, dz, weights[1], draw)
        dgate_up, of_down = self._gate_backward(dh, found.pop("gate_up"), d, dz, db, draw)
        del dh
        dn, of_gate_up = self.gate_up.backward(dgate_up, found["n"], found["z"], weights[0], draw=draw)
        assert dn is not None
        dx, first = self.norm.backward(dn, x, found["r"], dy, self.gate_up.joined, found["n"])
        return dx, [*of_gate_up, *of_down, *first, *after]

    def _gate_backward(
        self, dh: Tensor, gate_up: Tensor, d: Tensor, dz: Tensor | None, db: Tensor | None, draw: Draw | None
    ) -> tuple[Tensor, Gradients]:
        """The gradient of gate_up, and those of down's parameters, which want h; uses up dh and gate_up."""
        at_once = dz is not None and gate_lowrank.serves(dh, self.down.low.ranks)
        if dz is not None and at_once and not self.down.trains_weights and not self.down.mask(draw):
            dgate_up, da = gate_lowrank.gated_backward_low_rank(dh, gate_up, self.gelu, dz)
            return dgate_up, self.down.gradients(d, None, dz, db, da)
        dgate_up, h = gated_backward(dh, gate_up, self.gelu)
        return dgate_up, self.down.gradients(d, h, dz, db, draw=draw)


def _chosen(x: Tensor, at: Tensor | None) -> Tensor:
    """(N, H) of (T, H), filled up."""
    return x if at is None else filled(x.index_select(0, at))


def _spread(d: Tensor, at: Tensor | None, tokens: int) -> Tensor:
    """(T, H) of (N, H): zeros where nothing was chosen."""
    return d if at is None else d.new_zeros(tokens, d.shape[1]).index_copy_(0, at, d[: len(at)])


def again_attention(half: AttentionHalf, x: Tensor, attended: Any, context: Context, at: Tensor | None) -> dict[str, Any]:
    """What the backward wants, computed anew from the input; attention itself only where its output was not kept."""
    found = half.inner(x, context)
    found["attended"] = attended or half.attend(found, context)
    o = _chosen(found["attended"][0].reshape(len(x), -1), at)
    found["z_out"] = half.out.low.down(o, half.out.mask(context.draw))
    if half.after is not None:
        found["before"], _ = half.out.forward(o, half.out.weight(), z=found["z_out"])
        found["r_after"] = half.after.forward(found["before"])[1]
    return found


def again_feed_forward(half: FeedForwardHalf, x: Tensor, weights: tuple[Tensor, Tensor], draw: Draw | None) -> dict[str, Any]:
    """What the backward wants, computed anew from the input."""
    found = half.inner(x, weights[0], draw)
    low_rank = half.down.low.a.shape[0] > 0
    found["z_down"] = None
    if low_rank or half.after is not None:
        h, z = half.gated(found["gate_up"], draw)
        found["z_down"] = half.down.low.down(h, half.down.mask(draw)) if z is None else z
        if half.after is not None:
            found["before"], _ = half.down.forward(h, weights[1], z=found["z_down"])
            found["r_after"] = half.after.forward(found["before"])[1]
    return found
