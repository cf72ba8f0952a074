"""Rows in a flat batch: kept apart by attention models that read positions, and the others found out."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GemmaConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from ltune.errors import UsageError
from ltune.models.adapters import LoRA
from ltune.models.attention import assert_rows_isolated
from ltune.models.load import load_model
from ltune.models.quantize import NF4, Int8

SIZES = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
ATTENTION = SIZES | {"num_key_value_heads": 2, "head_dim": 8}
EXPERTS = ATTENTION | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def build(config: PretrainedConfig, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).to(dtype)


@pytest.mark.parametrize(
    "config",
    [LlamaConfig(**ATTENTION), Qwen2Config(**ATTENTION), Qwen3Config(**ATTENTION), MistralConfig(**ATTENTION), GemmaConfig(**ATTENTION)]
    + [Qwen3MoeConfig(**EXPERTS)],
    ids=lambda config: config.model_type,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_are_apart(config: PretrainedConfig, dtype: torch.dtype) -> None:
    assert_rows_isolated(build(config, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "config",
    [MambaConfig(**SIZES, state_size=4), BloomConfig(**SIZES, n_layer=2, n_head=4)],
    ids=["a state that runs on", "positions of its own"],
)
def test_a_model_that_ignores_positions_is_refused(config: PretrainedConfig, dtype: torch.dtype) -> None:
    with pytest.raises(UsageError, match="Set data.layout: padded"):
        assert_rows_isolated(build(config, dtype))


@pytest.mark.parametrize(
    "wrong", [{"use_cache": True}, {"attention_mask": torch.ones(1, 16, dtype=torch.long)}], ids=["cache", "mask of ones"]
)
def test_a_model_that_is_called_wrongly_is_refused(wrong: dict[str, object]) -> None:
    model = build(LlamaConfig(**ATTENTION))
    model.register_forward_pre_hook(lambda module, args, kwargs: (args, kwargs | wrong), with_kwargs=True)
    with pytest.raises(UsageError, match="LlamaForCausalLM"):
        assert_rows_isolated(model)


def test_a_model_that_gives_nan_is_refused() -> None:
    model = build(LlamaConfig(**ATTENTION))
    model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(UsageError, match="nan"):
        assert_rows_isolated(model)


def test_outliers_of_eight_bit_layers_are_no_leak(tmp_path: Path) -> None:
    """LLM.int8() picks the columns it computes in 16 bits by all rows at once; that is rounding, not attention."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**ATTENTION | {"initializer_range": 0.5}))
    model.model.embed_tokens.weight.data[::3, 5] *= 20
    model.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), dtype=torch.float32, quantize=Int8())
    assert_rows_isolated(model)
    assert model.model.layers[0].mlp.up_proj.state.threshold == 6.0
    model.register_forward_pre_hook(lambda module, args, kwargs: (args, kwargs | {"use_cache": True}), with_kwargs=True)
    with pytest.raises(UsageError, match="LlamaForCausalLM"):
        assert_rows_isolated(model)


def test_four_bit_rows_with_an_adapter_are_apart(tmp_path: Path) -> None:
    build(LlamaConfig(**ATTENTION)).save_pretrained(tmp_path)
    assert_rows_isolated(LoRA().apply(load_model(str(tmp_path), dtype=torch.bfloat16, quantize=NF4())))


def test_it_leaves_no_trace() -> None:
    model = build(LlamaConfig(**ATTENTION)).train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    assert_rows_isolated(model)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(weight.grad is None for weight in model.parameters())
