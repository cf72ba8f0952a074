"""The objective of an imported configuration: one function for each of LLaMA-Factory's stages."""

from __future__ import annotations

from typing import Any

from ltune.apps.llamafactory_supervised import pretrain, sft, without_noise
from ltune.apps.settings import Settings

Value = str | dict[str, Any]


def objective(settings: Settings) -> Value:
    """What ``stage`` names."""
    stages = {"sft": sft, "pt": pretrain, "rm": reward, "dpo": preference, "kto": kto, "ppo": ppo}
    made = settings.choice("stage", stages, "sft")
    if made not in (sft, pretrain):
        without_noise(settings)
    return made(settings)


def reward(settings: Settings) -> Value:
    """A reward model, with a value head."""
    return "Reward"


def preference(settings: Settings) -> Value:
    """On pairs; ``pref_loss`` tells which of several methods."""
    if settings.number("pref_bco_weight", 0.0):
        settings.lacks("pref_bco_weight", "ltune has no mixture with BCO")
    losses = {"sigmoid": dpo, "hinge": dpo, "ipo": dpo, "orpo": orpo, "simpo": simpo}
    return settings.choice("pref_loss", losses, "sigmoid")(settings)


def dpo(settings: Settings) -> Value:
    """Hinge and IPO are the papers' here; LLaMA-Factory 0.9.5 computes something else under these names."""
    smoothing = settings.number("dpo_label_smoothing", 0.0)
    smoothed = {"class_path": "Sigmoid", "init_args": {"label_smoothing": smoothing}} if smoothing else None
    loss = settings.choice("pref_loss", {"sigmoid": smoothed, "hinge": {"class_path": "Hinge"}, "ipo": {"class_path": "IPO"}}, "sigmoid")
    options: dict[str, Any] = {"beta": settings.number("pref_beta", 0.1)}
    options |= {"loss": loss} if loss else {}
    options |= _sft_weight(settings)
    options |= {"ld_alpha": settings.number("ld_alpha", 1.0)} if settings.given("ld_alpha") else {}
    return {"class_path": "DPO", "init_args": options | reference(settings)}


def orpo(settings: Settings) -> Value:
    """No reference."""
    return {"class_path": "ORPO", "init_args": {"beta": settings.number("pref_beta", 0.1)} | _sft_weight(settings)}


def simpo(settings: Settings) -> Value:
    """No reference."""
    options = {"beta": settings.number("pref_beta", 0.1), "gamma": settings.number("simpo_gamma", 0.5)}
    return {"class_path": "SimPO", "init_args": options | _sft_weight(settings)}


def kto(settings: Settings) -> Value:
    """On rated answers."""
    if settings.number("pref_ftx", 0.0):
        settings.lacks("pref_ftx", "KTO has no supervised part in ltune")
    options = {
        "beta": settings.number("pref_beta", 0.1),
        "good_weight": settings.number("kto_chosen_weight", 1.0),
        "bad_weight": settings.number("kto_rejected_weight", 1.0),
    }
    return {"class_path": "KTO", "init_args": options | reference(settings)}


def ppo(settings: Settings) -> Value:
    """Scored by a reward model; TRL 0.9's PPO, which it uses, has ltune's other defaults."""
    from ltune.apps.llamafactory_model import sampling

    if not settings.flag("do_sample", True):
        settings.lacks("do_sample", "PPO draws its answers")
    options: dict[str, Any] = {
        "rewards": [reward_model(settings)],
        "sampling": sampling(settings),
        "iterations": settings.whole("ppo_epochs", 4),
        "mini_batches": settings.whole("ppo_buffer_size", 1),
        "kl": {"class_path": "AdaptiveKL", "init_args": {"initial": 0.2, "target": settings.number("ppo_target", 6.0)}},
    }
    options |= {"normalize_scores": True} if settings.flag("ppo_score_norm") else {}
    options |= {"whiten_rewards": True} if settings.flag("ppo_whiten_rewards") else {}
    return {"class_path": "PPO", "init_args": options | reference(settings)}


def steps_per_rollout(settings: Settings) -> tuple[int, int]:
    """PPO's passes over a buffer, and its optimizer steps in each; where LLaMA-Factory counts one step."""
    if settings.text("stage") != "ppo":
        return 1, 1
    return settings.whole("ppo_epochs", 4), settings.whole("ppo_buffer_size", 1)


def reward_model(settings: Settings) -> dict[str, Any]:
    """An adapter on the same base, or a whole model, perhaps with an adapter of its own."""
    kind = settings.choice("reward_model_type", {"lora": "lora", "full": "full"}, "lora")
    folder, adapters = settings.text("reward_model"), settings.names("reward_model_adapters")
    if folder is None:
        settings.lacks("reward_model", "PPO needs one")
    if len(adapters) > 1:
        settings.lacks("reward_model_adapters", f"{len(adapters)} adapters: merge all but the last into the model first")
    key = "quantization_bit" if kind == "lora" else "reward_model_quantization_bit"
    options: dict[str, Any] = {"folder": adapters[-1] if adapters else folder}
    if kind == "lora":
        options["model"] = settings.text("model_name_or_path")
    elif adapters:
        options["model"] = folder
    return {"class_path": "ModelReward", "init_args": options | _stored(settings, key)}


def reference(settings: Settings) -> dict[str, Any]:
    """LLaMA-Factory's: ``ref_model``; else the model without its adapter, and where there is none, the model as it was loaded."""
    model = settings.text("ref_model")
    if model is None and settings.text("finetuning_type") in (None, "lora"):
        return {}
    options: dict[str, Any] = {"model": model or settings.text("model_name_or_path")}
    if model is not None:
        options |= _stored(settings, "ref_model_quantization_bit")
        adapters = settings.names("ref_model_adapters")
        if len(adapters) > 1:
            settings.lacks("ref_model_adapters", f"{len(adapters)} adapters: merge all but the last into the model first")
        options |= {"adapter": adapters[-1]} if adapters else {}
    return {"reference": {"class_path": "OtherModel", "init_args": options}}


def _stored(settings: Settings, key: str) -> dict[str, Any]:
    bits = settings.whole(key, 0)
    if bits not in (0, 4, 8):
        settings.lacks(key, f"{bits}: ltune has 4 and 8")
    return {"quantize": {"class_path": "NF4" if bits == 4 else "Int8"}} if bits in (4, 8) else {}


def _sft_weight(settings: Settings) -> dict[str, float]:
    weight = settings.number("pref_ftx", 0.0)
    return {"sft_weight": weight} if weight else {}
