"""The model part of an imported configuration: weights, adapter, optimizer, schedule, sampling."""

from __future__ import annotations

from typing import Any

from ltune.apps.llamafactory_objective import objective
from ltune.apps.settings import Settings

SAMPLING = ("do_sample", "temperature", "top_p", "top_k", "max_new_tokens", "repetition_penalty")
ATTENTION = {"auto": None, "disabled": "eager", "sdpa": "sdpa", "fa2": "flash_attention_2", "fa3": "flash_attention_3"}
SCHEDULES = {"linear": "Linear", "cosine": "Cosine", "constant": "Constant", "constant_with_warmup": "Constant"}
OPTIMIZERS = {
    "adamw_torch_fused": "torch.optim.AdamW",
    "adamw_torch": "torch.optim.AdamW",
    "adamw_hf": "torch.optim.AdamW",
    "adamw_8bit": "bitsandbytes.optim.AdamW8bit",
    "adamw_bnb_8bit": "bitsandbytes.optim.AdamW8bit",
    "paged_adamw_8bit": "bitsandbytes.optim.PagedAdamW8bit",
    "sgd": "torch.optim.SGD",
}


def weights(settings: Settings) -> dict[str, Any]:
    """model, revision, trust_remote_code, quantize, attention."""
    name = settings.text("model_name_or_path")
    if name is None:
        settings.lacks("model_name_or_path", "the configuration names no model")
    part: dict[str, Any] = {"model": name}
    revision = settings.text("model_revision") or "main"
    if revision != "main":
        part["revision"] = revision
    if settings.flag("trust_remote_code"):
        part["trust_remote_code"] = f"{name}@{revision}"
    part["quantize"] = quantize(settings)
    attention = settings.choice("flash_attn", ATTENTION, "auto")
    if attention:
        part["attention"] = attention
    return part


def quantize(settings: Settings) -> dict[str, Any] | None:
    """bitsandbytes in 4 or 8 bits; LLaMA-Factory's default is none at all."""
    if not settings.given("quantization_bit"):
        return None
    settings.choice("quantization_method", {"bnb": None, "bitsandbytes": None}, "bnb")
    bits = settings.whole("quantization_bit", 4)
    if bits == 8:
        return {"class_path": "Int8"}
    if bits != 4:
        settings.lacks("quantization_bit", f"{bits}: ltune has 4 and 8")
    class_path = settings.choice("quantization_type", {"nf4": "NF4", "fp4": "FP4"}, "nf4")
    return {"class_path": class_path, "init_args": {"double_quantization": settings.flag("double_quantization", True)}}


def method(settings: Settings) -> dict[str, Any]:
    """adapter, objective, optimizer, lora_plus_ratio, schedule, gradient_checkpointing, and sampling where a key of it is given."""
    build = settings.choice("finetuning_type", {"lora": lora, "freeze": freeze, "full": full}, "lora")
    part: dict[str, Any] = {
        "adapter": build(settings),
        "objective": objective(settings),
        "optimizer": optimizer(settings),
    }
    if settings.given("loraplus_lr_ratio"):
        part["lora_plus_ratio"] = settings.number("loraplus_lr_ratio", 1.0)
        if settings.number("loraplus_lr_embedding", 1e-6) != 1e-6:
            settings.lacks("loraplus_lr_embedding", "embeddings have no learning rate of their own here")
    part["schedule"] = {"class_path": settings.choice("lr_scheduler_type", SCHEDULES, "linear"), "init_args": {"warmup": warmup(settings)}}
    kept = settings.flag(
        "disable_gradient_checkpointing", True
    )  # checkpointing changes memory and time, not the result: off unless asked for
    if not kept or settings.flag("gradient_checkpointing"):
        part["gradient_checkpointing"] = True
    if any(settings.given(key) for key in SAMPLING):
        part["sampling"] = sampling(settings)
    return part


