"""Attention of long rows by cuDNN's kernels, one row after the other: nearly twice as quick as the next (measured).

The last bits of its gradient of the queries differ from one time to the next, even where torch asks for a deterministic kernel (measured
with cuDNN 9.19 and torch 2.11); there the gradient is not its own. What it gives forward are the same bits each time.
"""

import logging
from functools import cache
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ltune.models.fast import flash_attention
from ltune.models.fast.filled import planned
from ltune.models.fast.grouped_attention import attend_grouped, attend_grouped_backward
from ltune.models.fast.launch import on_gpu
from ltune.models.fast.room import laid_out
from ltune.models.fast.rotary import Turn, gather_rotated_back
from ltune.models.fast.tiles import Rows

LONG = 4096  # tokens; from here on cuDNN's kernels are worth it

log = logging.getLogger(__name__)


def serves(q: Tensor, rows: Rows, window: int | None) -> bool:
    """Whether there are long rows, and cuDNN takes these heads, (T, H, D)."""
    heads = on_gpu(q) and q.dtype is not torch.float32 and q.shape[-1] <= 128
    return heads and window is None and rows.lent is None and max(rows.lengths, default=0) >= LONG


def by_cudnn(longest: int) -> bool:
    """Whether a long row's gradient is cuDNN's."""
    return longest >= LONG and not torch.are_deterministic_algorithms_enabled()


def long_alone(rows: Rows) -> bool:
    """Whether a long row is all there is, and cuDNN's kernels the ones for it."""
    return len(rows.lengths) == 1 and rows.lengths[0] >= LONG and not flash_attention.installed()


class Stretch(NamedTuple):
    """Tokens side by side."""

    at: slice
    others: Rows | None  # the rows there; None: a long one


def stretches(rows: Rows) -> list[Stretch]:
    """Long rows, and what lies between."""
    return rows.once("stretches", lambda: _stretches(rows))


def _stretches(rows: Rows) -> list[Stretch]:
    found: list[Stretch] = []
    number = place = 0
    for long, group in groupby(rows.lengths, lambda length: length >= LONG):
        lengths = list(group)
        for length in lengths if long else [sum(lengths)]:
            others = None if long else Rows(rows.starts[number : number + len(lengths) + 1] - place, max(lengths))
            found += [Stretch(slice(place, place + length), others)] if length else []
            place += length
        number += len(lengths)
    return found


def attend_by_cudnn(q: Tensor, k: Tensor, v: Tensor, rows: Rows, scale: float, room: bool) -> tuple[Tensor, Tensor, list[Any]]:
    """o (T, H, D), lse (H, T), and what the backward of each stretch wants back."""
    tokens, heads, width = q.shape
    if rows.lengths == (tokens,):
        o, lse, rest = _forward(q, k, v, scale)
        return o, lse, [rest]
    o = laid_out(tokens, heads * width, q, room).view(q.shape)
    lse = torch.empty(heads, tokens, device=q.device)
    rests = []
    for at, others in stretches(rows):
        here = q[at], k[at], v[at]
        o[at], lse[:, at], rest = _forward(*here, scale) if others is None else (*attend_grouped(*here, others, scale, None), None)
        rests.append(rest)
    return o, lse, rests


def attend_by_cudnn_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, saved: tuple[Tensor, Tensor, list[Any]], rows: Rows, scale: float, turn: Turn, out: Tensor
) -> None:
    """The gradients of q, k and v side by side into ``out`` (T, (H + 2 K) D), those of q and k turned back."""
    _say_that_bits_differ()
    o, lse, rests = saved
    for (at, others), rest in zip(stretches(rows), rests, strict=True):
        here, there, turned = (do[at], q[at], k[at], v[at]), (o[at], lse[:, at].contiguous()), Turn(turn.cos[at], turn.sin[at])
        if others is None:
            gather_rotated_back(*_backward(*here, *there, rest, scale), *turned, out[at])
        else:
            attend_grouped_backward(*here, *there, others, scale, None, turned, out[at])


def _forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Any]:
    tokens = len(q)
    inputs = (_batched(heads, planned(tokens)) for heads in (q, k, v))
    out = torch.ops.aten._scaled_dot_product_cudnn_attention(*inputs, None, True, 0.0, True, scale=scale)
    return out[0].transpose(1, 2)[0, :tokens], out[1][0, :, :tokens, 0], out[2:8]


def _backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, rest: Any, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    tokens, longer = len(q), planned(len(q))
    inputs = (_batched(heads, longer) for heads in (do, q, k, v, o))
    norms = functional.pad(lse, (0, longer - tokens))[None, :, :, None]
    starts_q, starts_k, longest_q, longest_k, seed, offset = rest
    gradients = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
        *inputs, norms, seed, offset, None, starts_q, starts_k, longest_q, longest_k, 0.0, True, scale=scale
    )
    dq, dk, dv = (gradient.transpose(1, 2)[0, :tokens].contiguous() for gradient in gradients)
    return dq, dk, dv


def _batched(heads: Tensor, longer: int) -> Tensor:
    """(T, H, D) as (1, H, T', D), zeros behind: these tokens change none before them, and where do and o are 0, no gradient."""
    longer_heads = functional.pad(heads, (0, 0, 0, 0, 0, longer - len(heads))) if longer > len(heads) else heads  # which would copy
    return longer_heads[None].transpose(1, 2)


@cache
def _say_that_bits_differ() -> None:
    log.info(
        "rows of %d tokens or more: cuDNN's attention is used, whose gradients differ in the last bits each time.\n"
        "Where a resumed run must end in the same bits, set  trainer.deterministic: true  (their attention takes 1.4 times as long).\n"
        "Quicker, and with the same bits, on Hopper and Blackwell cards:  pip install 'ltune[flash]'",
        LONG,
    )
