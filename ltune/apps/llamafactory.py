"""From a LLaMA-Factory 0.9.5 configuration to ours: one function for each part of the YAML, LLaMA-Factory's name on the right.

Where a key that changes the result is absent, LLaMA-Factory's default is written down. Keys that only log or save (``logging_steps``,
``save_steps``) are written where they are given, and otherwise ours apply. Paths stay as they are: both tools take them from the
working directory. ``val_size`` holds out as many rows, but draws others than LLaMA-Factory does.

A configuration that names neither stage nor data is for chat. It becomes ``model`` (weights, quantization, attention, the adapter as
``adapter.init``, LLaMA-Factory's own sampling defaults), ``data`` (template, system text) and ``trainer.precision`` (infer_dtype): enough
for ``ltune predict``, and for the ``ltune chat`` command that `ltune import` prints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltune.apps.llamafactory_model import method, one_adapter, sampling, weights
from ltune.apps.llamafactory_objective import steps_per_rollout
from ltune.apps.settings import Settings
from ltune.data.template_files import named, names

INFERENCE = {"auto": "bf16-true", "bfloat16": "bf16-true", "float16": "16-true", "float32": "32-true"}  # auto: as most weights are stored
MIXES = {"concat": None, "interleave_under": "under", "interleave_over": "over", "interleave_once": "once"}
TRAINING = {"stage", "do_train", "do_predict", "do_eval", "dataset", "eval_dataset", "output_dir"}


@dataclass
class Conversion:
    """What became of a configuration: ``yaml`` in our words, ``reasons`` by key not carried, ``ignored`` keys that change nothing."""

    yaml: dict[str, Any]
    reasons: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)

    @property
    def missing(self) -> list[str]:
        """Keys that could not be carried over and would change the result."""
        return list(self.reasons)


def convert(config: dict[str, Any], base: Path) -> Conversion:
    """Our configuration for LLaMA-Factory's ``config``; every key of it is carried, ignored or missing.

    Args:
        config: As read from the file.
        base: The file: named in messages; its name makes the run folder's where there is no ``output_dir``.

    Raises:
        UsageError: a value of the wrong type, or an interpolation.
    """
    settings = Settings(config, base)
    converted = training(settings) if not TRAINING.isdisjoint(config) else chat(settings)
    settings.account_for_rest()
    return Conversion(converted, settings.missing, settings.ignored)


def training(settings: Settings) -> dict[str, Any]:
    """The whole YAML."""
    check_task(settings)
    converted = {
        "seed_everything": settings.whole("seed", 42),
        "run": settings.text("output_dir") or f"runs/{settings.source.stem}",
        "model": weights(settings) | method(settings),
        "data": data(settings),
        "checkpoint": checkpoint(settings),
        "trainer": trainer(settings),
    }
    return {key: part for key, part in converted.items() if part != {}}


def chat(settings: Settings) -> dict[str, Any]:
    """Model, adapter, sampling, template."""
    model = weights(settings)
    adapters = settings.names("adapter_name_or_path")
    if adapters:
        model["adapter"] = {"class_path": "LoRA", "init_args": {"init": one_adapter(settings, adapters)}}
    converted: dict[str, Any] = {"model": model | {"sampling": sampling(settings)}, "data": template(settings)}
    converted["trainer"] = {"precision": settings.choice("infer_dtype", INFERENCE, "auto")}
    return {key: part for key, part in converted.items() if part != {}}


# -- task, data, trainer ----------------------------------------------------------------------------------------------------------


def check_task(settings: Settings) -> None:
    """Refuse what is no training; going on from one of LLaMA-Factory's checkpoints is not possible, from its adapters it is."""
    trains = settings.flag("do_train", not settings.flag("do_predict"))
    if not trains:
        settings.lacks("do_predict" if settings.flag("do_predict") else "do_train", "ltune import reads training and chat configurations")
    settings.ignore("do_predict")
    if settings.given("data_seed") and settings.whole("data_seed", 42) != settings.whole("seed", 42):
        settings.lacks("data_seed", "the order of rows follows seed_everything")
    if str(settings.get("resume_from_checkpoint")).lower() in ("none", "true", "false"):
        settings.ignore("resume_from_checkpoint")
    else:
        settings.lacks("resume_from_checkpoint", "its checkpoints cannot be read; their adapter can: adapter_name_or_path")


def data(settings: Settings) -> dict[str, Any]:
    """Data sets, template, masking, batches."""
    part: dict[str, Any] = {"datasets": settings.names("dataset"), "folder": settings.text("dataset_dir") or "data"}
    if not part["datasets"]:
        settings.lacks("dataset", "there is none to train on")
    if part["folder"].split(":")[0] in ("ONLINE", "REMOTE"):
        settings.lacks("dataset_dir", f"{part['folder']}: download the data sets, or name hub ids in data.datasets")
    part |= template(settings)
    part |= {"max_length": settings.whole("cutoff_len", 2048), "truncation": "llamafactory"}
    part |= {"train_on": "all"} if settings.flag("train_on_prompt") else {"train_on": "last"} if settings.flag("mask_history") else {}
    part |= {
        ours: settings.whole(key, 0)
        for ours, key in (("max_rows", "max_samples"), ("processes", "preprocessing_num_workers"))
        if settings.given(key)
    }
    part |= mixing(settings, len(part["datasets"]))
    held_out = settings.number("val_size", 0.0)
    part |= {"val_size": int(held_out) if held_out > 1 else held_out} if held_out else {}
    part |= {"val_datasets": settings.names("eval_dataset")} if settings.given("eval_dataset") else {}
    part["batch_size"] = settings.whole("per_device_train_batch_size", 8)
    part |= {"workers": settings.whole("dataloader_num_workers", 0)} if settings.given("dataloader_num_workers") else {}
    packed = settings.flag("packing", settings.text("stage") == "pt") or settings.flag("neat_packing")
    if packed:
        settings.lacks(
            "neat_packing" if settings.flag("neat_packing") else "packing", "ltune keeps one row one sequence (stage pt packs by default)"
        )
    return part


