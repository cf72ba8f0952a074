"""Which weights are trained: new low-rank ones beside frozen layers (LoRA), some layers (Freeze), or all (Full)."""

import logging
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ltune.errors import UsageError
from ltune.models.layer_names import check_adapted, decoder_layers, linear_layers, require_names, short_names
from ltune.models.quantize import is_quantized

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

FloatName = Literal["float32", "bfloat16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

log = logging.getLogger(__name__)


class Adapter(ABC):
    """Decides what is trained. `freezes_base` tells whether the loaded weights themselves stay as they are."""

    freezes_base: ClassVar[bool]

    @abstractmethod
    def apply(self, model: "PreTrainedModel") -> nn.Module:
        """The model to train: exactly the weights to train require gradients.

        It may come back with some modules in eval mode (PEFT does that): call `.train()` on it.

        Raises:
            UsageError: the model does not have what the options name, or is quantized where it cannot be.
        """


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """The trained parameters under their `named_parameters` names; the tensors themselves, not copies."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def set_trainable_dtype(model: nn.Module, dtype: torch.dtype) -> None:
    for parameter in trainable_state(model).values():
        parameter.data = parameter.data.to(dtype)


class LoRA(Adapter):
    """Low-rank adapters, by PEFT: y = W x + (alpha / rank) B A x, with W frozen (https://arxiv.org/abs/2106.09685).

    Args:
        rank: Rows of A and columns of B.
        alpha: Scale; the adapter's output is multiplied by alpha / rank.
        dropout: On the adapter's input.
        targets: Names of the layers to adapt (the last part of a module's name is enough), or all: every linear layer but the output
            head and the routers of experts. Fused experts are adapted only by name.
        rslora: Scale by alpha / sqrt(rank) instead (https://arxiv.org/abs/2312.03732).
        dora: Train the columns' magnitudes apart (https://arxiv.org/abs/2402.09353).
        pissa: Start from the largest singular values (https://arxiv.org/abs/2404.02948); a number: that many iterations of the fast
            approximation. Saved as a plain LoRA of twice the rank, for the unchanged base model.
        modules_to_save: Modules trained and saved whole, such as embed_tokens.
        dtype: Of the trained weights, whatever the base model's.
        init: Folder of a PEFT LoRA to continue. Rank, alpha, dropout, targets and the like are then that adapter's own.
    """

    freezes_base = True

    def __init__(
        self,
        rank: int = 8,
        alpha: float = 16,
        dropout: float = 0.0,
        targets: list[str] | str = "all",
        rslora: bool = False,
        dora: bool = False,
        pissa: bool | int = False,
        modules_to_save: list[str] | None = None,
        dtype: FloatName = "float32",
        init: str | None = None,
    ) -> None:
        if rank < 1 or not 0 <= dropout < 1:
            raise UsageError(f"adapter: rank is at least 1 and dropout in [0, 1), got rank {rank}, dropout {dropout}")
        if not 0 < alpha < float("inf"):
            raise UsageError(f"adapter: alpha scales what the adapter adds and is above 0, got {alpha}")
        if not targets:
            raise UsageError("adapter: targets is empty, so nothing would be trained; write  targets: all  or names of layers")
        if dtype not in DTYPES:
            raise UsageError(f"adapter: dtype is float32 or bfloat16, got {dtype!r}")
        if pissa and (dora or init):  # with dora, the result would not fit the unchanged base model; with init, there is nothing to start
            raise UsageError("adapter: pissa goes with neither dora nor init. Use one of them.")
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.targets = targets
        self.rslora = rslora
        self.dora = dora
        self.pissa = pissa
        self.modules_to_save = modules_to_save
        self.dtype = dtype
        self.init = init

    def apply(self, model: "PreTrainedModel") -> "PeftModel":
        adapted = continue_adapter(model, Path(self.init)) if self.init else self._start(model)
        set_trainable_dtype(adapted, DTYPES[self.dtype])
        return adapted

    def _start(self, model: "PreTrainedModel") -> "PeftModel":
        from peft import get_peft_model

        if self.pissa and is_quantized(model):
            raise UsageError("adapter: pissa changes the base weights, which must not be quantized.\nSet quantize: null or pissa: false.")
        names = linear_layers(model) if self.targets == "all" else []
        targets = short_names(model, names) or ([self.targets] if isinstance(self.targets, str) else self.targets)
        require_names(model, "targets", targets)
        require_names(model, "modules_to_save", self.modules_to_save or [])
        config = self._config(targets)
        adapted = start_pissa(model, config) if self.pissa else get_peft_model(model, config)
        if names:
            check_adapted(adapted, names)
        return adapted  # type: ignore[return-value]

    def _config(self, targets: list[str]) -> "LoraConfig":
        from peft import LoraConfig

        pissa: Any = "pissa" if self.pissa is True else f"pissa_niter_{self.pissa}"
        return LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # PEFT divides it by the rank; a fraction is fine
            lora_dropout=self.dropout,
            target_modules=targets,
            bias="none",
            use_rslora=self.rslora,
            use_dora=self.dora,
            init_lora_weights=pissa if self.pissa else True,
            modules_to_save=self.modules_to_save,
        )


def start_pissa(model: "PreTrainedModel", config: "LoraConfig") -> "PeftModel":
    """The starting weights are kept as `pissa_start`: saving subtracts them, so that the adapter fits the unchanged base model."""
    from peft import get_peft_model, get_peft_model_state_dict

    with torch.random.fork_rng():
        torch.manual_seed(0)  # the fast decomposition draws numbers, and a resumed run must find the same base weights again
        adapted = get_peft_model(model, config)
    adapted.pissa_start = {name: tensor.detach().cpu().clone() for name, tensor in get_peft_model_state_dict(adapted).items()}  # type: ignore
    return adapted  # type: ignore[return-value]


def continue_adapter(model: "PreTrainedModel", folder: Path) -> "PeftModel":
    """A saved LoRA, trainable, with the configuration in its folder."""
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    for file in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / file).is_file():
            raise UsageError(f"adapter.init: {folder} is not a PEFT folder: it has no {file}.")
    config = PeftConfig.from_pretrained(str(folder))
    if config.peft_type != "LORA":
        raise UsageError(f"adapter.init: {folder} holds a {config.peft_type} adapter; only LoRA can be continued.")
    try:
        adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=True)
    except (ValueError, RuntimeError) as error:  # layers that the model does not have, or of other sizes
        raise UsageError(f"adapter.init: {folder} does not fit this model.\n{str(error).strip().splitlines()[0][:300]}") from error
    # PEFT loads what fits, and only warns of the rest
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        odd = sorted(set(file.keys()) ^ set(get_peft_model_state_dict(adapted, save_embedding_layers=False)))
    if odd:
        raise UsageError(f"adapter.init: {folder} does not fit this model: {len(odd)} weights differ, such as {odd[0]}.")
    log.info("continuing the adapter in %s; rank, alpha, dropout and targets are its own", folder)
    return adapted


class Freeze(Adapter):
    """Trains some decoder layers whole and freezes the rest.

    Args:
        layers: The last n decoder layers, or the first n if negative.
        modules: Train only parameters of those layers whose name contains one of these; null: all.
        extra: Train also parameters outside the decoder layers whose name contains one of these, such as embed_tokens or norm.
        weights_dtype: Of the trained weights; null: as loaded.
    """

    freezes_base = False

    def __init__(
        self, layers: int = 2, modules: list[str] | None = None, extra: list[str] | None = None, weights_dtype: FloatName | None = None
    ) -> None:
        self.layers = layers
        self.modules = modules
        self.extra = extra
        self.weights_dtype = weights_dtype

    def apply(self, model: "PreTrainedModel") -> "PreTrainedModel":
        refuse_quantized(model, "Freeze")
        prefix, count = decoder_layers(model)
        if abs(self.layers) > count:
            raise UsageError(f"adapter.layers: the model has {count} decoder layers, got {self.layers}.")
        chosen = range(count - self.layers, count) if self.layers >= 0 else range(-self.layers)
        inside = tuple(f"{prefix}.{index}." for index in chosen)
        model.requires_grad_(False)
        for part in self.modules or [""]:
            train_matching(model, "modules", part, lambda name: name.startswith(inside), required=self.layers != 0)
        for part in self.extra or []:
            train_matching(model, "extra", part, lambda name: not name.startswith(f"{prefix}."), required=True)
        if not trainable_state(model):
            raise UsageError("adapter: Freeze with layers: 0 and no extra trains nothing.")
        if self.weights_dtype:
            set_trainable_dtype(model, DTYPES[self.weights_dtype])
        return model


def train_matching(model: nn.Module, option: str, part: str, where: Any, required: bool) -> None:
    matching = [parameter for name, parameter in model.named_parameters() if where(name) and part in name]
    if required and not matching:
        raise UsageError(f"adapter.{option}: no parameter there has {part!r} in its name.")
    for parameter in matching:
        parameter.requires_grad_(True)


class Full(Adapter):
    """Trains all weights.

    Args:
        weights_dtype: Of the weights; null: as loaded. Not named as LoRA's: a class that is chosen instead keeps options of the same name.
    """

    freezes_base = False

    def __init__(self, weights_dtype: FloatName | None = None) -> None:
        self.weights_dtype = weights_dtype

    def apply(self, model: "PreTrainedModel") -> "PreTrainedModel":
        refuse_quantized(model, "Full")
        model.requires_grad_(True)
        if self.weights_dtype:
            set_trainable_dtype(model, DTYPES[self.weights_dtype])
        return model


def refuse_quantized(model: nn.Module, adapter: str) -> None:
    if is_quantized(model):
        raise UsageError(f"adapter: {adapter} cannot train quantized weights.\nSet quantize: null or adapter: LoRA.")
