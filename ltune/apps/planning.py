"""How much memory a run needs on each device, from its configuration and the lengths of its rows; no weights, no GPU."""

from __future__ import annotations

import importlib
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from jsonargparse import ArgumentParser

from ltune.apps.planned_rows import PlannedRows
from ltune.models.fast.choice import REFUSED, choose, least, quickest
from ltune.models.fast.memory import Need, Setting, Shape, need
from ltune.models.fast.model import FastModel
from ltune.models.fast.read import Unsuited
from ltune.models.fast.training_graphs import BUCKET
from ltune.models.outline import Outline, largest_quantized, outline, stored_bytes
from ltune.models.plain_memory import PlainShape, plain_need
from ltune.models.precision import compute_dtype, weights_dtype
from ltune.objectives import Objective

GIB = 2**30
WORTH = 0.95  # of what was needed: a change that saves less is not worth naming
CONTEXT = int(0.6 * GIB)  # what CUDA takes beside torch's own: its context, cuBLAS and kernels; about, as drivers differ


@dataclass(frozen=True)
class Way:
    """One way to compute, and what it needs."""

    name: str
    setting: Setting | None  # None: transformers' own layers
    micro_batches: int  # of the heaviest step
    tokens: int  # of the largest of them
    parts: dict[str, int]  # bytes, by what they are for
    outside: int  # bytes beside torch's

    @property
    def peak(self) -> int:
        """What torch.cuda.max_memory_allocated will say."""
        return sum(self.parts.values())

    @property
    def total(self) -> int:
        """What the device must have."""
        return self.peak + self.outside


@dataclass(frozen=True)
class Plan:
    """All ways, and the one that `ltune fit` takes."""

    ways: list[Way]
    chosen: Way
    memory: int | None  # of the device, in bytes
    outline: Outline
    plain: str | None  # why transformers' own layers are used; None: they are not
    rows: PlannedRows
    advice: list[tuple[str, int]]  # what to change, and what it needs then

    @property
    def fits(self) -> bool:
        """Whether the device has enough, as far as is known."""
        return self.memory is None or self.chosen.total <= self.memory

    @property
    def refused(self) -> bool:
        """Whether there is no point in trying."""
        return self.memory is not None and self.chosen.total > REFUSED * self.memory


def plan(config: dict[str, Any], rows: PlannedRows, memory: int | None, devices: int = 1, advise: bool = True) -> Plan:
    """What a run needs.

    Args:
        config: The resolved configuration, as in the run folder's config.yaml.
        rows: Of one device.
        memory: Of a device, in bytes; None: not known.
        devices: That train together.
        advise: Whether to look for what to change where it does not fit.
    """
    model = config["model"]
    dtype = compute_dtype(config["trainer"]["precision"])
    outlined = outlined_model(config)
    moments = moments_of(model["optimizer"], _trained_dtype(outlined))
    fast, reason = quick_way(config, outlined, dtype)
    if fast is None:
        ways = plain_ways(config, outlined, rows, dtype, moments, devices)
        chosen = ways[0]
    else:
        ways = quick_ways(config, outlined, fast, rows, memory, moments, devices)
        chosen = next(way for way in ways if way.name == (model["memory"] if memory or model["memory"] != "auto" else "speed"))
    made = Plan(ways, chosen, memory, outlined, reason, rows, [])
    return replace(made, advice=advice(config, made, devices)) if advise and made.refused else made


# -- the model --------------------------------------------------------------------------------------------------------------------------


def outlined_model(config: dict[str, Any]) -> Outline:
    """The model as the configuration has it, without weights."""
    model, adapter = config["model"], made(config["model"]["adapter"])
    precision = str(config["trainer"]["precision"])
    outlined = outline(
        model["model"],
        dtype=weights_dtype(precision, frozen=adapter.freezes_base),
        quantize=made(model["quantize"]),
        adapter=adapter,
        attention=model["attention"],
        revision=model["revision"],
        trust_remote_code=model["trust_remote_code"],
    )
    trusted = {model["model"]: model["trust_remote_code"]}
    others = sum(
        stored_bytes(other.model, weights_dtype(precision, frozen=True), other.quantize, other.revision, trusted.get(other.model))
        for other in objective_of(config).beside()
    )
    return replace(outlined, stored=replace(outlined.stored, others=others))


