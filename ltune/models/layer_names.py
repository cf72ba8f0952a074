"""The names of a model's layers: those that an adapter is put on, those that are asked for, those that were adapted."""

import logging
import re
from typing import TYPE_CHECKING

from torch import nn

from ltune.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Linear layers that choose experts rather than transform
ROUTERS = {"gate", "router", "shared_expert_gate"}
# peft (0.21) takes these names, in a model whose experts are fused, to mean the experts
FUSED_NAMES = {"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}

log = logging.getLogger(__name__)


def linear_layers(model: "PreTrainedModel") -> list[str]:
    """Full names of every linear layer but the output head and the routers of experts."""
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    stacked = [name for name, parameter in model.named_parameters() if parameter.dim() == 3 and "expert" in name]
    fused = sorted({re.sub(r"\.\d+\.", ".*.", name) for name in stacked})
    excluded = ROUTERS | (FUSED_NAMES if fused else set())
    found = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D)) and module is not head]
    names = [name for name in found if name.rpartition(".")[2] not in excluded]
    if not names:
        raise UsageError(f"adapter: {type(model).__name__} has no linear layers that LoRA could adapt.\nName them in adapter.targets.")
    if fused:
        left = sorted({name.rpartition(".")[2] for name in found} & FUSED_NAMES)
        log.warning("fused experts are not adapted: %s", ", ".join(fused + left))
    return names


def short_names(model: nn.Module, names: list[str]) -> list[str]:
    """The last parts of the names, as adapters usually list them; the full names where a module not meant has the same last part."""
    others = {name.rpartition(".")[2] for name, _ in model.named_modules() if name not in set(names)}
    leaves = {name.rpartition(".")[2] for name in names}
    return names if leaves & others else sorted(leaves)


def require_names(model: nn.Module, option: str, names: list[str]) -> None:
    """PEFT takes a list of which one name fits, and says nothing of the others."""
    existing = [name for name, _ in model.named_modules()] + [name for name, _ in model.named_parameters()]
    for wanted in names:
        if not any(name == wanted or name.endswith(f".{wanted}") for name in existing):
            leaves = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)})
            raise UsageError(f"adapter.{option}: the model has no module {wanted}.\nIts linear layers: {', '.join(leaves)}")


def check_adapted(model: nn.Module, expected: list[str]) -> None:
    """PEFT matches by name and rewrites some names; what was adapted must be what was meant."""
    from peft.tuners.lora import LoraLayer

    # names in the wrapped model begin with base_model.model.
    adapted = {name.split(".", 2)[2] for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    if odd := sorted(adapted ^ set(expected)):
        raise UsageError(f"adapter: PEFT adapts other layers than asked, such as {odd[0]}.\nName the layers in adapter.targets.")


def decoder_layers(model: "PreTrainedModel") -> tuple[str, int]:
    """The name of the list of decoder layers, such as model.layers, and its length."""
    count = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, count
    raise UsageError(f"adapter: Freeze finds no list of {count} decoder layers in {type(model).__name__}. Use LoRA or Full.")
