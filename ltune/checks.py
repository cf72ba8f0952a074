"""Rules between options: one function a rule, all problems reported at once, before any weights load."""

import difflib
import importlib
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import StrategyRegistry

from ltune.data.roles import ROLES
from ltune.errors import UsageError
from ltune.models.outline import outline


def check(config: dict[str, Any], command: str) -> None:
    """Raise UsageError with every problem between the options of a parsed configuration.

    Args:
        config: The resolved configuration, as in the run folder's config.yaml.
        command: fit, validate, test or predict.
    """
    model, data, trainer = config["model"], config["data"], config["trainer"]
    problems = [problem for rule in RULES for problem in rule(model, data, trainer)]
    if command == "fit":
        problems += [problem for rule in FIT_RULES for problem in rule(model, data, trainer)]
        problems += run_folder_can_be_made(Path(config["run"]))
        problems += [] if problems else model_has_what_is_named(config)
    elif command == "validate":
        problems += validation_rows_are_named(data)
    if problems:
        raise UsageError(as_message(problems))


def as_message(problems: list[str]) -> str:
    """At most 5 lines."""
    if len(problems) == 1:
        return problems[0]
    shown = problems if len(problems) <= 4 else [*problems[:3], f"... and {len(problems) - 3} more: {'; '.join(problems[3:])}"]
    return "\n".join([f"{len(problems)} problems in the configuration:", *(f"  {problem}" for problem in shown)])


def quantized_weights_cannot_train(model: dict, data: dict, trainer: dict) -> list[str]:
    adapter, quantizer = class_of(model["adapter"]), class_of(model["quantize"])
    if quantizer and adapter in ("Full", "Freeze"):
        return [
            f"model.adapter: {adapter} trains the weights themselves, and model.quantize: {quantizer} freezes them; "
            "set  model.quantize: null  or  model.adapter: LoRA"
        ]
    return []


def pissa_needs_exact_weights(model: dict, data: dict, trainer: dict) -> list[str]:
    if class_of(model["quantize"]) and init_args(model["adapter"]).get("pissa"):
        return [
            "adapter.pissa starts from the weights' own factors, which quantized storage does not have; "
            "set  model.quantize: null  or  pissa: false"
        ]
    return []


def reference_can_be_had(model: dict, data: dict, trainer: dict) -> list[str]:
    """What a preference objective compares the policy with."""
    objective, adapter = class_of(model["objective"]), class_of(model["adapter"])
    reference = init_args(model["objective"]).get("reference")
    kind = class_of(reference)
    if kind in ("AdapterOff", "OtherAdapter") and adapter in ("Full", "Freeze"):
        return [
            f"model.objective: {objective} compares with the model without its adapter, and model.adapter: {adapter} has none; "
            "set  reference: {class_path: OtherModel, init_args: {model: NAME}}  in its init_args, or  model.adapter: LoRA"
        ]
    if kind == "AdapterOff" and init_args(model["adapter"]).get("pissa"):
        return [f"model.objective: {objective} compares with the model without its adapter, which adapter.pissa changes; use OtherModel"]
    folder = str(init_args(reference).get("folder"))
    if kind == "OtherAdapter" and not (Path(folder) / "adapter_config.json").is_file():
        return [f"model.objective.reference: {folder} is no PEFT folder: it has no adapter_config.json; give the folder of a saved adapter"]
    return []


def divergence_needs_several_rows(model: dict, data: dict, trainer: dict) -> list[str]:
    if class_of(model["objective"]) == "KTO" and init_args(model["objective"])["divergence"] and data["tokens_per_batch"]:
        return [
            "model.objective: KTO estimates its divergence on a micro-batch, and with data.tokens_per_batch these have changing numbers "
            "of rows; set  tokens_per_batch: null  and a batch_size of 4 or more, or  divergence: false"
        ]
    return []


def adapter_to_continue_is_there(model: dict, data: dict, trainer: dict) -> list[str]:
    folder = init_args(model["adapter"]).get("init")
    if folder and not (Path(folder) / "adapter_config.json").is_file():
        return [f"model.adapter.init: {folder} is no PEFT folder: it has no adapter_config.json; give the folder of a saved adapter"]
    return []


def lora_plus_needs_lora(model: dict, data: dict, trainer: dict) -> list[str]:
    if model["lora_plus_ratio"] is not None and class_of(model["adapter"]) != "LoRA":
        return [f"model.lora_plus_ratio is about LoRA's B matrices, and model.adapter is {class_of(model['adapter'])}; set it to null"]
    if model["lora_plus_ratio"] is not None and model["lora_plus_ratio"] <= 0:
        return [f"model.lora_plus_ratio is above 0, got {model['lora_plus_ratio']}"]
    return []


