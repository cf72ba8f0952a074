"""From a transformers model to the parts that the quick way computes with, or the reason why it cannot.

It goes by structure, not by a list of names: decoder layers with RMSNorm, rotary attention and a gated feed-forward layer, as Llama,
Mistral, Qwen2, Qwen3, Gemma, Gemma3 and Phi3 have them. What looks alike and computes something else is found by build.py.
"""

from typing import Any

import torch
from torch import nn

from ltune.models.fast import dropout
from ltune.models.fast.grouped_attention import WIDEST
from ltune.models.fast.layer import AttentionHalf, FeedForwardHalf, Norm
from ltune.models.fast.projection import Projection, dropout_of

# Class of the activation: whether it is gelu in the tanh form; others are not served
GATES = {"SiLUActivation": False, "SiLU": False, "GELUTanh": True, "PytorchGELUTanh": True, "NewGELUActivation": True}
NEAR_ZERO = 1e-5  # of a norm's weight: below, 16 bits of the output do not tell enough of the input


class Unsuited(Exception):
    """Why a model goes the plain way."""


def read_layers(decoder: Any, dtype: torch.dtype) -> list[tuple[AttentionHalf, FeedForwardHalf]]:
    """The halves of each layer.

    Args:
        decoder: What transformers calls the model inside a causal one: embed_tokens, layers, norm, rotary_emb.
        dtype: Of the products.

    Raises:
        Unsuited: With what it has that is not served.
    """
    for name in ("embed_tokens", "layers", "norm", "rotary_emb"):
        if not hasattr(decoder, name):
            raise Unsuited(f"{type(decoder).__name__} has no {name}")
    return [_halves(decoder.config, index, layer, dtype) for index, layer in enumerate(decoder.layers)]


def _halves(config: Any, index: int, layer: Any, dtype: torch.dtype) -> tuple[AttentionHalf, FeedForwardHalf]:
    names = {name for name, _ in layer.named_children()}
    sandwich = {"pre_feedforward_layernorm", "post_feedforward_layernorm"} <= names
    known = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
    known |= {"pre_feedforward_layernorm", "post_feedforward_layernorm"} if sandwich else set()
    dropouts = {"resid_attn_dropout", "resid_mlp_dropout"}
    if not known <= names or names - known - dropouts:
        raise Unsuited(f"a {type(layer).__name__} has other parts: {', '.join(sorted(names ^ known))}")
    if any(getattr(layer, name).p for name in dropouts & names):
        raise Unsuited("dropout in the layers")
    kind = getattr(config, "layer_types", None)
    attention = _attention(config, layer.self_attn, kind[index] if kind else "", dtype)
    attention.norm = read_norm(layer.input_layernorm)
    before = layer.pre_feedforward_layernorm if sandwich else layer.post_attention_layernorm
    feed = _feed_forward(layer.mlp, read_norm(before), dtype)
    if sandwich:
        attention.after, feed.after = read_norm(layer.post_attention_layernorm), read_norm(layer.post_feedforward_layernorm)
    return attention, feed


