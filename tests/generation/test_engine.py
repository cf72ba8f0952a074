import threading

import pytest
import torch

from ltune.generation.engine import generate, stream
from ltune.generation.sampling import Sampling

PROMPTS = [[5, 9, 31], [7], [11, 3, 88, 42, 60, 2, 19, 54], [33, 34, 35, 36, 37]]


def tiny_llama(seed: int = 0):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=101,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.4,  # far-apart logits: greedy choices that rounding cannot turn
            bos_token_id=None,
            eos_token_id=None,
        )
    )


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


def answers(model, prompts, stop_ids=frozenset(), **knobs):
    return generate(model, prompts, Sampling(**{"max_new_tokens": 12} | knobs), stop_ids=set(stop_ids), pad_id=0)


def by_hand(model, prompt, count):
    """Greedy decoding without cache, padding or generate."""
    ids = list(prompt)
    model.eval()
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_greedy_is_the_argmax_alone_and_in_a_batch_of_unequal_prompts(model):
    expected = [by_hand(model, prompt, 12) for prompt in PROMPTS]
    assert [answers(model, [prompt])[0] for prompt in PROMPTS] == expected
    assert answers(model, PROMPTS) == expected
    assert len({tuple(answer) for answer in expected}) == len(PROMPTS)  # the comparison above is not of equal things


def test_pad_id_that_stands_in_the_prompt_is_still_read(model):
    prompt = [0, 5, 0, 9]
    expected = by_hand(model, prompt, 12)
    assert answers(model, [prompt, PROMPTS[2]])[0] == expected


def test_answer_ends_before_the_stop_id_in_each_row(model):
    free = answers(model, PROMPTS)
    stop = free[0][4]
    cut = [answer[: answer.index(stop)] if stop in answer else answer for answer in free]
    assert answers(model, PROMPTS, {stop}) == cut
    assert len(cut[0]) <= 4
    assert answers(model, PROMPTS[:1], {stop, free[0][0]}) == [[]]


def test_stream_gives_the_ids_of_generate_one_by_one(model):
    free = answers(model, PROMPTS)
    for prompt, answer in zip(PROMPTS, free, strict=True):
        assert list(stream(model, prompt, Sampling(max_new_tokens=12), set(), 0)) == answer
    stop = free[2][5]
    expected = free[2][: free[2].index(stop)]
    assert list(stream(model, PROMPTS[2], Sampling(max_new_tokens=12), {stop}, 0)) == expected


def test_stream_computes_in_the_callers_autocast(model):
    seen = []
    hook = model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        streamed = list(stream(model, PROMPTS[0], Sampling(max_new_tokens=12), set(), 0))
        assert streamed == answers(model, PROMPTS[:1])[0]
    hook.remove()
    assert set(seen) == {torch.bfloat16}


def test_closing_the_stream_ends_its_thread_and_gives_the_mode_back(model):
    model.train()
    tokens = stream(model, PROMPTS[0], Sampling(max_new_tokens=100_000), set(), 0)
    next(tokens)
    assert not model.training
    tokens.close()
    assert model.training
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ltune-stream")]


def test_a_failure_in_the_stream_is_raised_where_it_is_read(model):
    with pytest.raises(IndexError):
        list(stream(model, [5, 5000], Sampling(max_new_tokens=2), set(), 0))  # no such id in the embedding


def test_each_module_keeps_its_own_mode(model):
    model.train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    answers(model, PROMPTS)
    assert [module.training for module in model.modules()] == before


def test_cache_is_used_though_training_switched_it_off_and_stays_off(model):
    expected = answers(model, PROMPTS)
    lengths = []
    hook = model.model.embed_tokens.register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[1]))
    model.config.use_cache = False
    try:
        assert answers(model, PROMPTS) == expected
        assert model.config.use_cache is False
    finally:
        hook.remove()
        model.config.use_cache = True
    assert lengths == [8] + [1] * 11


def test_the_folders_generation_defaults_do_not_leak_in(model, capfd):
    from transformers import GenerationConfig

    expected = answers(model, PROMPTS)
    before = model.generation_config
    model.generation_config = theirs = GenerationConfig(
        do_sample=True,
        temperature=5.0,
        top_p=0.5,
        repetition_penalty=3.0,
        max_length=9,
        eos_token_id=expected[0][0],
        suppress_tokens=[expected[0][0]],
    )
    capfd.readouterr()
    assert answers(model, PROMPTS) == expected
    assert list(stream(model, PROMPTS[0], Sampling(max_new_tokens=12), set(), 0)) == expected[0]
    assert model.generation_config is theirs
    assert capfd.readouterr() == ("", "")
    model.generation_config = before


def test_sampling_follows_the_seed_and_its_knobs(model):
    def drawn(seed, **knobs):
        torch.manual_seed(seed)
        return answers(model, PROMPTS, temperature=1.5, **knobs)

    greedy = answers(model, PROMPTS)
    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert drawn(1, top_k=1) == greedy
    assert drawn(1, top_p=1e-6) == greedy


def test_an_answer_with_a_seed_does_not_depend_on_the_prompts_beside_it(model):
    def seeded(prompts, seeds, **knobs):
        sampling = Sampling(max_new_tokens=12, temperature=1.2, **knobs)
        return generate(model, prompts, sampling, stop_ids=set(), pad_id=0, seeds=seeds)

    seeds = [(7, number) for number in range(len(PROMPTS))]
    together = seeded(PROMPTS, seeds)
    assert [seeded([prompt], [seed])[0] for prompt, seed in zip(PROMPTS, seeds, strict=True)] == together
    assert seeded(PROMPTS, [(8, number) for number in range(len(PROMPTS))]) != together
    assert seeded(PROMPTS, seeds, top_k=1) == answers(model, PROMPTS)
    assert seeded(PROMPTS, seeds, repetition_penalty=100.0) != together


def test_the_stop_id_stays_if_asked_for(model):
    free = answers(model, PROMPTS)
    stop = free[0][4]
    kept = generate(model, PROMPTS, Sampling(max_new_tokens=12), stop_ids={stop}, pad_id=0, keep_stop=True)
    assert kept == [answer[: answer.index(stop) + 1] if stop in answer else answer for answer in free]
    assert kept[0][-1] == stop


def test_top_k_is_off_unless_asked_for():
    """transformers' own default of 50 would leave half of this vocabulary out."""
    flat = tiny_llama()
    torch.nn.init.zeros_(flat.lm_head.weight)  # every id equally likely
    torch.manual_seed(0)
    drawn = answers(flat, [[1]] * 8, temperature=1.0, max_new_tokens=100)
    assert len({token for answer in drawn for token in answer}) == 101


def test_repetition_penalty_applies_to_greedy(model):
    assert answers(model, PROMPTS, repetition_penalty=100.0) != answers(model, PROMPTS)


def test_an_adapter_takes_part_and_no_gradient_is_kept():
    from peft import LoraConfig, get_peft_model

    base = tiny_llama()
    plain = answers(base, PROMPTS)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    assert answers(adapted, PROMPTS) != plain
    assert answers(adapted, PROMPTS) == [by_hand(adapted, prompt, 12) for prompt in PROMPTS]
    assert list(stream(adapted, PROMPTS[0], Sampling(max_new_tokens=12), set(), 0)) == answers(adapted, PROMPTS[:1])[0]
    with adapted.disable_adapter():
        assert answers(adapted, PROMPTS) == plain
    assert all(parameter.grad is None for parameter in adapted.parameters())


def test_no_prompts_no_answers(model):
    assert answers(model, []) == []
