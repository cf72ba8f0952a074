"""transformers' attention, row by row where rows lie end to end: its own looks at all pairs of tokens, and masks those of two rows.

A mask that says no more than where the rows begin is not written out: their beginnings take its place on the way through the layers, so
that what is computed again in the backward pass has the right ones.
"""

import logging
from collections.abc import Callable
from itertools import pairwise
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ltune.models.attention import alike, evaluating, head_width

TORCH, BY_ROWS = "sdpa", "ltune_rows"  # transformers' name, and ours
WORTH = 2**20  # masked pairs x heads x dimensions, for each row: then row by row is the quicker (a layer of 64 to 4,096 wide, measured)

Sees = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (batch, head, token, other token), the last two (n,): which sees which

log = logging.getLogger(__name__)


def attend_by_rows(model: Any) -> bool:
    """Have a bare model on the CPU attend row by row, if torch's attention is its own and gives the same logits so.

    Returns:
        Whether it does now.
    """
    if next(model.parameters()).device.type != "cpu" or getattr(model.config, "_attn_implementation", None) != TORCH:
        return False
    try:
        with evaluating(model), torch.no_grad():
            before = _seen(model)
            model.set_attn_implementation(BY_ROWS)
            problem = "" if alike(before, _seen(model)) else "it has other logits"
    except Exception as error:  # whatever a model's own code makes of it
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if problem:
        model.set_attn_implementation(TORCH)
        log.info("%s attends to all pairs of tokens of a batch, masked; row by row: %s", type(model).__name__, problem)
    return not problem


def _seen(model: Any) -> Tensor:
    """Logits of two rows that are just long enough."""
    row = torch.arange(isqrt(WORTH // _width(model.config)) + 1)
    ids = torch.cat([1 + 2 * row, 3 + 5 * row]) % model.get_input_embeddings().num_embeddings
    return model(input_ids=ids[None], position_ids=row.repeat(2)[None], attention_mask=None, use_cache=False).logits


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """(1, T, H, D) of heads (1, H, T, D); with ``starts_or_mask``'s starts, each row by itself."""
    if attention_mask is None or attention_mask.dim() != 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    rows = []
    for begin, end in pairwise(attention_mask.tolist()):
        q, k, v = (heads[:, :, begin:end] for heads in (query, key, value))
        rows.append(sdpa_attention_forward(module, q, k, v, None, **options)[0])
    return torch.cat(rows, 1), None


def starts_or_mask(
    batch_size: int, q_length: int, kv_length: int, q_offset: int = 0, kv_offset: int = 0, *, mask_function: Sees, **options: Any
) -> Tensor | None:
    """Where the rows begin, and where the last one ends, (S + 1,), if that says it all and pays; else transformers' mask for torch's."""
    whole = batch_size == 1 and q_length == kv_length and (q_offset, kv_offset) == (0, 0) and options.get("attention_mask") is None
    custom = options.get("allow_is_causal_skip", True) or options.get("use_vmap", False)
    starts = _starts(mask_function, q_length, options.get("device", "cpu")) if whole and not custom else None
    if starts is not None and _pays(starts, options["config"]):
        return starts
    return sdpa_mask(batch_size, q_length, kv_length, q_offset, kv_offset, mask_function=mask_function, **options)


def _starts(sees: Sees, tokens: int, device: torch.device | str) -> Tensor | None:
    """None where a token sees one behind it, or a row's last one not its first, as in a window."""
    one, at = torch.zeros((), dtype=torch.long, device=device), torch.arange(tokens, device=device)
    begins = 1 + torch.nonzero(~sees(one, one, at[1:], at[:-1]))[:, 0]
    starts = torch.cat([at[:1], begins, at.new_tensor([tokens])])
    ahead, to_the_first = sees(one, one, at[:-1], at[1:]), sees(one, one, starts[1:] - 1, starts[:-1])
    return starts if bool(to_the_first.all()) and not bool(ahead.any()) else None


def _pays(starts: Tensor, config: Any) -> bool:
    lengths = starts.diff()
    masked = starts[-1] ** 2 - (lengths**2).sum()
    return int(masked) * _width(config) >= WORTH * len(lengths)


def _width(config: Any) -> int:
    text = config.get_text_config()
    return text.num_attention_heads * head_width(text)


AttentionInterface.register(BY_ROWS, attend)
AttentionMaskInterface.register(BY_ROWS, starts_or_mask)
