"""Four- and eight-bit weights on the CPU, and the trap that evaluation sets for training."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ltune.errors import UsageError
from ltune.models.adapters import LoRA, trainable_state
from ltune.models.load import load_model
from ltune.models.quantize import FP4, NF4, Int8, Quantizer, is_quantized

IDS = torch.arange(2, 34)[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    path = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.mark.parametrize(("quantizer", "kind"), [(NF4(), "nf4"), (FP4(double_quantization=False), "fp4")])
def test_four_bit_configuration(quantizer: Quantizer, kind: str) -> None:
    config = quantizer.config(torch.bfloat16)
    assert (config.load_in_4bit, config.bnb_4bit_quant_type, config.bnb_4bit_compute_dtype) == (True, kind, torch.bfloat16)
    assert config.bnb_4bit_quant_storage == torch.uint8
    assert config.bnb_4bit_use_double_quant is (kind == "nf4")


def test_own_compute_dtype_and_storage_win() -> None:
    config = NF4(compute_dtype="float32", storage="bfloat16").config(torch.bfloat16)
    assert (config.bnb_4bit_compute_dtype, config.bnb_4bit_quant_storage) == (torch.float32, torch.bfloat16)


def test_int8_configuration() -> None:
    config = Int8(threshold=4.0).config(torch.bfloat16)
    assert (config.load_in_8bit, config.llm_int8_threshold) == (True, 4.0)


@pytest.mark.parametrize("options", [{"compute_dtype": "int8"}, {"storage": "uint4"}])
def test_wrong_names_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="is one of"):
        NF4(**options)


@pytest.mark.parametrize("quantizer", [NF4(), FP4(), Int8()])
def test_linear_layers_are_quantized_frozen_and_trainable_under_lora(folder: Path, quantizer: Quantizer) -> None:
    model = load_model(str(folder), dtype=torch.float32, quantize=quantizer)
    assert is_quantized(model)
    kinds = {type(module).__name__ for module in model.modules()}
    assert kinds & {"Linear4bit", "Linear8bitLt"}
    assert type(model.lm_head).__name__ == "Linear"
    assert trainable_state(model) == {}
    adapted = LoRA().apply(model).train()
    adapted(input_ids=IDS, labels=IDS).loss.backward()
    gradients = [weight.grad for name, weight in trainable_state(adapted).items() if "lora_B" in name]
    assert len(gradients) == 14
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def gradients(folder: Path, evaluate_first: bool, with_switch: bool = True) -> dict[str, torch.Tensor]:
    model = load_model(str(folder), dtype=torch.float32, quantize=NF4())
    if not with_switch:
        import bitsandbytes

        for module in model.modules():
            if isinstance(module, bitsandbytes.nn.Linear4bit):
                module.support_avx512bf16_for_cpu = True
    torch.manual_seed(1)
    adapted = LoRA().apply(model)
    with torch.no_grad():
        for name, weight in trainable_state(adapted).items():
            if "lora_B" in name:
                weight.normal_()
    if evaluate_first:
        adapted.eval()
        with torch.no_grad():
            adapted(input_ids=IDS)
    adapted.train()
    adapted(input_ids=IDS, labels=IDS).loss.backward()
    return {name: weight.grad for name, weight in trainable_state(adapted).items()}


def test_evaluating_a_four_bit_model_leaves_its_gradients_as_they_were(folder: Path) -> None:
    expected = gradients(folder, evaluate_first=False)
    got = gradients(folder, evaluate_first=True)
    assert any("layers.0." in name for name in got)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_without_the_switch_evaluation_spoils_the_gradients(folder: Path) -> None:
    """Why prepare_quantized exists; if this no longer fails on such a CPU, the switch can go."""
    from bitsandbytes.functional import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("bitsandbytes repacks weights only on CPUs with AVX512-BF16")
    expected = gradients(folder, evaluate_first=False)
    got = gradients(folder, evaluate_first=True, with_switch=False)
    name = next(name for name in got if "layers.0.self_attn.q_proj.lora_A" in name)
    assert (got[name] - expected[name]).norm() > 0.1 * expected[name].norm()
