"""What to talk to: a run, an adapter folder or a model, and how each wants to be loaded and addressed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ltune.errors import UsageError


@dataclass(frozen=True)
class Source:
    """What a run, an adapter folder or a model says about how it wants to be loaded and addressed."""

    model: str
    revision: str | None = None
    trust_remote_code: str | None = None
    quantize: dict[str, Any] | None = None  # {class_path, init_args}
    precision: str | None = None  # the trainer's; None: the device's usual one
    adapter: Path | None = None
    template: str | None = None
    system: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)


def find_source(name: str, adapter: Path | None = None) -> Source:
    """The source that the user's name stands for: a folder is looked into, anything else is a model's name.

    Raises UsageError for an unfinished run and for an adapter folder that is none.
    """
    folder = Path(name)
    if (folder / "config.yaml").is_file():
        source = _run_source(folder, needs_result=adapter is None)
    elif (folder / "adapter_config.json").is_file():
        source = _with_adapter(Source(model=""), folder)
    else:
        source = Source(model=name)
    return _with_adapter(source, adapter) if adapter else source


def _run_source(run: Path, needs_result: bool) -> Source:
    config = _read_config(run / "config.yaml")
    model, data = config["model"], config["data"]
    source = Source(
        model=model["model"],
        revision=model.get("revision"),
        trust_remote_code=model.get("trust_remote_code"),
        quantize=model.get("quantize"),
        precision=str((config.get("trainer") or {}).get("precision") or "32-true"),
        template=data.get("template"),
        system=data.get("system"),
        sampling=model.get("sampling") or {},
    )
    if (run / "adapter").is_dir():
        return _with_adapter(source, run / "adapter")
    if (run / "model").is_dir():  # all weights were trained: the folder stands for itself
        return replace(source, model=str(run / "model"), revision=None, trust_remote_code=None, quantize=None)
    if needs_result:
        raise UsageError(
            f"{run}: the run has not finished, it has neither adapter/ nor model/.\n"
            f"Finish it with the same command again:  ltune fit --config {run / 'config.yaml'}"
        )
    return source


def _read_config(path: Path) -> dict[str, Any]:
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not readable as YAML: {' '.join(str(error).split())}") from error
    sections = isinstance(config, dict) and isinstance(config.get("model"), dict) and isinstance(config.get("data"), dict)
    if not sections or "model" not in config["model"]:
        raise UsageError(
            f"{path}: not the configuration of a run (model.model and data are missing).\nGive a folder that `ltune fit` wrote."
        )
    return config


def _with_adapter(source: Source, folder: Path) -> Source:
    """The adapter's saved template is the one it was trained with; a source without a model gets the adapter's base."""
    if not (folder / "adapter_config.json").is_file():
        inside = " (a run? its adapter is in adapter/)" if (folder / "adapter").is_dir() else ""
        raise UsageError(f"{folder}: no adapter_config.json there{inside}.\nGive a PEFT folder.")
    if not (folder / "adapter_model.safetensors").is_file():
        raise UsageError(f"{folder}: no adapter_model.safetensors there; pickled weights are not loaded.")
    saved = folder / "chat_template.jinja"
    source = replace(source, adapter=folder, template=str(saved) if saved.is_file() else source.template)
    if source.model:
        return source
    base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if not base.get("base_model_name_or_path"):
        raise UsageError(f"{folder}: its adapter_config.json names no base model.\nName it:  ltune chat MODEL --adapter {folder}")
    return replace(source, model=base["base_model_name_or_path"], revision=base.get("revision"))