def lora(settings: Settings) -> dict[str, Any]:
    """A new adapter, or the one to go on from: that one's own rank, alpha and targets hold, in LLaMA-Factory as here."""
    options: dict[str, Any] = {}
    adapters = settings.names("adapter_name_or_path")
    if adapters:
        options["init"] = one_adapter(settings, adapters)
        if settings.flag("create_new_adapter"):
            settings.lacks("create_new_adapter", "ltune goes on with adapter_name_or_path; merge that one into the model first")
    else:
        targets = settings.names("lora_target") or ["all"]
        rank = settings.whole("lora_rank", 8)
        options |= {
            "rank": rank,
            "alpha": settings.whole("lora_alpha", 0) or 2 * rank,
            "dropout": settings.number("lora_dropout", 0.0),
            "targets": "all" if targets == ["all"] else targets,
        }
        if settings.given("additional_target"):
            options["modules_to_save"] = settings.names("additional_target")
        options |= {ours: True for ours, key in (("rslora", "use_rslora"), ("dora", "use_dora")) if settings.flag(key)}
        if settings.flag("pissa_init"):
            iterations = settings.whole("pissa_iter", 16)  # -1: the exact decomposition
            options["pissa"] = iterations if iterations > 0 else True
    if settings.flag("pure_bf16"):
        options["dtype"] = "bfloat16"
    return {"class_path": "LoRA", "init_args": options}


def one_adapter(settings: Settings, adapters: list[str]) -> str:
    """The only adapter, or the last of several, which LLaMA-Factory would stack on the merged others."""
    if len(adapters) > 1:
        settings.lacks("adapter_name_or_path", f"{len(adapters)} adapters: merge all but the last into the model first")
    return adapters[-1]


def freeze(settings: Settings) -> dict[str, Any]:
    """Some layers: the last n, or with a negative number the first n; whole, or the named modules of them."""
    options: dict[str, Any] = {"layers": settings.whole("freeze_trainable_layers", 2)}
    modules = settings.names("freeze_trainable_modules")
    if modules not in ([], ["all"]):
        options["modules"] = modules
    if settings.given("freeze_extra_modules"):
        options["extra"] = settings.names("freeze_extra_modules")
    return {"class_path": "Freeze", "init_args": options}


def full(settings: Settings) -> dict[str, Any]:
    """All weights."""
    return {"class_path": "Full"}


def optimizer(settings: Settings) -> dict[str, Any]:
    """Class and options; betas and eps only where they differ from what torch and LLaMA-Factory share."""
    class_path = settings.choice("optim", OPTIMIZERS, "adamw_torch_fused")
    options: dict[str, Any] = {"lr": settings.number("learning_rate", 5e-5), "weight_decay": settings.number("weight_decay", 0.0)}
    if class_path != "torch.optim.SGD":
        betas = [settings.number("adam_beta1", 0.9), settings.number("adam_beta2", 0.999)]
        epsilon = settings.number("adam_epsilon", 1e-8)
        options |= {"betas": betas} if betas != [0.9, 0.999] else {}
        options |= {"eps": epsilon} if epsilon != 1e-8 else {}
    return {"class_path": class_path, "init_args": options}


def warmup(settings: Settings) -> int | float:
    """Steps (whole) or a share of all (below 1); plain ``constant`` has none."""
    if settings.text("lr_scheduler_type") == "constant":
        return 0
    ratio, steps = settings.number("warmup_ratio", 0.0), settings.number("warmup_steps", 0.0)
    if steps > 0 and ratio > 0 and ratio != steps:
        settings.lacks("warmup_ratio", "warmup_steps is given too, and which one wins depends on the version of transformers: keep one")
    value = steps if steps > 0 else ratio
    return int(value) if value >= 1 or value == 0 else value


def sampling(settings: Settings) -> dict[str, Any]:
    """LLaMA-Factory's defaults, and what the file changes in them."""
    sampled = settings.flag("do_sample", True)
    temperature = settings.number("temperature", 0.95)
    return {
        "max_new_tokens": settings.whole("max_new_tokens", 1024),
        "temperature": temperature if sampled else 0.0,
        "top_p": settings.number("top_p", 0.7),
        "top_k": settings.whole("top_k", 50),
        "repetition_penalty": settings.number("repetition_penalty", 1.0),
    }
