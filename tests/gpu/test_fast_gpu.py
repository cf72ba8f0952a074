"""The quick way on a GPU: its kernels against the formulas, its graphs against plain launches, its run against the plain way's."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from ltune.models.fast import attention, flash_attention, lowrank_backward
from ltune.models.fast.choice import least
from ltune.models.fast.cudnn_attention import LONG
from ltune.models.fast.memory import Setting
from ltune.models.fast.model import FastModel
from ltune.models.fast.room import ROOM
from ltune.models.fast.rotary import Turn
from ltune.models.fast.tiles import Lent, Rows
from ltune.objectives.policy import Policy
from tests.models.fast import test_model as cpu

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(autouse=True)
def _on_the_gpu(monkeypatch):
    on_cpu = cpu.batch()
    monkeypatch.setattr(cpu, "batch", lambda: tuple(tensor.cuda() for tensor in on_cpu))


def build(family, adapter="lora", dtype=torch.float32):
    """A small model whose frozen weights are in ``dtype``."""
    model, causal = cpu.build(family, adapter)
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.to(dtype)
    return model.cuda(), causal


def gradients(losses, model):
    model.zero_grad()
    (losses * torch.linspace(0.5, 1.5, len(losses), device="cuda")).sum().backward()
    return {name: parameter.grad.float().clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


def whole(tensors):
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


@pytest.mark.parametrize("family", cpu.FAMILIES)
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_kernels_in_float32(family, adapter):
    model, causal = build(family, adapter)
    expected, got = cpu.plain(causal), cpu.quick(FastModel(causal, torch.float32))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    wanted, found = whole(gradients(expected, model)), whole(gradients(got, model))
    assert (found - wanted).norm() <= 1e-4 * wanted.norm()


@pytest.mark.parametrize("family", cpu.FAMILIES)
def test_bfloat16_is_as_near_to_float32_as_the_plain_way(family):
    model, causal = build(family)
    exact = whole(gradients(cpu.plain(causal), model))
    model, causal = build(family, dtype=torch.bfloat16)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        losses = cpu.plain(causal)
    plain = whole(gradients(losses, model))
    quick_losses = cpu.quick(FastModel(causal, torch.bfloat16))
    assert (quick_losses - losses).abs().max() <= 0.02
    quick = whole(gradients(quick_losses, model))
    assert (quick - exact).norm() <= 2 * (plain - exact).norm()


def test_a_replayed_graph_gives_the_bits_of_plain_launches():
    model, causal = build("llama", dtype=torch.bfloat16)
    fast = FastModel(causal, torch.bfloat16)
    fast.adopt(Setting(tokens=1000))
    assert fast.graphs is not None
    runs = []
    for _ in range(4):  # kernel by kernel, captured and replayed, replayed twice
        losses = cpu.quick(fast)
        runs.append((losses.detach().clone(), whole(gradients(losses, model))))
    assert len(fast.graphs.captured) == 1
    for losses, gradient in runs[1:]:
        assert torch.equal(losses, runs[0][0])
        assert torch.equal(gradient, runs[0][1])


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_what_is_computed_once_is_as_near_to_float32(family):
    model, causal = build(family)
    batch = cpu.answers("cuda")
    exact = whole(gradients(Policy(model, causal).token_losses(batch), model))
    model, causal = build(family, dtype=torch.bfloat16)
    fast = FastModel(causal, torch.bfloat16)
    policy, each = Policy(model, causal, fast), replace(batch, compact=None)
    assert fast.lends
    apart = whole(gradients(policy.token_losses(each), model))
    fast.adopt(Setting(tokens=1000))
    runs = []
    for _ in range(4):  # kernel by kernel, captured and replayed, replayed twice
        losses = policy.token_losses(batch)
        runs.append((losses.detach().clone(), whole(gradients(losses, model))))
    assert (runs[0][1] - exact).norm() <= 1.5 * (apart - exact).norm()
    assert len(fast.graphs.captured) == 1
    assert all(torch.equal(one, other) for run in runs[1:] for one, other in zip(run, runs[0], strict=True))


@pytest.mark.parametrize(("family", "rank"), [("llama", 3), ("qwen3", 3), ("gemma3_text", 3), ("llama", 8), ("llama", 16), ("llama", 32)])
@pytest.mark.parametrize("worth", [0, lowrank_backward.WORTH], ids=["one pass for dz and dB", "two"])
def test_weights_that_lie_beside_the_adapter_are_as_near_to_float32(monkeypatch, family, rank, worth):
    monkeypatch.setattr(lowrank_backward, "WORTH", worth)
    model, causal = (one.cuda() for one in cpu.build_quantized(family, torch.bfloat16, rank=rank))
    exact = whole(gradients(cpu.quick(FastModel(causal, torch.float32)), model))
    fast = FastModel(causal, torch.bfloat16)
    apart = whole(gradients(cpu.quick(fast), model))
    fast.adopt(Setting(tokens=1000))
    assert all(projection.joined == (projection.low.ranks <= ROOM) for projection in fast.projections)
    runs = []
    for _ in range(4):  # kernel by kernel, captured and replayed, replayed twice
        losses = cpu.quick(fast)
        runs.append((losses.detach().clone(), whole(gradients(losses, model))))
    assert (runs[0][1] - exact).norm() <= 1.5 * (apart - exact).norm()
    assert all(torch.equal(one, other) for run in runs[1:] for one, other in zip(run, runs[0], strict=True))


def test_gradients_add_up_over_replays():
    model, causal = build("llama", dtype=torch.bfloat16)
    fast = FastModel(causal, torch.bfloat16)
    fast.adopt(Setting(tokens=1000))
    once = [whole(gradients(cpu.quick(fast), model)) for _ in range(3)][-1]
    model.zero_grad()
    for _ in range(3):
        losses = cpu.quick(fast)
        (losses * torch.linspace(0.5, 1.5, len(losses), device="cuda")).sum().backward()
    added = whole({name: parameter.grad.float() for name, parameter in model.named_parameters() if parameter.requires_grad})
    torch.testing.assert_close(added, 3 * once, rtol=1e-5, atol=1e-6)


def test_inputs_kept_on_the_host_change_nothing():
    model, causal = build("qwen3", dtype=torch.bfloat16)
    fast = FastModel(causal, torch.bfloat16)
    setting = least(1000)
    fast.keep, fast.chunk, fast.head_chunk = setting.keep, setting.chunk, setting.head_chunk
    here = [whole(gradients(cpu.quick(fast), model)) for _ in range(2)]
    fast.adopt(replace(setting, tokens=2000))
    fast.adopt(setting)  # again, as after memory ran out
    there = [whole(gradients(cpu.quick(fast), model)) for _ in range(3)]
    assert fast.host_embeddings is not None
    assert fast.decoder.embed_tokens.weight.untyped_storage().nbytes() == 0  # nothing is left on the GPU
    assert all(torch.equal(one, here[0]) for one in (*here, *there))


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def attended(lengths, width, dtype, lent=None, window=None, loans=()):
    """o and the gradients of q, k and v, side by side, of 8 heads in two groups."""
    torch.manual_seed(0)
    tokens = sum(lengths)
    qkv, do = torch.randn(tokens, 12, width).to("cuda", torch.bfloat16).to(dtype), torch.randn(tokens, 8, width).to("cuda", torch.bfloat16)
    starts = torch.tensor([0, *lengths], device="cuda").cumsum(0).to(torch.int32)
    angle = torch.rand(tokens, width // 2, device="cuda")
    split, rows = qkv.split([8, 2, 2], 1), Rows(starts, max(lengths), lent, tuple(lengths), loans)
    saved = attention.attend(*split, rows, width**-0.5, window)
    turn = Turn(angle.cos().to(dtype), angle.sin().to(dtype))
    return saved[0], attention.attend_backward(do.to(dtype), *split, saved, rows, width**-0.5, window, turn)


@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("window", [None, 700])
@pytest.mark.parametrize("borrows", [False, True])
def test_long_rows_are_as_near_to_float32_as_rounding(width, window, borrows):
    lengths = (2500, 900, 2101)
    on_gpu = partial(torch.tensor, dtype=torch.int32, device="cuda")
    lent = Lent(on_gpu([0, 0, 0, 0]), on_gpu([0, 0, 1500, 3000]), on_gpu([0, 2, 0, 0]), 3000) if borrows else None
    exact = attended(lengths, width, torch.float32, lent, window)
    found = attended(lengths, width, torch.bfloat16, lent, window)
    for one, other in zip(found, exact, strict=True):
        assert (one.flatten() - other.flatten()).float().norm() < 0.01 * other.float().norm()
    assert all(torch.equal(one, other) for one, other in zip(found, attended(lengths, width, torch.bfloat16, lent, window), strict=True))


@pytest.mark.parametrize("window", [None, 700])
@pytest.mark.parametrize("width", [64, 96, 128, 256])
@pytest.mark.parametrize("lengths", [(3000,), (300, 5, 1024, 5001, 900)], ids=["alone", "among others"])
def test_flash_attention_is_as_near_to_float32_as_rounding_with_the_same_bits_each_time(lengths, width, window):
    if not flash_attention.installed():
        pytest.skip("needs flash-attn-4, and a card that it serves")
    assert flash_attention._proved(4, width, torch.bfloat16, windowed=window is not None)
    found, exact = attended(lengths, width, torch.bfloat16, None, window), attended(lengths, width, torch.float32, None, window)
    for one, other in zip(found, exact, strict=True):
        assert (one.flatten() - other.flatten()).float().norm() < 0.01 * other.float().norm()
    assert all(torch.equal(one, other) for one, other in zip(found, attended(lengths, width, torch.bfloat16, None, window), strict=True))


@pytest.mark.parametrize("width", [64, 96, 128, 256])
def test_flash_attention_of_rows_that_borrow_is_as_near_to_float32_with_the_same_bits_each_time(width):
    if not flash_attention.installed():
        pytest.skip("needs flash-attn-4, and a card that it serves")
    assert flash_attention._proved(4, width, torch.bfloat16, windowed=False, lent=True)
    lengths, on_gpu = (3000, 350, 20, 1700, 4500, 301), partial(torch.tensor, dtype=torch.int32, device="cuda")
    lent = Lent(on_gpu([0, 0, 0, 0, 0, 5070, 0]), on_gpu([0, 0, 3000, 6000, 6000, 6000, 10500]), on_gpu([0, 2, 0, 0, 0, 1, 0]), 10500)
    loans = ((0, 3000, 3370), (5070, 9570, 9871))
    exact = attended(lengths, width, torch.float32, lent)
    found, again = (attended(lengths, width, torch.bfloat16, lent, loans=loans) for _ in range(2))
    for one, other in zip(found, exact, strict=True):
        assert (one.flatten() - other.flatten()).float().norm() < 0.01 * other.float().norm()
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


@pytest.mark.parametrize("lengths", [(2 * LONG,), (300, 5, LONG, 5001, 900, LONG + 1)], ids=["alone", "among others"])
@pytest.mark.parametrize("width", [64, 96, 128])
def test_gradients_of_long_rows_are_the_same_bits_where_that_is_asked_for(request, lengths, width):
    quickest, exact = attended(lengths, width, torch.bfloat16), attended(lengths, width, torch.float32)
    for one, other in zip(quickest, exact, strict=True):
        assert (one.flatten() - other.flatten()).float().norm() < 0.01 * other.float().norm()
    request.getfixturevalue("deterministic")
    first, second = attended(lengths, width, torch.bfloat16), attended(lengths, width, torch.bfloat16)
    for one, other, quick in zip(first, second, quickest, strict=True):
        assert torch.equal(one, other)
        assert (one - quick).float().norm() < 0.01 * one.float().norm()


@pytest.mark.parametrize("options", [[], ["--data.tokens_per_batch", "300"], ["--model.memory", "least"]], ids=["rows", "tokens", "least"])
def test_a_run_of_20_steps_is_as_near_to_float32_as_the_plain_way(ltune, tmp_path, metrics, rows, options):
    shared = ["--data.datasets=[rows.jsonl]", "--data.template=chatml", "--trainer.max_steps=20"]
    shared += ["--trainer.max_epochs=20", "--trainer.log_every_n_steps=1", "--model.optimizer.lr=1e-3", *options]
    losses = {}
    for name, way, precision in (("quick", "true", "bf16-true"), ("plain", "false", "bf16-true"), ("exact", "false", "32-true")):
        kept = [option for option in shared if way == "true" or option not in ("--model.memory", "least")]
        done = ltune("fit", "--run", name, "--model.fast", way, "--trainer.precision", precision, *kept)
        assert done.returncode == 0, done.stderr
        assert ("memory: " in done.stderr) is (way == "true")
        losses[name] = torch.tensor([line["train/loss"] for line in metrics(tmp_path / name) if "train/loss" in line])
    assert losses["exact"][-1] < 0.7 * losses["exact"][0]  # it learns, and so must the others
    assert (losses["quick"] - losses["exact"]).abs().max() <= 2 * (losses["plain"] - losses["exact"]).abs().max()
    assert json.loads(Path(tmp_path / "quick" / "memory.json").read_text())["offload"] is ("least" in options)
