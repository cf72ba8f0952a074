"""The main job on a GPU: 4 bits, 16-bit precisions, both layouts, and the same bits after a stop."""

import hashlib
import os
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

OPTIONS = [
    "--data.datasets=[quickstart]", "--data.max_rows", 16, "--data.batch_size", 4, "--model.optimizer.lr", 1e-3,
    "--trainer.max_epochs", 6, "--trainer.max_steps", 12, "--trainer.accumulate_grad_batches", 2, "--trainer.log_every_n_steps", 1,
    "--trainer.accelerator", "gpu", "--trainer.devices", 1,
]  # fmt: skip


def fit(ltune, metrics, tmp_path: Path, run: str, *options: object) -> list[float]:
    done = ltune("fit", "--run", run, *OPTIONS, *options)
    assert done.returncode == 0, done.stderr
    return [line["train/loss"] for line in metrics(tmp_path / run)]


def test_16_bit_precisions_follow_32_bit_to_rounding(ltune, metrics, tmp_path):
    exact = fit(ltune, metrics, tmp_path, "exact", "--trainer.precision", "32-true")
    assert exact[-1] < exact[0]
    for precision in ("bf16-true", "bf16-mixed"):
        assert fit(ltune, metrics, tmp_path, precision, "--trainer.precision", precision) == pytest.approx(exact, rel=0.03)
    # fp16: the scaler may leave out a step or two at the beginning
    assert fit(ltune, metrics, tmp_path, "fp16", "--trainer.precision", "16-mixed")[:2] == pytest.approx(exact[:2], rel=0.03)


def test_flat_and_padded_agree(ltune, metrics, tmp_path):
    flat = fit(ltune, metrics, tmp_path, "flat", "--trainer.precision", "32-true")
    assert fit(ltune, metrics, tmp_path, "padded", "--trainer.precision", "32-true", "--data.layout", "padded") == pytest.approx(
        flat, rel=1e-3
    )


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("fast", ["true", "false"], ids=["the quick way", "the plain way"])
def test_a_stopped_run_ends_in_the_same_bits(ltune, metrics, tmp_path, fast, dropout):
    options = ["--trainer.precision", "bf16-true", "--trainer.deterministic", "true", "--model.adapter.dropout", dropout]
    options += ["--model.fast", fast]
    environment = {
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    whole = ltune("fit", "--run", "whole", *OPTIONS, *options, env=environment)
    assert whole.returncode == 0, whole.stderr
    callback = ["--trainer.callbacks+=stop_after.StopAfter", "--trainer.callbacks.step=5"]
    stopped = ltune("fit", "--run", "stopped", *OPTIONS, *options, *callback, env=environment)
    assert stopped.returncode == 130, stopped.stderr
    again = ltune("fit", "--run", "stopped", *OPTIONS, *options, env=environment)
    assert again.returncode == 0, again.stderr
    hashes = {
        hashlib.sha256((tmp_path / run / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest() for run in ("whole", "stopped")
    }
    assert len(hashes) == 1