def numbers_make_sense(model: dict, data: dict, trainer: dict) -> list[str]:
    problems = [
        f"data.{key} is at least {least}, got {data[key]}" for key, least in (("batch_size", 1), ("max_length", 2)) if data[key] < least
    ]
    problems += [f"data.{key} is not negative, got {data[key]}" for key in ("val_size", "workers") if data[key] < 0]
    if data["val_size"] >= 1 and data["val_size"] != int(data["val_size"]):
        problems.append(f"data.val_size is a whole number of rows or a share below 1, got {data['val_size']}")
    if isinstance(data["val_size"], float) and data["val_size"] == 1:
        problems.append("data.val_size: 1.0 may mean one row or all of them; write 1 for a row, or a share below 1")
    problems += [
        f"data.{key} is at least {least} or null, got {data[key]}"
        for key, least in (("max_rows", 1), ("tokens_per_batch", 2))
        if data[key] is not None and data[key] < least
    ]
    return problems


def packing_needs_flat_rows(model: dict, data: dict, trainer: dict) -> list[str]:
    if data["tokens_per_batch"] and data["layout"] == "padded":
        return [
            "data.tokens_per_batch lays rows end to end, data.layout: padded does not; set  data.layout: flat  or  tokens_per_batch: null"
        ]
    return []


def one_way_to_validate(model: dict, data: dict, trainer: dict) -> list[str]:
    if data["val_size"] and data["val_datasets"]:
        return ["data.val_size and data.val_datasets are two ways to get validation rows; choose one"]
    return []


def device_is_there(model: dict, data: dict, trainer: dict) -> list[str]:
    wanted, asked, found = trainer["accelerator"], trainer["devices"], torch.cuda.device_count()
    if wanted in ("gpu", "cuda") and not torch.cuda.is_available():
        return [
            f"trainer.accelerator: {wanted} was asked for, and torch {torch.__version__} sees no CUDA device; "
            "set it to auto or cpu, or mend the driver"
        ]
    count = int(asked) if str(asked).isdigit() else None
    numbers = (
        [int(part) for part in asked.split(",")] if isinstance(asked, str) and asked.replace(",", "").isdigit() and "," in asked else asked
    )
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return [] if asked == "auto" or count else [f"trainer.devices on the CPU is a number of processes, 1 or more, or auto; got {asked}"]
    if wanted in ("gpu", "cuda", "auto"):
        if count is not None and not 0 < count <= found:
            return [f"trainer.devices: {asked} were asked for, and {found} are there"]
        if isinstance(numbers, list) and not set(numbers) <= set(range(found)):
            return [f"trainer.devices: {asked} were asked for, and there are 0 to {found - 1}"]
        if count is None and not isinstance(numbers, list) and asked not in ("auto", -1, "-1"):
            return [f"trainer.devices is auto, a number, or a list of numbers such as [0, 2]; got {asked}"]
    return []


def strategy_is_known(model: dict, data: dict, trainer: dict) -> list[str]:
    asked, known = trainer["strategy"], StrategyRegistry.available_strategies()
    if isinstance(asked, str) and asked != "auto" and asked not in known:
        near = difflib.get_close_matches(asked, known, n=1)
        hint = f'; did you mean "{near[0]}"?' if near else "; use auto or ddp"
        return [f"trainer.strategy: {asked} is not known{hint}"]
    return []


def optimizer_takes_its_options(model: dict, data: dict, trainer: dict) -> list[str]:
    """Built for one number, so that a wrong value is told before the weights load."""
    module, _, name = model["optimizer"]["class_path"].rpartition(".")
    weight = torch.nn.Parameter(torch.zeros(1))
    try:
        getattr(importlib.import_module(module), name)([weight], **init_args(model["optimizer"]))
    except (ValueError, TypeError) as error:
        return [f"model.optimizer: {name} refuses its options: {str(error).splitlines()[0]}"]
    return []


def precision_runs_there(model: dict, data: dict, trainer: dict) -> list[str]:
    cpu = trainer["accelerator"] == "cpu" or not torch.cuda.is_available()
    if cpu and str(trainer["precision"]) in ("16", "16-mixed", "16-true"):
        return [f"trainer.precision: {trainer['precision']} needs a GPU; on the CPU use bf16-true or 32-true"]
    if str(trainer["precision"]) in ("64", "64-true", "transformer-engine", "transformer-engine-float16"):
        return [f"trainer.precision: {trainer['precision']} is not supported; use 32-true, bf16-true, bf16-mixed or 16-mixed"]
    return []


