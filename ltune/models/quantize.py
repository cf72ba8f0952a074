"""Frozen weights in 4 or 8 bits, by bitsandbytes."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from ltune.errors import UsageError

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Quantizer(ABC):
    """How the frozen linear layers are stored; embeddings, norms and the output head stay as they are."""

    @abstractmethod
    def config(self, compute_dtype: torch.dtype) -> "BitsAndBytesConfig":
        """The configuration for `from_pretrained`; `compute_dtype` is the run's, used where the class was not told another."""

    @abstractmethod
    def matches(self, stored: dict[str, Any]) -> bool:
        """Whether a checkpoint with this `quantization_config` is already what this class would make."""


class FourBit(Quantizer):
    """Four bits a weight.

    Args:
        double_quantization: Quantize the block scales too; saves 0.4 bits a weight.
        compute_dtype: float32, bfloat16 or float16 for the matrix products; null: that of the run's precision.
        storage: The tensor type that carries the packed bits; uint8 is the one that works under DDP, FSDP2 and DeepSpeed alike.
    """

    @property
    @abstractmethod
    def kind(self) -> str:
        """bitsandbytes' name of the levels."""

    def __init__(
        self,
        double_quantization: bool = True,
        compute_dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        storage: Literal["uint8", "float32", "bfloat16", "float16"] = "uint8",
    ) -> None:
        if compute_dtype is not None and compute_dtype not in FLOATS:
            raise UsageError(f"quantize: compute_dtype is one of {', '.join(FLOATS)} or null, got {compute_dtype!r}")
        if storage not in ("uint8", *FLOATS):
            raise UsageError(f"quantize: storage is one of uint8, {', '.join(FLOATS)}, got {storage!r}")
        self.double_quantization = double_quantization
        self.compute_dtype = compute_dtype
        self.storage = storage

    def config(self, compute_dtype: torch.dtype) -> "BitsAndBytesConfig":
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.kind,
            bnb_4bit_use_double_quant=self.double_quantization,
            bnb_4bit_compute_dtype=FLOATS[self.compute_dtype] if self.compute_dtype else compute_dtype,
            bnb_4bit_quant_storage=getattr(torch, self.storage),
        )

    def matches(self, stored: dict[str, Any]) -> bool:
        # transformers' default where the file does not say is fp4
        return bool(stored.get("load_in_4bit")) and stored.get("bnb_4bit_quant_type", "fp4") == self.kind


class NF4(FourBit):
    """Four bits a weight, sixteen levels placed for normally distributed weights (QLoRA, https://arxiv.org/abs/2305.14314)."""

    kind = "nf4"


class FP4(FourBit):
    """Four bits a weight as small floating-point numbers; NF4 is nearly always the better choice."""

    kind = "fp4"


class Int8(Quantizer):
    """Eight bits a weight; columns with outliers are computed in 16 bits (LLM.int8(), https://arxiv.org/abs/2208.07339).

    Args:
        threshold: Activations from this magnitude on are outliers; 0 switches the 16-bit part off.
    """

    def __init__(self, threshold: float = 6.0) -> None:
        if threshold < 0:
            raise UsageError(f"quantize: threshold is at least 0, got {threshold}")
        self.threshold = threshold

    def config(self, compute_dtype: torch.dtype) -> "BitsAndBytesConfig":
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=self.threshold)

    def matches(self, stored: dict[str, Any]) -> bool:
        return bool(stored.get("load_in_8bit"))


def is_quantized(model: nn.Module) -> bool:
    """Whether transformers loaded this model through a quantizer (ours, or the one its checkpoint names)."""
    return getattr(model, "hf_quantizer", None) is not None


def prepare_quantized(model: nn.Module) -> None:
    """Make a freshly loaded quantized model safe to train an adapter on. Call before the first forward pass."""
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            # On CPUs with AVX512-BF16 a forward in eval mode repacks the weight in place, for a faster product that has no
            # gradient, and never unpacks it: every later training step then has wrong gradients, with no more than a warning.
            # .train() alone does not prevent it (validation runs in eval mode); this switch does.
            module.support_avx512bf16_for_cpu = False
    model.requires_grad_(False)
