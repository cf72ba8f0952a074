"""Methods whose loss is one per token on a GPU: the smoothing kernel, and each method's run the quick way and the plain way."""

import numpy
import pytest
import torch

from ltune.models.fast.loss import cross_entropy_

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DISTILL = ["--model.objective", "Distill", "--model.objective.sft_weight", 0.5]
METHODS = {
    "smoothing": ["--model.objective.label_smoothing", 0.1],
    "dft": ["--model.objective.dft", "true"],
    "noise": ["--model.objective.neftune_alpha", 5],
    "weights": ["--data.train_on", "all", "--data.weights", "{user: 0.1, template: 0}"],
    "eaft": ["--model.objective", "EAFT"],
    "distill": [*DISTILL, "--model.objective.teacher", "tiny"],
    "asft": [*DISTILL, "--model.objective.weight", 0.1, "--model.objective.dft", "true"],
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_smoothing_kernel(dtype, smoothing):
    torch.manual_seed(0)
    logits = (3 * torch.randn(64, 128_256, device="cuda")).to(dtype).requires_grad_()
    targets = torch.randint(128_256, (64,), device="cuda")
    expected = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none", label_smoothing=smoothing)
    (gradient,) = torch.autograd.grad(expected.sum(), logits)
    written = logits.detach().clone()
    torch.testing.assert_close(cross_entropy_(written, targets, True, smoothing), expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(written, gradient, rtol=2e-2 if dtype is torch.bfloat16 else 1e-4, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_12_steps_is_as_near_to_float32_as_the_plain_way(ltune, tmp_path, metrics, rows, method):
    shared = ["--data.datasets=[rows.jsonl]", "--trainer.max_steps=12", "--trainer.max_epochs=20", "--trainer.devices=1"]
    shared += ["--trainer.log_every_n_steps=1", "--model.optimizer.lr=1e-3"]
    losses = {}
    for name, fast, precision in (("quick", "true", "bf16-true"), ("plain", "false", "bf16-true"), ("exact", "false", "32-true")):
        done = ltune("fit", "--run", name, "--model.fast", fast, "--trainer.precision", precision, *shared, *METHODS[method])
        assert done.returncode == 0, done.stderr
        assert ("memory: " in done.stderr) is (fast == "true")
        losses[name] = numpy.array([line["train/loss"] for line in metrics(tmp_path / name) if "train/loss" in line])
    plain, quick = (abs(losses[name] - losses["exact"]) for name in ("plain", "quick"))
    print(method, "plain", plain.round(4), "quick", quick.round(4))
    assert quick.max() <= max(0.03, 1.5 * plain.max())