def windows_are_ours(model: dict, data: dict, trainer: dict) -> list[str]:
    problems = []
    if trainer["default_root_dir"]:
        problems.append("trainer.default_root_dir is the run folder; give it as  run: FOLDER")
    if trainer["overfit_batches"]:
        problems.append("trainer.overfit_batches would replace the order of rows; use  data.max_rows  instead")
    if trainer["reload_dataloaders_every_n_epochs"]:
        problems.append("trainer.reload_dataloaders_every_n_epochs would lose the position in the data; set it to 0")
    if trainer["gradient_clip_algorithm"] not in (None, "norm"):
        problems.append(f"trainer.gradient_clip_algorithm: {trainer['gradient_clip_algorithm']} is not supported; clipping is by norm")
    if trainer["use_distributed_sampler"]:
        problems.append("trainer.use_distributed_sampler would replace the order of rows; set it to false")
    if any("GradientAccumulationScheduler" in str(class_of(callback)) for callback in trainer["callbacks"] or []):
        problems.append("GradientAccumulationScheduler would change the windows' size; set trainer.accumulate_grad_batches to a number")
    return problems


def weights_name_roles(model: dict, data: dict, trainer: dict) -> list[str]:
    problems = []
    for role in sorted(set(data["weights"] or {}) - set(ROLES)):
        near = difflib.get_close_matches(role, ROLES, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(ROLES)}"
        problems.append(f"data.weights: there is no role {role}; {hint}")
    return problems


def something_to_train_on(model: dict, data: dict, trainer: dict) -> list[str]:
    return [] if data["datasets"] else ["data.datasets is empty; name data sets, for example  --data.datasets='[rows.jsonl]'"]


def training_ends(model: dict, data: dict, trainer: dict) -> list[str]:
    if trainer["max_epochs"] in (None, -1) and trainer["max_steps"] in (None, -1) and not trainer["max_time"]:
        return ["trainer.max_epochs, max_steps and max_time are all unset: training would not end; set one"]
    return []


def run_folder_can_be_made(run: Path) -> list[str]:
    existing = next(path for path in (run.absolute(), *run.absolute().parents) if path.exists())
    if not existing.is_dir():
        return [f"run: {run} cannot be a folder, as {existing} is a file; choose another one with  --run FOLDER"]
    if not os.access(existing, os.W_OK | os.X_OK):
        return [f"run: {run} cannot be written, as {existing} is read-only; choose another one with  --run FOLDER"]
    return []


def model_has_what_is_named(config: dict) -> list[str]:
    """Layers and modules that the adapter names, before rows are read and weights load; on the meta device, so it takes a second."""
    model, options = config["model"], init_args(config["model"]["adapter"])
    if options.get("init") or not any(options.get(name, "all") not in ("all", None) for name in ("targets", "modules_to_save", "modules")):
        return []
    module, _, name = model["adapter"]["class_path"].rpartition(".")
    adapter = getattr(importlib.import_module(module), name)(**options)
    where = {"revision": model["revision"], "trust_remote_code": model["trust_remote_code"]}
    try:
        outline(model["model"], dtype=torch.float32, quantize=None, adapter=adapter, **where)
    except UsageError as error:  # what else is wrong is said when it is loaded
        return [f"model.{error}".replace("\n", " ")] if str(error).startswith("adapter") else []
    return []


def attention_is_known(model: dict, data: dict, trainer: dict) -> list[str]:
    from transformers import AttentionInterface

    asked, known = model.get("attention"), ["eager", *AttentionInterface().valid_keys()]
    if asked is None or asked in known or "/" in asked:  # with a slash: a kernel of the hub
        return []
    near = difflib.get_close_matches(asked, known, n=1)
    return [f"model.attention: {asked} is not known" + (f'; did you mean "{near[0]}"?' if near else "; use null, sdpa or eager")]


def folder_is_there(model: dict, data: dict, trainer: dict) -> list[str]:
    """Data sets that come from elsewhere would hide that it is not."""
    folder = Path(data.get("folder") or "data").expanduser()
    if str(folder) == "data" or folder.is_dir():  # the default need not be there
        return []
    return [f"data.folder: there is no folder {folder}; it holds dataset_info.json and the files it names"]


def validation_rows_are_named(data: dict) -> list[str]:
    if not data["val_size"] and not data["val_datasets"]:
        return ["there is nothing to validate on: data.val_size is 0 and data.val_datasets is empty; set one"]
    return []


RULES = [
    quantized_weights_cannot_train, pissa_needs_exact_weights, adapter_to_continue_is_there, reference_can_be_had,
    divergence_needs_several_rows, lora_plus_needs_lora, numbers_make_sense,
    one_way_to_validate, packing_needs_flat_rows,
    device_is_there, precision_runs_there, strategy_is_known, optimizer_takes_its_options, attention_is_known, folder_is_there,
]  # fmt: skip
FIT_RULES = [windows_are_ours, weights_name_roles, something_to_train_on, training_ends]


def class_of(value: dict | None) -> str | None:
    """The short class name of a ``class_path`` value, or None."""
    return value["class_path"].rsplit(".", 1)[-1] if value else None


def init_args(value: dict | None) -> dict:
    """The ``init_args`` of a ``class_path`` value."""
    return (value or {}).get("init_args") or {}
