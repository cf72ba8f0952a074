"""What transformers' own layers keep, counted in a real forward."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoConfig, AutoModelForCausalLM

from ltune.models.adapters import Full, LoRA
from ltune.models.plain_memory import PlainShape, of_layer, plain_need

TOKENS = 256
KNOWN = {"size": 2, "trained": 0, "copied": 0, "largest": 0, "dropout": False, "by_rows": False}


def configuration(layers):
    sizes = {"vocab_size": 100, "hidden_size": 256, "intermediate_size": 896, "num_attention_heads": 8, "num_key_value_heads": 2}
    return AutoConfig.for_model("llama", num_hidden_layers=layers, **sizes)


def kept(layers, adapter):
    """Bytes that autograd saves in a forward, parameters left out."""
    model = AutoModelForCausalLM.from_config(configuration(layers), dtype=torch.bfloat16, attn_implementation="sdpa")
    weights = {parameter.untyped_storage().data_ptr() for parameter in adapter.apply(model).parameters()}
    held = []

    def pack(tensor):
        held.append(tensor.untyped_storage())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", dtype=torch.bfloat16):
        model.train().model(input_ids=torch.zeros(1, TOKENS, dtype=torch.long), use_cache=False)
    return sum({one.data_ptr(): one.nbytes() for one in held if one.data_ptr() not in weights}.values())


@pytest.mark.parametrize("adapter", [LoRA(), Full()])
def test_a_layer_within_10_percent(adapter):
    shape = PlainShape.of(configuration(2), adapted=isinstance(adapter, LoRA), **KNOWN)
    assert of_layer(shape, TOKENS) == pytest.approx((kept(4, adapter) - kept(2, adapter)) / 2, rel=0.1)


def test_experts_count_as_often_as_a_token_goes_to_them():
    config = AutoConfig.for_model("mixtral", hidden_size=64, intermediate_size=128, num_attention_heads=4, num_experts_per_tok=2)
    assert PlainShape.of(config, adapted=True, **KNOWN).inner == 256


def test_computed_again_less_is_kept():
    shape = PlainShape.of(configuration(8), adapted=True, **KNOWN)
    once, again = (plain_need(shape, 4096, 4096, padded=True, again=again, several=False) for again in (False, True))
    assert again.activations == 8 * 4096 * 256 * 2
    assert again.total < once.total
    assert plain_need(shape, 8192, 8192, padded=True, again=True, several=False).total > again.total


def test_rows_attended_by_themselves_take_neither_a_mask_nor_keys_repeated():
    masked = PlainShape.of(configuration(8), adapted=True, **KNOWN)
    by_rows = PlainShape.of(configuration(8), adapted=True, **KNOWN | {"by_rows": True})
    one, other = (plain_need(shape, 4096, 4096, padded=False, again=False, several=False) for shape in (masked, by_rows))
    assert one.activations - other.activations == 8 * 4096 * 2 * 256 * 2
    assert other.work < one.work


def test_as_much_as_a_gpu_said():
    """`W2 plain` of the benchmark on an H200: Llama-3-8B, NF4, LoRA of rank 8; steps of 8,170 to 8,192 tokens had 55.4 to 61.8 GiB."""
    sizes = {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
    config = AutoConfig.for_model("llama", num_hidden_layers=32, **sizes)
    known = {"trained": 20_971_520 * 4, "copied": 0, "largest": 4096 * 14336, "dropout": False, "by_rows": True}
    need = plain_need(PlainShape.of(config, size=2, adapted=True, **known), 8192, 6100, padded=False, again=False, several=False)
    assert need.total / 2**30 + 5.4 == pytest.approx(61.8, rel=0.05)  # 5.4: what is loaded


def test_what_is_dropped_is_kept_by_each_layer_of_lora():
    quantized = PlainShape.of(configuration(2), adapted=True, **KNOWN | {"largest": 1})
    dropped = PlainShape.of(configuration(2), adapted=True, **KNOWN | {"largest": 1, "dropout": True})
    inputs, masks = 3 * 256 * 2, 5 * 256 + 256 + 896
    assert of_layer(dropped, TOKENS) - of_layer(quantized, TOKENS) == TOKENS * (inputs + masks)
