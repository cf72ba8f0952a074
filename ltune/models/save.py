"""The result of a run: a PEFT folder for an adapter, a transformers folder for whole weights."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ltune.models.card import Card, render_card
from ltune.models.heads import ValueHead

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


TRAINED = ["default"]  # PEFT's name of the adapter; there may be another one beside it, that is only compared with


def save_result(model: nn.Module, tokenizer: "PreTrainedTokenizerBase", template_source: str | None, folder: Path, card: Card) -> None:
    """Write weights, tokenizer, chat template and card into an existing folder; the same weights give the same bytes.

    The adapter names its base model as the user did. For the embedded model that is "tiny", which ltune resolves and other tools
    do not: its path would be true on one machine only. Plain PEFT loads such an adapter onto a base that was loaded by its path.
    """
    from peft import PeftModel

    is_adapter = isinstance(model, PeftModel)
    if isinstance(model, PeftModel):
        save_adapter(model, folder, card)
    else:
        save_model(model, folder)  # type: ignore[arg-type]
    save_tokenizer(tokenizer, template_source, folder)
    (folder / "README.md").write_text(render_card(card, is_adapter), encoding="utf-8")


def save_adapter(model: "PeftModel", folder: Path, card: Card) -> None:
    """adapter_config.json and adapter_model.safetensors, as plain PEFT reads them."""
    # save_embedding_layers: PEFT's "auto" asks the hub for the base model's configuration; modules_to_save are saved all the same
    if model.peft_config["default"].to_dict()["init_lora_weights"] is not True:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            model.save_pretrained(
                str(folder),
                selected_adapters=TRAINED,
                save_embedding_layers=False,
                path_initial_model_for_weight_conversion=str(pissa_start(model, Path(scratch))),
            )
    else:
        model.save_pretrained(str(folder), selected_adapters=TRAINED, save_embedding_layers=False)
    rewrite_config(folder / "adapter_config.json", base_model_name_or_path=card.base_model, revision=card.revision)


def pissa_start(model: "PeftModel", scratch: Path) -> Path:
    """The starting weights in a folder, from which PEFT makes B A - B0 A0: a plain LoRA for the unchanged base model."""
    from safetensors.torch import save_file

    start = scratch / "start"
    start.mkdir()
    save_file(model.pissa_start, start / "adapter_model.safetensors")  # type: ignore[arg-type]
    return start


def rewrite_config(path: Path, **changes: Any) -> None:
    """PEFT writes sets in the order of the process's hash seed; sorted, the file is the same every time."""
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    for name in ("target_modules", "modules_to_save", "exclude_modules", "target_parameters"):
        if isinstance(config.get(name), list):
            config[name] = sorted(config[name])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_model(model: "PreTrainedModel", folder: Path) -> None:
    """A transformers folder; the cache, which training switches off, is on again in what is saved."""
    cached = model.config.use_cache
    model.config.use_cache = True
    try:
        model.save_pretrained(str(folder), **_without_heads(model))
    finally:
        model.config.use_cache = cached


def _without_heads(model: "PreTrainedModel") -> dict[str, Any]:
    """A head beside the model's own has a file of its own, and transformers knows nothing of it."""
    heads = tuple(f"{name}." for name, child in model.named_children() if isinstance(child, ValueHead))
    return {"state_dict": {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(heads)}} if heads else {}


def save_tokenizer(tokenizer: "PreTrainedTokenizerBase", template_source: str | None, folder: Path) -> None:
    """The tokenizer with the template that was trained on in the place of its own."""
    own = tokenizer.chat_template
    if template_source is not None:
        tokenizer.chat_template = template_source
    try:
        tokenizer.save_pretrained(str(folder))
    finally:
        tokenizer.chat_template = own
    if template_source is not None:
        (folder / "chat_template.jinja").write_text(template_source, encoding="utf-8")
