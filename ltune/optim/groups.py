"""Parameter groups: which trained weights get which learning rate and weight decay."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.autograd.graph import increment_version
from torch.optim import Adam, AdamW, Optimizer

Named = Iterable[tuple[str, nn.Parameter]]


def build_optimizer(named: Named, make: Callable[[list[dict[str, Any]]], Optimizer], lora_plus_ratio: float | None) -> Optimizer:
    """The optimizer that ``make(groups)`` gives, with LoRA+ and no weight decay on one-dimensional weights.

    Args:
        named: The trained parameters with their names.
        make: Takes a list of groups, gives a torch optimizer (the YAML's class with its options).
        lora_plus_ratio: Learning rate of B over that of A (https://arxiv.org/abs/2402.12354); None: the same for all.
    """
    groups = [group for group in split(named) if group["params"]]
    optimizer = make([{"params": group["params"]} for group in groups])
    for group, made in zip(groups, optimizer.param_groups, strict=True):
        if not group["decays"] and "weight_decay" in made:
            made["weight_decay"] = 0.0
        if lora_plus_ratio is not None and group["raised"]:
            made["lr"] *= lora_plus_ratio
    optimizer.register_step_post_hook(_count_change)
    return optimizer


def _count_change(optimizer: Optimizer, *arguments: Any) -> None:
    """Fused optimizers write the weights without telling torch, and whoever keeps copies would go on with the old ones."""
    increment_version(parameter for group in optimizer.param_groups for parameter in group["params"])


def fuse(optimizer: Optimizer) -> None:
    """Have torch's Adam and AdamW go over each weight once, all weights at once, unless their options say otherwise; on CUDA and the CPU,
    where a step of theirs takes a third to a fifth of the time (measured on the CPU), without a gradient scaler.

    On the CPU they take weights and gradients as they lie in memory, whatever their strides (torch 2.13). Autograd lays the gradient of a
    contiguous weight out like the weight; others are left alone.
    """
    known = type(optimizer) in (Adam, AdamW) and optimizer.defaults["fused"] is None
    if not known or optimizer.defaults["foreach"] or optimizer.defaults["differentiable"]:
        return
    if all(parameter.is_contiguous() for group in optimizer.param_groups for parameter in group["params"]):
        for group in (optimizer.defaults, *optimizer.param_groups):
            group["fused"] = True


def is_fused(optimizer: Optimizer) -> bool:
    """Whether it is one whose step can be left out on the device, by its ``found_inf``."""
    return type(optimizer) in (Adam, AdamW) and bool(optimizer.param_groups[0]["fused"])


def split(named: Named) -> list[dict[str, Any]]:
    """Three groups: A matrices and other weights; B matrices; one-dimensional. LoRA+ raises the last two."""
    plain: list[nn.Parameter] = []
    b_matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in named:
        if parameter.ndim == 1:
            vectors.append(parameter)
        elif "lora_B" in name or "lora_embedding_B" in name:
            b_matrices.append(parameter)
        else:
            plain.append(parameter)
    return [
        {"params": plain, "decays": True, "raised": False},
        {"params": b_matrices, "decays": True, "raised": True},
        {"params": vectors, "decays": False, "raised": True},
    ]
