"""Training the quick way gives the plain way's run, and goes on when memory runs out. On the CPU, where it is otherwise left out."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from ltune import cli
from ltune.models.fast import build
from ltune.models.fast.model import FastModel
from ltune.objectives import SFT

CONFIGURATION = {
    "model": {
        "model": "tiny",
        "adapter": {"class_path": "LoRA", "init_args": {"rank": 4, "alpha": 6}},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}},
        "lora_plus_ratio": 4,
        "memory": "speed",
    },
    "data": {"datasets": ["rows.jsonl"], "batch_size": 2, "max_length": 128},
    "checkpoint": {"every": 2},
    "trainer": {
        "max_epochs": 2, "accumulate_grad_batches": 3, "accelerator": "cpu", "precision": "32-true", "log_every_n_steps": 1,
        "enable_progress_bar": False, "gradient_clip_val": 1.0,
    },
}  # fmt: skip


@pytest.fixture
def fit(rows, tmp_path, monkeypatch):
    """Run `ltune fit` in this process, the quick way allowed on the CPU; the losses of its steps."""
    monkeypatch.setattr(build, "_require_device", lambda *arguments: None)
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(yaml.safe_dump(CONFIGURATION))

    def run(name: str, *options: str) -> list[float]:
        assert cli.main(["fit", "--config", "config.yaml", "--run", name, *options]) == 0
        return [json.loads(line)["train/loss"] for line in (Path(name) / "metrics.jsonl").read_text().splitlines()]

    return run


@pytest.mark.parametrize("quantize", ["null", "NF4"])
def test_both_ways_are_the_same_run(fit, quantize):
    quick = fit("quick", "--model.quantize", quantize)
    plain = fit("plain", "--model.quantize", quantize, "--model.fast", "false")
    assert quick == pytest.approx(plain, abs=1e-5)
    assert len(quick) == 8
    setting = json.loads(Path("quick/memory.json").read_text())
    assert setting["cached"] is (quantize == "NF4")
    assert not Path("plain/memory.json").exists()


def test_a_fused_optimizer_trains_the_same_run(fit):
    """As on CUDA, where fusing is the default: its step writes the weights behind torch's back."""
    fused = "--model.optimizer.fused=true"
    assert fit("quick", fused) == pytest.approx(fit("plain", fused, "--model.fast", "false"), abs=1e-5)


def test_the_largest_step_is_tried_in_the_precision_of_all(fit, monkeypatch):
    """Transformers' layers would keep half as much again without (W2 plain, an H200: 86.4 instead of 61.8 GiB)."""
    loss, rounded = SFT.loss, []

    def noting(self, policy, batch):
        rounded.append(torch.is_autocast_enabled("cpu"))
        return loss(self, policy, batch)

    monkeypatch.setattr(SFT, "loss", noting)
    fit("quick", "--trainer.precision", "bf16-true", "--trainer.max_steps", "1", "--trainer.accumulate_grad_batches", "1")
    assert rounded == [True, True]  # tried, and trained


def test_running_out_of_memory_halves_the_micro_batch_and_changes_nothing_else(fit, monkeypatch, capsys):
    whole = fit("whole")
    compute, sizes = FastModel.token_losses, []

    def short_of_memory(self, input_ids, *rest):
        if len(input_ids) > 70:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        sizes.append(len(input_ids))
        return compute(self, input_ids, *rest)

    monkeypatch.setattr(FastModel, "token_losses", short_of_memory)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert fit("halved") == pytest.approx(whole, abs=1e-5)
    assert max(sizes) <= 70
    assert "the GPU's memory was full; going on with micro-batches of up to" in capsys.readouterr().err
    before, after = (json.loads(Path(run, "memory.json").read_text())["tokens"] for run in ("whole", "halved"))
    assert after <= before / 2  # of the rows; fewer are computed, as what rows share is computed once


def test_what_cannot_fit_ends_with_what_to_do(fit, monkeypatch, capsys):
    def full(self, *arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(FastModel, "token_losses", full)
    monkeypatch.setattr(FastModel, "adopt", lambda self, setting: None)
    assert cli.main(["fit", "--config", "config.yaml", "--run", "full"]) == 4
    said = capsys.readouterr().err
    assert "nothing is left to give up" in said
    assert len(said[said.index("error:") :].splitlines()) <= 5
