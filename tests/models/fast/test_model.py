"""The quick way gives what transformers' own modules give: losses and gradients, for each family, adapter and level of keeping."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from ltune.data.collate import collate
from ltune.data.rows import IGNORE, Sequence
from ltune.models.fast import cudnn_attention, filled
from ltune.models.fast.layer import Keep
from ltune.models.fast.memory import Setting
from ltune.models.fast.model import FastModel
from ltune.models.fast.read import Unsuited
from ltune.models.fast.room import roomy
from ltune.models.fast.tiles import Rows
from ltune.objectives.policy import Policy

SMALL = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES = {
    "llama": {},
    "llama with biases": {"model_type": "llama", "attention_bias": True},
    "mistral": {"sliding_window": 5, "head_dim": 8},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma": {"head_dim": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "phi3": {"partial_rotary_factor": 0.5},
}
LENGTHS = (9, 1, 14, 6)


def build(family, adapter="lora", dtype=torch.float32, rank=3, targets="all-linear"):
    options = SMALL | FAMILIES[family]
    torch.manual_seed(3)
    config = AutoConfig.for_model(options.pop("model_type", family), **options)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(dtype)
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.normal_(parameter, 0.3 if "norm" in name else 0.0, 0.2)
    if adapter == "full":
        return model, model
    wrapped = get_peft_model(model, LoraConfig(r=rank, lora_alpha=7, target_modules=targets, task_type="CAUSAL_LM"))
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, 0.0, 0.1)
    return wrapped, model


def batch():
    torch.manual_seed(5)
    ids = torch.randint(3, 96, (sum(LENGTHS),))
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    starts = torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32)
    trained = torch.rand(len(ids)) < 0.6
    trained[starts[:-1].long()] = False
    return ids, positions, starts, trained.nonzero()[:, 0] - 1, ids[trained]


def plain(model):
    """Row by row through transformers' own forward."""
    ids, _, _, at, targets = batch()
    hidden = torch.cat([model(input_ids=row[None], use_cache=False).logits[0] for row in ids.split(LENGTHS)])
    return functional.cross_entropy(hidden[at].float(), targets, reduction="none")


def quick(fast):
    ids, positions, starts, at, targets = batch()
    return fast.token_losses(ids, positions, Rows(starts, max(LENGTHS), lengths=tuple(LENGTHS)), at, targets)


def gradients(losses, model):
    model.zero_grad()
    weights = torch.linspace(0.5, 1.5, len(losses))
    (losses * weights).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


def assert_same(model, causal, fast):
    expected, got = plain(causal), quick(fast)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    wanted, found = gradients(expected, model), gradients(got, model)
    assert wanted
    assert wanted.keys() == found.keys()
    for name, gradient in wanted.items():
        assert torch.linalg.norm(found[name] - gradient) <= 2e-4 * torch.linalg.norm(gradient) + 1e-7, name


