"""All layers of a model as one step of autograd: forward keeps what the setting allows, backward goes through the layers in reverse. And
the steps behind it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ltune.models.fast.dropout import Draw
from ltune.models.fast.filled import filled
from ltune.models.fast.layer import (
    AttentionHalf,
    Context,
    FeedForwardHalf,
    Keep,
    Norm,
    again_attention,
    again_feed_forward,
)
from ltune.models.fast.projection import Gradients

if TYPE_CHECKING:
    from ltune.models.fast.training_graphs import Size, TrainingGraphs

Layers = list[tuple[AttentionHalf, FeedForwardHalf]]
Kept = list[tuple[Any, Any]]  # of each half: the ticket of its input, if that is wanted; and what its forward found


class LayersStep(torch.autograd.Function):
    """Embedded tokens to what the last norm reads. The trained parameters are passed so that their gradients go the usual way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: Layers, context: Context, at: Tensor | None, training: bool, *parameters: Tensor) -> Tensor:
        """(T, H) to (T, H), or to (N, H) where ``at`` says which places are read."""
        kept: Kept | None = [] if training else None
        y = run(x, layers, context, kept, at)
        ctx.layers, ctx.context, ctx.at, ctx.kept = layers, context, at, kept
        return y if at is None else y[: len(at)]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        kept, ctx.kept = ctx.kept, None
        dy = dy if ctx.at is None else filled(dy)
        dx, gradients = run_backward(dy.contiguous(), ctx.layers, ctx.context, kept, ctx.needs_input_grad[0], ctx.at)
        return dx, None, None, None, None, *gradients


class GraphedStep(torch.autograd.Function):
    """The same, replayed from CUDA graphs, from token ids on."""

    @staticmethod
    def forward(ctx: Any, graphs: "TrainingGraphs", size: "Size", inputs: dict[str, Tensor], tokens: int, *parameters: Tensor) -> Tensor:
        ctx.graphs, ctx.size = graphs, size
        return graphs.forward(size, inputs)[:tokens].clone()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return None, None, None, None, *ctx.graphs.backward(ctx.size, dy)


class Chosen(torch.autograd.Function):
    """Some places, each at most once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, at: Tensor) -> Tensor:
        ctx.save_for_backward(at)
        ctx.tokens = len(x)
        return x.index_select(0, at)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return dy.new_zeros(ctx.tokens, dy.shape[1]).index_copy_(0, ctx.saved_tensors[0], dy), None


class NormStep(torch.autograd.Function):
    """The last norm."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, norm: Norm) -> Tensor:
        y, r = norm.forward(x)
        ctx.save_for_backward(x, r)
        ctx.norm = norm
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, r = ctx.saved_tensors
        dx, dweight = ctx.norm.backward(dy.contiguous(), x, r)
        return dx, dweight[0] if dweight else None, None


def run(x: Tensor, layers: Layers, context: Context, kept: Kept | None, at: Tensor | None = None) -> Tensor:
    """Forward; what the backward wants is appended to ``kept``. Where only some places are read, the last layer goes on with these after
    its attention, which needs all keys and values."""
    found: dict[str, Any] | None
    x = x.clone()  # its own: where nobody wants a half's input any more, its output is written over it
    for number, (attention, feed_forward) in enumerate(layers, 1):
        keep = keep_of(number, layers, context)
        ticket = None if kept is None else _put(x, attention, keep, context)
        y, found = attention.forward(x, context, at if number == len(layers) else None, in_place=ticket is None)
        if kept is not None:
            kept.append((ticket, _worth_keeping(found, keep)))
        del found, x  # what is not kept makes room for the feed-forward half
        ticket = None if kept is None else _put(y, feed_forward, keep, context)
        x, found = _feed_forward(y, feed_forward, context, None if keep is Keep.ALL else context.chunk, in_place=ticket is None)
        if kept is not None:
            kept.append((ticket, found if keep is Keep.ALL else None))
        del found, y, ticket
    return x