def made(value: dict[str, Any] | None) -> Any:
    """What ``class_path`` and ``init_args`` name."""
    if value is None:
        return None
    module, _, name = value["class_path"].rpartition(".")
    return getattr(importlib.import_module(module), name)(**(value.get("init_args") or {}))


def objective_of(config: dict[str, Any]) -> Objective:
    """The objective, with whatever classes stand in its own options."""
    parser = ArgumentParser()
    parser.add_argument("--objective", type=Objective)
    return parser.instantiate_classes(parser.parse_object({"objective": config["model"]["objective"]})).objective


def on_cuda(config: dict[str, Any]) -> bool:
    """Whether the run is one for a GPU; this machine need not have one."""
    return config["trainer"]["accelerator"] not in ("cpu", "mps")


def quick_way(config: dict[str, Any], outlined: Outline, dtype: torch.dtype) -> tuple[FastModel | None, str | None]:
    """The quick way through the model, or why there is none."""
    if not on_cuda(config):
        return None, f"trainer.accelerator: {config['trainer']['accelerator']}"
    if not config["model"]["fast"]:
        return None, "model.fast: false"
    if dtype is torch.float32:
        return None, "trainer.precision 32-true"
    if config["data"]["layout"] != "flat":
        return None, f"data.layout: {config['data']['layout']}"
    try:
        return FastModel(outlined.causal, dtype), None
    except Unsuited as reason:
        return None, str(reason)


def _trained_dtype(outlined: Outline) -> torch.dtype:
    return next((parameter.dtype for parameter in outlined.causal.parameters() if parameter.requires_grad), torch.float32)


