"""From a name to a causal language model in memory."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ltune.errors import UsageError
from ltune.models.quantize import Quantizer, is_quantized, prepare_quantized
from ltune.models.tokenizer import hub_arguments, resolve_model, unobtainable

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

SMALL = 10_000_000  # parameters

log = logging.getLogger(__name__)


def load_model(
    name: str,
    *,
    dtype: torch.dtype,
    quantize: Quantizer | None = None,
    attention: str | None = None,
    revision: str | None = None,
    trust_remote_code: str | None = None,
    device: torch.device | str = "cpu",
    sparing: bool = False,
) -> "PreTrainedModel":
    """A causal language model with its weights on `device`; quantized weights are frozen, for others the adapter decides.

    Args:
        name: Hub id, folder, or "tiny".
        dtype: Of the weights; where they are quantized, of what is not, and of the matrix products.
        quantize: Null leaves the weights as they are stored. A checkpoint that is already quantized stays as it is.
        attention: transformers' name of the implementation; null: its choice.
        revision: Of the hub repository.
        trust_remote_code: "repository@revision", if that repository's code may run.
        device: Where to load to.
        sparing: Load one weight after the other: slower, and never more in memory than needed.

    Raises:
        UsageError: files missing, pickled weights, an adapter's folder, weights missing in the file, untrusted code, another
            quantization than the checkpoint's, or an attention implementation that is not there.
    """
    import ltune.models.uncompiled  # noqa: F401

    source = resolve_model(name)
    if Path(source).is_dir():
        require_model_files(name, Path(source))
    arguments = hub_arguments(name, revision, trust_remote_code)
    config = load_config(name, source, arguments)
    if attention is not None:
        arguments["attn_implementation"] = attention
    if quantization := quantization_for(name, config, quantize, dtype):
        arguments["quantization_config"] = quantization
    with one_at_a_time() if sparing else nullcontext():
        model = read_weights(name, source, config=config, dtype=dtype, device_map={"": device}, **arguments)
    if is_quantized(model):
        prepare_quantized(model)
    if torch.device(device).type == "cpu":
        limit_threads(model)
    model.config.use_cache = False  # with a cache, transformers does not separate rows by their positions
    return model


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """transformers reads ahead with several threads, and what was read waits on the device in full precision to be quantized."""
    before = os.environ.get("HF_DEACTIVATE_ASYNC_LOAD")
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HF_DEACTIVATE_ASYNC_LOAD"]
        else:
            os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = before


def limit_threads(model: "PreTrainedModel") -> None:
    """One thread for a small model, unless OMP_NUM_THREADS says otherwise.

    Two threads gain a third on its small matrices where the cores are free, and lose tenfold, waiting for each other, where they are not.
    """
    if "OMP_NUM_THREADS" not in os.environ and sum(parameter.numel() for parameter in model.parameters()) < SMALL:
        torch.set_num_threads(1)


def enable_gradient_checkpointing(model: "PreTrainedModel") -> None:
    """Recompute activations in the backward pass. Before or after the adapter is applied; not again on a model that has it.

    Non-reentrant: it keeps gradients where a layer's input needs none. transformers also makes the embeddings' output require one,
    which the models of its older layer format need.

    Raises:
        UsageError: the model has no support for it.
    """
    options = {"use_reentrant": False}
    try:
        if hasattr(model, "activation_checkpointing_enable"):  # the name from transformers 5.23 on; the older goes away in 6
            model.activation_checkpointing_enable(options)
        else:
            model.gradient_checkpointing_enable(options)
    except ValueError as error:
        raise UsageError(f"gradient_checkpointing: {error}\nSet model.gradient_checkpointing: false.") from error


def require_model_files(name: str, folder: Path) -> None:
    if (folder / "adapter_config.json").is_file():
        raise UsageError(f"model: {name} is an adapter.\nGive its base model as model, and adapter.init: {name} to continue it.")
    if not (folder / "config.json").is_file():
        raise UsageError(f"model: the folder {name} has no config.json.\nGive the folder of a transformers model.")
    if any(folder.glob("*.safetensors")):
        return
    pickled = next((file.name for file in sorted(folder.iterdir()) if file.suffix in (".bin", ".pt", ".pth", ".ckpt")), None)
    if pickled:
        raise UsageError(
            f"model: {name} has only pickled weights ({pickled}), which can run code when read.\nConvert them to safetensors first."
        )
    raise UsageError(f"model: the folder {name} has no weights.\nMissing: model.safetensors, or its shards with their index.")


def load_config(name: str, source: str, arguments: dict[str, Any]) -> "PretrainedConfig":
    """The model's configuration; code that the repository brings along is refused unless it is trusted and its own."""
    from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

    try:
        raw, _ = PretrainedConfig.get_config_dict(source, revision=arguments["revision"])
        custom = raw.get("auto_map", {})
        # A known type loads with transformers' own code, whatever the file offers
        if custom and not arguments["trust_remote_code"] and raw.get("model_type") not in CONFIG_MAPPING:
            raise UsageError(
                f"model: {name} needs code from its repository ({', '.join(sorted(custom))}), which is not run unasked.\n"
                "Read it, then set model.revision and trust_remote_code: repository@revision."
            )
        if arguments["trust_remote_code"] and any("--" in str(target) for target in custom.values()):
            raise UsageError(f"model: {name} refers to code in another repository, and trust_remote_code covers only its own.")
        return AutoConfig.from_pretrained(source, **arguments)
    except (OSError, ValueError, ImportError) as error:
        raise unobtainable(name, arguments["revision"], "configuration", error) from error


def quantization_for(name: str, config: "PretrainedConfig", quantize: Quantizer | None, dtype: torch.dtype) -> Any:
    """What to pass to `from_pretrained`; null for a checkpoint that is already quantized, whose `config` is set to compute in `dtype`."""
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return None if quantize is None else quantize.config(dtype)
    stored = dict(stored if isinstance(stored, dict) else stored.to_dict())
    if quantize is not None and not quantize.matches(stored):
        kind = stored.get("bnb_4bit_quant_type") or stored.get("quant_method")
        raise UsageError(
            f"model: {name} is stored quantized ({kind}), so it cannot become {type(quantize).__name__}.\n"
            "Set quantize: null to use it as it is, or give the full-precision model."
        )
    if stored.get("load_in_4bit"):
        computed = quantize.config(dtype).bnb_4bit_compute_dtype if quantize else dtype
        stored["bnb_4bit_compute_dtype"] = str(computed).removeprefix("torch.")
        config.quantization_config = stored
    log.info("%s is stored quantized; it is used as it is", name)
    return None


def read_weights(name: str, source: str, **arguments: Any) -> "PreTrainedModel":
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # it fills logs, and a local folder loads in seconds
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(source, use_safetensors=True, output_loading_info=True, **arguments)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise unobtainable(name, arguments["revision"], "weights (safetensors)", error) from error
    model, report = loaded
    if report["missing_keys"]:  # transformers would train on random numbers, with a warning
        missing = sorted(report["missing_keys"])
        raise UsageError(f"model: {name} lacks {len(missing)} weights of a {type(model).__name__}, such as {missing[0]}.")
    if model._hf_peft_config_loaded:
        raise UsageError(
            f"model: {name} holds an adapter beside its weights.\nGive the base model, and the adapter's folder as adapter.init."
        )
    return model
