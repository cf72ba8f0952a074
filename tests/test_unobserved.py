"""Lightning's books, made cheap: what is asked of them stays true."""

from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.profilers import SimpleProfiler
from torch.utils.data import DataLoader

from ltune.cli import main
from ltune.unobserved import Module, Unhooked, Unprofiled

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


def fit(folder, profiler, callbacks=()):
    torch.manual_seed(0)
    module = Tiny()
    trainer = Trainer(
        default_root_dir=folder, accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, profiler=profiler, callbacks=list(callbacks),
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


STEP = [  # in their order
    "on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step",
    "on_train_batch_end",
]  # fmt: skip


def test_a_callback_is_passed_over_where_it_has_no_hook_of_its_own(tmp_path):
    seen = []

    def telling(name):
        return lambda self, *arguments: seen.append(name)

    class Some(Unhooked, Callback):
        on_before_backward = telling("on_before_backward")
        on_train_batch_end = telling("on_train_batch_end")
        on_train_end = telling("on_train_end")

    profiler = SimpleProfiler()
    fit(tmp_path, profiler, [Some()])
    assert seen == ["on_before_backward", "on_train_batch_end"] * 4 + ["on_train_end"]
    entered = {name.rpartition(".")[2] for name in profiler.recorded_durations if "Some" in name}
    assert entered.intersection(STEP) == {"on_before_backward", "on_train_batch_end"}
    assert "on_train_epoch_start" in entered  # others cost once an epoch


def test_each_hook_of_a_step_may_be_left_out(tmp_path):
    profiler = SimpleProfiler()
    fit(tmp_path, profiler, [Callback()])
    of_steps = {name.rpartition(".")[2] for name, took in profiler.recorded_durations.items() if "]Callback." in name and len(took) == 4}
    assert of_steps == set(STEP) == {name for name in vars(Unhooked) if name.startswith("on_")}
    of_module = {name.rpartition(".")[2] for name in profiler.recorded_durations if "]Tiny." in name}
    assert of_module.intersection(STEP) == {"on_train_batch_start"}, "the one it has"


def test_a_step_goes_backward_once_for_each_of_its_micro_batches(tmp_path, monkeypatch):
    backward, went = torch.Tensor.backward, []

    def count(loss, *arguments, **options):
        went.append(loss)
        backward(loss, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "backward", count)
    step = ["--data.batch_size", "1", "--trainer.accumulate_grad_batches", "3"]
    assert main(["fit", "--config", str(QUICKSTART), "--run", str(tmp_path / "run"), "--trainer.max_steps", "2", *step]) == 0
    assert len(went) == 2 * 3
