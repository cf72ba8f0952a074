"""What dtype the weights have, and what dtype they compute in."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from lightning.pytorch.plugins.precision import Precision
from torch import nn

from ltune.errors import UsageError

log = logging.getLogger(__name__)

TrueName = Literal["32-true", "bf16-true", "16-true"]
# Lightning accepts several spellings; null is its default, 32-true
DTYPES: dict[str, torch.dtype] = {
    **dict.fromkeys(("32", "32-true"), torch.float32),
    **dict.fromkeys(("bf16", "bf16-true", "bf16-mixed"), torch.bfloat16),
    **dict.fromkeys(("16", "16-true", "16-mixed"), torch.float16),
}


def compute_dtype(precision: str | int | None) -> torch.dtype:
    """The dtype of the matrix products.

    Raises:
        UsageError: a precision that is neither 32, bf16 nor 16, true or mixed.
    """
    name = "32-true" if precision is None else str(precision)
    if name not in DTYPES:
        raise UsageError(f"trainer.precision: got {name}.\nUse 32-true, bf16-true, bf16-mixed, 16-true or 16-mixed.")
    return DTYPES[name]


def weights_dtype(precision: str | int | None, frozen: bool) -> torch.dtype:
    """The dtype to load the base model in.

    Frozen weights (under an adapter) are never updated, so nothing is lost by keeping them in the compute dtype. Weights that
    are trained are float32 under a mixed precision, and what the name says under a true one.
    """
    dtype = compute_dtype(precision)
    # Lightning reads the bare "16" and "bf16" as mixed
    mixed = str(precision) in ("16", "bf16", "16-mixed", "bf16-mixed")
    return torch.float32 if mixed and not frozen else dtype


def warn_if_slow(precision: str | int | None, device: torch.device) -> None:
    """Where the processor makes up for instructions that it lacks (the embedded model trained at 150 tokens/s instead of 1,400)."""
    if device.type != "cpu" or compute_dtype(precision) is not torch.bfloat16:
        return
    known: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.10 does not tell
    if known and not any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")):
        log.warning("trainer.precision: this processor has no instructions for %s; 32-true is several times as fast", precision)


class TruePrecision(Precision):
    """Each weight keeps the dtype it was loaded with, and steps compute in the one that is named.

    Lightning's own `bf16-true` casts the whole module, the float32 adapter too, at every start, and changes the default dtype:
    a resumed run would not be the same run. Here a 16-bit name means that steps run under autocast, so that float32 adapter
    weights compute in 16 bits and are updated in 32. Give it in `Trainer(plugins=...)` and leave `precision` out.

    Args:
        precision: 32-true, bf16-true or 16-true.
    """

    def __init__(self, precision: TrueName = "bf16-true") -> None:
        if precision not in ("32-true", "bf16-true", "16-true"):
            raise UsageError(f"precision: 32-true, bf16-true or 16-true, got {precision}")
        self.precision = precision  # type: ignore[assignment]  # Lightning types it as str; it reads it for messages and loggers
        self.dtype = DTYPES[precision]
        self._module: nn.Module | None = None

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Unchanged; remembered because its device, known only once a step runs, is where autocast applies."""
        self._module = module
        return module

    @contextmanager
    def forward_context(self) -> Iterator[None]:
        """What Lightning wraps around every train, validation, test and predict step."""
        if self.dtype is torch.float32:
            yield
            return
        assert self._module is not None, "Lightning calls convert_module before the first step"
        device = next(self._module.parameters()).device.type
        with torch.autocast(device, dtype=self.dtype):
            yield
