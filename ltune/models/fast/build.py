"""Whether a model can go the quick way, proved on the model itself."""

import logging
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ltune.models.attention import evaluating
from ltune.models.fast.launch import FOUND
from ltune.models.fast.model import FastModel
from ltune.models.fast.read import Unsuited
from ltune.models.fast.tiles import Rows

ROWS = (8, 5)  # tokens of the rows that both ways are tried on
# Of the hidden states' norm. Measured on random weights: 1e-6 in float32, about 0.02 in bfloat16 after 32 layers; another norm, activation
# or scale gives 0.3 and more.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}

log = logging.getLogger(__name__)


def quick_way(causal: Any, dtype: torch.dtype, flat: bool) -> FastModel | None:
    """The model's quick way; None, with a line in the log, where transformers' own layers have to do.

    Args:
        causal: The causal model, adapted, its weights on their device.
        dtype: Of the products.
        flat: Whether rows lie end to end.
    """
    try:
        _require_device(causal, dtype, flat)
        fast = FastModel(causal, dtype)
        _require_same(causal, fast)
    except Unsuited as reason:
        if causal.device.type == "cuda":  # elsewhere nobody expects it
            log.info("transformers' own layers are used: %s", reason)
        return None
    return fast


def _require_device(causal: Any, dtype: torch.dtype, flat: bool) -> None:
    if causal.device.type != "cuda" or not FOUND:
        raise Unsuited("the quick way needs CUDA and Triton")
    if dtype is torch.float32:
        raise Unsuited("trainer.precision 32-true, which the attention kernels do not have")
    if not flat:
        raise Unsuited("data.layout: padded")


def _require_same(causal: Any, fast: FastModel) -> None:
    """Both ways on two rows: the same hidden states to rounding, or some part of the model computes something else."""
    difference = hidden_difference(causal, fast)
    if not difference <= TOLERANCE[fast.dtype]:
        raise Unsuited(f"{type(causal).__name__} computes something else (hidden states differ by {difference:.2g} of their norm)")


def hidden_difference(causal: Any, fast: FastModel) -> float:
    """Of the states that the head reads, the difference's norm over the norm."""
    device = causal.device
    vocabulary = fast.head.out_features
    rows = [(torch.arange(length, device=device) * 7 + 3 + length) % vocabulary for length in ROWS]
    positions = torch.cat([torch.arange(length, device=device) for length in ROWS])
    starts = torch.tensor([0, ROWS[0], sum(ROWS)], dtype=torch.int32, device=device)
    autocast = torch.autocast(device.type, dtype=fast.dtype, enabled=fast.dtype is not torch.float32)
    with evaluating(causal), torch.no_grad():
        with autocast, sdpa_kernel(SDPBackend.MATH):  # cuDNN's takes a second to get ready, for this once
            plain = torch.cat([fast.decoder(input_ids=row[None], use_cache=False).last_hidden_state[0] for row in rows])
        x = fast.layers_output(torch.cat(rows), positions, Rows(starts, max(ROWS)))
        quick = fast.norm.forward(x)[0]
    return float((quick.float() - plain.float()).norm() / plain.float().norm())
