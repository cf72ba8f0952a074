"""Which weights are trained, in which dtype, and what is refused."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from ltune.errors import UsageError
from ltune.models.adapters import Freeze, Full, LoRA, trainable_state
from ltune.models.layer_names import linear_layers
from ltune.models.load import load_model
from ltune.models.quantize import NF4

IDS = torch.arange(2, 18)[None]
SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
EXPERTS = SIZES | {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
LINEAR = ATTENTION | {"gate_proj", "up_proj", "down_proj"}


def llama(**changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES | changes))


def adapted_leaves(model: torch.nn.Module) -> set[str]:
    return {name.split(".")[-4] for name, _ in model.named_parameters() if name.endswith("lora_A.default.weight")}


def test_lora_adapts_every_linear_layer_but_the_head() -> None:
    model = LoRA().apply(llama())
    state = trainable_state(model)
    assert adapted_leaves(model) == LINEAR
    assert len(state) == 2 * 2 * 7
    assert state["base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"].shape == (8, 32)
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias, set(config.target_modules)) == (8, 16, 0.0, "none", LINEAR)


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_adapters_dtype_is_its_own(base: torch.dtype, dtype: str) -> None:
    model = LoRA(dtype=dtype, dora=True, modules_to_save=["lm_head"]).apply(llama().to(base))
    assert {weight.dtype for weight in trainable_state(model).values()} == {getattr(torch, dtype)}
    assert model.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight.dtype == base


def test_peft_leaves_base_layers_in_eval_mode_until_train_is_called(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    model = LoRA().apply(load_model(str(tmp_path), dtype=torch.float32, quantize=NF4()))
    assert not model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.training
    model.train()
    assert all(module.training for module in model.modules())


def test_named_targets_and_options() -> None:
    model = LoRA(rank=4, alpha=2, targets=["q_proj", "mlp.up_proj"], rslora=True, dora=True).apply(llama())
    assert adapted_leaves(model) == {"q_proj", "up_proj"}
    assert model.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"] == 2 / 4**0.5
    assert any("lora_magnitude_vector" in name for name in trainable_state(model))


@pytest.mark.parametrize("options", [{"targets": ["q_proj", "z_proj"]}, {"modules_to_save": ["z_proj"]}])
def test_a_name_that_fits_nothing_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"no module z_proj\.\nIts linear layers: down_proj"):
        LoRA(**options).apply(llama())


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 0},
        {"alpha": 0},
        {"targets": []},
        {"dropout": 1.0},
        {"dtype": "float16"},
        {"pissa": True, "dora": True},
        {"pissa": True, "init": "x"},
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        LoRA(**options)


@pytest.mark.parametrize(
    ("config", "adapted", "said"),
    [
        (MixtralConfig(**EXPERTS), ATTENTION, "model.layers.*.mlp.experts.down_proj"),
        (Qwen3MoeConfig(**EXPERTS), ATTENTION, "model.layers.*.mlp.experts.gate_up_proj"),
        (Qwen3MoeConfig(**EXPERTS, mlp_only_layers=[0]), ATTENTION, "up_proj"),
        (Qwen2MoeConfig(**EXPERTS, shared_expert_intermediate_size=32), ATTENTION, "gate_proj"),
    ],
    ids=["mixtral", "qwen3_moe", "qwen3_moe with a dense layer", "qwen2_moe with a shared expert"],
)
def test_experts_and_routers_are_left_alone_and_that_is_said(config: Any, adapted: set[str], said: str, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING, "ltune.models.layer_names"):
        model = LoRA().apply(AutoModelForCausalLM.from_config(config))
    assert adapted_leaves(model) == adapted
    assert {name.split(".")[-2] for name in trainable_state(model)} == {"default"}
    assert not [name for name in trainable_state(model) if "expert" in name or ".gate." in name]
    assert said in caplog.text


def test_a_module_of_the_same_last_name_outside_is_not_adapted() -> None:
    model = llama()
    model.extra = torch.nn.ModuleDict({"q_proj": torch.nn.Identity()})
    adapted = LoRA().apply(model)
    assert adapted_leaves(adapted) == LINEAR
    assert "model.layers.1.self_attn.q_proj" in adapted.peft_config["default"].target_modules


def test_gpt2s_transposed_layers_count_as_linear() -> None:
    model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=128, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0))
    assert linear_layers(model) == [f"transformer.h.0.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]
    assert adapted_leaves(LoRA().apply(model)) == {"c_attn", "c_proj", "c_fc"}


@pytest.mark.parametrize("pissa", [True, 4])
def test_pissa_starts_at_the_same_model_whatever_the_generator(pissa: bool | int) -> None:
    expected = llama()(input_ids=IDS).logits
    starts = []
    for seed in (1, 2):
        model = llama()
        torch.manual_seed(seed)
        adapted = LoRA(pissa=pissa).apply(model)
        assert torch.initial_seed() == seed
        assert torch.allclose(adapted(input_ids=IDS).logits, expected, atol=1e-5)
        starts.append(adapted.state_dict())
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in starts[0])
    assert any(weight.abs().sum() > 0 for name, weight in trainable_state(adapted).items() if "lora_B" in name)


def test_quantized_weights_cannot_be_trained_or_split(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    model = load_model(str(tmp_path), dtype=torch.float32, quantize=NF4())
    for adapter in (Full(), Freeze(), LoRA(pissa=True)):
        with pytest.raises(UsageError, match="quantize: null"):
            adapter.apply(model)
    assert trainable_state(model) == {}


def saved_adapter(folder: Path) -> dict[str, torch.Tensor]:
    model = LoRA(rank=3, alpha=7, targets=["q_proj", "up_proj"]).apply(llama())
    for weight in trainable_state(model).values():
        torch.nn.init.normal_(weight)
    model.save_pretrained(folder)
    return {name: weight.detach().clone() for name, weight in trainable_state(model).items()}


def test_a_saved_adapter_is_continued_as_it_was(tmp_path: Path, caplog: Any) -> None:
    expected = saved_adapter(tmp_path)
    with caplog.at_level(logging.INFO, "ltune.models.adapters"):
        model = LoRA(init=str(tmp_path)).apply(llama().to(torch.bfloat16))
    state = trainable_state(model)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) and state[name].dtype == torch.float32 for name in expected)
    assert model.peft_config["default"].lora_alpha == 7
    assert "rank, alpha, dropout and targets are its own" in caplog.text


def test_what_is_not_an_adapter_cannot_be_continued(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"not a PEFT folder: it has no adapter_config.json"):
        LoRA(init=str(tmp_path)).apply(llama())


def test_an_adapter_of_another_model_or_kind_is_refused(tmp_path: Path) -> None:
    saved_adapter(tmp_path)
    with pytest.raises(UsageError, match="does not fit this model"):
        LoRA(init=str(tmp_path)).apply(llama(hidden_size=64))
    with pytest.raises(UsageError, match="does not fit this model"):
        LoRA(init=str(tmp_path)).apply(llama(num_hidden_layers=3))
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"peft_type": "IA3", "feedforward_modules": []}))
    with pytest.raises(UsageError, match="only LoRA"):
        LoRA(init=str(tmp_path)).apply(llama())


def test_an_incomplete_adapter_is_refused(tmp_path: Path) -> None:
    saved_adapter(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    weights.pop(sorted(weights)[0])
    save_file(weights, file)
    with pytest.raises(UsageError, match="1 weights differ"):
        LoRA(init=str(tmp_path)).apply(llama())


def test_the_reference_adapter_is_continued(shared: Path) -> None:
    golden = shared / "golden" / "runs"
    model = LoRA(init=str(golden / "adapter")).apply(load_model(str(golden / "model"), dtype=torch.float32))
    stored = load_file(golden / "adapter" / "adapter_model.safetensors")
    state = trainable_state(model)
    assert len(state) == len(stored)
    assert all(torch.equal(state[name.replace(".weight", ".default.weight")], tensor) for name, tensor in stored.items())


@pytest.mark.parametrize(
    ("freeze", "prefixes", "count"),
    [
        (Freeze(layers=1), {"model.layers.1"}, 9),
        (Freeze(layers=-1), {"model.layers.0"}, 9),
        (Freeze(layers=2), {"model.layers.0", "model.layers.1"}, 18),
        (Freeze(layers=1, modules=["mlp"]), {"model.layers.1"}, 3),
        (Freeze(layers=0, extra=["embed_tokens", "model.norm"]), {"model.embed_tokens.weight", "model.norm.weight"}, 2),
    ],
    ids=["last", "first", "all", "only mlp", "only outside"],
)
def test_freeze_trains_the_layers_named(freeze: Freeze, prefixes: set[str], count: int) -> None:
    state = trainable_state(freeze.apply(llama()))
    assert {".".join(name.split(".")[:3]) for name in state} == prefixes
    assert len(state) == count


@pytest.mark.parametrize("options", [{"layers": 3}, {"layers": 0}, {"modules": ["z"]}, {"extra": ["mlp"]}], ids=str)
def test_freeze_refuses_what_is_not_there(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="adapter"):
        Freeze(**options).apply(llama())


def test_full_trains_everything_in_the_dtype_asked_for() -> None:
    model = llama().to(torch.bfloat16)
    assert len(trainable_state(Full().apply(model))) == len(list(model.parameters()))
    assert model.dtype == torch.bfloat16
    assert {weight.dtype for weight in Full(weights_dtype="float32").apply(model).parameters()} == {torch.float32}
