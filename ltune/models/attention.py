"""Proof that rows laid end to end in one sequence do not see each other."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ltune.errors import UsageError
from ltune.models.quantize import is_quantized

ROW = 8
# Measured: exactly 0 for dense models in any dtype, 5e-7 for mixtures of experts in float32; a leak is 1e-2 to 4 even at random weights
TOLERANCE = 1e-3
TOLERANCE_16_BIT = 1e-2  # experts see differently shaped matrices, so their 16-bit rounding may differ


def assert_rows_isolated(model: nn.Module) -> None:
    """Run two rows of 8 tokens in the flat layout, change the first, and see that the second's logits stay.

    Restarting `position_ids`, no mask and `use_cache=False` is all that separates rows in a flat batch, and a model that takes no
    notice of them (a state-space model, alibi, its own positions) trains on wrong contexts without any error. The model must be
    ready for a forward pass: on its device, after `prepare_quantized`, and under autocast where its dtypes differ.
    Leaves training modes, gradients and random-number generators as they were.

    Raises:
        UsageError: the rows see each other.
    """
    device = next(model.parameters()).device
    vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    row = torch.arange(ROW, device=device)
    second = (3 + 5 * row) % vocabulary
    with evaluating(model), without_outliers(model), torch.no_grad():
        before = second_row_logits(model, (1 + 2 * row) % vocabulary, second)
        after = second_row_logits(model, (2 + 7 * row) % vocabulary, second)
    if not alike(before, after):
        difference = _difference(before, after)
        raise UsageError(
            f"data.layout: flat does not work with {type(model).__name__}: a row's logits change by {difference:.2g} of their deviation\n"
            "when the row before it changes, so rows would see each other. Set data.layout: padded."
        )


def alike(logits: Tensor, others: Tensor) -> bool:
    """Whether they differ by no more than rounding; numbers that are none do."""
    return _difference(logits, others) <= (TOLERANCE if logits.dtype is torch.float32 else TOLERANCE_16_BIT)


def _difference(logits: Tensor, others: Tensor) -> float:
    """The largest, in deviations."""
    return float((logits.float() - others.float()).abs().max() / logits.float().std())


def head_width(config: Any) -> int:
    """Dimensions of an attention head, by a text model's configuration."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def second_row_logits(model: nn.Module, first: Tensor, second: Tensor) -> Tensor:
    input_ids = torch.cat([first, second])[None]  # (1, 2 * ROW)
    position_ids = torch.arange(ROW, device=input_ids.device).repeat(2)[None]  # (1, 2 * ROW)
    return model(input_ids=input_ids, position_ids=position_ids, attention_mask=None, use_cache=False).logits[0, ROW:]  # (ROW, V)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; after it, each module's own mode again (they need not all be the same)."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def without_outliers(model: nn.Module) -> Iterator[None]:
    """8-bit layers without their 16-bit part inside: which columns it takes depends on all rows, so rounding would differ in any layout."""
    if not is_quantized(model):
        yield
        return
    import bitsandbytes

    states = [module.state for module in model.modules() if isinstance(module, bitsandbytes.nn.Linear8bitLt)]
    thresholds = [state.threshold for state in states]
    for state in states:
        state.threshold = 0.0
    try:
        yield
    finally:
        for state, threshold in zip(states, thresholds, strict=True):
            state.threshold = threshold
