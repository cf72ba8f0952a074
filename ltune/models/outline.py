"""A model without its weights, on torch's meta device: its layers, quantized and adapted as training has them, and their bytes."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from ltune.errors import UsageError
from ltune.models.adapters import DTYPES as TRAINED_DTYPES
from ltune.models.adapters import Adapter, LoRA, set_trainable_dtype
from ltune.models.load import load_config, quantization_for
from ltune.models.quantize import Quantizer, is_quantized, prepare_quantized
from ltune.models.tokenizer import hub_arguments, resolve_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

BLOCK = 64  # weights that share a scale in bitsandbytes' 4-bit storage
SUPERBLOCK = 256  # scales that share one, where these are quantized too


@dataclass(frozen=True)
class Stored:
    """Bytes on the device once the model is loaded."""

    weights: int
    constants: int  # scales of quantized weights
    adapter: int
    others: int = 0  # models that stand beside it


@dataclass(frozen=True)
class Outline:
    """A model that is not there."""

    causal: "PreTrainedModel"  # the bare model, its adapter inside
    stored: Stored
    parameters: int  # of the base model
    trained: int  # parameters
    trained_bytes: int

    @property
    def config(self) -> "PretrainedConfig":
        """Of its text part."""
        return self.causal.config.get_text_config()


def outline(
    name: str,
    *,
    dtype: torch.dtype,
    quantize: Quantizer | None,
    adapter: Adapter,
    attention: str | None = None,
    revision: str | None = None,
    trust_remote_code: str | None = None,
    layers: int | None = None,
) -> Outline:
    """What ``load_model`` and the adapter would make, from config.json alone. The arguments are theirs, but for one.

    Args:
        layers: Only the first so many; None: all.

    Raises:
        UsageError: What they would refuse too; or another quantization than bitsandbytes'.
    """
    source, arguments = resolve_model(name), hub_arguments(name, revision, trust_remote_code)
    config = load_config(name, source, arguments)
    if layers is not None:
        _shorten(config.get_text_config(), layers)
    with _silent():
        quantization = quantization_for(name, config, quantize, dtype)
    causal = _bare(name, config, dtype, quantization, attention, arguments["trust_remote_code"])
    before = {id(parameter) for parameter in causal.parameters()}
    parameters = sum(parameter.numel() for parameter in causal.parameters())
    with _silent():
        adapted = _adapted(causal, adapter)
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    return Outline(
        causal=causal,
        stored=_stored(causal, before),
        parameters=parameters,
        trained=sum(parameter.numel() for parameter in trained),
        trained_bytes=sum(parameter.nbytes for parameter in trained),
    )


def _shorten(config: Any, layers: int) -> None:
    """To the first so many layers."""
    config.num_hidden_layers = min(layers, config.num_hidden_layers)
    if kinds := getattr(config, "layer_types", None):
        config.layer_types = kinds[: config.num_hidden_layers]


def stored_bytes(name: str, dtype: torch.dtype, quantize: Quantizer | None, revision: str | None = None, trusted: str | None = None) -> int:
    """What a model takes that is only loaded, not trained. The arguments are ``outline``'s."""
    source, arguments = resolve_model(name), hub_arguments(name, revision, trusted)
    config = load_config(name, source, arguments)
    with _silent():
        quantization = quantization_for(name, config, quantize, dtype)
    causal = _bare(name, config, dtype, quantization, None, arguments["trust_remote_code"])
    return sum(vars(_stored(causal, {id(parameter) for parameter in causal.parameters()})).values())


