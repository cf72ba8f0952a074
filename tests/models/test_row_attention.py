"""Row by row comes what all pairs of tokens with a mask give: logits, gradients, answers. What is not so is left as it was."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from ltune.models.row_attention import BY_ROWS, attend_both, attend_by_rows
from tests.models.test_attention import ATTENTION, EXPERTS

WINDOWED = MistralConfig(**ATTENTION, sliding_window=220)
LENGTHS = [165, 1, 171, 340, 12]  # enough for their masks to be worth leaving out, as are those of two rows of 300


def build(config: PretrainedConfig, attention: str = "sdpa") -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).train()


def flat(lengths: list[int], seed: int = 0) -> dict:
    """Rows of these lengths, end to end."""
    ids = torch.randint(0, 128, (1, sum(lengths)), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "position_ids": torch.cat([torch.arange(length) for length in lengths])[None], "use_cache": False}


def logits_and_gradient(model: torch.nn.Module, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
    model.zero_grad()
    logits = model(**batch).logits
    logits.square().mean().backward()
    return logits.detach(), torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


FAMILIES = [
    LlamaConfig(**ATTENTION), Qwen2Config(**ATTENTION), Qwen3Config(**ATTENTION), GemmaConfig(**ATTENTION), WINDOWED,
    Qwen3MoeConfig(**EXPERTS), GPT2Config(vocab_size=128, n_embd=32, n_layer=2, n_head=4, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0),
]  # fmt: skip


@pytest.mark.parametrize("config", FAMILIES, ids=lambda config: config.model_type)
@pytest.mark.parametrize("lengths", [LENGTHS, [7], [1, 1, 1], [300] * 2], ids=str)
def test_logits_and_gradients_are_the_same(config, lengths):
    model, batch = build(config), flat(lengths)
    logits, gradient = logits_and_gradient(model, batch)
    assert attend_by_rows(model, torch.float32)
    assert model.config._attn_implementation == BY_ROWS
    again = logits_and_gradient(model, batch)
    assert torch.allclose(again[0], logits, atol=1e-5)
    assert torch.allclose(again[1], gradient, atol=1e-6)


@pytest.mark.parametrize("config", FAMILIES, ids=lambda config: config.model_type)
def test_in_16_bits_all_serve_too(config):
    assert attend_by_rows(build(config).bfloat16(), torch.bfloat16)
    assert attend_by_rows(build(config), torch.bfloat16)  # weights of a mixed precision


def test_each_row_is_what_it_is_alone():
    model = build(LlamaConfig(**ATTENTION))
    assert attend_by_rows(model, torch.float32)
    batch = flat(LENGTHS)
    logits = model(**batch).logits[0]
    ends = torch.tensor([0, *LENGTHS]).cumsum(0).tolist()
    for begin, end in pairwise(ends):
        assert torch.allclose(model(input_ids=batch["input_ids"][:, begin:end], use_cache=False).logits[0], logits[begin:end], atol=1e-5)


def mask_of(config: PretrainedConfig, batch: dict, create=create_causal_mask, attention_mask=None) -> torch.Tensor | None:
    config._attn_implementation = BY_ROWS
    embedded = torch.zeros(*batch["input_ids"].shape, 32)
    return create(
        config=config, inputs_embeds=embedded, attention_mask=attention_mask, past_key_values=None, position_ids=batch["position_ids"]
    )


@given(lengths=st.lists(st.integers(1, 400), min_size=2, max_size=6))
@settings(max_examples=50, deadline=None)
def test_the_mask_is_where_the_rows_begin_if_that_pays(lengths):
    mask, tokens = mask_of(LlamaConfig(**ATTENTION), flat(lengths)), sum(lengths)
    masked = tokens**2 - sum(length**2 for length in lengths)
    if masked * 4 * 8 < len(lengths) * 2**20:
        assert mask.shape == (1, 1, tokens, tokens)
    else:
        assert mask.tolist() == torch.tensor([0, *lengths]).cumsum(0).tolist()


@pytest.mark.parametrize("lengths", [LENGTHS, [350, 339], [300] * 2], ids=str)
def test_rows_as_above_have_no_mask(lengths):
    assert mask_of(LlamaConfig(**ATTENTION), flat(lengths)).dim() == 1


def test_a_window_is_a_mask_where_a_row_is_longer():
    assert mask_of(WINDOWED, flat([220, 200]), create_sliding_window_causal_mask).tolist() == [0, 220, 420]
    assert mask_of(WINDOWED, flat([221, 200]), create_sliding_window_causal_mask).shape == (1, 1, 421, 421)


def test_padded_rows_and_single_ones_have_transformers_masks():
    padded = {"input_ids": torch.ones(2, 4, dtype=torch.long), "position_ids": torch.arange(4).expand(2, 4)}
    assert mask_of(LlamaConfig(**ATTENTION), padded, attention_mask=torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])).shape == (2, 1, 4, 4)
    assert mask_of(LlamaConfig(**ATTENTION), flat([4])) is None  # torch's kernel knows what is causal


def test_what_is_computed_again_has_the_rows_of_its_own_forward():
    model, batch, other = build(LlamaConfig(**ATTENTION)), flat(LENGTHS), flat([350, 339], seed=1)
    _, gradient = logits_and_gradient(model, batch)
    assert attend_by_rows(model, torch.float32)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.zero_grad()
    loss = model(**batch).logits.square().mean()
    model(**other)
    loss.backward()
    again = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert torch.allclose(again, gradient, atol=1e-6)


def test_answers_are_the_same():
    model = build(LlamaConfig(**ATTENTION)).eval()
    prompts = {"input_ids": flat([6, 6])["input_ids"].view(2, 6), "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])}
    answers = model.generate(**prompts, max_new_tokens=8, do_sample=False)
    assert attend_by_rows(model, torch.float32)
    assert torch.equal(model.generate(**prompts, max_new_tokens=8, do_sample=False), answers)


def test_a_model_that_wants_a_mask_of_all_pairs_keeps_it(caplog):
    model, batch = build(LlamaConfig(**ATTENTION)), flat(LENGTHS)
    for layer in model.model.layers:
        cut = lambda _, inputs, options: (inputs, options | {"attention_mask": options["attention_mask"][:, :, :, :999]})  # noqa: E731
        layer.register_forward_pre_hook(cut, with_kwargs=True)
    expected = model(**batch).logits
    with caplog.at_level("INFO"):
        assert not attend_by_rows(model, torch.float32)
    assert "LlamaForCausalLM attends to all pairs" in caplog.text
    assert torch.equal(model(**batch).logits, expected)


def test_a_model_that_changes_where_rows_begin_keeps_its_mask(caplog):
    model = build(LlamaConfig(**ATTENTION))
    for layer in model.model.layers:
        first_and_last = lambda _, inputs, options: (inputs, options | {"attention_mask": options["attention_mask"][::2]})  # noqa: E731
        layer.register_forward_pre_hook(first_and_last, with_kwargs=True)
    with caplog.at_level("INFO"):
        assert not attend_by_rows(model, torch.float32)
    assert "it has other logits" in caplog.text


def test_layers_that_attend_otherwise_are_found_out():
    heads = torch.randn(3, 1, 4, 60, 8)
    starts, layer = torch.tensor([0, 20, 60], dtype=torch.int32), torch.nn.Identity()
    assert attend_both(layer, *heads, starts)[0].shape == (1, 60, 4, 8)
    with pytest.raises(ValueError, match="Identity attends otherwise"):
        attend_both(layer, *heads, starts, is_causal=False)


def test_a_model_without_heads_is_left_as_it_is():
    model = AutoModelForCausalLM.from_config(MambaConfig(vocab_size=128, hidden_size=32, num_hidden_layers=2, state_size=4))
    assert not attend_by_rows(model, torch.float32)
    model(**flat([4, 4]))


@pytest.mark.parametrize("config", [Gemma2Config(**ATTENTION), LlamaConfig(**ATTENTION)], ids=lambda config: config.model_type)
def test_attention_that_was_chosen_stays(config):
    model = build(config, "eager")
    assert not attend_by_rows(model, torch.float32)
    assert model.config._attn_implementation == "eager"
