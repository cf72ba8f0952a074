"""Keys and values of tokens that were read, and attention of one new token per row over the tokens of its row.

    o = softmax(scale q k^T) v      q: of a row's newest token; k, v: of all of the row's tokens, that one too

A layer's cache is one tensor, (tokens, 2 K, D): keys, then values. A row's tokens lie one after another in it, from any place on, so
that rows of all lengths share it without padding. FlashAttention's variable-length kernel on CUDA, the formula elsewhere.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Places:
    """Where n rows stand in a cache."""

    starts: Tensor  # (n + 1,) int32: of each row's first token; the last value is not read
    used: Tensor  # (n,) int32: tokens of each row, the new one counted
    queries: Tensor  # (n + 1,) int32: 0, 1 ... n
    longest: int  # no row has more tokens

    @classmethod
    def of(cls, starts: Tensor, lengths: Tensor, queries: Tensor, longest: int) -> "Places":
        """Of rows that begin at ``starts`` and have had ``lengths`` tokens so far, (n,) each."""
        begins = torch.nn.functional.pad(starts, (0, 1)).to(torch.int32)
        return cls(begins, (lengths + 1).to(torch.int32), queries[: len(starts) + 1], longest)


def attend_newest(q: Tensor, cache: Tensor, places: Places, scale: float, window: int | None) -> Tensor:
    """o (n, H, D).

    Args:
        q: (n, H, D), a row's newest token each.
        cache: (tokens, 2 K, D), H a multiple of K.
        places: Of the rows.
        scale: Of the scores.
        window: A token sees itself and the ``window - 1`` before it; None: all before it.
    """
    keys, values = cache.chunk(2, 1)
    if not q.is_cuda or q.dtype is torch.float32:
        return _formula(q, keys, values, places, scale, window)
    # a window that holds all there is is left out: the kernel is quicker without
    seen = {} if window is None or window >= places.longest else {"window_size_left": window - 1, "window_size_right": 0}
    return torch.ops.aten._flash_attention_forward(
        q, keys, values, places.queries, places.starts, 1, places.longest, 0.0, False, False, scale=scale, seqused_k=places.used, **seen
    )[0]


def kernel_agrees(heads: int, key_heads: int, width: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether what attends here computes the formula, for rows in any order with other tokens between them."""
    starts, lengths = torch.tensor([40, 0], device=device), torch.tensor([9, 30], device=device)
    places = Places.of(starts, lengths, torch.arange(3, dtype=torch.int32, device=device), 40)
    cache = torch.randn(64, 2 * key_heads, width, device=device).to(dtype)
    q = torch.randn(2, heads, width, device=device).to(dtype)
    try:
        found = attend_newest(q, cache, places, width**-0.5, None)
    except RuntimeError:
        return False
    keys, values = cache.chunk(2, 1)
    expected = _formula(q, keys, values, places, width**-0.5, None)
    return bool((found.float() - expected.float()).abs().max() <= 0.03)  # values are of size 1, rounded to 8 bits


def _formula(q: Tensor, keys: Tensor, values: Tensor, places: Places, scale: float, window: int | None) -> Tensor:
    place = torch.arange(places.longest, device=q.device)
    used = places.used[:, None]
    seen = place < used  # (n, L)
    if window is not None:
        seen = seen & (place >= used - window)
    at = (places.starts[:-1, None] + place).clamp(max=len(keys) - 1)
    k, v = keys[at].float(), values[at].float().masked_fill(~seen[..., None, None], 0.0)  # (n, L, K, D): what lies there may be no number
    grouped = q.float().unflatten(1, (keys.shape[1], -1))  # (n, K, G, D)
    scores = torch.einsum("nkgd,nlkd->nkgl", grouped, k) * scale
    p = scores.masked_fill(~seen[:, None, None], -torch.inf).softmax(-1)
    return torch.einsum("nkgl,nlkd->nkgd", p, v).flatten(1, 2).to(q.dtype)
