"""Lightning's books, made cheap: what is asked of them stays true."""

from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.profilers import SimpleProfiler
from torch.utils.data import DataLoader

from ltune.cli import main
from ltune.unobserved import Module, Unprofiled

QUICKSTART = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"


class Tiny(Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.hooks = []

    def on_train_batch_start(self, batch, batch_idx):
        self.hooks.append(self._current_fx_name)
        self.log("seen", float(batch_idx))  # Lightning asks by the name whether that is allowed here

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        """Lightning's turn comes after training_step, which has gradients by then."""

    def training_step(self, batch, _):
        self.zero_grad()
        loss = self.layer(batch).mean()
        if len(self.hooks) % 2:
            return loss
        loss.backward()
        return loss.detach()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder, profiler):
    torch.manual_seed(0)
    module = Tiny()
    trainer = Trainer(
        default_root_dir=folder, accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, profiler=profiler,
    )  # fmt: skip
    trainer.fit(module, DataLoader(torch.ones(4, 2)))
    return module


def test_a_loss_that_has_been_seen_to_adds_nothing_and_others_count(tmp_path):
    module = fit(tmp_path, Unprofiled())
    plain = torch.nn.Linear(2, 1)
    torch.manual_seed(0)
    plain.reset_parameters()
    for _ in range(4):
        plain.zero_grad()
        plain(torch.ones(1, 2)).mean().backward()
        torch.optim.SGD(plain.parameters(), lr=0.1).step()
    assert torch.equal(module.layer.weight, plain.weight)
    assert module.hooks == ["on_train_batch_start"] * 4
    assert "layer.weight" in module.state_dict()


def test_a_profiler_that_is_asked_for_times_the_hooks(tmp_path):
    profiler = SimpleProfiler()
    fit(tmp_path, profiler)
    assert any("training_step" in name for name in profiler.recorded_durations)


def test_a_step_goes_backward_once_for_each_of_its_micro_batches(tmp_path, monkeypatch):
    backward, went = torch.Tensor.backward, []

    def count(loss, *arguments, **options):
        went.append(loss)
        backward(loss, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "backward", count)
    step = ["--data.batch_size", "1", "--trainer.accumulate_grad_batches", "3"]
    assert main(["fit", "--config", str(QUICKSTART), "--run", str(tmp_path / "run"), "--trainer.max_steps", "2", *step]) == 0
    assert len(went) == 2 * 3
