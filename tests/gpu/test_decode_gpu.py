"""Generation on a GPU: the kernel against the formula, graphs against single launches, and `ltune predict`."""

import json
import re

import pytest
import torch

from ltune.generation.continuous import answer_all
from ltune.generation.sampling import Sampling
from ltune.models.fast import cache as caching
from ltune.models.fast.cache import Places, attend_newest
from ltune.models.fast.decode import FastDecoder
from ltune.models.fast.model import FastModel

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def model(heads: int = 8, key_heads: int = 2):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=500, hidden_size=512, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=heads,
        num_key_value_heads=key_heads, initializer_range=0.1,
    )  # fmt: skip
    return LlamaForCausalLM(config).to("cuda", torch.bfloat16)


def prompts(count: int) -> list[list[int]]:
    torch.manual_seed(1)
    return [torch.randint(500, (5 + 7 * number % 60,)).tolist() for number in range(count)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "key_heads", "width"), [(8, 8, 64), (8, 2, 128), (4, 1, 256)])
@pytest.mark.parametrize("window", [None, 4])
def test_the_kernel_computes_the_formula(dtype, heads, key_heads, width, window):
    """Rows in any order and with gaps between them; what lies there is no number."""
    torch.manual_seed(0)
    starts, lengths = torch.tensor([700, 0, 300, 290], device="cuda"), torch.tensor([200, 250, 129, 0], device="cuda")
    cache = torch.full((1000, 2 * key_heads, width), torch.nan, dtype=dtype, device="cuda")
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        cache[start : start + length + 1] = torch.randn(length + 1, 2 * key_heads, width, device="cuda").to(dtype)
    q = torch.randn(4, heads, width, device="cuda").to(dtype)
    places = Places.of(starts, lengths, torch.arange(5, dtype=torch.int32, device="cuda"), 400)
    found = attend_newest(q, cache, places, width**-0.5, window)
    expected = caching._formula(q, *cache.chunk(2, 1), places, width**-0.5, window)
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)


def test_graphs_give_what_single_launches_give():
    fast = FastModel(model(), torch.bfloat16)
    asked = prompts(40)
    found = {}
    for graphs in (False, True):
        decoder = FastDecoder(fast, most_tokens=1500, graphs=graphs)
        recorded = []
        close = decoder.close

        def noted(decoder=decoder, recorded=recorded, close=close):
            recorded += [decoder.graphs.recorded, decoder.graphs.broken] if decoder.graphs else []
            close()

        decoder.close = noted
        found[graphs] = answer_all(decoder, asked, Sampling(max_new_tokens=20), stop_ids={1, 2, 3})
        if graphs:
            assert recorded[1] is False
            assert len(recorded[0]) >= 2  # several sizes
    same = sum(one == other for one, other in zip(found[False], found[True], strict=True))
    assert same >= 36  # padded rows round differently


def test_a_prompt_read_at_once_or_token_by_token_has_the_same_logits():
    fast = FastModel(model(), torch.bfloat16)
    prompt = prompts(9)[8]
    assert len(prompt) == 61
    decoder = FastDecoder(fast)
    decoder.open(200, 100, 1)
    at_once = decoder.prefill([prompt], [0]).clone()
    decoder.prefill([prompt[:1]], [100])
    for place in range(1, len(prompt)):  # the first plainly, the second recorded, the others replayed
        one_by_one = decoder.step([prompt[place]], [100], [place])
    decoder.close()
    assert (at_once - one_by_one).norm() < 0.03 * at_once.norm()


@pytest.mark.parametrize("quantize", ["NF4", "null"])
def test_predict(ltune, tmp_path, quantize):
    options = ["--data.datasets=[quickstart]", "--data.max_rows", 40, "--trainer.accelerator", "gpu", "--trainer.devices", 1]
    options += ["--trainer.precision", "bf16-true", "--model.quantize", quantize, "--model.sampling.max_new_tokens", 16]
    answers = {}
    for fast in ("true", "false"):
        done = ltune("predict", "--run", fast, *options, "--model.fast", fast)
        assert done.returncode == 0, done.stderr
        assert re.search(r"generated \d+ tokens", done.stderr)
        assert "without CUDA graphs" not in done.stderr
        answers[fast] = [json.loads(line) for line in (tmp_path / fast / "predictions.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in answers["true"]] == [line["prompt"] for line in answers["false"]]
    same = sum(one["predict"] == other["predict"] for one, other in zip(answers["true"], answers["false"], strict=True))
    assert same >= len(answers["true"]) // 2  # rounding turns some