def mixing(settings: Settings, datasets: int) -> dict[str, Any]:
    """How data sets are put together; one alone is not mixed with anything. Validation sets are taken whole here, whatever the mix."""
    stop = settings.choice("mix_strategy", MIXES, "concat")
    probabilities = settings.numbers("interleave_probs")
    if stop is None or datasets < 2:
        if probabilities and stop is None:
            settings.lacks("interleave_probs", "it goes with mix_strategy: interleave_under, interleave_over or interleave_once")
        return {}
    if probabilities and len(probabilities) != datasets:
        settings.lacks("interleave_probs", f"{len(probabilities)} for {datasets} data sets")
    options = {"stop": stop} | ({"probabilities": probabilities} if probabilities else {})
    return {"mix": {"class_path": "Interleave", "init_args": options}}


def template(settings: Settings) -> dict[str, Any]:
    """Template, system text, reasoning. None given: the tokenizer's own, in LLaMA-Factory as here."""
    name = settings.text("template")
    known = name if name in names() else None
    if name is not None and known is None:
        settings.lacks("template", f"{name}: no such template here; `ltune templates` lists them, null is the tokenizer's own")
    thinks = known is not None and bool(named(known).facts.thinking)
    if not settings.flag("enable_thinking", True) and (thinks or known is None):
        settings.lacks("enable_thinking", "false: ltune does not move a sign of no thinking into the prompt")
    part = {"template": known} if known else {}
    if thinks and settings.flag("mask_history"):
        part["reasoning"] = "drop_history"
    return part | ({"system": settings.text("default_system")} if settings.given("default_system") else {})


def checkpoint(settings: Settings) -> dict[str, Any]:
    """every, keep; where nothing is saved by steps, ours apply."""
    part: dict[str, Any] = {}
    by_steps = settings.choice("save_strategy", {"steps": True, "epoch": False, "no": False, "false": False}, "steps")
    if by_steps and settings.number("save_steps", 0.0) >= 1:
        part["every"] = settings.whole("save_steps", 500)
    else:
        settings.ignore("save_steps")
    if settings.given("save_total_limit"):
        part["keep"] = max(1, settings.whole("save_total_limit", 2))
    return part


def trainer(settings: Settings) -> dict[str, Any]:
    """Lightning's own part: length, accumulation, precision, clipping, logging, validation."""
    part = length(settings)
    # A step of PPO answers the prompts of a whole buffer, and trains on it part by part
    part["accumulate_grad_batches"] = settings.whole("gradient_accumulation_steps", 1) * steps_per_rollout(settings)[1]
    part["precision"] = precision(settings)
    part["gradient_clip_val"] = settings.number("max_grad_norm", 1.0) or None
    if settings.number("logging_steps", 0.0) >= 1:
        part["log_every_n_steps"] = settings.whole("logging_steps", 500)
    else:
        settings.ignore("logging_steps")
    if settings.flag("use_cpu"):
        part["accelerator"] = "cpu"
    return part | validation(settings, part["accumulate_grad_batches"]) | loggers(settings)


def length(settings: Settings) -> dict[str, Any]:
    """max_steps wins over num_train_epochs, which must be whole."""
    steps = settings.whole("max_steps", -1)
    if steps > 0:
        return {"max_epochs": -1, "max_steps": steps * math.prod(steps_per_rollout(settings))}
    epochs = settings.number("num_train_epochs", 3.0)
    if epochs != int(epochs):
        settings.lacks("num_train_epochs", f"{epochs:g} is not whole; give max_steps")
    return {"max_epochs": math.ceil(epochs)}


def precision(settings: Settings) -> str:
    """Mixed as named; both false means float32."""
    bfloat16, float16 = settings.flag("bf16"), settings.flag("fp16")
    if bfloat16 and float16:
        settings.lacks("fp16", "bf16 is true as well: keep one")
    if settings.flag("pure_bf16"):
        return "bf16-true"
    return "bf16-mixed" if bfloat16 else "16-mixed" if float16 else "32-true"


def validation(settings: Settings, accumulation: int) -> dict[str, Any]:
    """After each epoch, as ours does by itself, or every so many optimizer steps; Lightning counts micro-batches."""
    by_steps = settings.choice("eval_strategy", {"no": False, "false": False, "epoch": False, "steps": True}, "no")
    every = settings.number("eval_steps", settings.number("logging_steps", 500.0)) if by_steps else 0.0
    if every >= 1:
        return {"val_check_interval": int(every) * accumulation, "check_val_every_n_epoch": None}
    settings.ignore("eval_steps")
    return {}


def loggers(settings: Settings) -> dict[str, Any]:
    """TensorBoard is ours already; Weights & Biases is added where asked for."""
    asked = settings.names("report_to")
    if set(asked) - {"tensorboard", "wandb", "none"}:
        settings.ignore("report_to")
    if "wandb" not in asked:
        return {}
    options = {"name": settings.text("run_name")} if settings.given("run_name") else {}
    return {"logger": [{"class_path": "lightning.pytorch.loggers.WandbLogger"} | ({"init_args": options} if options else {})]}
