"""Dropout in the adapter on a GPU: the compiled kernels draw the masks of the formula, graphs replay them, and a run learns as the plain
way's does."""

from pathlib import Path

import pytest
import torch

from ltune.models.fast import dropout
from ltune.models.fast.choice import least
from ltune.models.fast.memory import Setting
from ltune.models.fast.model import FastModel
from ltune.models.fast.room import roomy
from tests.gpu.test_fast_gpu import gradients, whole
from tests.models.fast import test_dropout as cpu
from tests.models.fast import test_model as case

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("tokens", "width", "ranks", "layers"), [(1216, 4096, 24, 3), (70, 14336, 8, 1), (7, 72, 3, 3), (300, 640, 200, 2), (4097, 4096, 16, 2)]
)
def test_kernels_are_the_formula(dtype, tokens, width, ranks, layers):
    torch.manual_seed(0)
    x = roomy(tokens, width, torch.empty(0, dtype=dtype)).copy_(torch.randn(tokens, width))
    a, dz, dx = (torch.randn(shape).to(dtype) for shape in ((ranks, width), (tokens, ranks), (tokens, width)))
    owners, seed = (torch.arange(ranks) * layers // ranks).int(), torch.tensor([2**61 + 2**33 + 5])

    def computed(device, dtype):
        mask = dropout.Mask(dropout.Draw(seed.to(device), 1000), 7, 0.3, owners.to(device), layers)
        z = torch.full((tokens, ranks + 5), 9, dtype=dtype, device=device)
        inputs = [one.to(device, dtype) for one in (x, a, dz, dx)]
        dropout.down(inputs[0], inputs[1], mask, z)
        return z, dropout.gradient(inputs[2], inputs[0], mask), dropout.add_up(inputs[3], inputs[2], inputs[1], mask)

    for found, again, wanted in zip(computed("cuda", dtype), computed("cuda", dtype), computed("cpu", torch.float32), strict=True):
        assert torch.equal(found, again)
        assert (found.cpu().float() - wanted).norm() <= 0.005 * wanted.norm()


@pytest.mark.parametrize("setting", [Setting(tokens=1000), Setting(tokens=1000, cached=False), least(1000)], ids=["held", "not", "least"])
def test_the_same_seed_gives_the_same_bits_and_another_does_not(monkeypatch, setting):
    on_cpu = case.batch()
    monkeypatch.setattr(case, "batch", lambda: tuple(tensor.cuda() for tensor in on_cpu))
    model, causal = (one.cuda() for one in cpu.build("llama", case.build_quantized, dtype=torch.bfloat16))
    fast = FastModel(causal, torch.bfloat16)
    fast.adopt(setting)
    runs = []
    for seed in (1, 1, 1, 2, 1):  # where graphs are: kernel by kernel, captured and replayed, replayed
        losses = cpu.quick(fast, seed)
        runs.append(torch.cat([losses.detach(), whole(gradients(losses, model))]))
    assert all(torch.equal(runs[0], runs[number]) for number in (1, 2, 4))
    assert not torch.allclose(runs[0], runs[3])
    assert fast.graphs is None or len(fast.graphs.captured) == 1


def test_a_run_learns_as_the_plain_way_does(ltune, metrics, tmp_path):
    quickstart = Path(__file__).parents[2] / "configs/quickstart.yaml"
    shared = ["--config", quickstart, "--trainer.accelerator", "gpu", "--trainer.precision", "bf16-true"]
    shared += ["--model.adapter", "LoRA", "--model.adapter.dropout", "0.1", "--trainer.log_every_n_steps", "1"]
    losses = {}
    for name, fast in (("quick", "true"), ("plain", "false")):
        done = ltune("fit", *shared, "--run", name, "--model.fast", fast)
        assert done.returncode == 0, done.stderr
        assert ("memory: " in done.stderr) is (fast == "true")
        losses[name] = torch.tensor([line["train/loss"] for line in metrics(tmp_path / name) if "train/loss" in line])
    parts = [slice(0, 40), slice(-60, None)]
    quick, plain = ([float(losses[name][part].mean()) for part in parts] for name in ("quick", "plain"))
    assert quick == pytest.approx(plain, rel=0.15)
