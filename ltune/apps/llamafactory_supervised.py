"""SFT and its kin of an imported configuration: DFT, EAFT, ASFT, noise, label smoothing."""

from __future__ import annotations

from typing import Any

from ltune.apps.settings import Settings

Value = str | dict[str, Any]


def sft(settings: Settings) -> Value:
    """The first of dft, eaft and asft that is switched on, as in LLaMA-Factory; with either, label smoothing does nothing there."""
    special = next((key for key in ("use_dft_loss", "use_eaft_loss", "use_asft_loss") if settings.flag(key)), None)
    if special is None:
        return _named("SFT", smoothing(settings) | noise(settings))
    settings.ignore("label_smoothing_factor")
    if special == "use_dft_loss":
        return _named("SFT", {"dft": True} | noise(settings))
    if special == "use_eaft_loss":
        return _named("EAFT", {"alpha": settings.number("eaft_alpha", 1.0)} | noise(settings))
    return _named("Distill", asft(settings) | noise(settings))


def pretrain(settings: Settings) -> Value:
    """On text; dft, eaft and asft are of stage sft alone."""
    return _named("Pretrain", smoothing(settings) | noise(settings))


def asft(settings: Settings) -> dict[str, Any]:
    """DFT, and a divergence from ``ref_model``; without one, from the model as it was loaded, where LLaMA-Factory 0.9.5 ends with an error
    if it trains LoRA."""
    model = settings.text("ref_model")
    if model is None and settings.text("finetuning_type") not in (None, "lora"):
        model = settings.text("model_name_or_path")
    options: dict[str, Any] = {"teacher": model}
    if model is not None:
        bits = settings.whole("ref_model_quantization_bit", 0)
        if bits not in (0, 4, 8):
            settings.lacks("ref_model_quantization_bit", f"{bits}: ltune has 4 and 8")
        options["teacher_quantize"] = {4: {"class_path": "NF4"}, 8: {"class_path": "Int8"}}.get(bits)
        adapters = settings.names("ref_model_adapters")
        if len(adapters) > 1:
            settings.lacks("ref_model_adapters", f"{len(adapters)} adapters: merge all but the last into the model first")
        options |= {"teacher_adapter": adapters[-1]} if adapters else {}
    return options | {"weight": settings.number("asft_alpha", 0.1), "sft_weight": 1.0, "dft": True}


def smoothing(settings: Settings) -> dict[str, float]:
    """Label smoothing."""
    share = settings.number("label_smoothing_factor", 0.0)
    if not share:
        settings.ignore("label_smoothing_factor")
    return {"label_smoothing": share} if share else {}


def noise(settings: Settings) -> dict[str, float]:
    """NEFTune's."""
    alpha = settings.number("neftune_noise_alpha", 0.0)
    return {"neftune_alpha": alpha} if alpha else {}


def without_noise(settings: Settings) -> None:
    """Of methods that have none."""
    if settings.number("neftune_noise_alpha", 0.0):
        settings.lacks("neftune_noise_alpha", "ltune has it for stage sft and pt")


def _named(class_path: str, options: dict[str, Any]) -> Value:
    return {"class_path": class_path, "init_args": options} if options else class_path