def _bare(name: str, config: Any, dtype: torch.dtype, quantization: Any, attention: str | None, trusted: bool) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM
    from transformers.quantizers import AutoHfQuantizer

    import ltune.models.uncompiled  # noqa: F401

    stored = getattr(config, "quantization_config", None)
    wanted = stored if quantization is None else quantization
    if stored is not None:
        del config.quantization_config  # transformers would look for kernels that this machine need not have
    options: dict[str, Any] = {"attn_implementation": attention} if attention in ("sdpa", "eager") else {}
    try:
        with torch.device("meta"):
            causal = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trusted, **options)
    except (ValueError, ImportError) as error:
        raise UsageError(f"model: {name} is no causal language model that can be outlined.\n{str(error).splitlines()[0][:300]}") from error
    causal.config.use_cache = False
    if wanted is None:
        return causal
    kind = _method(wanted)
    if kind != "bitsandbytes":
        raise UsageError(f"model: {name} is stored quantized ({kind}); how much memory that takes is known of bitsandbytes' kinds only.")
    quantizer = AutoHfQuantizer.from_config(wanted, pre_quantized=False)
    quantizer.preprocess_model(model=causal, device_map={"": "meta"})
    quantizer.postprocess_model(causal)
    causal.hf_quantizer = quantizer
    prepare_quantized(causal)
    return causal


def _method(wanted: Any) -> str:
    options = wanted if isinstance(wanted, dict) else wanted.to_dict()
    return "bitsandbytes" if options.get("load_in_4bit") or options.get("load_in_8bit") else str(options.get("quant_method"))


def _adapted(causal: "PreTrainedModel", adapter: Adapter) -> nn.Module:
    """With the layers that the adapter adds, whatever their values."""
    if not isinstance(adapter, LoRA):
        return adapter.apply(causal)
    if not adapter.init:
        shapes = copy(adapter)
        shapes.pissa = False  # the same shapes, from weights that there are none of here
        with _unmeasured():
            return shapes.apply(causal)
    from peft import PeftConfig, get_peft_model

    with _unmeasured():
        adapted = get_peft_model(causal, PeftConfig.from_pretrained(adapter.init))
    set_trainable_dtype(adapted, TRAINED_DTYPES[adapter.dtype])
    return adapted


@contextmanager
def _unmeasured() -> Iterator[None]:
    """Within it DoRA's magnitudes are not taken from the weights, which bitsandbytes' layers do not do without having them."""
    from peft.tuners.lora.dora import DoraLinearLayer

    def magnitudes(self: nn.Module, *, base_layer: Any, **options: Any) -> None:
        if type(base_layer).__module__.startswith("bitsandbytes"):
            self.weight = nn.Parameter(torch.empty(base_layer.out_features, device="meta"))
        else:
            before(self, base_layer=base_layer, **options)

    kind: Any = DoraLinearLayer
    before, kind.update_layer = kind.update_layer, magnitudes
    try:
        yield
    finally:
        kind.update_layer = before


@contextmanager
def _silent() -> Iterator[None]:
    """What there is to say is said when the model is loaded."""
    logger = logging.getLogger("ltune.models")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


# -- bytes ------------------------------------------------------------------------------------------------------------------------------


def _stored(causal: nn.Module, before: set[int]) -> Stored:
    """Parameters and buffers, each once."""
    weights = constants = adapter = 0
    packed = _packed(causal)
    for parameter in causal.parameters():
        if id(parameter) in packed:
            in_bits, scales = packed[id(parameter)]
            weights, constants = weights + in_bits, constants + scales
        elif id(parameter) in before:
            weights += parameter.nbytes
        else:
            adapter += parameter.nbytes
    return Stored(weights + sum(buffer.nbytes for buffer in causal.buffers()), constants, adapter)


def _packed(causal: nn.Module) -> dict[int, tuple[int, int]]:
    """Bytes of each quantized weight, and of its scales."""
    if not is_quantized(causal):
        return {}
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    found: dict[int, tuple[int, int]] = {}
    for module in causal.modules():
        if isinstance(module, Linear4bit):
            count = module.in_features * module.out_features
            blocks = -(-count // BLOCK)
            twice = cast(Any, module.weight).compress_statistics
            found[id(module.weight)] = -(-count // 2), blocks + 4 * -(-blocks // SUPERBLOCK) if twice else 4 * blocks
        elif isinstance(module, Linear8bitLt):
            found[id(module.weight)] = module.in_features * module.out_features, 4 * module.out_features
    return found


def largest_quantized(causal: nn.Module) -> int:
    """Weights of the largest quantized layer."""
    packed = _packed(causal)
    return max((parameter.numel() for parameter in causal.parameters() if id(parameter) in packed), default=0)