def moments_of(optimizer: dict[str, Any], dtype: torch.dtype) -> float:
    """Bytes that an optimizer keeps on the device for a byte that is trained, tried on a small weight."""
    name = optimizer["class_path"].rpartition(".")[2].lower()
    if "paged" in name:
        return 0.0  # they move to the host when memory is short
    module, _, short = optimizer["class_path"].rpartition(".")
    weight = torch.nn.Parameter(torch.zeros(128, 64, dtype=dtype))
    weight.grad = torch.ones_like(weight)
    try:
        tried = getattr(importlib.import_module(module), short)([weight], **(optimizer.get("init_args") or {}))
        tried.step()
    except Exception:  # some have kernels for GPUs only
        return 2.0 / dtype.itemsize if "8bit" in name else 2.0
    kept = [value for state in tried.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    return sum(value.nbytes for value in kept if value.numel() > 1) / weight.nbytes


# -- ways -------------------------------------------------------------------------------------------------------------------------------


def quick_ways(
    config: dict[str, Any], outlined: Outline, fast: FastModel, rows: PlannedRows, memory: int | None, moments: float, devices: int
) -> list[Way]:
    """speed, auto where the memory is known, and least."""
    embeddings: Any = outlined.causal.get_input_embeddings()
    shape = replace(Shape.of(fast.layers, fast.head.out_features, outlined.trained, fast.head.weight, embeddings.weight), moments=moments)
    copies = sum(2 * one.low.a.nbytes + 2 * one.low.b.nbytes for one in fast.projections)
    loaded = sum(vars(outlined.stored).values()) + copies
    again, epochs = config["model"]["gradient_checkpointing"], max(1, config["trainer"]["max_epochs"] or 1)
    settings = {"speed": quickest(shape, rows.window, again=again)}
    if memory is not None:
        settings["auto"] = choose(shape, memory - CONTEXT - loaded, rows.window, rows.longest_of_step, again=again)
    settings["least"] = least(rows.longest_of_step if "auto" in settings and settings["auto"].offload else rows.window)
    ways = []
    for name, setting in settings.items():
        load = rows.load(setting.tokens)
        tokens = max(load.tokens, rows.longest)
        trained = load.trained * tokens // load.tokens
        sizes = rows.sizes(setting.tokens, BUCKET, epochs)
        found = need(shape, setting, tokens, trained, min(load.longest, tokens), several=load.micro_batches > 1, sizes=sizes)
        ways.append(Way(name, setting, load.micro_batches, tokens, parts(outlined, found, devices, copies), CONTEXT))
    return ways


def plain_ways(config: dict[str, Any], outlined: Outline, rows: PlannedRows, dtype: torch.dtype, moments: float, devices: int) -> list[Way]:
    """As configured, and with gradient checkpointing where that is not it already."""
    shape = PlainShape.of(
        outlined.config,
        size=dtype.itemsize,
        trained=outlined.trained_bytes,
        copied=sum(
            parameter.numel() * dtype.itemsize
            for parameter in outlined.causal.parameters()
            if parameter.requires_grad and parameter.dtype is not dtype
        ),
        largest=largest_quantized(outlined.causal),
        adapted=config["model"]["adapter"]["class_path"].endswith(".LoRA"),
        dropout=bool((config["model"]["adapter"].get("init_args") or {}).get("dropout")),
        by_rows=attends_by_rows(config, outlined, rows, dtype),
        moments=moments,
    )
    load, padded = rows.load(None), config["data"]["layout"] == "padded"
    asked = config["model"]["gradient_checkpointing"]
    ways = []
    for name, again in {"as configured": asked, "checkpointing": True}.items():
        if name == "as configured" or not asked:
            found = plain_need(shape, load.tokens, load.trained, padded=padded, again=again, several=load.micro_batches > 1)
            outside = CONTEXT if on_cuda(config) else 0
            ways.append(Way(name, None, load.micro_batches, load.tokens, parts(outlined, found, devices, 0), outside))
    return ways


def attends_by_rows(config: dict[str, Any], outlined: Outline, rows: PlannedRows, dtype: torch.dtype) -> bool:
    """Whether transformers' layers are likely to attend to each row by itself on a GPU."""
    flat, kind = config["data"]["layout"] == "flat", getattr(outlined.causal.config, "_attn_implementation", None)
    window = getattr(outlined.config, "sliding_window", None) or rows.longest
    return on_cuda(config) and flat and dtype is not torch.float32 and kind == "sdpa" and rows.longest <= window


def parts(outlined: Outline, found: Need, devices: int, copies: int) -> dict[str, int]:
    """Bytes by what they are for, at the fullest moment."""
    stored = outlined.stored
    moved = min(0, found.held)  # the embeddings, where they left for the host
    exchanged = outlined.trained_bytes if devices > 1 else 0  # what DDP sends to the other devices
    return {
        "weights": stored.weights + moved,
        "quantization constants": stored.constants,
        "adapter": stored.adapter + copies,
        "other models": stored.others,
        "held for products": found.held - moved,
        "optimizer": found.optimizer,
        "gradients": found.gradients + exchanged,
        "activations": found.activations,
        "logits or a layer's work": found.work,
    }


# -- what to change -----------------------------------------------------------------------------------------------------------------------


def advice(config: dict[str, Any], refused: Plan, devices: int) -> list[tuple[str, int]]:
    """Changes of the configuration that need less, those that fit first; the least change first among these."""
    memory = refused.memory
    assert memory is not None
    found: list[tuple[str, int]] = []
    for option, changed, rows in changes(config, refused):
        needed = plan(changed, rows, memory, devices, advise=False).chosen.total
        if needed < WORTH * refused.chosen.total:
            found.append((option, needed))
    return sorted(found, key=lambda change: change[1] > memory)  # stable


def changes(config: dict[str, Any], refused: Plan) -> list[tuple[str, dict[str, Any], PlannedRows]]:
    """(option, configuration, rows) of each that can be tried."""
    model, rows, found = config["model"], refused.rows, []

    def change(option: str, rows: PlannedRows, **options: Any) -> None:
        changed = deepcopy(config)
        changed["model"] |= options
        found.append((option, changed, rows))

    lora, nf4 = {"class_path": "ltune.models.adapters.LoRA"}, {"class_path": "ltune.models.quantize.NF4"}
    if refused.plain is None and model["memory"] == "speed":
        change("--model.memory auto", rows, memory="auto")
    if refused.plain is not None and not model["gradient_checkpointing"]:
        change("--model.gradient_checkpointing true", rows, gradient_checkpointing=True)
    if not model["adapter"]["class_path"].endswith(".LoRA"):
        change("--model.adapter LoRA", rows, adapter=lora)
        change("--model.adapter LoRA --model.quantize NF4", rows, adapter=lora, quantize=nf4)
    elif model["quantize"] is None:
        change("--model.quantize NF4", rows, quantize=nf4)
    length = rows.longest
    for _ in range(2):
        length //= 2
        if length >= 128:
            change(f"--data.max_length {length}", rows.cut(length))
    return found
