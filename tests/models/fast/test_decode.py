"""Answers the quick way are those of transformers' generate, alone and beside others, for each family; weights are used in place."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from ltune.generation.continuous import answer_all
from ltune.generation.engine import generate
from ltune.generation.sampling import Sampling
from ltune.models.fast import cache
from ltune.models.fast.cache import Places, attend_newest
from ltune.models.fast.decode import FastDecoder, decoder_of
from ltune.models.fast.graphs import filled_up, rounded_up
from ltune.models.fast.model import FastModel
from ltune.models.fast.tiles import Rows

SMALL = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "initializer_range": 0.4,  # far-apart logits: greedy choices that rounding cannot turn
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
PROMPTS = [[5, 9, 31], [7], [11, 3, 88, 42, 60, 22, 19, 54], [33, 34, 35, 36, 37], [90, 91, 7, 7, 7, 12], [4] * 13]


def build(family="llama", seed=3, **more):
    options = SMALL | FAMILIES[family] | more
    torch.manual_seed(seed)
    config = AutoConfig.for_model(options.pop("model_type", family), **options)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.normal_(parameter, 0.3 if "norm" in name else 0.0, 0.2)
    return model


def adapted(causal):
    wrapped = get_peft_model(causal, LoraConfig(r=3, lora_alpha=7, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, 0.0, 0.1)
    return wrapped


def quick(causal, prompts=PROMPTS, most_tokens=None, stop_ids=frozenset(), decoder=None, **knobs):
    decoder = decoder or FastDecoder(FastModel(causal, torch.float32), most_tokens)
    return answer_all(decoder, prompts, Sampling(**{"max_new_tokens": 12} | knobs), stop_ids=set(stop_ids))


def plain(model, prompts=PROMPTS, **knobs):
    sampling = Sampling(**{"max_new_tokens": 12} | knobs)
    return [generate(model, [prompt], sampling, stop_ids=set(), pad_id=0)[0] for prompt in prompts]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_those_of_transformers_generate(family):
    causal = build(family)
    model = adapted(causal)
    expected = plain(model)
    assert quick(causal) == expected
    assert [quick(causal, [prompt])[0] for prompt in PROMPTS] == expected
    assert quick(causal, most_tokens=60) == expected  # two or three at a time, the others as places become free
    assert len({tuple(answer) for answer in expected}) > 3  # the comparison above is not of equal things


def test_repetition_penalty_is_that_of_transformers():
    causal = build()
    expected = plain(causal, repetition_penalty=1.7)
    assert quick(causal, repetition_penalty=1.7) == expected
    assert quick(causal, repetition_penalty=1.7, most_tokens=30) == expected
    assert expected != plain(causal)


def test_trained_values_are_read_anew_each_time():
    causal = build()
    model = adapted(causal)
    fast = FastModel(causal, torch.float32)
    decoder = FastDecoder(fast)
    first = quick(causal, decoder=decoder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.mul_(3.0)  # as an optimizer does
    second = quick(causal, decoder=decoder)
    assert second == plain(model) != first
    assert decoder.caches == []


def test_training_goes_on_after_generating_and_sees_the_same_weights():
    causal = build()
    model = adapted(causal)
    fast = FastModel(causal, torch.float32)
    ids = torch.arange(3, 15)
    inputs = ids, torch.arange(12), Rows(torch.tensor([0, 12], dtype=torch.int32), 12), torch.arange(11), ids[1:]
    before = fast.token_losses(*inputs)
    before.sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    with torch.inference_mode():  # as in predict
        quick(causal, decoder=FastDecoder(fast))
    after = fast.token_losses(*inputs)
    after.sum().backward()
    torch.testing.assert_close(after, before, atol=1e-6, rtol=1e-6)
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-4)


def test_all_weights_trained_in_float32_compute_in_bfloat16_under_autocast():
    causal = build()
    fast = FastModel(causal, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answers = quick(causal, decoder=FastDecoder(fast))
    assert [len(answer) for answer in answers] == [12] * len(PROMPTS)
    assert all(parameter.dtype is torch.float32 for parameter in causal.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(dtype):
    """The logits after the prompts and after one more token, rather than answers, which rounding may turn."""
    causal = build()
    whole, half = FastDecoder(FastModel(causal, torch.float32)), FastDecoder(FastModel(build().to(dtype), dtype))
    starts = [0, 10, 20, 40, 50, 60]
    found = []
    for decoder in (whole, half):
        decoder.open(100, 30, 6)
        found.append([decoder.prefill(PROMPTS, starts), decoder.step([8] * 6, starts, [len(prompt) for prompt in PROMPTS])])
        decoder.close()
    for one, other in zip(*found, strict=True):
        assert one.dtype is other.dtype is torch.float32
        assert (one - other).norm() < 0.06 * one.norm()


def test_quantized_weights_are_held_for_the_while_only(tmp_path):
    build(hidden_size=64, intermediate_size=64).save_pretrained(tmp_path)
    options = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    causal = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=options, device_map="cpu")
    model = adapted(causal)
    fast = FastModel(causal, torch.float32)
    decoder = FastDecoder(fast)
    decoder.open(10, 10, 1)
    assert all(projection.kept is not None for projection in fast.projections)
    decoder.close()
    assert all(projection.kept is None for projection in fast.projections if projection.quantized)
    assert quick(causal, decoder=decoder) == plain(model)


def test_rotary_embeddings_that_go_by_the_longest_row_are_left_to_transformers(caplog):
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    fast = FastModel(build(rope_parameters=scaling), torch.float32)
    with caplog.at_level("INFO"):
        assert decoder_of(fast) is None
    assert "rotary embeddings of the kind dynamic" in caplog.text
    assert decoder_of(None) is None
    assert isinstance(decoder_of(FastModel(build(), torch.float32)), FastDecoder)


@pytest.mark.parametrize("window", [None, 4])
def test_a_query_sees_its_own_row_only(window):
    """Against attention written out row by row; what lies elsewhere in the cache is no number."""
    torch.manual_seed(0)
    q, cache = torch.randn(3, 4, 8), torch.full((40, 4, 8), torch.nan)
    starts, lengths = [17, 0, 30], [6, 0, 3]
    for start, length in zip(starts, lengths, strict=True):
        cache[start : start + length + 1] = torch.randn(length + 1, 4, 8)
    places = Places.of(torch.tensor(starts), torch.tensor(lengths), torch.arange(4, dtype=torch.int32), 9)
    found = attend_newest(q, cache, places, 0.3, window)
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        first = start if window is None else max(start, start + length + 1 - window)
        keys, values = cache[first : start + length + 1].chunk(2, 1)
        for head in range(4):
            p = (keys[:, head // 2] @ q[row, head] * 0.3).softmax(0)
            torch.testing.assert_close(found[row, head], p @ values[:, head // 2])


def test_rows_that_fill_up_a_graph_change_nothing():
    decoder = FastDecoder(FastModel(build(), torch.float32))
    starts, lengths = [0, 10, 20, 40, 50, 60], [len(prompt) for prompt in PROMPTS]
    tokens = decoder.open(100, 30, 8)
    decoder.prefill(PROMPTS, starts)
    expected = decoder.step([8] * 6, starts, lengths)
    filled = filled_up(([8] * 6, starts, lengths), (0, tokens, 0), 8)
    assert filled[:, 6:].tolist() == [[0, 0], [tokens, tokens], [0, 0]]
    with torch.inference_mode():
        torch.testing.assert_close(decoder._step(filled, 30)[:6], expected)
        torch.testing.assert_close(decoder._step(filled, 30)[:6], expected)  # a step again changes nothing: it is run once to be recorded
    decoder.close()


def test_sizes_of_graphs_are_few_and_little_larger():
    for count in range(1, 2000):
        assert count <= rounded_up(count) <= max(count, 1.25 * count)
    assert len({rounded_up(count) for count in range(1, 1025)}) == 36


@pytest.mark.parametrize(("heads", "key_heads", "width"), [(8, 8, 64), (8, 2, 128), (4, 1, 256)])
def test_what_attends_is_proved_before_it_is_used(heads, key_heads, width, monkeypatch):
    shape = heads, key_heads, width, torch.bfloat16, torch.device("cpu")
    assert cache.kernel_agrees(*shape)
    monkeypatch.setattr(cache, "attend_newest", lambda q, *rest: q)
    assert not cache.kernel_agrees(*shape)