def _attention(config: Any, module: Any, kind: str, dtype: torch.dtype) -> AttentionHalf:
    children = {name for name, _ in module.named_children()}
    if {"q_proj", "k_proj", "v_proj", "o_proj"} <= children:
        parts = [module.q_proj, module.k_proj, module.v_proj]
    elif {"qkv_proj", "o_proj"} <= children:
        parts = [module.qkv_proj]
    else:
        raise Unsuited(f"a {type(module).__name__} has no q_proj, k_proj, v_proj and o_proj")
    if odd := children - {"q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "q_norm", "k_norm", "rotary_emb", "rotary_fn"}:
        raise Unsuited(f"a {type(module).__name__} has also {', '.join(sorted(odd))}")
    if getattr(module, "attention_dropout", 0.0):
        raise Unsuited("dropout in attention")
    if module.head_dim > WIDEST:
        raise Unsuited(f"heads of {module.head_dim} dimensions; up to {WIDEST} are served")
    if getattr(module, "attn_logit_softcapping", None):
        raise Unsuited("capped attention scores")
    norms = [read_norm(getattr(module, name)) if name in children else None for name in ("q_norm", "k_norm")]
    for norm in norms:
        if norm and norm.weight.numel() != module.head_dim:
            raise Unsuited("queries are normalised across heads")
    window = getattr(module, "sliding_window", getattr(config, "sliding_window", None))
    if kind and kind not in ("full_attention", "sliding_attention"):
        raise Unsuited(f"layers of the kind {kind}")
    if kind == "full_attention" or not getattr(config, "use_sliding_window", True):
        window = None
    return AttentionHalf(
        norm=None,  # type: ignore[arg-type]  # its layer has it
        qkv=read_projection(parts, dtype),
        out=read_projection([module.o_proj], dtype),
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        width=module.head_dim,
        scale=float(module.scaling),
        window=window,
        kind=kind,
        q_norm=norms[0],
        k_norm=norms[1],
    )


def _feed_forward(module: Any, norm: Norm, dtype: torch.dtype) -> FeedForwardHalf:
    children = {name for name, _ in module.named_children()}
    if {"gate_proj", "up_proj", "down_proj"} <= children:
        parts, activation = [module.gate_proj, module.up_proj], module.act_fn
    elif {"gate_up_proj", "down_proj"} <= children:
        parts, activation = [module.gate_up_proj], module.activation_fn
    else:
        raise Unsuited(f"a {type(module).__name__} is no gated feed-forward layer")
    gelu = GATES.get(type(activation).__name__)
    if gelu is None:
        raise Unsuited(f"the activation {type(activation).__name__}")
    return FeedForwardHalf(norm, read_projection(parts, dtype), read_projection([module.down_proj], dtype), gelu)


def read_norm(module: Any) -> Norm:
    """An RMSNorm; Gemma's, which store their weight less 1, are told by starting at 0."""
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if "RMSNorm" not in type(module).__name__ or eps is None or [name for name, _ in module.named_parameters()] != ["weight"]:
        raise Unsuited(f"the norm {type(module).__name__}")
    offset = 1.0 if type(module).__name__.startswith("Gemma") else 0.0
    frozen = not module.weight.requires_grad
    invertible = frozen and (module.weight.is_meta or bool(((offset + module.weight.float()).abs() > NEAR_ZERO).all()))
    return Norm(module.weight, float(eps), offset, invertible)


def read_projection(layers: list[nn.Module], dtype: torch.dtype) -> Projection:
    """Layers side by side as one."""
    for layer in layers:
        base = getattr(layer, "base_layer", layer)
        if type(base).__name__ not in ("Linear", "Linear4bit"):
            raise Unsuited(f"a {type(base).__name__} layer")
        if layer is not base:
            _require_plain_lora(layer)
        elif type(layer).__name__ not in ("Linear", "Linear4bit"):
            raise Unsuited(f"a {type(layer).__name__} layer")
    trained = {base.weight.requires_grad for base in (getattr(layer, "base_layer", layer) for layer in layers)}
    if len(trained) > 1:
        raise Unsuited("layers side by side of which some are trained")
    if len({dropout_of(layer) for layer in layers if hasattr(layer, "lora_A")}) > 1:
        raise Unsuited("layers side by side whose dropout differs")
    found = Projection(layers, dtype)
    if found.dropout and len(found.owners) > dropout.MOST:
        raise Unsuited(f"adapter.dropout before ranks of {len(found.owners)} side by side; up to {dropout.MOST} are served")
    return found


def _require_plain_lora(layer: Any) -> None:
    from peft.tuners.lora import LoraLayer

    if not isinstance(layer, LoraLayer) or len(layer.active_adapters) != 1 or layer.merged or layer.disable_adapters:
        raise Unsuited(f"an adapter of the kind {type(layer).__name__}")
    (name,) = layer.active_adapters
    if type(layer.lora_dropout[name]) not in (nn.Identity, nn.Dropout):
        raise Unsuited(f"adapter.dropout by a {type(layer.lora_dropout[name]).__name__}")
    if layer.use_dora.get(name) or layer.lora_bias.get(name) or getattr(layer, "lora_variant", None):
        raise Unsuited("adapter.dora, or another variant of LoRA")
