"""transformers' layers attend row by row on a GPU as they do with a mask: as near to float32, the same bits each time."""

import pytest
import torch
from transformers import DeepseekV3Config, GemmaConfig, LlamaConfig, MistralConfig, Qwen3MoeConfig

from ltune.models.row_attention import BY_ROWS, attend_by_rows
from tests.models.test_attention import ATTENTION, EXPERTS
from tests.models.test_row_attention import LENGTHS, build, flat, logits_and_gradient

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

NARROW_VALUES = DeepseekV3Config(
    **ATTENTION | {"num_key_value_heads": 4}, kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
    n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, moe_intermediate_size=32, first_k_dense_replace=1,
)  # fmt: skip
FAMILIES = [
    LlamaConfig(**ATTENTION), MistralConfig(**ATTENTION, sliding_window=400), GemmaConfig(**ATTENTION | {"head_dim": 256}),
    Qwen3MoeConfig(**EXPERTS), NARROW_VALUES,
]  # fmt: skip


def rows():
    return {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in flat(LENGTHS).items()}


def computed(model, dtype):
    with torch.autocast("cuda", dtype, enabled=dtype is not torch.float32):
        logits, gradient = logits_and_gradient(model, rows())
    return logits.float(), gradient.float()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", FAMILIES, ids=lambda config: config.model_type)
def test_as_near_to_float32_as_with_a_mask(config, dtype):
    model = build(config).cuda()
    exact, masked = computed(model, torch.float32), computed(model, dtype)
    assert attend_by_rows(model, dtype)
    assert model.config._attn_implementation == BY_ROWS
    for wanted, before, now in zip(exact, masked, computed(model, dtype), strict=True):
        assert (now - wanted).norm() <= 1.5 * (before - wanted).norm() + 1e-4 * wanted.norm()


def test_without_autocast_float32_has_its_mask():
    model = build(LlamaConfig(**ATTENTION)).cuda()
    exact = computed(model, torch.float32)
    assert not attend_by_rows(model, torch.float32)
    assert attend_by_rows(model, torch.bfloat16)  # weights of a mixed precision
    for wanted, now in zip(exact, computed(model, torch.float32), strict=True):
        torch.testing.assert_close(now, wanted)


def test_heads_too_wide_for_the_kernel_keep_their_mask(caplog):
    model = build(LlamaConfig(**ATTENTION | {"head_dim": 264})).cuda()
    with caplog.at_level("INFO"):
        assert not attend_by_rows(model, torch.bfloat16)
    assert "LlamaForCausalLM attends to all pairs" in caplog.text
    computed(model, torch.bfloat16)


def test_the_same_bits_each_time_where_that_is_asked_for(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    model = build(LlamaConfig(**ATTENTION)).cuda()
    assert attend_by_rows(model, torch.bfloat16)
    torch.use_deterministic_algorithms(True)
    try:
        (_, one), (_, other) = computed(model, torch.bfloat16), computed(model, torch.bfloat16)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(one, other)