def change(model):
    """All that is trained, as an optimizer does."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_losses_and_gradients_are_those_of_the_plain_way(family, adapter):
    model, causal = build(family, adapter)
    assert_same(model, causal, FastModel(causal, torch.float32))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
@pytest.mark.parametrize("keep", [Keep.ATTENTION, Keep.NOTHING])
@pytest.mark.parametrize("chunk", [None, 7])
def test_what_is_computed_again_is_the_same(family, keep, chunk):
    model, causal = build(family)
    fast = FastModel(causal, torch.float32)
    fast.keep, fast.chunk, fast.head_chunk = keep, chunk, 5
    assert_same(model, causal, fast)


@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("kept_layers", [1, 2, 3])
def test_the_last_layers_can_keep_everything(family, adapter, kept_layers):
    model, causal = build(family, adapter)
    fast = FastModel(causal, torch.float32)
    fast.keep, fast.chunk, fast.kept_layers = Keep.ATTENTION, 7, kept_layers
    assert_same(model, causal, fast)


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("keep", [Keep.ALL, Keep.NOTHING])
def test_a_long_row_by_itself_is_filled_up_and_computes_the_same(monkeypatch, family, keep):
    monkeypatch.setattr(cudnn_attention, "LONG", 64)
    monkeypatch.setattr(filled, "SHARE", 4)
    monkeypatch.setitem(globals(), "LENGTHS", (99,))
    model, causal = build(family)
    fast = FastModel(causal, torch.float32)
    fast.keep = keep
    sizes = []
    monkeypatch.setattr(fast, "_layers", lambda *arguments, layers=fast._layers: sizes.append(len(arguments[0])) or layers(*arguments))
    assert_same(model, causal, fast)
    assert sizes == [112]


def test_long_rows_are_filled_up_to_few_lengths():
    found = {}
    for tokens in (*range(4096, 16385, 5), 131072, 131073):
        ids, positions, rows = filled.lengthened(torch.arange(tokens), torch.arange(tokens))
        assert len(ids) == len(positions) == rows.longest
        assert rows.starts.tolist() == [0, rows.longest]
        assert 0 <= rows.longest - tokens < tokens / filled.SHARE
        assert torch.equal(ids[:tokens], torch.arange(tokens))
        found[tokens] = rows.longest
    assert len(set(found.values())) <= 2 * filled.SHARE + 3
    assert (found[4096], found[131072]) == (4096, 131072)


@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_are_kept_only_where_norms_do_not_tell_them(family):
    model, causal = build(family)
    norms = [layer.input_layernorm.weight for layer in causal.model.layers]
    with torch.no_grad():
        norms[1][5] = -1.0 if "gemma" in family else 0.0  # as good as 0
    fast = FastModel(causal, torch.float32)
    assert [attention.norm.invertible for attention, _ in fast.layers] == [True, False, True]
    assert not fast.shape().invertible
    assert_same(model, causal, fast)
    whole, _ = build(family, "full")
    assert not any(half.norm.invertible for halves in FastModel(whole, torch.float32).layers for half in halves)


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_kept_weights_are_the_weights(adapter):
    model, causal = build("llama", adapter)
    fast = FastModel(causal, torch.float32)
    for projection in fast.projections:
        projection.keep_weights()
    assert_same(model, causal, fast)
    change(model)
    assert_same(model, causal, fast)


def build_quantized(family, dtype=torch.float32, **adapter):
    model, causal = build(family, dtype=dtype, **adapter)
    for module in list(causal.model.modules()):
        if hasattr(module, "base_layer"):
            layer = Linear4bit(module.in_features, module.out_features, module.base_layer.bias is not None, quant_type="nf4")
            layer.weight = Params4bit(module.base_layer.weight.detach(), requires_grad=False, quant_type="nf4")
            layer.bias = module.base_layer.bias
            module.base_layer = layer.to("cpu")
    return model, causal


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("keep", [Keep.ALL, Keep.ATTENTION])
def test_held_weights_lie_beside_the_low_rank_parts_and_give_the_same(family, keep):
    model, causal = build_quantized(family)
    fast = FastModel(causal, torch.float32)
    assert_same(model, causal, fast)
    for _ in range(2):
        fast.adopt(Setting(1000, keep))
        assert all(projection.joined for projection in fast.projections)
        assert_same(model, causal, fast)
        change(model)
        assert_same(model, causal, fast)
        fast.adopt(Setting(1000, keep, cached=False))
        assert not any(projection.joined for projection in fast.projections)
        assert_same(model, causal, fast)


@pytest.mark.parametrize(
    ("rank", "targets", "joined"),
    [
        (40, "all-linear", [False, True, False, True]),  # three or two layers side by side have more ranks than there is room
        (70, "all-linear", [False] * 4),
        (5, ["gate_proj", "o_proj"], [False, True, True, False]),
        (8, ["down_proj"], [False, False, False, True]),
    ],
)
def test_held_weights_of_which_some_stand_alone(rank, targets, joined):
    model, causal = build_quantized("llama", rank=rank, targets=targets)
    fast = FastModel(causal, torch.float32)
    fast.adopt(Setting(1000))
    assert [projection.joined for projection in fast.projections[:4]] == joined
    assert_same(model, causal, fast)


def test_held_weights_without_the_adapter():
    model, causal = build_quantized("llama")
    fast = FastModel(causal, torch.float32)
    fast.adopt(Setting(1000))
    with torch.no_grad():
        with fast.without_adapter(), model.disable_adapter():
            bare = quick(fast)
            torch.testing.assert_close(bare, plain(causal), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(bare, quick(fast))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
        assert torch.equal(bare, quick(fast))  # an adapter that does nothing yet rounds alike


@pytest.mark.parametrize("held", [True, False])
def test_what_a_young_adapter_adds_is_not_less_than_the_residual_stream_is_rounded_by(held):
    model, causal = build_quantized("llama", dtype=torch.bfloat16)
    fast = FastModel(causal, torch.bfloat16)
    fast.adopt(Setting(1000, cached=held))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=3e-3)
    fast.refresh()
    for projection in (fast.projections[1], fast.projections[3]):  # what is added to the stream
        weight, low = projection.weight(), projection.low
        x = torch.randn(200, weight.shape[1], dtype=torch.bfloat16)
        stream = 8 * torch.randn(200, weight.shape[0], dtype=torch.bfloat16)
        added = x.double() @ low.scaled_a.double().mT @ low.b.double().mT
        assert added.std() < 0.3 * torch.finfo(torch.bfloat16).eps * stream.abs().mean()
        y, _ = projection.forward(roomy(*x.shape, x).copy_(x) if held else x, weight, add=stream)
        found = y.double() - stream.double() - x.double() @ weight.double().mT
        assert (found * added).sum() / added.square().sum() == pytest.approx(1, abs=0.25)


def test_heads_that_no_kernel_serves_are_left_to_transformers(monkeypatch):
    monkeypatch.setitem(FAMILIES, "wide", {"model_type": "llama", "head_dim": 264})
    with pytest.raises(Unsuited, match="heads of 264 dimensions; up to 256 are served"):
        FastModel(build("wide")[1], torch.float32)


def test_without_gradient_nothing_is_kept():
    model, causal = build("llama")
    fast = FastModel(causal, torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(quick(fast), plain(causal), atol=1e-5, rtol=1e-5)


def answers(device="cpu"):
    """Three prompts with two, one and three answers, all beginning alike: there is something to lend in two ways."""
    draw = np.random.default_rng(1)
    made = []
    for length, count in ((9, 2), (4, 1), (7, 3)):
        prompt = np.concatenate([[5, 6], draw.integers(3, 96, length)])
        for _ in range(count):
            ids = np.concatenate([prompt, draw.integers(3, 96, draw.integers(1, 6))]).astype(np.int32)
            made.append(Sequence(ids, np.where(np.arange(len(ids)) < len(prompt), IGNORE, ids).astype(np.int32)))
    return collate(made, tuple(range(len(made))), 1.0, len(made), flat=True, pad_id=0).tensors(torch.device(device))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("keep", Keep)
def test_what_sequences_begin_with_in_common_is_computed_once(family, keep):
    model, causal = build(family)
    fast, batch = FastModel(causal, torch.float32), answers()
    fast.keep, fast.chunk = keep, None if keep is Keep.ALL else 7
    policy, whole = Policy(model, causal, fast), replace(batch, compact=None)
    assert batch.compact.borrowed
    assert len(batch.compact.input_ids) <= 0.7 * batch.tokens
    once, each = policy.token_losses(batch), policy.token_losses(whole)
    torch.testing.assert_close(once, each, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(once, Policy(model, causal).token_losses(batch), atol=1e-5, rtol=1e-5)
    found, wanted = gradients(once, model), gradients(each, model)
    for name, gradient in wanted.items():
        assert torch.linalg.norm(found[name] - gradient) <= 2e-4 * torch.linalg.norm(gradient) + 1e-7, name
