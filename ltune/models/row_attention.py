"""transformers' attention, row by row where rows lie end to end: its own looks at all pairs of tokens, and masks those of two rows.

A mask that says no more than where the rows begin is not written out: their beginnings take its place on the way through the layers, so
that what is computed again in the backward pass has the right ones. They stay on the host. On CUDA torch's FlashAttention-2 takes all rows
at once, in 16 bits; on the CPU they follow one another.
"""

import logging
from collections.abc import Callable
from itertools import pairwise
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ltune.models.attention import alike, evaluating, head_width

TORCH, BY_ROWS, BOTH = "sdpa", "ltune_rows", "ltune_both"  # transformers' name, and ours
WORTH = 2**20  # on the CPU, masked pairs x heads x dimensions a row: then row by row is quicker (a layer of 64 to 4,096 wide, measured)
# Of what is attended, the distance's norm over the norm
TOLERANCE, TOLERANCE_16_BIT = 1e-4, 0.02
BITS_16 = (torch.float16, torch.bfloat16)

Sees = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (batch, head, token, other token), the last two (n,): which sees which

log = logging.getLogger(__name__)


def attend_by_rows(model: Any, dtype: torch.dtype) -> bool:
    """Have a bare model attend row by row, if torch's attention is its own and gives the same so.

    Args:
        model: Its weights on their device.
        dtype: Of the products. On CUDA only 16 bits are served.

    Returns:
        Whether it does now.
    """
    served = model.device.type == "cpu" or (model.device.type == "cuda" and dtype in BITS_16)
    if not served or getattr(model.config, "_attn_implementation", None) != TORCH:
        return False
    with torch.autocast(model.device.type, dtype, enabled=dtype in BITS_16):
        problem = _difference(model)
    model.set_attn_implementation(TORCH if problem else BY_ROWS)
    if problem:
        log.info("%s attends to all pairs of tokens of a batch, masked; row by row: %s", type(model).__name__, problem)
    return not problem


def _difference(model: Any) -> str:
    """What keeps a model from it: where rows begin must tell its layers as much as its mask did, and each layer must attend alike."""
    try:
        with evaluating(model), torch.no_grad():
            before = _seen(model)
            model.set_attn_implementation(BOTH)
            return "" if alike(before, _seen(model)) else "it has other logits"
    except Exception as error:  # whatever a model's own code makes of it
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _seen(model: Any) -> Tensor:
    """Logits of two rows that are just long enough."""
    row = torch.arange(isqrt(WORTH // _width(model.config)) + 1, device=model.device)
    ids = torch.cat([1 + 2 * row, 3 + 5 * row]) % model.get_input_embeddings().num_embeddings
    return model(input_ids=ids[None], position_ids=row.repeat(2)[None], attention_mask=None, use_cache=False).logits


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """(1, T, H, D) of heads (1, H, T, D); with ``starts_or_mask``'s starts, each row by itself."""
    if attention_mask is None or attention_mask.dim() != 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    by_rows = _at_once if query.is_cuda else _one_after_the_other
    return by_rows(module, query, key, value, attention_mask, **options), None


def _one_after_the_other(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, starts: Tensor, **options: Any) -> Tensor:
    rows = []
    for begin, end in pairwise(starts.tolist()):
        q, k, v = (heads[:, :, begin:end] for heads in (query, key, value))
        rows.append(sdpa_attention_forward(module, q, k, v, None, **options)[0])
    return torch.cat(rows, 1)


def _at_once(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **options: Any,
) -> Tensor:
    if position_bias is not None:
        raise ValueError("positions have a bias")
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
    if dtype not in BITS_16:
        return _all_pairs(module, query, key, value, starts, dropout=dropout, scaling=scaling, **options)
    q, k, v = (heads[0].transpose(0, 1).to(dtype) for heads in (query, key, value))  # (T, H, D), as many or fewer heads of k and v
    width, longest, at = v.shape[-1], int(starts.diff().max()), starts.to(query.device, non_blocking=True)
    if width < q.shape[-1]:  # some models' values are narrower than their keys
        v = F.pad(v, (0, q.shape[-1] - width))
    flash = torch.ops.aten._flash_attention_forward
    return flash(q, k, v, at, at, longest, longest, dropout, True, False, scale=scaling)[0][None, :, :, :width]


def attend_both(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """By all pairs, as torch does, if it comes to the same row by row.

    Raises:
        ValueError: It does not.
    """
    by_rows, _ = attend(module, query, key, value, attention_mask, **options)
    if attention_mask is None or attention_mask.dim() != 1:
        return by_rows, None
    by_pairs = _all_pairs(module, query, key, value, attention_mask, **options)
    distance = float((by_rows.float() - by_pairs.float()).norm() / by_pairs.float().norm())
    if not distance <= (TOLERANCE if by_pairs.dtype is torch.float32 else TOLERANCE_16_BIT):
        raise ValueError(f"{type(module).__name__} attends otherwise (by {distance:.2g} of its norm)")
    return by_pairs, None


def _all_pairs(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, starts: Tensor, **options: Any) -> Tensor:
    row = torch.repeat_interleave(starts.diff()).to(query.device)  # (T,)
    mask = (row[:, None] == row).tril()[None, None]
    return sdpa_attention_forward(module, query, key, value, mask, **options)[0]


def starts_or_mask(
    batch_size: int, q_length: int, kv_length: int, q_offset: int = 0, kv_offset: int = 0, *, mask_function: Sees, **options: Any
) -> Tensor | None:
    """Where the rows begin, and where the last one ends, (S + 1,), if that says it all and pays; else transformers' mask for torch's."""
    whole = batch_size == 1 and q_length == kv_length and (q_offset, kv_offset) == (0, 0) and options.get("attention_mask") is None
    custom = options.get("allow_is_causal_skip", True) or options.get("use_vmap", False)
    device = torch.device(options.get("device", "cpu"))
    starts = _starts(mask_function, q_length, device) if whole and not custom else None
    if starts is not None and _pays(starts, options["config"], device):
        return starts
    return sdpa_mask(batch_size, q_length, kv_length, q_offset, kv_offset, mask_function=mask_function, **options)


def _starts(sees: Sees, tokens: int, device: torch.device) -> Tensor | None:
    """On the host. None where a token sees one behind it, or a row's last one not its first, as in a window."""
    one, at = torch.zeros((), dtype=torch.long, device=device), torch.arange(tokens, device=device)
    begins = 1 + torch.nonzero(~sees(one, one, at[1:], at[:-1]))[:, 0]
    starts = torch.cat([at[:1], begins, at.new_tensor([tokens])])
    ahead, to_the_first = sees(one, one, at[:-1], at[1:]), sees(one, one, starts[1:] - 1, starts[:-1])
    return starts.to("cpu", torch.int32) if bool(to_the_first.all()) and not bool(ahead.any()) else None


def _pays(starts: Tensor, config: Any, device: torch.device) -> bool:
    lengths = starts.diff().long()
    masked = int(starts[-1]) ** 2 - int((lengths**2).sum())
    return masked > 0 and (device.type == "cuda" or masked * _width(config) >= WORTH * len(lengths))


def _width(config: Any) -> int:
    text = config.get_text_config()
    return text.num_attention_heads * head_width(text)


for name, function in ((BY_ROWS, attend), (BOTH, attend_both)):
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, starts_or_mask)