def keep_of(number: int, layers: Layers, context: Context) -> Keep:
    """What the layer of that number, counted from 1, keeps."""
    return Keep.ALL if number > len(layers) - context.kept_layers else context.keep


def _put(x: Tensor, half: AttentionHalf | FeedForwardHalf, keep: Keep, context: Context) -> Any:
    """The ticket of a half's input; None where its backward does without."""
    return None if keep is Keep.ALL and half.norm.invertible else context.shelf.put(x)


def _take(ticket: Any, context: Context) -> Tensor | None:
    return None if ticket is None else context.shelf.take(ticket)


def _worth_keeping(found: dict[str, Any], keep: Keep) -> dict[str, Any]:
    if keep is Keep.ALL:
        return found
    return {"attended": found["attended"]} if keep is Keep.ATTENTION else {}


def _feed_forward(
    x: Tensor, half: FeedForwardHalf, context: Context, chunk: int | None, in_place: bool
) -> tuple[Tensor, dict[str, Any] | None]:
    weights = half.gate_up.weight(), half.down.weight()
    if chunk is None:
        return half.forward(x, weights, in_place, context.draw)
    return torch.cat([half.forward(part, weights, draw=draw)[0] for part, draw in _chunks(x, chunk, context)]), None


def run_backward(
    dy: Tensor, layers: Layers, context: Context, kept: Kept, need_dx: bool, at: Tensor | None = None
) -> tuple[Tensor | None, Gradients]:
    """The gradient of the input, and of all layers' ``parameters()`` in their order. Uses up ``kept``."""
    of_layers: list[Gradients] = []
    d: Tensor | None = dy
    for number, (attention, feed_forward) in reversed(list(enumerate(layers, 1))):
        ticket, found = kept.pop()
        assert d is not None
        d, of_feed_forward = _feed_forward_backward(d, _take(ticket, context), feed_forward, found, context)
        ticket, found = kept.pop()
        x = _take(ticket, context)
        read = at if number == len(layers) else None
        if keep_of(number, layers, context) is not Keep.ALL:
            assert x is not None
            found = again_attention(attention, x, found.get("attended"), context, read)
        d, of_attention = attention.backward(d, x, found, context, need_dx or number > 1, read)
        of_layers.append([*of_attention, *of_feed_forward])
        del found, x
    return d, _dense([gradient for gradients in reversed(of_layers) for gradient in gradients])


def _dense(gradients: Gradients) -> Gradients:
    """Those that are parts of wider ones copied, all layers' at once: autograd would copy one at a time."""
    alike: dict[tuple, list[int]] = {}
    for place, gradient in enumerate(gradients):
        if gradient is not None and not gradient.is_contiguous():
            alike.setdefault((gradient.shape, gradient.dtype), []).append(place)
    found = list(gradients)
    for places in alike.values():
        parts = [part for place in places if (part := gradients[place]) is not None]
        for place, gradient in zip(places, torch.stack(parts).unbind(), strict=True):
            found[place] = gradient
    return found


def _feed_forward_backward(
    dy: Tensor, x: Tensor | None, half: FeedForwardHalf, found: dict[str, Any] | None, context: Context
) -> tuple[Tensor, Gradients]:
    weights = half.gate_up.weight(), half.down.weight()
    if found is not None:
        return half.backward(dy, x, found, weights, context.draw)
    assert x is not None
    size = context.chunk or len(x)
    chunks = zip(_chunks(x, size, context), dy.split(size), strict=True)
    parts = [half.backward(d, one, again_feed_forward(half, one, weights, draw), weights, draw) for (one, draw), d in chunks]
    if len(parts) == 1:
        return parts[0]
    gradients = [sum(of_parts[1:], of_parts[0]) for of_parts in zip(*(gradients for _, gradients in parts), strict=True)]
    return torch.cat([dx for dx, _ in parts]), gradients


def _chunks(x: Tensor, size: int, context: Context) -> Iterator[tuple[Tensor, Draw | None]]:
    for number, part in enumerate(x.split(size)):
        yield part, context.draw and context.draw.behind(number * size)
